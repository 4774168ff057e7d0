"""The study's config: names, grid, exceptions, mistakes, and the identity of a queued cell."""

import contextlib
import copy
import json
import pathlib

import pytest
from ml_collections import ConfigDict

from configs import (
    base,
    degradation_cifar10,
    degradation_digits,
    digits,
    rescues_digits,
    saved,
    shortcuts_cifar10,
)
from experiments.study import grid
from resnet_jax import settings
from resnet_jax.errors import UserError
from resnet_jax.resolve import resolve
from resnet_jax.runs import identity, reader, storage
from resnet_jax.runs.writer import RunFolder


def make(grid=None, exceptions=None, **base):
    config = ConfigDict()
    config.base = digits.get_config()
    config.base.update(base)
    config.grid = ConfigDict(grid or {})
    config.exceptions = ConfigDict(exceptions or {})
    return config


def names(config):
    return [cell.name for cell in grid.cells(config)]


def by_name(config):
    return {cell.name: cell for cell in grid.cells(config)}


def refusal(config):
    with pytest.raises(UserError) as caught:
        grid.cells(config)
    sentence = str(caught.value)
    assert "\n" not in sentence
    assert sentence.endswith(".")
    return sentence


def test_cells_are_named_by_what_they_are():
    assert names(make({"model": {"depth": (20, 56), "shortcut": ("none", "A", "B")}})) == [
        "plain-20", "resnet-20-A", "resnet-20-B", "plain-56", "resnet-56-A", "resnet-56-B",
    ]  # fmt: skip


def test_further_axes_stand_in_the_name_and_in_the_config():
    grid = {
        "model": {"shortcut": ("none",)},
        "schedule": {"rate": (0.1, 1e-3)},
        "optimizer": {"nesterov": (False, True)},
    }
    cells = by_name(make(grid))
    assert list(cells) == [
        f"plain-20-nesterov={n}-rate={r}" for n in (False, True) for r in ("0.1", "0.001")
    ]
    for name, cell in cells.items():
        assert cell.config.schedule.rate == (0.001 if "0.001" in name else 0.1)
        assert cell.config.optimizer.nesterov == ("True" in name)


def test_variants_of_the_network_stand_in_the_name():
    grid = {"model": {"se_reduction": (0, 16), "shortcut_downsampling": ("stride", "mean")}}
    assert names(make(grid)) == [
        f"resnet-20-A-se_reduction={r}-shortcut_downsampling={d}"
        for r in (0, 16) for d in ("stride", "mean")
    ]  # fmt: skip


def test_axes_that_end_in_the_same_word_get_their_full_keys():
    grid = {"optimizer": {"name": ("sgd", "adam")}, "schedule": {"name": ("constant",)}}
    assert names(make(grid)) == [
        "resnet-20-A-optimizer.name=sgd-schedule.name=constant",
        "resnet-20-A-optimizer.name=adam-schedule.name=constant",
    ]


def test_names_are_safe_as_folders():
    grid = {"data": {"dir": ("/a b/../c",)}, "schedule": {"boundaries": ((1.0, 2.5),)}}
    (name,) = names(make(grid))
    assert not set(name) & set("/ (),:")
    assert name.endswith("boundaries=1+2.5")


def test_an_empty_grid_is_the_base_alone():
    assert names(make()) == ["resnet-20-A"]


def test_base_settings_reach_every_cell_resolved():
    config = make({"model": {"depth": (8, 14)}}, replicates=3)
    config.base.steps, config.base.epochs = None, 2.0
    for cell in grid.cells(config):
        assert cell.config.replicates == 3
        assert cell.config.steps == round(2 * 1257 / 128)
        assert cell.config.model.num_classes == 10
    assert config.base.epochs == 2.0  # the study itself stays as it was


EXCEPTION = {
    "deep": {
        "when": {"model": {"depth": 56, "shortcut": ("A", "B")}},
        "set": {"schedule": {"warmup": "until_error", "warmup_rate": 0.005}},
    }
}


def test_an_exception_applies_only_to_its_cells():
    grid = {"model": {"depth": (20, 56), "shortcut": ("none", "A", "B", "C")}}
    for name, cell in by_name(make(grid, EXCEPTION)).items():
        expected = name in ("resnet-56-A", "resnet-56-B")
        assert cell.exceptions == (("deep",) if expected else ())
        assert cell.config.schedule.warmup == ("until_error" if expected else "none")
        assert cell.config.schedule.warmup_rate == (0.005 if expected else 0.01)


def test_only_resnet_110_of_the_papers_study_warms_up():
    warm = [c.name for c in grid.cells(degradation_cifar10.get_config())
            if c.config.schedule.warmup != "none"]  # fmt: skip
    assert warm == ["resnet-110-A"]


def test_the_studies_have_the_cells_they_describe():
    assert set(names(degradation_digits.get_config("one_rate"))) == {
        "plain-20", "resnet-20-A", "plain-56", "resnet-56-A",
    }  # fmt: skip
    assert set(names(degradation_cifar10.get_config())) == {
        name for d in (20, 32, 44, 56, 110) for name in (f"plain-{d}", f"resnet-{d}-A")
    }
    assert set(names(shortcuts_cifar10.get_config())) == {
        name for d in (20, 56) for name in (f"plain-{d}", *(f"resnet-{d}-{s}" for s in "ABC"))
    }
    replicates = [
        {c.config.replicates for c in grid.cells(s.get_config())}
        for s in (degradation_digits, degradation_cifar10, shortcuts_cifar10)
    ]
    assert replicates == [{10}, {5}, {5}]


def test_a_variant_is_a_cell_and_two_with_the_same_settings_are_refused():
    variant = {"when": {"variant": "no_norm"}, "set": {"model": {"norm": "none"}}}
    study = make({"variant": ("base", "no_norm")}, {"no_norm": variant})
    cells = by_name(study)
    assert list(cells) == ["resnet-20-A-variant=base", "resnet-20-A-variant=no_norm"]
    assert [cell.config.model.norm for cell in cells.values()] == ["batch", "none"]
    study.grid.variant = ("base", "no_nrom")  # the exception does not match
    assert "resnet-20-A-variant=no_nrom and resnet-20-A-variant=base have" in refusal(study)


def test_the_studies_of_cures_have_a_cell_for_each():
    cells = by_name(rescues_digits.get_config())
    assert len(cells) == len(rescues_digits.CURES)
    assert {cell.config.model.depth for cell in cells.values()} == {56}
    assert cells["plain-56-variant=base"].config.model.norm == "batch"
    skip_init = cells["resnet-56-A-variant=no_norm+skip_init"].config.model
    assert (skip_init.norm, skip_init.branch_scale, skip_init.branch_scale_by) == (
        "none", 0.0, "learned",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("grid", "exceptions", "words"),
    [
        ({"model": {"depht": (20,)}}, {}, ["grid.model.depht", "(nearest: model.depth)"]),
        ({"depth": (20,)}, {}, ["grid.depth", "(nearest: model.depth)"]),
        ({"model": {"depth": 20}}, {}, ["grid.model.depth=20 is not a tuple"]),
        ({"model": {"depth": ()}}, {}, ["grid.model.depth lists no values"]),
        ({"model": {"depth": (20, 20)}}, {}, ["Two cells", "resnet-20-A"]),
        ({"model": {"depth": ("20",)}}, {}, ["grid.model.depth", "'20'", "type"]),
        ({"model": {"depth": (True,)}}, {}, ["grid.model.depth", "True", "type"]),
        ({"replicates": (None,)}, {}, ["grid.replicates", "None", "type"]),
        ({"model": {"depth": (20, 21)}}, {}, ["Cell resnet-21-A", "20 and 26"]),
        ({"model": {"shortcut": ("a",)}}, {}, ["Cell resnet-20-a", "nearest: A"]),
        ({}, {"x": {"when": {}}}, ["exceptions.x", '"when"', '"set"']),
        ({}, {"x": {"when": {}, "set": {"schedule": {"wramup": "none"}}}},
         ["exceptions.x.set.schedule.wramup", "(nearest: schedule.warmup)"]),
        ({}, {"x": {"when": {"model": {"dept": 8}}, "set": {}}},
         ["exceptions.x.when.model.dept", "(nearest: model.depth)"]),
        ({}, {"x": {"when": {"model": {"shortcut": ("A", "b")}}, "set": {}}},
         ["exceptions.x.when.model.shortcut='b'", "nearest: B"]),
        ({}, {"x": {"when": {"model": {"depth": "110"}}, "set": {}}},
         ["exceptions.x.when.model.depth", "'110'", "type"]),
        ({"model": {"depth": (8,)}}, {"x": {"when": {}, "set": {"model": {"depth": 14}}}},
         ["exceptions.x.set.model.depth is an axis"]),
        ({}, {"x": {"when": {}, "set": {"seed": 0.5}}}, ["exceptions.x.set.seed", "0.5", "type"]),
    ],
)  # fmt: skip
def test_mistakes_are_one_sentence_with_the_key(grid, exceptions, words):
    sentence = refusal(make(grid, exceptions))
    for word in words:
        assert word in sentence


def test_configs_that_are_not_studies_are_refused():
    assert "experiments.train" in refusal(digits.get_config())
    incomplete = make()
    del incomplete["exceptions"]
    assert "exceptions" in refusal(incomplete)
    misspelled = make()
    misspelled.grids = 1
    assert "(nearest: grid)" in refusal(misspelled)


@pytest.mark.parametrize("module", [degradation_digits, degradation_cifar10, shortcuts_cifar10])
def test_a_queued_cell_is_what_the_trainer_resolves(module, tmp_path):
    for cell in grid.cells(module.get_config()):
        storage.write_json(tmp_path / "config.json", cell.config.to_dict())
        resolved = resolve(saved.get_config(str(tmp_path)))
        assert resolved.to_dict() == cell.config.to_dict()
        on_disk = json.loads((tmp_path / "config.json").read_text())
        assert identity.of(resolved.to_dict()) == identity.of(on_disk)


def test_saved_keeps_types():
    cell = grid.cells(degradation_cifar10.get_config())[0]
    config = saved.from_dict(json.loads(json.dumps(cell.config.to_dict())), "x")
    assert config.schedule.boundaries == (32000.0, 48000.0)
    assert isinstance(config.schedule.boundaries, tuple)
    assert config.epochs is None


def saved_refusal(path: pathlib.Path | str) -> str:
    with pytest.raises(UserError) as caught:
        saved.get_config(str(path))
    return str(caught.value)


def test_saved_refuses_files_that_are_not_configs(tmp_path):
    content = resolve(digits.get_config()).to_dict()
    file = tmp_path / "config.json"
    assert "Which run?" in saved_refusal("")
    assert "cannot be read" in saved_refusal(tmp_path)
    file.write_text("{")
    assert "not JSON" in saved_refusal(file)
    file.write_text("[]")
    assert "is not a JSON object" in saved_refusal(file)
    file.write_text(json.dumps(content | {"stepps": 3}))
    assert "stepps, which is not a setting (nearest: steps)" in saved_refusal(file)
    file.write_text(json.dumps({k: v for k, v in content.items() if k != "seed"}))
    assert "lacks seed" in saved_refusal(file)
    file.write_text(json.dumps(content | {"seed": "x"}))
    assert "seed='x'" in saved_refusal(file)


def test_a_saved_config_may_lack_newer_settings_that_change_no_result(tmp_path):
    content = resolve(digits.get_config()).to_dict()
    older = {k: v for k, v in content.items() if k not in ("train", "profile", "mesh")}
    older["seed"] = 7
    (tmp_path / "config.json").write_text(json.dumps(older))
    config = saved.get_config(str(tmp_path))
    assert config.seed == 7
    assert config.train.steps_per_dispatch == "auto"
    assert config.mesh.fsdp == 1
    assert identity.of(config.to_dict()) == identity.of(older)


def test_settings_that_older_versions_imply_leave_the_identity():
    # As computed by the last version without any of them.
    assert identity.of(base.get_config().to_dict()) == "41c52d2e184f"


def test_a_run_of_an_older_version_is_the_run_with_the_implied_values(tmp_path):
    content = resolve(digits.get_config()).to_dict()
    implied = {k: s.implied for k, s in settings.SETTINGS.items() if s.implied is not None}
    older = copy.deepcopy(content)
    for key in implied:
        *groups, name = key.split(".")
        del (older[groups[0]] if groups else older)[name]
    assert len(implied) > 3
    assert settings.flatten(identity.complete(older)) == settings.flatten(content)
    assert identity.of(older) == identity.of(content)
    assert identity.recipe(older) == identity.recipe(content)
    with contextlib.closing(RunFolder(tmp_path, older)):  # resumed by this version, then by that
        pass
    saved_text = (tmp_path / "config.json").read_text()
    with contextlib.closing(RunFolder(tmp_path, content)):
        pass
    assert (tmp_path / "config.json").read_text() == saved_text
    assert reader.read(tmp_path).config == json.loads(json.dumps(content))
    assert saved.get_config(str(tmp_path)).to_dict() == content
    content["model"]["branch_scale"] = 0.5
    assert identity.of(older) != identity.of(content)
    with pytest.raises(UserError, match=r"model\.branch_scale \(1\.0 there, 0\.5 here\)"):
        RunFolder(tmp_path, content)
