"""What a user did wrong, said in one sentence."""

import dataclasses
import difflib
import math
import numbers
from collections.abc import Iterable
from typing import Any


class UserError(Exception):
    """A mistake that the user can mend; programs print its one sentence and exit with 2."""


class RunError(Exception):
    """A run that cannot go on (full disk, unreadable checkpoints); programs exit with 1."""


def sentence(error: BaseException) -> str:
    """Returns an error's first line; for one that nobody foresaw, that it is a bug, and its type.

    UserError and RunError are foreseen, and whatever is no Exception, such as KeyboardInterrupt;
    so is a package that is not installed, but not a module of ours that cannot be imported.
    """
    kind, said = type(error).__name__, str(error).split("\n")[0]
    if isinstance(error, UserError | RunError) or not isinstance(error, Exception):
        return said or kind
    if is_missing_package(error):
        return f"a package is missing or broken ({said}); install what requirements.txt names"
    return f"this is a bug in resnet_jax: {kind}{f': {said}' if said else ''}".rstrip(".")


def is_missing_package(error: BaseException) -> bool:
    """Whether a package that we need is not installed, or cannot be imported."""
    package = (error.name or "").split(".")[0] if isinstance(error, ImportError) else ""
    return package not in ("", "resnet_jax", "experiments", "configs")


def nearest(value: object, allowed: Iterable[object]) -> str:
    """Returns `` (nearest: X)`` for the allowed spelling closest to `value`, or nothing."""
    by_spelling = {str(a).lower(): str(a) for a in allowed}
    close = difflib.get_close_matches(str(value).lower(), by_spelling, n=1, cutoff=0.5)
    return f" (nearest: {by_spelling[close[0]]})" if close else ""


def nearest_key(key: str, known: Iterable[str]) -> str:
    """Returns `nearest` for a dotted key, looking first for one that lacks only its group."""
    known = list(known)
    # depth for model.depth is the commonest slip.
    inside = [k for k in known if k.split(".")[-1] == key.split(".")[-1]]
    if inside:
        return nearest(key, inside) or f" (nearest: {inside[0]})"
    return nearest(key, known)


def listing(values: Iterable[object]) -> str:
    """Returns ``a, b or c``."""
    names = [str(v) for v in values]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"


def check_choice(key: str, value: object, allowed: Iterable[object]) -> None:
    """Raises UserError unless `value` is one of `allowed`."""
    allowed = list(allowed)
    if value not in allowed:
        hint = nearest(value, allowed)
        raise UserError(f"{key}={value!r} is not known; allowed are {listing(allowed)}{hint}.")


MOST_STEPS = 2**31 - 1  # of an int32 counter
_FLOAT32_MAX = 3.4e38


@dataclasses.dataclass(frozen=True)
class Range:
    """An interval of numbers.

    Attributes:
      low: the lowest number.
      high: the highest one; by default the highest of an int32 or a float32.
      whole: whether only whole numbers are allowed.
      above: whether `low` itself is excluded.
      below: whether `high` itself is excluded.
    """

    low: float
    high: float = math.inf
    whole: bool = False
    above: bool = False
    below: bool = False

    @property
    def highest(self) -> float:
        """The upper end."""
        largest = MOST_STEPS if self.whole else _FLOAT32_MAX
        return largest if math.isinf(self.high) else self.high

    def __contains__(self, value: object) -> bool:
        """Whether a value is a number in the interval; True and False are no numbers."""
        if isinstance(value, bool) or not isinstance(value, numbers.Real):
            return False
        if self.whole and not isinstance(value, numbers.Integral):
            return False
        number: Any = value  # a whole number may be too large for a float
        starts = number > self.low if self.above else number >= self.low
        return starts and (number < self.highest if self.below else number <= self.highest)

    def __str__(self) -> str:
        """Returns ``whole numbers from 1 to 1024`` or ``numbers at least 0 and below 1``."""
        low, high = (str(x) if self.whole else f"{x:g}" for x in (self.low, self.highest))
        kind = "whole numbers" if self.whole else "numbers"
        if not (self.above or self.below):
            return f"{kind} from {low} to {high}"
        start = f"above {low}" if self.above else f"at least {low}"
        end = f"below {high}" if self.below else f"at most {high}"
        return f"{kind} {start} and {end}"

    def check(self, key: str, value: object) -> None:
        """Raises UserError unless `value` is in the interval."""
        if value not in self:
            raise UserError(f"{key}={value!r} is out of range; allowed are {self}.")


def check_numbers(key: str, value: object, member: Range, count: int | None = None) -> None:
    """Raises UserError unless `value` is a tuple of `count` (None: any number of) `member`."""
    if (
        not isinstance(value, (tuple, list))
        or (count is not None and len(value) != count)
        or not all(v in member for v in value)
    ):
        some = "any number of" if count is None else count
        raise UserError(f"{key}={value!r} is out of range; allowed is a tuple of {some} {member}.")
