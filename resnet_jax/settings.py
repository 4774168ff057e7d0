"""From a config as written to a config as run: every value checked, every length in steps.

Nothing here touches a device: a mistake costs a second, not a place in a queue.
"""

import itertools
from collections.abc import Iterable
from typing import Any

from ml_collections import ConfigDict

from resnet_jax import dispatch
from resnet_jax.allowed import CHOICES, LENGTHS, RANGES, RATES, STRINGS, SWITCHES, TUPLES
from resnet_jax.data import sources
from resnet_jax.data.check import check_data
from resnet_jax.errors import MOST_STEPS, Range, UserError, check_choice, check_numbers, listing
from resnet_jax.networks.architectures import architecture


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
    except (TypeError, OverflowError):
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
    for key in SWITCHES:
        if not isinstance(get(config, key), bool):
            raise UserError(f"{key}={get(config, key)!r} is not known; allowed are True and False.")
    for key in STRINGS:
        if not isinstance(get(config, key), str):
            raise UserError(f"{key}={get(config, key)!r} is not a string.")
    for key, allowed_range in RANGES.items():
        allowed_range.check(key, get(config, key))
    for key, (member, count) in TUPLES.items():
        check_numbers(key, get(config, key), member, count)
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
    # A rate or length that has no effect stays as it is written: see effect.py.
    if schedule.rate_for_batch:
        for key in _used(schedule, RATES):
            schedule[key] *= config.batch_size / schedule.rate_for_batch
            RANGES[f"schedule.{key}"].check(f"schedule.{key} for this batch_size", schedule[key])
        schedule.rate_for_batch = 0
    a_unit = {
        "steps": 1.0,
        "epochs": examples / config.batch_size,
        "examples": 1 / config.batch_size,
        "fraction": float(config.steps),
    }[schedule.unit]
    if schedule.name == "step":
        schedule.boundaries = _boundaries_in_steps(schedule, a_unit)
    if schedule.warmup == "linear":
        schedule.warmup_length = _warmup_in_steps(schedule, a_unit, config.steps)
    schedule.unit = "steps"
    return config


def _check_remat(model: ConfigDict) -> None:
    stages = tuple(range(1, len(architecture(model.family, model.depth).stage_sizes) + 1))
    if not all(stage in stages for stage in model.remat):
        raise UserError(
            f"model.remat={model.remat} names no stage of this network; allowed are {stages}, some "
            "of them, and none."
        )


def _check_profile(config: ConfigDict) -> None:
    steps, of_run = config.profile, Range(1, config.steps, whole=True)
    is_span = isinstance(steps, tuple) and len(steps) == 2 and all(s in of_run for s in steps)
    if steps != () and not (is_span and steps[0] <= steps[1]):
        raise UserError(
            f"profile={steps!r} is out of range; allowed are the first and the last of some steps "
            f"from 1 to {config.steps}, or () for none."
        )


def _used(schedule: ConfigDict, rates: Iterable[str]) -> list[str]:
    """Returns those of RATES that the schedule takes into account."""
    unused = {
        "final_rate": schedule.name != "cosine",
        "warmup_rate": schedule.warmup != "until_error",
    }
    return [key for key in rates if not unused.get(key)]


def _total_steps(config: ConfigDict, examples: int) -> int:
    given = [key for key in LENGTHS if config[key] is not None]
    if len(given) != 1:
        what = f"{listing(given)} are" if given else "none is"
        raise UserError(
            f"Exactly one of steps, epochs and examples says how long to train; {what} set."
        )
    (key,) = given
    value = config[key]
    LENGTHS[key].check(key, value)
    per_step = {"steps": 1, "epochs": config.batch_size / examples, "examples": config.batch_size}
    steps = max(1, round(value / per_step[key]))
    if steps > MOST_STEPS:
        raise UserError(f"{key}={value} is {steps:.3g} steps; allowed are at most {MOST_STEPS}.")
    return steps


def _boundaries_in_steps(schedule: ConfigDict, a_unit: float) -> tuple[float, ...]:
    steps = tuple(float(round(b * a_unit)) for b in schedule.boundaries)
    # In steps, because two fractions may fall on one step, and one cut would be lost.
    if all(a < b for a, b in itertools.pairwise(steps)) and all(b <= MOST_STEPS for b in steps):
        return steps
    raise UserError(
        f"schedule.boundaries={tuple(schedule.boundaries)} is not in order; allowed are numbers "
        f"from 0 up to {MOST_STEPS} steps, each at least a step after the one before."
    )


def _warmup_in_steps(schedule: ConfigDict, a_unit: float, steps: int) -> float:
    length = float(round(schedule.warmup_length * a_unit))
    if length < 1:
        raise UserError(
            f"schedule.warmup_length={schedule.warmup_length:g} {schedule.unit} is less than a "
            "step with schedule.warmup='linear'; allowed is at least one step, or "
            "schedule.warmup='none'."
        )
    if schedule.name == "cosine" and length >= steps:
        raise UserError(
            f"schedule.warmup_length={length:g} steps leaves none of the {steps} steps for the "
            "cosine; it must be shorter."
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
    if config.seed + config.replicates - 1 > RANGES["seed"].highest:
        raise UserError(
            f"seed={config.seed} leaves no seeds for replicates={config.replicates}; allowed is up "
            f"to {RANGES['seed'].highest - config.replicates + 1}."
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
