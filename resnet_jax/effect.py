"""Settings that have no effect in a run, because of its other settings.

Such a setting is no mistake: a study may set it for all of its cells. It is named at the start and
in the report.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict

from resnet_jax.data import sources
from resnet_jax.settings import get


@dataclasses.dataclass(frozen=True)
class Condition:
    """A condition under which a setting has an effect.

    Attributes:
      keys: the settings that decide it.
      holds: whether it holds, of a resolved config.
    """

    keys: tuple[str, ...]
    holds: Callable[[ConfigDict], bool]


def _among(key: str, *values: object) -> Condition:
    return Condition((key,), lambda config: get(config, key) in values)


def _above_0(key: str) -> Condition:
    return Condition((key,), lambda config: get(config, key) > 0)


def _cuts(config: ConfigDict) -> bool:
    return any(boundary < config.steps for boundary in config.schedule.boundaries)


_STREAMED = Condition(("data.name",), lambda c: not sources.KNOWN[c.data.name].resident)
_SGD = _among("optimizer.name", "sgd", "lars")
_ADAM = _among("optimizer.name", "adam", "adamw")
_PLATEAU = _among("schedule.name", "plateau")
_UNTIL_ERROR = _among("schedule.warmup", "until_error")
_SCALE = (_STREAMED, _among("data.crop", "scale"))
_RESIZED = (_STREAMED, _among("data.crop", "random_resized"))

# The default of configs/base.py, and the conditions that must all hold for the setting to have an
# effect. Settings that are not here have one in every run.
CONDITIONS: dict[str, tuple[Any, tuple[Condition, ...]]] = {
    "replicates_by": ("auto", (Condition(("replicates",), lambda c: c.replicates > 1),)),
    # Presets of ImageNet set it for the depths that have bottlenecks.
    "model.bottleneck_stride": ("v1", (_among("model.family", "imagenet"),)),
    "model.bn_momentum": (
        0.9,
        (
            Condition(
                ("data.validation", "eval.statistics"),
                lambda c: c.data.validation > 0 or c.eval.statistics == "moving_average",
            ),
        ),
    ),
    "data.split_seed": (0, (_above_0("data.validation"),)),
    "data.crop": ("scale", (_STREAMED,)),
    "data.scales": ((256, 480), _SCALE),
    "data.area": ((0.08, 1.0), _RESIZED),
    "data.aspect": ((0.75, 4 / 3), _RESIZED),
    "data.resample": ("bilinear", (_STREAMED,)),
    "data.workers": (0, (_STREAMED,)),
    "optimizer.momentum": (0.9, (_SGD,)),
    "optimizer.nesterov": (False, (_SGD, _above_0("optimizer.momentum"))),
    "optimizer.trust": (0.001, (_among("optimizer.name", "lars"),)),
    "optimizer.b1": (0.9, (_ADAM,)),
    "optimizer.b2": (0.999, (_ADAM,)),
    "optimizer.epsilon": (1e-8, (_ADAM,)),
    "optimizer.decay_on": ("all", (_above_0("optimizer.weight_decay"),)),
    "schedule.boundaries": ((32000.0, 48000.0), (_among("schedule.name", "step"),)),
    "schedule.factor": (
        0.1,
        (
            _among("schedule.name", "step", "plateau"),
            Condition(
                ("schedule.boundaries", "steps"),
                lambda c: c.schedule.name == "plateau" or _cuts(c),
            ),
        ),
    ),
    "schedule.final_rate": (0.0, (_among("schedule.name", "cosine"),)),
    "schedule.patience": (5, (_PLATEAU,)),
    "schedule.tolerance": (0.01, (_PLATEAU,)),
    "schedule.warmup_length": (0.0, (_among("schedule.warmup", "linear"),)),
    "schedule.warmup_rate": (0.01, (_UNTIL_ERROR,)),
    "schedule.warmup_error": (80.0, (_UNTIL_ERROR,)),
    "schedule.warmup_window": (100, (_UNTIL_ERROR,)),
    "eval.every": (1000, (_above_0("data.validation"),)),
    "eval.population_examples": (0, (_among("eval.statistics", "population"),)),
    "eval.short_side": (
        256,
        (
            _STREAMED,
            Condition(
                ("data.validation", "eval.views"),
                lambda c: c.data.validation > 0 or c.eval.views != ("fully_convolutional",),
            ),
        ),
    ),
    "eval.scales": (
        (224, 256, 384, 480, 640),
        (
            _STREAMED,
            Condition(("eval.views",), lambda c: "fully_convolutional" in c.eval.views),
        ),
    ),
}


def without_effect(config: ConfigDict) -> list[str]:
    """Returns a sentence, without its full stop, on each setting that has no effect in a run.

    A setting with its default value is left out, but for a schedule that never cuts its rate or
    that never reaches it.

    Args:
      config: resolved.
    """
    sentences = []
    for key, (default, conditions) in CONDITIONS.items():
        value = get(config, key)
        unmet = [condition for condition in conditions if not condition.holds(config)]
        if unmet and value != default:
            sentences.append(_sentence(config, f"{key}={value!r}", unmet[0].keys))
    schedule = config.schedule
    if schedule.name == "step":
        late = tuple(b for b in schedule.boundaries if b >= config.steps)
        if late:
            which = f"schedule.boundaries={late!r}"
            sentences.append(_sentence(config, which, ("steps",)))
        if not schedule.boundaries:
            sentences.append(_sentence(config, "schedule.name='step'", ("schedule.boundaries",)))
    if schedule.warmup == "until_error" and schedule.warmup_window >= config.steps:
        # The training error is first looked at after the last step.
        rate = f"schedule.rate={schedule.rate:g}"
        sentences.append(_sentence(config, rate, ("schedule.warmup_window", "steps")))
    return sentences


def _sentence(config: ConfigDict, setting: str, keys: tuple[str, ...]) -> str:
    because = " and ".join(f"{key}={get(config, key)!r}" for key in keys)
    return f"{setting} has no effect with {because}"
