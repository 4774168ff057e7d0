"""Every value is checked, and a resolved config says what a run does."""

import importlib.util
import math
import pathlib

import pytest
from ml_collections import ConfigDict

from configs import base, cifar10, digits
from resnet_jax import settings
from resnet_jax.errors import UserError
from resnet_jax.settings import CHOICES, LENGTHS, RANGES

ROOT = pathlib.Path(__file__).parents[1]

# Settings that no table checks, and who does.
ELSEWHERE = {
    "model.depth": "the depth table",
    "model.remat": "the stages there are, below",
    "train.steps_per_dispatch": "test_dispatch.py",
    "profile": "test_profiling.py",
    "schedule.boundaries": "their order, below",
    "steps": "exactly one length, below",
    "epochs": "exactly one length, below",
    "examples": "exactly one length, below",
    "data.dir": "a path: looked for when data are loaded",
    "model.space_to_depth": "true or false, by ConfigDict's type",
    "model.zero_init_residual": "true or false, by ConfigDict's type",
    "data.std": "true or false, by ConfigDict's type",
    "data.color": "true or false, by ConfigDict's type",
    "data.scales": "test_settings_pictures.py",
    "data.area": "test_settings_pictures.py",
    "data.aspect": "test_settings_pictures.py",
    "eval.views": "test_settings_pictures.py",
    "eval.scales": "test_settings_pictures.py",
    "optimizer.nesterov": "true or false, by ConfigDict's type",
    "log.tensorboard": "true or false, by ConfigDict's type",
}


def changed(config=None, **values):
    """Returns configs/digits.py with dotted keys, ``__`` for the dot, set."""
    config = config or digits.get_config()
    for key, value in values.items():
        put(config, key.replace("__", "."), value)
    return config


def put(config, key, value):
    *path, last = key.split(".")
    group = settings.get(config, ".".join(path)) if path else config
    with group.ignore_type():
        group[last] = value


def refusal(config):
    with pytest.raises(UserError) as refused:
        settings.resolve(config)
    text = str(refused.value)
    assert "\n" not in text
    return text


def dotted(config, prefix=""):
    for key, value in config.items():
        if isinstance(value, ConfigDict):
            yield from dotted(value, f"{prefix}{key}.")
        else:
            yield prefix + key


# -------------------------------------------------------------------------- single values


def test_every_setting_is_checked_by_exactly_one():
    keys = list(dotted(base.get_config()))
    checked = [*CHOICES, *RANGES, *ELSEWHERE]
    assert len(keys) > 50
    assert sorted(checked) == sorted(keys)


@pytest.mark.parametrize("key", CHOICES)
def test_choice_is_refused(key):
    text = refusal(changed(**{key.replace(".", "__"): "nonsense"}))
    assert text.startswith(f"{key}='nonsense' is not known; allowed are ")
    assert all(str(allowed) in text for allowed in CHOICES[key])


@pytest.mark.parametrize(
    ("key", "value"),
    [(key, low - 1) for key, (low, _) in RANGES.items()]
    + [(key, high + 1) for key, (_, high) in RANGES.items() if math.isfinite(high)]
    + [(key, math.nan) for key in RANGES]
    + [(key, math.inf) for key in RANGES],
)
def test_range_is_refused(key, value):
    config = changed(**{key.replace(".", "__"): value})
    value = settings.get(config, key)  # as the key's type
    text = refusal(config)
    low, high = RANGES[key]
    allowed = f"from {low} to {high}" if math.isfinite(high) else f"at least {low}"
    assert text == f"{key}={value} is out of range; allowed is {allowed}."


def test_some_values_are_refused_whatever_the_table_says():
    for key, value in [
        ("batch_size", 0),
        ("replicates", 0),
        ("schedule.rate", -0.1),
        ("optimizer.momentum", 1.1),
        ("optimizer.weight_decay", -1e-4),
        ("log.every", 0),
    ]:
        assert f"{key}={value} " in refusal(changed(**{key.replace(".", "__"): value}))


@pytest.mark.parametrize("end", [0, 1])
@pytest.mark.parametrize("key", RANGES)
def test_ends_of_a_range_are_allowed(key, end):
    value = RANGES[key][end]
    if math.isinf(value):
        return
    config = changed(**{key.replace(".", "__"): value})
    try:
        settings.resolve(config)
    except UserError as e:
        # For what does not go with it, not for itself.
        if "out of range" in str(e):
            raise


def test_nearest_spelling_is_named():
    text = refusal(changed(optimizer__name="adamww"))
    assert "(nearest: adamw)" in text


@pytest.mark.parametrize(
    "boundaries",
    [(20.0, 10.0), (10.0, 10.0), (-1.0,), (math.nan,), (math.inf,), ("a",), (10.2, 10.4)],
)
def test_boundaries_out_of_order_are_refused(boundaries):
    text = refusal(changed(schedule__name="step", schedule__boundaries=boundaries))
    assert text.startswith(f"schedule.boundaries={boundaries} is not in order")


# -------------------------------------------------------------------------- combinations


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"data__validation": 1437}, "data.validation=1437 leaves no training example"),
        ({"model__bn_group": 48}, "model.bn_group=48 does not divide batch_size=128"),
        ({"model__num_classes": 9}, "model.num_classes=9 is less than the 10 classes"),
        (
            {"model__shortcut": "none", "model__zero_init_residual": True},
            "model.zero_init_residual=True",
        ),
        ({"data__validation": 0, "schedule__name": "plateau"}, "schedule.name='plateau'"),
        ({"eval__weights": "best", "data__validation": 0}, "eval.weights='best'"),
        (
            {
                "schedule__name": "cosine",
                "schedule__warmup": "linear",
                "schedule__warmup_length": 240.0,
            },
            "schedule.warmup_length=240",
        ),
        ({"seed": 2**31 - 2, "replicates": 3}, "seed=2147483646 leaves no seeds"),
        ({"model__bn_group": 32, "accumulate": 3}, "accumulate=3 does not divide batch_size=128"),
        ({"model__bn_group": 64, "accumulate": 4}, "model.bn_group=64 has no whole groups"),
        ({"model__bn_group": 0, "accumulate": 2}, "model.bn_group=0 has no whole groups"),
        ({"model__depth": 21}, "model.depth=21"),
        ({"model__remat": (1, 4)}, "model.remat=(1, 4) names no stage"),
        ({"model__space_to_depth": True}, "model.space_to_depth=True rearranges the 7x7 stem"),
        ({"model__depth": 20, "model__family": "imagenet"}, "(nearest: 18 and 34)"),
    ],
)
def test_combination_is_refused(values, words):
    assert words in refusal(changed(**values))
    if len(values) > 1:  # it is the last one, together with the others
        settings.resolve(changed(**dict(list(values.items())[:-1])))


def test_ends_of_combinations_are_allowed():
    for values in (
        {"data__validation": 1436, "data__mean": "none"},
        {"model__bn_group": 64},
        {"model__num_classes": 10},
        {"model__bn_group": 32, "accumulate": 4},
        {"model__remat": (1, 3)},
        {"model__stem": "imagenet", "model__space_to_depth": True},
        {"seed": 2**31 - 2, "replicates": 2},
        {
            "schedule__name": "cosine",
            "schedule__warmup": "linear",
            "schedule__warmup_length": 239.0,
        },
        {"schedule__name": "cosine", "schedule__warmup_length": 240.0},  # is not used
    ):
        settings.resolve(changed(**values))


# -------------------------------------------------------------------------------- lengths


@pytest.mark.parametrize(
    ("lengths", "steps"),
    [
        ({"steps": 7}, 7),
        ({"epochs": 2.0}, round(2 * 1257 / 128)),  # 1437 training digits less 180
        ({"epochs": 0.001}, 1),
        ({"examples": 1280}, 10),
        ({"examples": 1000}, 8),
    ],
)
def test_lengths_become_steps(lengths, steps):
    resolved = settings.resolve(changed(**{**dict.fromkeys(LENGTHS), **lengths}))
    assert resolved.steps == steps
    assert resolved.epochs is None
    assert resolved.examples is None


@pytest.mark.parametrize(
    ("lengths", "what"),
    [
        ({}, "none is set"),
        ({"steps": 1, "epochs": 1.0}, "steps or epochs are set"),
        ({"steps": 1, "epochs": 1.0, "examples": 5}, "steps, epochs or examples are set"),
    ],
)
def test_exactly_one_length(lengths, what):
    text = refusal(changed(**{**dict.fromkeys(LENGTHS), **lengths}))
    assert text.startswith("Exactly one of steps, epochs and examples")
    assert what in text


def test_rates_grow_with_the_batch():
    config = changed(
        batch_size=1024, schedule__rate=0.1, schedule__final_rate=0.001, schedule__warmup_rate=0.02
    )
    rates = [settings.resolve(config).schedule[key] for key in settings.RATES]
    assert rates == [0.1, 0.001, 0.02]
    config.schedule.rate_for_batch = 256
    resolved = settings.resolve(config)
    assert [resolved.schedule[key] for key in settings.RATES] == [0.4, 0.004, 0.08]
    # Once: the resolved config is what a resumed run reads.
    assert settings.resolve(resolved) == resolved


@pytest.mark.parametrize("value", [0, -3])
@pytest.mark.parametrize("key", LENGTHS)
def test_lengths_are_positive(key, value):
    text = refusal(changed(**{**dict.fromkeys(LENGTHS), key: value}))
    assert text.startswith(f"{key}={value}")
    assert text.endswith(" is out of range; allowed is more than 0.")


@pytest.mark.parametrize(
    ("unit", "boundaries", "warmup", "expected"),
    [
        ("steps", (100.0, 200.0), 20.0, ((100, 200), 20)),
        ("epochs", (10.0, 20.0), 2.0, ((98, 196), 20)),  # 1257 / 128 steps an epoch
        ("examples", (12800.0, 25600.0), 1280.0, ((100, 200), 10)),
        ("fraction", (0.5, 0.75), 0.1, ((120, 180), 24)),  # of 240 steps
    ],
)
def test_schedule_units_become_steps(unit, boundaries, warmup, expected):
    resolved = settings.resolve(
        changed(
            schedule__unit=unit,
            schedule__name="step",
            schedule__boundaries=boundaries,
            schedule__warmup_length=warmup,
        )
    )
    assert (resolved.schedule.boundaries, resolved.schedule.warmup_length) == expected
    assert resolved.schedule.unit == "steps"


# -------------------------------------------------------------------------- what is settled


@pytest.mark.parametrize(
    ("name", "flip"),
    [
        ("digits", "off"),
        ("mnist", "off"),
        ("svhn_cropped", "off"),
        ("fashion_mnist", "on"),
        ("cifar10", "on"),
        ("cifar100", "on"),
    ],
)
def test_flips_and_classes_follow_the_data(name, flip, no_data):
    resolved = settings.resolve(changed(cifar10.get_config(), data__name=name, data__validation=9))
    assert resolved.data.flip == flip
    assert resolved.model.num_classes == (100 if name == "cifar100" else 10)
    assert resolved.data.dir == ("" if name == "digits" else no_data)


def test_what_is_given_is_kept(no_data):
    resolved = settings.resolve(changed(data__flip="on", model__num_classes=12))
    assert (resolved.data.flip, resolved.model.num_classes) == ("on", 12)


def shipped():
    """All but saved.py, which loads a run's config and needs a run."""
    return [f for f in sorted((ROOT / "configs").glob("[!_]*.py")) if f.stem != "saved"]


@pytest.mark.parametrize("file", shipped(), ids=lambda f: f.stem)
def test_shipped_configs_resolve_and_stay(file, no_data):
    spec = importlib.util.spec_from_file_location("shipped_config", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config()
    config = config.get("base", config)  # a study's
    if file.stem == "base":
        assert "none is set" in refusal(config)  # the one thing that it leaves open
        config.steps = 10
    before = config.to_dict()
    resolved = settings.resolve(config)
    assert config.to_dict() == before  # the caller's own is untouched
    assert resolved.to_dict() != before
    assert settings.resolve(resolved).to_dict() == resolved.to_dict()
