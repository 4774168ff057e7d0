"""Settings without effect in a run, and only those, are named with the reason."""

import importlib.util
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import base, cifar10, digits, imagenet
from experiments.report import groups, table
from experiments.study import grid, plan
from resnet_jax import effect, optim, settings
from resnet_jax.resolve import resolve
from resnet_jax.runs import reader
from resnet_jax.settings import SETTINGS
from tests.report import fixture
from tests.test_settings import changed, dotted, shipped

CONDITIONS = {key: setting.acts_if for key, setting in SETTINGS.items() if setting.acts_if}

# Settings that have an effect in every run, so that no condition is needed.
ALWAYS = {
    "seed", "replicates", "batch_size", "accumulate", "steps", "epochs", "examples", "profile",
    "variant",  # in names
    "deterministic",  # on a GPU
    "train.steps_per_dispatch", "label_smoothing", "ema_decay",
    "model.family", "model.depth", "model.shortcut", "model.activation", "model.stem",
    "model.branch_scale", "model.branch_scale_by", "model.nonlinearity", "model.norm",
    "model.weight_standardization", "model.init", "model.dropout",
    "model.stochastic_depth",  # refused without a shortcut
    "model.space_to_depth",  # refused with another stem
    "model.width", "model.zero_init_residual", "model.dtype", "model.precision",
    "model.se_reduction",
    "model.bottleneck_width", "model.groups",  # refused with basic blocks
    "model.stem_filters", "model.same_padding",  # refused with another stem
    "model.scan", "model.remat",
    "model.num_classes",
    "data.name", "data.dir", "data.classes", "data.validation",
    "data.pad", "data.image_size",  # refused with a streamed and a resident set
    "data.flip", "data.color",
    "optimizer.name", "optimizer.weight_decay", "optimizer.clip_norm",
    "optimizer.rate_factors", "init.from",
    "schedule.name", "schedule.rate", "schedule.warmup",  # but for the two cases below
    "schedule.rate_for_batch", "schedule.unit",  # settled when a config is resolved
    "eval.batch_size", "eval.weights", "eval.views",
    "mesh.replicates", "mesh.fsdp", "checkpoint.every", "checkpoint.keep", "log.every",
    "log.signals.every", "log.tensorboard",
}  # fmt: skip

# A value other than the default for each setting with a condition.
OTHER = {
    "replicates_by": "loop", "model.bottleneck_stride": "v1.5", "model.shortcut_scale": 0.5,
    "model.shortcut_scale_by": "learned", "model.shortcut_downsampling": "mean",
    "model.gate": "exclusive", "model.gate_bias": -1.0,
    "model.tailored_eta": 0.5, "model.norm_groups": 4, "model.bn_group": 64,
    "model.bn_epsilon": 1e-3, "eval.statistics": "moving_average", "model.bn_momentum": 0.5,
    "data.channel_mean": (9.0,), "data.channel_std": (9.0,),
    "data.split_seed": 3, "data.crop": "random_resized", "data.scales": (300, 400),
    "data.area": (0.5, 1.0), "data.aspect": (1.0, 1.5), "data.resample": "area",
    "data.workers": 2, "optimizer.momentum": 0.8, "optimizer.nesterov": True,
    "optimizer.trust": 0.1, "optimizer.b1": 0.8, "optimizer.b2": 0.99, "optimizer.epsilon": 1e-4,
    "optimizer.decay_on": "kernels", "schedule.boundaries": (3.0, 7.0), "schedule.factor": 0.5,
    "schedule.final_rate": 0.01, "schedule.patience": 2, "schedule.tolerance": 1.0,
    "schedule.warmup_length": 4.0, "schedule.warmup_rate": 0.02, "schedule.warmup_error": 50.0,
    "schedule.warmup_window": 7, "eval.every": 11, "eval.population_examples": 99,
    "init.head": "kept", "init.normalization": "kept", "data.mean": "none", "data.std": False,
    "eval.short_side": 300, "eval.scales": (224, 320),
}  # fmt: skip


def resolved(values=None, config=None):
    flat = {key.replace(".", "__"): value for key, value in (values or {}).items()}
    return resolve(changed(config, **flat))


def without_effect(config):
    return effect.without_effect(config, base.get_config())


def test_every_setting_always_has_an_effect_or_has_a_condition():
    keys = set(dotted(base.get_config()))
    assert keys == ALWAYS | set(CONDITIONS)
    assert not ALWAYS & set(CONDITIONS)


def test_the_other_values_differ_from_the_defaults():
    config = base.get_config()
    for key in CONDITIONS:
        assert OTHER[key] != settings.get(config, key)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"optimizer.name": "adam", "optimizer.nesterov": True},
         "optimizer.nesterov=True has no effect with optimizer.name='adam'"),
        ({"optimizer.momentum": 0.0, "optimizer.nesterov": True},
         "optimizer.nesterov=True has no effect with optimizer.momentum=0.0"),
        ({"optimizer.b1": 0.8}, "optimizer.b1=0.8 has no effect with optimizer.name='sgd'"),
        ({"schedule.name": "step", "schedule.boundaries": (9.0,), "schedule.final_rate": 0.1},
         "schedule.final_rate=0.1 has no effect with schedule.name='step'"),
        ({"data.crop": "random_resized"},
         "data.crop='random_resized' has no effect with data.name='digits'"),
        ({"data.area": (0.2, 1.0)}, "data.area=(0.2, 1.0) has no effect with data.name='digits'"),
        ({"eval.scales": (99,)}, "eval.scales=(99,) has no effect with data.name='digits'"),
        ({"data.validation": 0, "eval.every": 1000, "data.split_seed": 3},
         "data.split_seed=3 has no effect with data.validation=0"),
        ({"schedule.name": "step"},
         "schedule.boundaries=(32000.0, 48000.0) has no effect with steps=240"),
        ({"schedule.name": "step", "schedule.boundaries": (100.0, 240.0)},
         "schedule.boundaries=(240.0,) has no effect with steps=240"),
        ({"schedule.name": "step", "schedule.boundaries": ()},
         "schedule.name='step' has no effect with schedule.boundaries=()"),
        ({"schedule.warmup": "until_error", "schedule.warmup_window": 240},
         "schedule.rate=0.02 has no effect with schedule.warmup_window=240 and steps=240"),
        ({"replicates_by": "loop"}, "replicates_by='loop' has no effect with replicates=1"),
        ({"model.norm": "none", "model.bn_epsilon": 1e-3},
         "model.bn_epsilon=0.001 has no effect with model.norm='none'"),
        ({"model.norm": "group", "model.bn_group": 64},
         "model.bn_group=64 has no effect with model.norm='group'"),
        ({"model.gate_bias": 2.0}, "model.gate_bias=2.0 has no effect with model.gate='none'"),
        ({"model.shortcut": "none", "model.shortcut_scale": 0.5},
         "model.shortcut_scale=0.5 has no effect with model.shortcut='none'"),
        ({"init.from": "runs/x", "init.normalization": "kept", "data.std": False},
         "data.std=False has no effect with init.from='runs/x' and init.normalization='kept'"),
        ({"init.normalization": "kept"},
         "init.normalization='kept' has no effect with init.from=''"),
        ({"model.bottleneck_stride": "v1.5"},
         "model.bottleneck_stride='v1.5' has no effect with model.family='cifar'"),
    ],
)  # fmt: skip
def test_a_setting_without_effect_is_named_with_the_reason(values, sentence):
    assert without_effect(resolved(values)) == [sentence]


def test_the_papers_schedule_cuts_its_rate_and_one_at_batch_256_does_not(no_data):
    assert without_effect(resolved(config=cifar10.get_config())) == []
    values = {"steps": None, "epochs": 160.0, "batch_size": 256}  # 28,125 steps of 45,000 images
    assert without_effect(resolved(values, cifar10.get_config())) == [
        "schedule.boundaries=(32000.0, 48000.0) has no effect with steps=28125"
    ]


def test_defaults_and_scaled_rates_are_not_named(no_data):
    config = resolved({"schedule.rate_for_batch": 32, "schedule.unit": "epochs"})
    assert config.schedule.rate == 4 * 0.02
    assert without_effect(config) == []


def cells(file, config):
    if "grid" not in config:
        if file.stem == "base":
            config.steps = 64000
        return [resolve(config)]
    return [cell.config for cell in grid.cells(config)]


@pytest.mark.parametrize("file", shipped(), ids=lambda f: f.stem)
def test_nothing_that_is_shipped_has_a_setting_without_effect(file, no_data):
    spec = importlib.util.spec_from_file_location("shipped_config", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    presets = [()]
    if "imagenet" in file.stem:
        presets = [(name,) for name in imagenet.PRESETS]
    for preset in presets:
        for config in cells(file, module.get_config(*preset)):
            assert without_effect(config) == []


# ------------------------------------------- the conditions in the table match the code


def rates(config: ConfigDict) -> list[float]:
    """Returns the rate of each step of a run whose errors fall and then stall."""
    schedule = optim.Schedule(config)

    @jax.jit
    def advance(state, step):
        later = schedule.after_step(state, step, 95.0 - 4 * step)
        later = schedule.after_validation(later, jnp.maximum(49.0, 50.0 - 0.5 * step))
        return later, schedule.rate(state, step)

    state, rates = schedule.init(), []
    for step in range(config.steps):
        state, rate = advance(state, jnp.asarray(step, jnp.int32))
        rates.append(float(rate))
    return rates


def updates(config: ConfigDict) -> np.ndarray:
    """Returns the parameters after each of three steps of the optimiser."""
    params: Any = {"conv": {"kernel": jnp.asarray([[1.0, 2.0]]), "bias": jnp.asarray([3.0])}}
    optimizer = optim.make_optimizer(config)
    state, leaves = optimizer.init(params), []
    for step in (1, 2, 3):
        gradients = jax.tree.map(lambda p, step=step: p**step, params)
        params, state = optim.descend(optimizer, jnp.asarray(0.1), gradients, state, params)
        leaves += [np.asarray(leaf).ravel() for leaf in jax.tree.leaves(params)]
    return np.concatenate(leaves)


def conditions_hold(config: ConfigDict, key: str) -> bool:
    return all(condition.holds(config) for condition in CONDITIONS[key])


@pytest.mark.parametrize("name", ["sgd", "lars", "adam", "adamw"])
def test_an_optimisers_setting_changes_what_it_computes_if_its_conditions_hold(name):
    outcomes = set()
    for momentum, decay in ((0.0, 0.0), (0.9, 1e-2)):
        before = {"optimizer.name": name, "optimizer.momentum": momentum}
        before["optimizer.weight_decay"] = decay
        usual = updates(resolved(before))
        for key in [key for key in CONDITIONS if key.startswith("optimizer.")]:
            other = resolved(before | {key: OTHER[key]})
            changes = not np.array_equal(updates(other), usual)
            assert changes == conditions_hold(other, key), key
            outcomes.add(changes)
    assert outcomes == {True, False}


@pytest.mark.parametrize(
    ("name", "warmup"),
    [("constant", "none"), ("cosine", "linear"), ("step", "until_error"), ("plateau", "none")],
)
def test_a_schedules_setting_changes_the_rates_if_its_conditions_hold(name, warmup):
    before = {"steps": 20, "schedule.name": name, "schedule.warmup": warmup}
    before |= {"schedule.boundaries": (4.0, 9.0), "schedule.warmup_window": 4}
    before["schedule.warmup_length"] = 5.0
    usual = rates(resolved(before))
    for key in [key for key in CONDITIONS if key.startswith("schedule.")]:
        with_other = resolved(before | {key: OTHER[key]})
        assert (rates(with_other) != usual) == conditions_hold(with_other, key), key


# ------------------------------------------------------------------------ where it is shown


def test_a_plan_names_settings_without_effect_per_cell():
    config = ConfigDict({"exceptions": {}, "grid": {"optimizer": {"name": ("sgd", "adam")}}})
    config.base = digits.get_config()
    config.base.optimizer.nesterov = True
    config.base.data.workers = 2
    assert plan.ineffective_settings(grid.cells(config)) == [
        "All cells: data.workers=2 has no effect with data.name='digits'",
        "resnet-20-A-name=adam: optimizer.nesterov=True has no effect with optimizer.name='adam'",
    ]


def test_a_report_names_settings_without_effect_beside_the_cell(tmp_path):
    sentence = "optimizer.b1=0.8 has no effect with optimizer.name='sgd'"
    for shortcut in ("none", "A"):
        folder = fixture.write(tmp_path / shortcut, fixture.flat(20.0), model__shortcut=shortcut)
        if shortcut == "A":
            file = folder / "environment.json"
            facts = json.loads(file.read_text()) | {"without_effect": [sentence]}
            file.write_text(json.dumps(facts))
    (group,) = groups.comparable(reader.find([tmp_path]))
    assert [note for note in table.footnotes(group) if "no effect" in note] == [
        f"{sentence}: resnet-20-A"
    ]
