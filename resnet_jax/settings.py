"""The allowed values of every setting, whether it changes results and when it has an effect.

configs/base.py has each setting's default and meaning. SETTINGS is the single source of checks and
their error messages, of a run's identity and the settings that reports compare (runs/identity.py),
and of the notice about settings without effect (effect.py). This file does not import JAX, so that
reports start fast.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from ml_collections import ConfigDict

from resnet_jax.allowed import (
    Allowed,
    Choice,
    Choices,
    Length,
    Numbers,
    Range,
    Span,
    Switch,
    Text,
)
from resnet_jax.data.sets import DATA_SETS
from resnet_jax.errors import UserError
from resnet_jax.networks.architectures import (
    BOTTLENECK_STRIDES,
    DOWNSAMPLINGS,
    FAMILIES,
    GATES,
    INITS,
    NONLINEARITIES,
    NORMS,
    PADDED,
    PRECISIONS,
    SCALED_BY,
    SHORTCUTS,
    STEMS,
)

Config = Mapping[str, Any]  # nested, as in config.json
Flat = dict[str, Any]  # {"model.depth": 56, ...}


@dataclasses.dataclass(frozen=True)
class Condition:
    """A condition on a run's other settings.

    Attributes:
      keys: the settings it depends on.
      holds: whether it holds for a resolved config.
    """

    keys: tuple[str, ...]
    holds: Callable[[ConfigDict], bool]


@dataclasses.dataclass(frozen=True)
class Setting:
    """The properties of a setting, beside its default.

    Attributes:
      allowed: its values, independently of other settings; resolve.py checks combinations.
      acts_if: conditions that must all hold for the setting to have an effect.
      changes_results: whether it can change a result by more than rounding. If not, it is not part
        of a run's identity: you may change it on resuming, and reports ignore differences in it.
      varied: whether studies vary it: a report compares runs that differ in it.
      decides_if: for a setting that changes results in few runs: the condition under which it does.
        If it does not hold, a report compares runs that differ in the setting.
      implied: the value of a run that an earlier version saved without the setting; None for a
        setting that every version has. A run with this value is the same run as one without the
        setting: it can be resumed, repeated, loaded and compared.
    """

    allowed: Allowed
    acts_if: tuple[Condition, ...] = ()
    changes_results: bool = True
    varied: bool = False
    decides_if: Condition | None = None
    implied: Any = None

    def acts(self, config: ConfigDict) -> bool:
        """Whether the setting can have an effect in a run."""
        return all(condition.holds(config) for condition in self.acts_if)


def get(config: ConfigDict, key: str) -> Any:
    """Returns the value of a dotted key."""
    value: Any = config
    for part in key.split("."):
        value = value[part]
    return value


def _among(key: str, *values: object) -> Condition:
    return Condition((key,), lambda config: get(config, key) in values)


def _above_0(key: str) -> Condition:
    return Condition((key,), lambda config: get(config, key) > 0)


_COUNT = Range(1, whole=True)
_COUNT_OR_0 = Range(0, whole=True)
_UP_TO_1 = Range(0, 1, below=True)  # at 1 an average would never change
_SCALE_OF_BLOCKS = Range(0, 1e3)
_SWITCH, _TEXT = Switch(), Text()
# Sets of a user's own: two runs with such a name may be on different data.
OWN_DATA = tuple(name for name, facts in DATA_SETS.items() if not facts.num_classes)
LENGTHS = ("steps", "epochs", "examples")

_STREAMED = Condition(("data.name",), lambda c: not DATA_SETS[c.data.name].resident)
_VALIDATED = _above_0("data.validation")
_RESIDUAL = _among("model.shortcut", "A", "B", "C")
_BATCH_NORM = _among("model.norm", "batch")
_SGD = _among("optimizer.name", "sgd", "lars")
_ADAM = _among("optimizer.name", "adam", "adamw")
_PLATEAU = _among("schedule.name", "plateau")
_UNTIL_ERROR = _among("schedule.warmup", "until_error")
_SCALE = (_STREAMED, _among("data.crop", "scale"))
_RESIZED = (_STREAMED, _among("data.crop", "random_resized"))
_SEVERAL_SEEDS = Condition(("replicates",), lambda c: c.replicates > 1)
_USES_MOVING_AVERAGES = Condition(
    ("data.validation", "eval.statistics"),
    lambda c: c.data.validation > 0 or c.eval.statistics == "moving_average",
)
_CUTS_THE_RATE = Condition(
    ("schedule.boundaries", "steps"),
    lambda c: c.schedule.name == "plateau" or any(b < c.steps for b in c.schedule.boundaries),
)
_HAS_SQUARE_VIEWS = Condition(
    ("data.validation", "eval.views"),
    lambda c: c.data.validation > 0 or tuple(c.eval.views) != ("fully_convolutional",),
)
_HAS_WHOLE_VIEWS = Condition(("eval.views",), lambda c: "fully_convolutional" in c.eval.views)
# Otherwise validation influences neither the rate nor the choice of the tested weights.
_VALIDATION_DECIDES = Condition(
    ("schedule.name", "eval.weights"),
    lambda c: c.schedule.name == "plateau" or c.eval.weights == "best",
)
_PRETRAINED = Condition(("init.from",), lambda c: bool(c.init["from"]))
_NORMALIZES_ANEW = Condition(
    ("init.from", "init.normalization"),
    lambda c: not c.init["from"] or c.init.normalization == "new",
)
# A resolved config has its length in steps, so this never holds there.
_GIVES_THE_LENGTH = Condition(("steps",), lambda c: c.steps is None)

SETTINGS: dict[str, Setting] = {
    "seed": Setting(_COUNT_OR_0, varied=True),
    "replicates": Setting(Range(1, 1024, whole=True), varied=True),
    "replicates_by": Setting(
        Choice(("auto", "separate", "unroll", "loop")), (_SEVERAL_SEEDS,), changes_results=False
    ),
    "deterministic": Setting(_SWITCH, changes_results=False),
    "batch_size": Setting(_COUNT),
    "accumulate": Setting(_COUNT, changes_results=False),
    "steps": Setting(Length(1, whole=True)),
    "epochs": Setting(Length(0, above=True), decides_if=_GIVES_THE_LENGTH),
    "examples": Setting(Length(1, 2**53, whole=True), decides_if=_GIVES_THE_LENGTH),
    "variant": Setting(_TEXT, changes_results=False, implied=""),
    "model.family": Setting(Choice(tuple(FAMILIES))),
    "model.depth": Setting(_COUNT, varied=True),  # networks/architectures.py checks the depth
    "model.shortcut": Setting(Choice(SHORTCUTS), varied=True),
    "model.shortcut_downsampling": Setting(Choice(DOWNSAMPLINGS), (_RESIDUAL,), implied="stride"),
    "model.shortcut_scale": Setting(_SCALE_OF_BLOCKS, (_RESIDUAL,), implied=1.0),
    "model.shortcut_scale_by": Setting(Choice(SCALED_BY), (_RESIDUAL,), implied="constant"),
    "model.branch_scale": Setting(_SCALE_OF_BLOCKS, implied=1.0),
    "model.branch_scale_by": Setting(Choice(SCALED_BY), implied="constant"),
    "model.gate": Setting(Choice(GATES), (_RESIDUAL,), implied="none"),
    "model.gate_bias": Setting(
        Range(-100, 100),
        (_RESIDUAL, _among("model.gate", "exclusive", "shortcut_only")),
        implied=0.0,
    ),
    "model.stochastic_depth": Setting(_UP_TO_1, implied=0.0),
    "model.dropout": Setting(_UP_TO_1, implied=0.0),
    # ImageNet presets set it for all depths, although only 50 and more have bottlenecks.
    "model.bottleneck_stride": Setting(
        Choice(BOTTLENECK_STRIDES), (_among("model.family", "imagenet", "cifar_bottleneck"),)
    ),
    "model.activation": Setting(Choice(("post", "pre"))),
    "model.stem": Setting(Choice(tuple(STEMS))),
    "model.space_to_depth": Setting(_SWITCH, changes_results=False),
    "model.width": Setting(Range(1e-3, 1e3)),
    "model.bottleneck_width": Setting(Range(1e-3, 1e3), implied=1.0),
    "model.groups": Setting(_COUNT, implied=1),
    "model.se_reduction": Setting(_COUNT_OR_0, implied=0),
    "model.stem_filters": Setting(_COUNT_OR_0, implied=0),
    "model.same_padding": Setting(Choices(PADDED, or_none=True), implied=()),
    "model.zero_init_residual": Setting(_SWITCH),
    "model.nonlinearity": Setting(Choice(NONLINEARITIES), implied="relu"),
    "model.tailored_eta": Setting(
        Range(0, 1, above=True, below=True),
        (_among("model.nonlinearity", "tailored"),),
        implied=0.9,
    ),
    "model.norm": Setting(Choice(NORMS), implied="batch"),
    "model.norm_groups": Setting(_COUNT, (_among("model.norm", "group"),), implied=8),
    "model.weight_standardization": Setting(_SWITCH, implied=False),
    "model.init": Setting(Choice(INITS), implied="he"),
    "model.dtype": Setting(Choice(("float32", "bfloat16"))),
    "model.precision": Setting(Choice(PRECISIONS)),
    "model.scan": Setting(Choice(("auto", "on", "off")), changes_results=False),
    "model.remat": Setting(Numbers(_COUNT), changes_results=False),
    "model.num_classes": Setting(_COUNT_OR_0),
    "model.bn_group": Setting(_COUNT_OR_0, (_BATCH_NORM,)),
    "model.bn_momentum": Setting(_UP_TO_1, (_BATCH_NORM, _USES_MOVING_AVERAGES)),
    "model.bn_epsilon": Setting(
        Range(0, 1, above=True), (_among("model.norm", "batch", "group", "frozen"),)
    ),
    "train.steps_per_dispatch": Setting(_TEXT, changes_results=False),
    "data.name": Setting(Choice(tuple(DATA_SETS))),
    "data.dir": Setting(_TEXT, changes_results=False),
    "data.validation": Setting(_COUNT_OR_0),
    "data.classes": Setting(Numbers(_COUNT_OR_0), implied=()),
    "data.split_seed": Setting(_COUNT_OR_0, (_VALIDATED,)),
    "data.mean": Setting(Choice(("pixel", "channel", "none")), (_NORMALIZES_ANEW,)),
    "data.std": Setting(_SWITCH, (_NORMALIZES_ANEW,)),
    "data.channel_mean": Setting(
        Numbers(Range(0, 255)), (_NORMALIZES_ANEW, _among("data.mean", "channel")), implied=()
    ),
    "data.channel_std": Setting(
        Numbers(Range(0, 255, above=True)), (_NORMALIZES_ANEW, _among("data.std", True)), implied=()
    ),
    "data.pad": Setting(Range(0, 1024, whole=True)),
    "data.flip": Setting(Choice(("on", "off", "auto"))),
    "data.color": Setting(_SWITCH),
    "data.image_size": Setting(Range(0, 4096, whole=True)),
    "data.crop": Setting(Choice(("scale", "random_resized")), (_STREAMED,)),
    "data.scales": Setting(Numbers(Range(1, 4096, whole=True), 2), _SCALE),
    "data.area": Setting(Numbers(Range(1e-6, 1), 2), _RESIZED),
    "data.aspect": Setting(Numbers(Range(0.01, 100), 2), _RESIZED),
    "data.resample": Setting(Choice(("bilinear", "bicubic", "area")), (_STREAMED,)),
    "data.workers": Setting(Range(0, 4096, whole=True), (_STREAMED,), changes_results=False),
    "optimizer.name": Setting(Choice(("sgd", "adam", "adamw", "lars"))),
    "optimizer.momentum": Setting(_UP_TO_1, (_SGD,)),
    "optimizer.nesterov": Setting(_SWITCH, (_SGD, _above_0("optimizer.momentum"))),
    "optimizer.trust": Setting(Range(0, above=True), (_among("optimizer.name", "lars"),)),
    "optimizer.b1": Setting(_UP_TO_1, (_ADAM,)),
    "optimizer.b2": Setting(_UP_TO_1, (_ADAM,)),
    "optimizer.epsilon": Setting(Range(0, 1, above=True), (_ADAM,)),
    "optimizer.weight_decay": Setting(Range(0)),
    "optimizer.decay_on": Setting(
        Choice(("all", "kernels")), (_above_0("optimizer.weight_decay"),)
    ),
    "optimizer.clip_norm": Setting(Range(0)),
    "optimizer.rate_factors": Setting(Numbers(Range(0, 1e3)), implied=()),
    "schedule.name": Setting(Choice(("constant", "step", "cosine", "plateau"))),
    "schedule.rate": Setting(Range(0, above=True)),
    "schedule.rate_for_batch": Setting(_COUNT_OR_0),
    "schedule.unit": Setting(Choice((*LENGTHS, "fraction"))),
    "schedule.boundaries": Setting(Numbers(Range(0)), (_among("schedule.name", "step"),)),
    "schedule.factor": Setting(
        Range(0, 1, above=True, below=True),
        (_among("schedule.name", "step", "plateau"), _CUTS_THE_RATE),
    ),
    "schedule.final_rate": Setting(Range(0), (_among("schedule.name", "cosine"),)),
    "schedule.patience": Setting(_COUNT, (_PLATEAU,)),
    "schedule.tolerance": Setting(Range(0, 100, above=True), (_PLATEAU,)),
    "schedule.warmup": Setting(Choice(("none", "linear", "until_error"))),
    "schedule.warmup_length": Setting(Range(0), (_among("schedule.warmup", "linear"),)),
    "schedule.warmup_rate": Setting(Range(0, above=True), (_UNTIL_ERROR,)),
    "schedule.warmup_error": Setting(Range(0, 100, above=True), (_UNTIL_ERROR,)),
    "schedule.warmup_window": Setting(_COUNT, (_UNTIL_ERROR,)),
    "init.from": Setting(_TEXT, implied=""),
    "init.head": Setting(Choice(("new", "kept")), (_PRETRAINED,), implied="new"),
    "init.normalization": Setting(Choice(("new", "kept")), (_PRETRAINED,), implied="new"),
    "label_smoothing": Setting(_UP_TO_1),
    "ema_decay": Setting(_UP_TO_1),
    "eval.every": Setting(_COUNT, (_VALIDATED,), decides_if=_VALIDATION_DECIDES),
    "eval.batch_size": Setting(_COUNT, changes_results=False),
    "eval.statistics": Setting(Choice(("population", "moving_average")), (_BATCH_NORM,)),
    "eval.population_examples": Setting(
        _COUNT_OR_0, (_BATCH_NORM, _among("eval.statistics", "population"))
    ),
    "eval.weights": Setting(Choice(("last", "best"))),
    "eval.views": Setting(Choices(("center", "ten_crop", "fully_convolutional"))),
    "eval.short_side": Setting(Range(1, 4096, whole=True), (_STREAMED, _HAS_SQUARE_VIEWS)),
    "eval.scales": Setting(Numbers(Range(32, 4096, whole=True)), (_STREAMED, _HAS_WHOLE_VIEWS)),
    "mesh.replicates": Setting(_COUNT_OR_0, changes_results=False),
    "mesh.fsdp": Setting(_COUNT, changes_results=False),
    "checkpoint.every": Setting(_COUNT, changes_results=False),
    "checkpoint.keep": Setting(_COUNT, changes_results=False),
    "log.every": Setting(_COUNT, changes_results=False),
    "log.signals.every": Setting(_COUNT_OR_0, changes_results=False),
    "log.tensorboard": Setting(_SWITCH, changes_results=False),
    "profile": Setting(Span(), changes_results=False),
}

# Settings that change the paper's networks, beside those that the paper itself varies.
CURES = tuple(
    key for key, s in SETTINGS.items() if key.startswith("model.") and s.implied is not None
)


def missing(flat: Flat) -> list[str]:
    """Returns the settings that change results and that a saved config lacks.

    Others may be newer than the run, and keep their defaults.
    """
    return [key for key, s in SETTINGS.items() if s.changes_results and key not in flat]


def assign(config: ConfigDict, key: str, value: object, where: str) -> None:
    """Sets the value of an existing dotted key.

    Args:
      config: changed in place.
      key: one of its settings.
      value: a list is accepted for a tuple, and an int for a float.
      where: the value's origin and key, for the error message.

    Raises:
      UserError: the value has the wrong type.
    """
    *groups, last = key.split(".")
    group = get(config, ".".join(groups)) if groups else config
    default, kind = group[last], group.get_type(last)
    # ConfigDict accepts True as a number and None as anything.
    is_wrong_bool = value is not None and isinstance(value, bool) != (kind is bool)
    try:
        if is_wrong_bool or (value is None and key not in LENGTHS):
            raise TypeError
        group[last] = value
    except (TypeError, OverflowError):
        raise UserError(
            f"{where}={value!r} is not of the setting's type; it is {default!r} by default."
        ) from None


def flatten(config: Config, prefix: str = "") -> Flat:
    """Returns ``{"model.depth": 56, ...}`` for a nested config."""
    flat: Flat = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = list(value) if isinstance(value, tuple) else value
    return flat


def show(value: object) -> str:
    """Returns a setting's value as names and tables have it, such as ``0.1`` or ``1+2.5``."""
    if isinstance(value, (tuple, list)):
        return "+".join(map(show, value))
    return f"{value:.12g}" if isinstance(value, float) else str(value)
