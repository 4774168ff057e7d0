"""load(): a run's network and tested variables, for a user's own program."""

import json
import shutil

import jax
import numpy as np
import pytest
from absl import logging

import resnet_jax
from configs import cifar10, imagenet
from resnet_jax import train
from resnet_jax.analysis import predictions
from resnet_jax.data import datasets, sources
from resnet_jax.errors import UserError
from resnet_jax.networks import layout
from resnet_jax.resolve import resolve
from resnet_jax.runs import reader, storage
from tests import tiny

OVERRIDES = {"replicates": 2, "seed": 3, "model__depth": 14, "ema_decay": 0.5}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained") / "run"
    assert train.train(tiny.config(**OVERRIDES), str(folder)) == "completed"
    return folder


@pytest.fixture
def run(trained, tmp_path):
    """A copy, to be harmed."""
    return shutil.copytree(trained, tmp_path / "run")


@pytest.fixture
def said(monkeypatch):
    lines = []
    for level in ("warning", "error"):
        monkeypatch.setattr(logging, level, lambda text, *args: lines.append(text % args))
    return lines


def wrong(loaded):
    """Returns how many of the digits' test images are misclassified, as a user would count."""
    digits = sources.read_set("digits", "")
    images = loaded.normalization(digits.test_images)
    logits = jax.jit(lambda x: loaded.model.apply(loaded.variables, x, train=False))(images)
    return np.sum(logits.argmax(-1) != digits.test_labels)


def test_it_reproduces_the_test_error_of_every_seed(trained):
    recorded = tiny.lines(trained)[-1]["test/error"]
    assert recorded[0] != recorded[1]
    images = reader.read(trained).environment["data"]["test"]
    for seed, error in zip((3, 4), recorded, strict=True):
        loaded = resnet_jax.load(trained, seed)
        assert (loaded.seed, loaded.step, loaded.is_tested) == (seed, 12, True)
        assert wrong(loaded) == round(images * error / 100, 3)
    assert resnet_jax.load(str(trained)).seed == 3


def test_the_network_and_its_variables_are_unlooped(trained):
    loaded = resnet_jax.load(trained)
    assert not loaded.model.scan
    images = jax.ShapeDtypeStruct((1, 8, 8, 1), np.float32)
    made = jax.eval_shape(
        lambda: loaded.model.init(jax.random.key(0), np.zeros(images.shape), train=True)
    )
    shapes = jax.tree.map(np.shape, (made, loaded.variables))
    assert shapes[0] == shapes[1]
    assert "stage1_block2" in loaded.variables["params"]
    assert loaded.config.model.depth == 14


def test_what_was_not_tested_is_what_the_newest_checkpoint_evaluates(run, said):
    shutil.rmtree(run / "tested")
    loaded = resnet_jax.load(run, seed=4)
    assert not loaded.is_tested
    assert said == [f"{run}: not tested; these are the variables of step 12."]
    averaged = jax.tree.map(lambda a: a[1], tiny.final_state(run).ema)
    tiny.assert_bit_equal(loaded.variables, layout.convert(averaged, layout.by_block))


def test_a_run_that_trained_on_since_its_test_is_not_tested(run, said):
    (run / "tested" / "12").rename(run / "tested" / "8")
    loaded = resnet_jax.load(run)
    assert (loaded.step, loaded.is_tested, len(said)) == (12, False, 1)


def flip_a_byte(checkpoint):
    file = max(
        (p for p in checkpoint.rglob("*") if p.is_file()), key=lambda path: path.stat().st_size
    )
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def test_a_damaged_checkpoint_is_skipped_and_left_unchanged(run, said):
    flip_a_byte(run / "tested" / "12")
    flip_a_byte(run / "checkpoints" / "12")
    files = sorted(run.rglob("*"))
    assert resnet_jax.load(run).step == 8
    assert ["is damaged and is skipped" in line for line in said] == [True, True, False]
    assert sorted(run.rglob("*")) == files
    flip_a_byte(run / "checkpoints" / "8")
    with pytest.raises(UserError, match="run holds no intact checkpoint"):
        resnet_jax.load(run)
    shutil.rmtree(run / "checkpoints")
    shutil.rmtree(run / "tested")
    with pytest.raises(UserError, match=r"run holds no checkpoint\."):
        resnet_jax.load(run)


def test_from_a_bucket_it_is_the_same(trained):
    there = storage.locate("memory://runs/trained")
    for file in (p for p in trained.rglob("*") if p.is_file()):
        storage.write_bytes(there / file.relative_to(trained).as_posix(), file.read_bytes())
    here, loaded = resnet_jax.load(trained, 4), resnet_jax.load("memory://runs/trained", 4)
    assert loaded.is_tested
    tiny.assert_bit_equal(loaded.variables, here.variables)


def test_mistakes_are_one_sentence(trained, tmp_path):
    with pytest.raises(UserError, match=r"^seed=9 is not in .*; allowed is 3 to 4 \(nearest: 4\)"):
        resnet_jax.load(trained, seed=9)
    with pytest.raises(UserError, match=r"^seed='3' is not a whole number"):
        resnet_jax.load(trained, seed="3")
    with pytest.raises(UserError, match="is not a run folder"):
        resnet_jax.load(tmp_path)
    for group, key in (("eval", "views"), ("model", "remat")):
        other = shutil.copytree(trained, tmp_path / key)
        config = json.loads((other / "config.json").read_text())
        del config[group][key]
        (other / "config.json").write_text(json.dumps(config))
        with pytest.raises(UserError, match=rf"lacks {group}\.{key}; another version wrote it"):
            resnet_jax.load(other)


def test_the_normalization_is_the_run_s_without_its_data(trained, monkeypatch):
    measured, _ = datasets.normalization(resnet_jax.load(trained).config.data)
    assert measured.mean.shape == (1, 8, 8, 1)
    monkeypatch.setattr(datasets, "_source", None)
    saved = resnet_jax.load(trained).normalization
    tiny.assert_bit_equal((saved.mean, saved.std), (measured.mean, measured.std))


def test_other_data_than_the_run_s_are_refused(trained, monkeypatch, tmp_path):
    digest = reader.read(trained).environment["data"]["content"]
    older = shutil.copytree(trained, tmp_path / "older")
    (older / "normalization.json").unlink()  # as an earlier version wrote it
    assert resnet_jax.load(older).data_content == digest
    _ = resnet_jax.load(older).normalization
    monkeypatch.setattr(datasets, "_content", lambda source: "another")
    with pytest.raises(UserError, match="does not hold the digits that the run was trained on"):
        _ = resnet_jax.load(older).normalization
    with pytest.raises(UserError, match="does not hold the digits that the run was trained on"):
        predictions.predict(resnet_jax.load(trained))


def test_a_normalization_that_cannot_be_measured_here_says_how(no_data):
    with pytest.raises(UserError, match=r"holds no cifar10 .*experiments\.prepare cifar10 --out="):
        datasets.normalization(resolve(cifar10.get_config()).data)


def test_a_streamed_set_s_normalization_needs_no_data(no_data):
    normalization, _ = datasets.normalization(imagenet.get_config().data)
    assert normalization.mean.shape == normalization.std.shape == (1, 1, 1, 3)
    assert normalization.mean[0, 0, 0, 0] == np.float32(123.675)


@pytest.mark.parametrize("norm", ["none", "frozen"])
def test_a_network_without_learned_statistics_resumes_is_tested_and_loads(
    tmp_path, monkeypatch, norm
):
    options = {"model__norm": norm, "ema_decay": 0.5, "eval__weights": "best", "mesh__fsdp": 2}
    config = tiny.config(**options, replicates=2, accumulate=2, log__signals__every=4)
    folders = [tmp_path / name for name in ("stopped", "straight")]
    with tiny.compiled_once(), monkeypatch.context() as patch:
        tiny.stop_when_asked(patch, 6)
        assert train.train(config, str(folders[0])) == "preempted"
        patch.undo()
        for folder in folders:
            assert train.train(config, str(folder)) == "completed"
    tiny.assert_bit_equal(*map(tiny.final_state, folders))
    assert tiny.lines(folders[0]) == tiny.lines(folders[1])
    last = tiny.lines(folders[0])[-1]
    assert "validation/error" in last or "validation/error" in tiny.lines(folders[0])[-2]
    assert not [key for key in last if "population" in key]
    loaded = resnet_jax.load(folders[0], 1)
    assert loaded.step == last["test/step"][1]
    validated = [row for row in tiny.lines(folders[0]) if "validation/error" in row]
    best = [min(validated, key=lambda row, r=r: row["validation/error"][r]) for r in range(2)]
    assert last["test/step"] == [row["step"] for row in best]
    images = reader.read(folders[0]).environment["data"]["test"]
    assert wrong(loaded) == round(images * last["test/error"][1] / 100, 3)
    statistics = jax.tree.leaves(loaded.variables["batch_stats"])
    assert all(set(np.unique(a)) <= {0, 1} for a in statistics)
    assert len(statistics) == (0 if norm == "none" else 2 * 7)
