"""Several training steps as one program, so that a fast device does not wait for the host."""

import math
from collections.abc import Iterator

from jax.sharding import Mesh
from ml_collections import ConfigDict

from resnet_jax.data import sets
from resnet_jax.errors import UserError, nearest

# Enough that handing them over costs nothing beside them; few enough that a run stops soon after
# it is asked to.
_MOST = 32


def check(config: ConfigDict) -> None:
    """Raises UserError unless train.steps_per_dispatch is one of those that `config` allows."""
    value, numbers = config.train.steps_per_dispatch, _allowed(config)
    allowed = ["auto", *map(str, numbers)]
    if value not in allowed:
        hint = nearest(value, allowed)
        if value.isdecimal():
            hint = f" (nearest: {min(numbers, key=lambda number: abs(number - int(value)))})"
        raise UserError(
            f"train.steps_per_dispatch={value!r} does not divide log.every={config.log.every}, "
            f"eval.every={config.eval.every} and checkpoint.every={config.checkpoint.every}; "
            f"allowed are {', '.join(allowed)}{hint}."
        )


def steps_at_once(config: ConfigDict, mesh: Mesh) -> int:
    """Returns how many steps the devices of `mesh` are handed at a time.

    Args:
      config: resolved.
      mesh: the devices; "auto" goes by their platform.
    """
    if config.train.steps_per_dispatch != "auto":
        return int(config.train.steps_per_dispatch)
    # On CPU a step takes far longer than to hand it over, and each step of a program of several
    # would be compiled for itself. Pictures that are streamed come a step at a time.
    on_cpu = mesh.devices.flat[0].platform == "cpu"
    if on_cpu or not sets.KNOWN[config.data.name].resident:
        return 1
    return max(number for number in _allowed(config) if number <= _MOST)


def spans(steps: range, at_once: int = 1) -> Iterator[range]:
    """Cuts consecutive steps into what is handed over at a time.

    The cuts are at multiples of `at_once`, wherever `steps` begins: a run that goes on hands the
    same steps over together as one that was never stopped, and so repeats it bit for bit. Whatever
    does not fill a span goes step by step, with the one program that this needs more.
    """
    step = steps.start
    while step < steps.stop:
        is_whole = step % at_once == 0 and step + at_once <= steps.stop
        span = range(step, step + (at_once if is_whole else 1))
        yield span
        step = span.stop


def _allowed(config: ConfigDict) -> list[int]:
    """Returns the numbers of steps after which no line, evaluation or checkpoint comes too late."""
    common = math.gcd(config.log.every, config.eval.every, config.checkpoint.every)
    small = [number for number in range(1, math.isqrt(common) + 1) if common % number == 0]
    return sorted({*small, *(common // number for number in small)})
