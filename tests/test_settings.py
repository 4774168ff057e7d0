"""Every value of a config is checked, and lengths are resolved to steps."""

import importlib.util
import math
import pathlib

import pytest
from ml_collections import ConfigDict

from configs import base, cifar10, digits, imagenet
from resnet_jax import settings
from resnet_jax.allowed import Choice, Length, Range
from resnet_jax.data import augment, crops, views
from resnet_jax.errors import UserError
from resnet_jax.networks import builders
from resnet_jax.parallel import seeds
from resnet_jax.resolve import resolve
from resnet_jax.settings import LENGTHS, SETTINGS

ROOT = pathlib.Path(__file__).parents[1]

ALLOWED = {key: setting.allowed for key, setting in SETTINGS.items()}
CHOICES = {key: allowed.names for key, allowed in ALLOWED.items() if isinstance(allowed, Choice)}
RATES = ("rate", "final_rate", "warmup_rate")
RANGES = {key: allowed for key, allowed in ALLOWED.items() if type(allowed) is Range}


def dotted(config, prefix=""):
    for key, value in config.items():
        if isinstance(value, ConfigDict):
            yield from dotted(value, f"{prefix}{key}.")
        else:
            yield prefix + key


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
        resolve(config)
    text = str(refused.value)
    assert "\n" not in text
    return text


# -------------------------------------------------------------------------- single values


def test_the_base_config_and_the_table_have_the_same_settings():
    keys = list(dotted(base.get_config()))
    assert len(keys) > 50
    assert sorted(SETTINGS) == sorted(keys)
    assert {key for key, allowed in ALLOWED.items() if isinstance(allowed, Length)} == set(LENGTHS)


def test_every_default_is_allowed():
    config = base.get_config()
    for key, allowed in ALLOWED.items():
        allowed.check(key, settings.get(config, key))


def test_the_names_in_the_table_are_those_that_the_code_knows():
    known = {
        "replicates_by": ("auto", *seeds.WAYS),
        "model.dtype": tuple(builders.DTYPES),
        "data.mean": augment.MEANS,
        "data.crop": crops.CROPS,
    }
    assert known == {key: CHOICES[key] for key in known}
    assert ALLOWED["eval.views"].names == views.VIEWS


@pytest.mark.parametrize("key", CHOICES)
def test_choice_is_refused(key):
    text = refusal(changed(**{key.replace(".", "__"): "nonsense"}))
    assert text.startswith(f"{key}='nonsense' is not known; allowed are ")
    assert all(str(allowed) in text for allowed in CHOICES[key])


def beyond(allowed):
    """Yields numbers just outside a range, and numbers that no float32 or int32 can hold."""
    yield allowed.low if allowed.above else allowed.low - 1
    yield allowed.highest if allowed.below else allowed.highest * 1.001 + 1
    yield from (math.nan, math.inf, -math.inf, 2**200)


@pytest.mark.parametrize("key", RANGES)
def test_range_is_refused(key):
    for value in beyond(RANGES[key]):
        config = changed(**{key.replace(".", "__"): value})
        value = settings.get(config, key)  # in the type of the key
        text = refusal(config)
        assert text == f"{key}={value} is out of range; allowed are {RANGES[key]}."


GARBAGE = (
    0, -1, 1, 2, 0.5, -0.5, 1e300, 2**200, 2**31, 3_000_000_000, math.nan, math.inf, -math.inf,
    True, False, None, "", "auto", "5", "None", "a1", b"x", object(), (), (1,), (1, 2), (2, 1),
    (0.5, 0.5), ("a", 1), (1, None), (math.nan, 1.0), (1e300, 1e300), ((1, 2), 3), [], [1, 2],
)  # fmt: skip


@pytest.mark.parametrize("key", list(dotted(base.get_config())))
def test_garbage_is_resolved_or_refused_in_a_sentence(key, no_data):
    """No value of any setting, whatever its type, raises anything but UserError."""
    sentences = []
    for make in (digits.get_config, imagenet.get_config):
        for value in GARBAGE:
            config = make()
            if key in LENGTHS:
                config.steps = None
            put(config, key, value)
            try:
                resolve(config)
            except UserError as e:
                sentences.append(str(e))
    assert len(sentences) > len(GARBAGE)
    assert all(s.endswith(".") and "\n" not in s for s in sentences)


@pytest.mark.parametrize(
    ("key", "value"),
    [("seed", True), ("seed", 1.5), ("seed", None), ("label_smoothing", 10**400), ("profile", 5),
     ("data.std", 1), ("optimizer.name", 3)],
)  # fmt: skip
def test_a_value_of_another_type_is_not_set(key, value):
    with pytest.raises(UserError, match=r"^here=.* is not of the setting's type; it is "):
        settings.assign(digits.get_config(), key, value, "here")


def test_some_bad_values_are_refused():
    for key, value in [
        ("batch_size", 0),
        ("replicates", 0),
        ("schedule.rate", -0.1),
        ("optimizer.momentum", 1.0),
        ("optimizer.b1", 1.0),
        ("optimizer.b2", 1.0),
        ("ema_decay", 1.0),
        ("label_smoothing", 1.0),
        ("model.bn_momentum", 1.0),
        ("schedule.rate", 0.0),
        ("schedule.factor", 1.0),
        ("schedule.tolerance", 0.0),
        ("optimizer.weight_decay", -1e-4),
        ("log.every", 0),
    ]:
        assert f"{key}={value} " in refusal(changed(**{key.replace(".", "__"): value}))


@pytest.mark.parametrize("key", RANGES)
def test_ends_of_a_range_are_allowed(key):
    allowed = RANGES[key]
    ends = [
        allowed.low + 1e-6 if allowed.above else allowed.low,
        allowed.highest - 1e-6 if allowed.below else allowed.highest,
    ]
    for value in ends:
        try:
            resolve(changed(**{key.replace(".", "__"): value}))
        except UserError as e:
            if "out of range" in str(e):  # other errors are about combinations
                raise


def test_nearest_spelling_is_named():
    text = refusal(changed(optimizer__name="adamww"))
    assert "(nearest: adamw)" in text


@pytest.mark.parametrize(
    "boundaries",
    [(20.0, 10.0), (10.0, 10.0), (10.2, 10.4), (10.0, 1e30)],
)
def test_boundaries_out_of_order_are_refused(boundaries):
    text = refusal(changed(schedule__name="step", schedule__boundaries=boundaries))
    assert text.startswith(f"schedule.boundaries={boundaries} is not increasing")


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
                "schedule__warmup_length": 240.0,
                "schedule__warmup": "linear",
                "schedule__name": "cosine",
            },
            "schedule.warmup_length=240",
        ),
        ({"seed": 2**31 - 2, "replicates": 3}, "seed=2147483646 is too large for replicates=3"),
        ({"model__bn_group": 32, "accumulate": 3}, "accumulate=3 does not divide batch_size=128"),
        ({"model__bn_group": 64, "accumulate": 4}, "model.bn_group=64 does not divide a part"),
        ({"model__bn_group": 0, "accumulate": 2}, "model.bn_group=0 does not divide a part"),
        ({"model__depth": 21}, "model.depth=21"),
        ({"model__remat": (1, 4)}, "model.remat=(1, 4) names a stage that this network lacks"),
        ({"model__space_to_depth": True}, "model.space_to_depth=True needs model.stem='imagenet'"),
        ({"model__depth": 20, "model__family": "imagenet"}, "(nearest: 18 and 34)"),
    ],
)
def test_combination_is_refused(values, words):
    assert words in refusal(changed(**values))
    if len(values) > 1:  # without the last value, the others are allowed
        resolve(changed(**dict(list(values.items())[:-1])))


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
        resolve(changed(**values))


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
    resolved = resolve(changed(**{**dict.fromkeys(LENGTHS), **lengths}))
    assert resolved.steps == steps
    assert resolved.epochs is None
    assert resolved.examples is None


@pytest.mark.parametrize(
    ("lengths", "what"),
    [
        ({}, "none is set"),
        ({"steps": 1, "epochs": 1.0}, "steps and epochs are set"),
        ({"steps": 1, "epochs": 1.0, "examples": 5}, "steps, epochs and examples are set"),
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
    config.schedule.name, config.schedule.warmup = "cosine", "until_error"
    rates = [resolve(config).schedule[key] for key in RATES]
    assert rates == [0.1, 0.001, 0.02]
    config.schedule.rate_for_batch = 256
    resolved = resolve(config)
    assert [resolved.schedule[key] for key in RATES] == [0.4, 0.004, 0.08]
    # Rates must not grow again, since a resumed run reads the resolved config.
    assert resolve(resolved) == resolved


@pytest.mark.parametrize("value", [0, -3])
@pytest.mark.parametrize("key", LENGTHS)
def test_lengths_are_positive(key, value):
    text = refusal(changed(**{**dict.fromkeys(LENGTHS), key: value}))
    assert text.startswith(f"{key}={value}")
    assert text.endswith(f" is out of range; allowed are {ALLOWED[key]}.")


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        (
            "steps",
            3_000_000_000,
            "steps=3000000000 is out of range; allowed are whole numbers",
        ),
        ("steps", 2.5, "steps=2.5 is out of range"),
        ("epochs", math.inf, "epochs=inf is out of range"),
        ("epochs", 1e300, "epochs=1e+300 is out of range"),
        ("epochs", 1e30, "epochs=1e+30 is 9.82e+30 steps; allowed are at most 2147483647."),
        ("examples", 10**15, "is 7.81e+12 steps; allowed are at most 2147483647."),
    ],
)
def test_lengths_fit_an_int32_counter(key, value, words):
    assert words in refusal(changed(**{**dict.fromkeys(LENGTHS), key: value}))


@pytest.mark.parametrize("length", [0.0, 0.4])
def test_a_linear_warm_up_takes_at_least_a_step(length):
    warmup = {"schedule__warmup": "linear", "schedule__warmup_length": length}
    text = refusal(changed(**warmup))
    assert f"schedule.warmup_length={length:g} steps is less than one step" in text
    resolve(changed(**warmup, schedule__unit="epochs") if length else changed())


def test_resolving_is_fast_for_huge_intervals():
    rarely = {f"{group}__every": 2**31 - 1 for group in ("log", "eval", "checkpoint")}
    resolve(changed(**rarely))


@pytest.mark.parametrize("key", ["channel_mean", "channel_std"])
def test_a_given_normalization_has_a_number_per_channel(key):
    text = refusal(changed(**{f"data__{key}": (7.0, 7.0)}))
    assert f"data.{key}=(7.0, 7.0) has 2 numbers, but digits has 1 channels" in text
    resolve(changed(**{f"data__{key}": (7.0,)}))


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
    resolved = resolve(
        changed(
            schedule__unit=unit,
            schedule__name="step",
            schedule__boundaries=boundaries,
            schedule__warmup="linear",
            schedule__warmup_length=warmup,
        )
    )
    assert (resolved.schedule.boundaries, resolved.schedule.warmup_length) == expected
    assert resolved.schedule.unit == "steps"


# ------------------------------------------------------------------- networks that contradict

BOTTLENECKS = {"family": "cifar_bottleneck", "depth": 20}


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"nonlinearity": "crelu"}, "model.activation='pre' or model.shortcut='none'"),
        ({"init": "looks_linear"}, "needs model.nonlinearity='crelu', whose two halves"),
        ({"init": "fixup"}, "model.norm='batch'; allowed is model.norm='none'"),
        ({"init": "fixup", "norm": "none", "shortcut": "none"}, "model.init='fixup' makes a plain"),
        ({"branch_scale": 0.0, "shortcut": "none"}, "model.branch_scale=0.0 makes a plain net"),
        ({"zero_init_residual": True, "shortcut": "none"}, "zero_init_residual=True makes a plain"),
        ({"stochastic_depth": 0.5, "shortcut": "none"}, "model.stochastic_depth=0.5 drops"),
        ({"norm": "group", "norm_groups": 5}, "does not divide the filters of all stages"),
        ({"norm": "group", "width": 0.25}, "model.norm_groups=8 does not divide the filters"),
        ({"norm": "group", "stem_filters": 12}, "all stages, 12, 16, 32, 64; allowed"),
        ({"stem_filters": 17}, "are more channels than the first block outputs, 16"),
        ({"same_padding": ("stem", "pool")}, "has stem and pool, which have stride 2 with"),
        ({"same_padding": ("stem",), "stem": "imagenet", "space_to_depth": True},
         "has the stem, which model.space_to_depth=True computes with symmetric"),
        ({"groups": 4}, "model.groups=4 needs bottleneck blocks, but this network has basic"),
        ({"bottleneck_width": 2.0}, "model.bottleneck_width=2.0 needs bottleneck blocks"),
        (BOTTLENECKS | {"groups": 3}, "divide the filters of all 3x3 convolutions, 16, 32, 64"),
        (BOTTLENECKS | {"groups": 4, "nonlinearity": "crelu", "activation": "pre"},
         "model.groups=4 would separate the two halves of model.nonlinearity='crelu'"),
        (BOTTLENECKS | {"groups": 4, "init": "orthogonal"},
         "model.init='orthogonal' is orthogonal over all channels, but model.groups=4"),
        (BOTTLENECKS | {"norm": "group", "bottleneck_width": 0.25}, "stages, 16, 32, 64, 4, 8;"),
        ({"norm": "group", "stem": "deep", "norm_groups": 16}, "all stages, 8, 16, 32, 64;"),
        ({"nonlinearity": "tailored", "depth": 8}, "where even ReLU has 0.809"),
        ({"zero_init_residual": True, "norm": "none", "weight_standardization": True},
         "model.zero_init_residual=True starts some at 0"),
        ({"init": "fixup", "norm": "none", "weight_standardization": True},
         "model.init='fixup' starts some at 0"),
    ],
)  # fmt: skip
def test_networks_that_contradict_themselves_are_refused(values, words):
    assert words in refusal(changed(**{f"model__{key}": v for key, v in values.items()}))


@pytest.mark.parametrize(
    "values",
    [
        {"nonlinearity": "crelu", "shortcut": "none", "init": "looks_linear"},
        {"nonlinearity": "crelu", "activation": "pre", "init": "looks_linear"},
        {"init": "fixup", "norm": "none", "branch_scale_by": "learned"},
        {"zero_init_residual": True, "weight_standardization": True},
        {"branch_scale": 0.0, "branch_scale_by": "learned", "norm": "none"},
        {"norm": "group", "width": 0.25, "norm_groups": 4},
        {"stem_filters": 17, "shortcut": "B"},
        {"same_padding": ("blocks",)},
        {"same_padding": ("stem", "pool", "blocks"), "stem": "imagenet"},
        {"nonlinearity": "tailored", "depth": 8, "tailored_eta": 0.5},
        {"stem": "deep", "same_padding": ("stem", "pool"), "shortcut_downsampling": "mean"},
        {"stem": "deep", "space_to_depth": True, "se_reduction": 16},
        BOTTLENECKS | {"groups": 8, "bottleneck_width": 2.0, "init": "fixup", "norm": "none"},
    ],
)
def test_networks_with_several_cures_are_accepted(values):
    resolve(changed(**{f"model__{key}": value for key, value in values.items()}))


def test_only_batchnorm_needs_groups_that_divide_the_parts_of_a_batch():
    parts = {"accumulate": 2, "batch_size": 126}
    assert "model.bn_group=0 does not divide" in refusal(changed(**parts))
    resolve(changed(**parts, model__norm="none"))
    assert "does not divide batch_size" in refusal(changed(model__bn_group=5))
    resolve(changed(model__bn_group=5, model__norm="group"))


# ------------------------------------------------------------------- values taken from the data


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
    resolved = resolve(changed(cifar10.get_config(), data__name=name, data__validation=9))
    assert resolved.data.flip == flip
    assert resolved.model.num_classes == (100 if name == "cifar100" else 10)
    assert resolved.data.dir == ("" if name == "digits" else no_data)


def test_explicit_flips_and_classes_are_kept(no_data):
    resolved = resolve(changed(data__flip="on", model__num_classes=12))
    assert (resolved.data.flip, resolved.model.num_classes) == ("on", 12)


def shipped():
    """All configs except those that need a run to load."""
    files = sorted((ROOT / "configs").glob("[!_]*.py"))
    return [f for f in files if f.stem not in ("finetune", "saved")]


@pytest.mark.parametrize("file", shipped(), ids=lambda f: f.stem)
def test_shipped_configs_resolve_and_stay(file, no_data):
    spec = importlib.util.spec_from_file_location("shipped_config", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config()
    config = config.get("base", config)  # a study's
    if file.stem == "base":
        assert "none is set" in refusal(config)  # the base config leaves the length open
        config.steps = 10
    before = config.to_dict()
    resolved = resolve(config)
    assert config.to_dict() == before  # the caller's config is not changed
    assert resolved.to_dict() != before
    assert resolve(resolved).to_dict() == resolved.to_dict()
