"""Checks a config and resolves it: every length in steps, every "auto" that data decides.

This touches no device, so a mistake costs a second and not a wait in a cluster's queue.
"""

import itertools

from ml_collections import ConfigDict

from resnet_jax.allowed import INT32_MAX, Span
from resnet_jax.data import sources
from resnet_jax.data.sets import Facts
from resnet_jax.errors import UserError, listing, nearest
from resnet_jax.execution import DISPATCH_KEYS, allowed_steps_per_dispatch
from resnet_jax.networks import layout
from resnet_jax.networks.architectures import architecture
from resnet_jax.networks.refusals import check_model
from resnet_jax.settings import LENGTHS, SETTINGS, get

_RATES = ("schedule.rate", "schedule.final_rate", "schedule.warmup_rate")


def resolve(config: ConfigDict) -> ConfigDict:
    """Returns the resolved config of a run; a resolved config comes back unchanged.

    Lengths become steps; `model.num_classes`, `data.image_size`, `data.flip`, `data.dir` and the
    learning rates get their final values.

    Raises:
      UserError: a value is not allowed, or two values exclude each other.
    """
    for key, setting in SETTINGS.items():
        setting.allowed.check(key, get(config, key))
    check_model(config.model)
    _check_dispatch(config)

    config = ConfigDict(config.copy_and_resolve_references())
    known = sources.facts(config.data.name, config.data.dir)
    examples = known.train - config.data.validation
    _check_combinations(config, known, examples)

    classes = len(config.data.classes) or known.num_classes
    config.model.num_classes = config.model.num_classes or classes
    config.data.image_size = config.data.image_size or known.image_shape[0]
    if config.data.flip == "auto":
        config.data.flip = "on" if known.mirrored_keeps_class else "off"
    if config.data.name != "digits":
        config.data.dir = str(sources.root_of(config.data.dir))

    config.steps = _total_steps(config, examples)
    Span().check("profile", config.profile, config.steps)
    config.epochs = config.examples = None
    schedule = config.schedule
    if schedule.rate_for_batch:  # a rate without effect stays as written
        for key in _RATES:
            if all(condition.holds(config) for condition in SETTINGS[key].acts_if):
                name = key.removeprefix("schedule.")
                schedule[name] *= config.batch_size / schedule.rate_for_batch
                SETTINGS[key].allowed.check(f"{key} for this batch_size", schedule[name])
        schedule.rate_for_batch = 0
    steps_per_unit = {
        "steps": 1.0,
        "epochs": examples / config.batch_size,
        "examples": 1 / config.batch_size,
        "fraction": float(config.steps),
    }[schedule.unit]
    if schedule.name == "step":
        schedule.boundaries = _boundaries_in_steps(schedule, steps_per_unit)
    if schedule.warmup == "linear":
        schedule.warmup_length = _warmup_in_steps(schedule, steps_per_unit, config.steps)
    schedule.unit = "steps"
    return config


def _check_dispatch(config: ConfigDict) -> None:
    value, numbers = config.train.steps_per_dispatch, allowed_steps_per_dispatch(config)
    allowed = ["auto", *map(str, numbers)]
    if value not in allowed:
        hint = nearest(value, allowed)
        if value.isdecimal():
            hint = f" (nearest: {min(numbers, key=lambda number: abs(number - int(value)))})"
        raise UserError(
            f"train.steps_per_dispatch={value!r} does not divide "
            f"{listing([f'{key}={get(config, key)}' for key in DISPATCH_KEYS], 'and')}; "
            f"allowed are {', '.join(allowed)}{hint}."
        )


def _total_steps(config: ConfigDict, examples: int) -> int:
    given = [key for key in LENGTHS if config[key] is not None]
    if len(given) != 1:
        state = f"{listing(given, 'and')} are" if given else "none is"
        raise UserError(
            f"Exactly one of steps, epochs and examples must give the training length; {state} set."
        )
    (key,) = given
    value = config[key]
    per_step = {"steps": 1, "epochs": config.batch_size / examples, "examples": config.batch_size}
    steps = max(1, round(value / per_step[key]))
    if steps > INT32_MAX:
        raise UserError(f"{key}={value} is {steps:.3g} steps; allowed are at most {INT32_MAX}.")
    return steps


def _boundaries_in_steps(schedule: ConfigDict, steps_per_unit: float) -> tuple[float, ...]:
    steps = tuple(float(round(b * steps_per_unit)) for b in schedule.boundaries)
    # Compared in steps: if two fractions rounded to the same step, one cut would be lost.
    if all(a < b for a, b in itertools.pairwise(steps)) and all(b <= INT32_MAX for b in steps):
        return steps
    raise UserError(
        f"schedule.boundaries={tuple(schedule.boundaries)} is not increasing; allowed are numbers "
        f"from 0 to {INT32_MAX} steps, each at least one step after the previous one."
    )


def _warmup_in_steps(schedule: ConfigDict, steps_per_unit: float, steps: int) -> float:
    length = float(round(schedule.warmup_length * steps_per_unit))
    if length < 1:
        raise UserError(
            f"schedule.warmup_length={schedule.warmup_length:g} {schedule.unit} is less than one "
            "step with schedule.warmup='linear'; allowed is at least one step, or "
            "schedule.warmup='none'."
        )
    if schedule.name == "cosine" and length >= steps:
        raise UserError(
            f"schedule.warmup_length={length:g} steps leaves none of the {steps} steps for the "
            "cosine; allowed is less."
        )
    return length


def _check_parts(config: ConfigDict) -> None:
    parts, batch_size, group = config.accumulate, config.batch_size, config.model.bn_group
    if parts == 1:
        return
    if batch_size % parts:
        raise UserError(
            f"accumulate={parts} does not divide batch_size={batch_size}; allowed are its divisors."
        )
    if config.model.norm != "batch":
        return
    if not group or (batch_size // parts) % group:
        raise UserError(
            f"model.bn_group={group} does not divide a part of {batch_size // parts} examples "
            f"(batch_size={batch_size}, accumulate={parts}); allowed are divisors of "
            f"{batch_size // parts}, so that accumulation changes no result."
        )


def _check_rate_factors(config: ConfigDict) -> None:
    factors = tuple(config.optimizer.rate_factors)
    parts = layout.parts(len(architecture(config.model.family, config.model.depth).stage_sizes))
    if factors and (len(factors) != len(parts) or not any(factors)):
        raise UserError(
            f"optimizer.rate_factors={factors} is out of range; allowed are () and {len(parts)} "
            f"numbers for {listing(parts, 'and')}, one of them above 0."
        )


def _check_combinations(config: ConfigDict, known: Facts, examples: int) -> None:
    model, data = config.model, config.data
    if examples < 1:
        raise UserError(
            f"data.validation={data.validation} leaves no training example: {data.name} has "
            f"{known.train}; allowed is at most {known.train - 1}."
        )
    if config.seed + config.replicates - 1 > INT32_MAX:
        raise UserError(
            f"seed={config.seed} is too large for replicates={config.replicates}, which use the "
            f"seeds after it; allowed is at most {INT32_MAX - config.replicates + 1}."
        )
    _check_parts(config)
    _check_rate_factors(config)
    _check_data(config, known)
    if model.norm == "batch" and model.bn_group and config.batch_size % model.bn_group:
        raise UserError(
            f"model.bn_group={model.bn_group} does not divide batch_size={config.batch_size}; "
            "allowed are its divisors, or 0 for the whole batch."
        )
    classes = len(data.classes) or known.num_classes
    if model.num_classes and model.num_classes < classes:
        raise UserError(
            f"model.num_classes={model.num_classes} is less than the {classes} classes "
            f"of {data.name}; allowed is at least that, or 0 for exactly that."
        )
    needs_validation = {
        "schedule.name='plateau'": config.schedule.name == "plateau",
        "eval.weights='best'": config.eval.weights == "best",
    }
    for setting, chosen in needs_validation.items():
        if chosen and not data.validation:
            raise UserError(
                f"{setting} needs the validation error, but data.validation=0 holds out no "
                "example; allowed is more than 0."
            )


def _check_data(config: ConfigDict, known: Facts) -> None:
    """Raises UserError unless the data set supports the config's images and views."""
    data, evaluation = config.data, config.eval
    side, channels = known.image_shape[0], known.image_shape[2]
    for key in ("channel_mean", "channel_std"):
        if len(data[key]) not in (0, channels):
            raise UserError(
                f"data.{key}={tuple(data[key])} has {len(data[key])} numbers, but {data.name} has "
                f"{channels} channels; allowed are one per channel, or () for measured ones."
            )
    if data.classes:
        _check_classes(config, known)
    if data.color and channels != 3:
        raise UserError(
            f"data.color=True needs three channels, but {data.name} has {channels}; allowed is "
            "False."
        )
    size = 1 if known.resident else data.image_size or side
    _check_order("data.scales", data.scales, size)
    _check_order("data.area", data.area)
    _check_order("data.aspect", data.aspect)
    if not evaluation.scales:
        raise UserError("eval.scales=() is empty; allowed is at least one short side in pixels.")
    if known.resident:
        if data.image_size not in (0, side):
            raise UserError(
                f"data.image_size={data.image_size} would resize the images of {data.name}, which "
                f"have {side} x {side} pixels; allowed are {side} and 0."
            )
        if evaluation.views != ("center",):
            raise UserError(
                f"eval.views={evaluation.views} needs full-size pictures, which {data.name} lacks; "
                "allowed is ('center',)."
            )
        return
    if data.mean == "pixel" and SETTINGS["data.mean"].acts(config):
        raise UserError(
            f"data.mean='pixel' needs images of one size, but the pictures of {data.name} differ; "
            "allowed are channel and none."
        )
    if data.pad:
        raise UserError(
            f"data.pad={data.pad} has no effect on {data.name}, whose crops data.crop sets; "
            "allowed is 0."
        )
    if evaluation.short_side < size:
        raise UserError(
            f"eval.short_side={evaluation.short_side} is smaller than the crops of {size} pixels; "
            f"allowed is at least {size}."
        )


def _check_classes(config: ConfigDict, known: Facts) -> None:
    classes = tuple(config.data.classes)
    if not known.resident:
        raise UserError(
            f"data.classes={classes} needs a set held in memory, but {config.data.name} is "
            "streamed; allowed is ()."
        )
    if len(set(classes)) < max(2, len(classes)) or max(classes) >= known.num_classes:
        raise UserError(
            f"data.classes={classes} is out of range; allowed are at least two different labels "
            f"from 0 to {known.num_classes - 1}, or () for all."
        )
    if config.epochs is not None or config.schedule.unit == "epochs":
        raise UserError(
            f"data.classes={classes} leaves the number of examples open, so no length can be in "
            "epochs; allowed are steps, examples and, in schedule.unit, fraction."
        )


def _check_order(key: str, value: tuple[float, float], lowest: float = 0) -> None:
    """Raises UserError unless lowest <= value[0] <= value[1]."""
    if not lowest <= value[0] <= value[1]:
        bound = f" of at least {lowest:g} pixels, the size of the crops" if lowest > 1 else ""
        raise UserError(
            f"{key}={value} is out of range; allowed are two numbers{bound}, the smaller first."
        )
