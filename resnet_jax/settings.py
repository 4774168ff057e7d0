"""From a config as written to a config as run: every value checked, every length in steps.

Nothing here touches a device: a mistake costs a second, not a place in a queue.
"""

import itertools
import math
from typing import Any

from ml_collections import ConfigDict

from resnet_jax import dispatch
from resnet_jax.architectures import FAMILIES, architecture
from resnet_jax.blocks import SHORTCUTS
from resnet_jax.data import sources
from resnet_jax.data.check import check_data
from resnet_jax.errors import UserError, check_choice, listing
from resnet_jax.replicates import BY
from resnet_jax.resnet import DTYPES, PRECISIONS

LENGTHS = ("steps", "epochs", "examples")
RATES = ("rate", "final_rate", "warmup_rate")  # of the schedule

CHOICES = {
    "replicates_by": BY,
    "model.family": tuple(FAMILIES),
    "model.shortcut": SHORTCUTS,
    "model.bottleneck_stride": ("v1", "v1.5"),
    "model.activation": ("post", "pre"),
    "model.stem": ("cifar", "imagenet"),
    "model.dtype": tuple(DTYPES),
    "model.precision": PRECISIONS,
    "model.scan": ("auto", "on", "off"),
    "data.name": tuple(sources.KNOWN),
    "data.mean": ("pixel", "channel", "none"),
    "data.flip": ("on", "off", "auto"),
    "data.crop": ("scale", "random_resized"),
    "data.resample": ("bilinear", "bicubic", "area"),
    "optimizer.name": ("sgd", "adam", "adamw", "lars"),
    "optimizer.decay_on": ("all", "kernels"),
    "schedule.name": ("constant", "step", "cosine", "plateau"),
    "schedule.unit": (*LENGTHS, "fraction"),
    "schedule.warmup": ("none", "linear", "until_error"),
    "eval.statistics": ("population", "moving_average"),
    "eval.weights": ("last", "best"),
}

# Lowest and highest value allowed, both included.
RANGES: dict[str, tuple[float, float]] = {
    "seed": (0, 2**31 - 1),
    "replicates": (1, 1024),
    "batch_size": (1, math.inf),
    "accumulate": (1, math.inf),
    "model.width": (1e-3, 1e3),
    "model.num_classes": (0, math.inf),
    "model.bn_group": (0, math.inf),
    "model.bn_momentum": (0, 1),
    "model.bn_epsilon": (0, 1),
    "data.validation": (0, math.inf),
    "data.split_seed": (0, 2**31 - 1),
    "data.pad": (0, 1024),
    "data.image_size": (0, 4096),
    "data.workers": (0, 4096),
    "optimizer.momentum": (0, 1),
    "optimizer.trust": (0, math.inf),
    "optimizer.b1": (0, 1),
    "optimizer.b2": (0, 1),
    "optimizer.epsilon": (0, 1),
    "optimizer.weight_decay": (0, math.inf),
    "optimizer.clip_norm": (0, math.inf),
    "schedule.rate": (0, math.inf),
    "schedule.rate_for_batch": (0, math.inf),
    "schedule.factor": (0, 1),
    "schedule.final_rate": (0, math.inf),
    "schedule.patience": (1, math.inf),
    "schedule.tolerance": (0, 100),
    "schedule.warmup_length": (0, math.inf),
    "schedule.warmup_rate": (0, math.inf),
    "schedule.warmup_error": (0, 100),
    "schedule.warmup_window": (1, math.inf),
    "label_smoothing": (0, 1),
    "ema_decay": (0, 1),
    "eval.every": (1, math.inf),
    "eval.batch_size": (1, math.inf),
    "eval.population_examples": (0, math.inf),
    "eval.short_side": (1, 4096),
    "mesh.replicates": (0, math.inf),
    "mesh.fsdp": (1, math.inf),
    "checkpoint.every": (1, math.inf),
    "checkpoint.keep": (1, math.inf),
    "log.every": (1, math.inf),
}


def get(config: ConfigDict, key: str) -> Any:
    """Returns the value of a dotted key."""
    value: Any = config
    for part in key.split("."):
        value = value[part]
    return value


def put(config: ConfigDict, key: str, value: Any, where: str) -> None:
    """Sets a dotted key that is there.

    Args:
      config: changed in place.
      key: one of its settings.
      value: a list stands for a tuple, a whole number for a float.
      where: the value's origin and key, for the error.

    Raises:
      UserError: the value is not of the setting's type.
    """
    *groups, last = key.split(".")
    group = get(config, ".".join(groups)) if groups else config
    default, kind = group[last], group.get_type(last)
    # ConfigDict takes True for a number and None for anything.
    mixed_up = value is not None and isinstance(value, bool) != (kind is bool)
    try:
        if mixed_up or (value is None and key not in LENGTHS):
            raise TypeError
        group[last] = value
    except TypeError:
        raise UserError(
            f"{where}={value!r} is not of the setting's type; it is {default!r} by default."
        ) from None


def resolve(config: ConfigDict) -> ConfigDict:
    """Checks a config and returns it as a run sees it; a resolved config comes back unchanged.

    Lengths become steps, `model.num_classes`, `data.flip` and `data.dir` are settled.

    Raises:
      UserError: a value is not allowed, or two do not go together.
    """
    for key, allowed in CHOICES.items():
        check_choice(key, get(config, key), allowed)
    for key, (low, high) in RANGES.items():
        value = get(config, key)
        if not (low <= value <= high and math.isfinite(value)):  # also refuses NaN
            bounds = f"at least {low}" if math.isinf(high) else f"from {low} to {high}"
            raise UserError(f"{key}={value} is out of range; allowed is {bounds}.")
    _check_remat(config.model)
    dispatch.check(config)

    config = ConfigDict(config.copy_and_resolve_references())
    known = sources.facts(config.data.name, config.data.dir)
    examples = known.train - config.data.validation
    _check_combinations(config, known, examples)

    config.model.num_classes = config.model.num_classes or known.num_classes
    config.data.image_size = config.data.image_size or known.image_shape[0]
    if config.data.flip == "auto":
        config.data.flip = "on" if known.mirrored_keeps_class else "off"
    if config.data.name != "digits":
        config.data.dir = str(sources.root_of(config.data.dir))

    config.steps = _total_steps(config, examples)
    _check_profile(config)
    config.epochs = config.examples = None
    schedule = config.schedule
    if schedule.rate_for_batch:
        for key in RATES:
            schedule[key] *= config.batch_size / schedule.rate_for_batch
        schedule.rate_for_batch = 0
    a_unit = {
        "steps": 1.0,
        "epochs": examples / config.batch_size,
        "examples": 1 / config.batch_size,
        "fraction": float(config.steps),
    }[schedule.unit]
    schedule.boundaries = _boundaries_in_steps(schedule, a_unit)
    schedule.warmup_length = float(round(schedule.warmup_length * a_unit))
    schedule.unit = "steps"
    if (
        schedule.name == "cosine"
        and schedule.warmup == "linear"
        and schedule.warmup_length >= config.steps
    ):
        raise UserError(
            f"schedule.warmup_length={schedule.warmup_length:g} steps leaves none of the "
            f"{config.steps} steps for the cosine; it must be shorter."
        )
    return config


def _check_remat(model: ConfigDict) -> None:
    stages = tuple(range(1, len(architecture(model.family, model.depth).stage_sizes) + 1))
    if not all(stage in stages for stage in model.remat):
        raise UserError(
            f"model.remat={model.remat} names no stage of this network; allowed are {stages}, some "
            "of them, and none."
        )


def _check_profile(config: ConfigDict) -> None:
    steps = tuple(config.profile)
    if steps and not (
        len(steps) == 2
        and all(isinstance(step, int) for step in steps)
        and 1 <= steps[0] <= steps[1] <= config.steps
    ):
        raise UserError(
            f"profile={steps} is out of range; allowed are the first and the last of some steps "
            f"from 1 to {config.steps}, or () for none."
        )


def _total_steps(config: ConfigDict, examples: int) -> int:
    given = [key for key in LENGTHS if config[key] is not None]
    if len(given) != 1:
        what = f"{listing(given)} are" if given else "none is"
        raise UserError(
            f"Exactly one of steps, epochs and examples says how long to train; {what} set."
        )
    (key,) = given
    value = config[key]
    if not value > 0:
        raise UserError(f"{key}={value} is out of range; allowed is more than 0.")
    per_step = {"steps": 1, "epochs": config.batch_size / examples, "examples": config.batch_size}
    return max(1, round(value / per_step[key]))


def _boundaries_in_steps(schedule: ConfigDict, a_unit: float) -> tuple[float, ...]:
    given = tuple(schedule.boundaries)
    if all(isinstance(b, int | float) and 0 <= b < math.inf for b in given):
        steps = tuple(float(round(b * a_unit)) for b in given)
        # In steps, because two fractions may fall on one step, and one cut would be lost.
        if schedule.name != "step" or all(a < b for a, b in itertools.pairwise(steps)):
            return steps
    raise UserError(
        f"schedule.boundaries={given} is not in order; allowed are numbers from 0 up, each at "
        "least a step after the one before."
    )


def _check_parts(config: ConfigDict) -> None:
    parts, batch_size, group = config.accumulate, config.batch_size, config.model.bn_group
    if parts == 1:
        return
    if batch_size % parts:
        raise UserError(
            f"accumulate={parts} does not divide batch_size={batch_size}; allowed are its divisors."
        )
    if not group or (batch_size // parts) % group:
        raise UserError(
            f"model.bn_group={group} has no whole groups in a part of {batch_size // parts} "
            f"examples (batch_size={batch_size}, accumulate={parts}); allowed are divisors of "
            f"{batch_size // parts}, so that accumulation changes no result."
        )


def _check_combinations(config: ConfigDict, known: sources.Facts, examples: int) -> None:
    model, data = config.model, config.data
    if examples < 1:
        raise UserError(
            f"data.validation={data.validation} leaves no training example of {data.name}'s "
            f"{known.train}; allowed is up to {known.train - 1}."
        )
    if config.seed + config.replicates - 1 > RANGES["seed"][1]:
        raise UserError(
            f"seed={config.seed} leaves no seeds for replicates={config.replicates}; allowed is up "
            f"to {RANGES['seed'][1] - config.replicates + 1}."
        )
    _check_parts(config)
    check_data(config, known)
    if model.bn_group and config.batch_size % model.bn_group:
        raise UserError(
            f"model.bn_group={model.bn_group} does not divide batch_size={config.batch_size}; "
            "allowed are its divisors, or 0 for the whole batch."
        )
    if model.num_classes and model.num_classes < known.num_classes:
        raise UserError(
            f"model.num_classes={model.num_classes} is less than the {known.num_classes} classes "
            f"of {data.name}; allowed is at least that, or 0 for as many."
        )
    if model.space_to_depth and model.stem != "imagenet":
        raise UserError(
            f"model.space_to_depth=True rearranges the 7x7 stem, but model.stem={model.stem!r}; "
            "allowed is False."
        )
    if model.shortcut == "none" and model.zero_init_residual:
        raise UserError(
            "model.zero_init_residual=True makes a plain net (model.shortcut='none') constant: "
            "every block's output starts at zero; allowed is False."
        )
    needs_validation = {
        "schedule.name='plateau'": config.schedule.name == "plateau",
        "eval.weights='best'": config.eval.weights == "best",
    }
    for setting, chosen in needs_validation.items():
        if chosen and not data.validation:
            raise UserError(
                f"{setting} goes by the validation error, but data.validation=0 holds nothing out; "
                "allowed is more than 0."
            )
