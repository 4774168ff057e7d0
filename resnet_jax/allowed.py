"""The kinds of values that a setting, or a library's argument, may have."""

import dataclasses
import math
import numbers
from collections.abc import Iterable
from typing import Any, Protocol

from resnet_jax.errors import UserError, listing, nearest

INT32_MAX = 2**31 - 1  # of an int32 counter
_FLOAT32_MAX = 3.4e38


class Allowed(Protocol):
    """What a value may be."""

    def check(self, key: str, value: object) -> None:
        """Raises UserError, which names `key`, the value and what is allowed."""


def check_choice(key: str, value: object, allowed: Iterable[object]) -> None:
    """Raises UserError unless `value` is one of `allowed`."""
    allowed = list(allowed)
    if value not in allowed:
        hint = nearest(value, allowed)
        raise UserError(f"{key}={value!r} is not known; allowed are {listing(allowed)}{hint}.")


@dataclasses.dataclass(frozen=True)
class Choice:
    """One of some names."""

    names: tuple[str, ...]

    def check(self, key: str, value: object) -> None:
        """Raises UserError unless `value` is one of the names."""
        check_choice(key, value, self.names)


@dataclasses.dataclass(frozen=True)
class Choices:
    """One or several of some names, each once, in a tuple."""

    names: tuple[str, ...]

    def check(self, key: str, value: object) -> None:
        """Raises UserError unless `value` is a tuple of distinct names."""
        if not isinstance(value, (tuple, list)):
            raise UserError(f"{key}={value!r} is not a tuple of {listing(self.names)}.")
        for name in value:
            check_choice(key, name, self.names)
        if not value or len(set(value)) < len(value):
            raise UserError(
                f"{key}={value}; allowed are one or several of {listing(self.names)}, each once."
            )


class Switch:
    """True or False."""

    def check(self, key: str, value: object) -> None:
        """Raises UserError unless `value` is a bool."""
        if not isinstance(value, bool):
            raise UserError(f"{key}={value!r} is not known; allowed are True and False.")


class Text:
    """Any string."""

    def check(self, key: str, value: object) -> None:
        """Raises UserError unless `value` is a string."""
        if not isinstance(value, str):
            raise UserError(f"{key}={value!r} is not a string.")


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
        largest = INT32_MAX if self.whole else _FLOAT32_MAX
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


@dataclasses.dataclass(frozen=True)
class Length(Range):
    """A number, or None: one of several settings that give the same length."""

    def check(self, key: str, value: object) -> None:
        """Raises UserError unless `value` is None or in the interval."""
        if value is not None:
            super().check(key, value)


class Span:
    """The first and the last of some steps, counted from 1; or () for none."""

    def check(self, key: str, value: object, last: int = INT32_MAX) -> None:
        """Raises UserError unless `value` is a span of steps up to `last`."""
        member = Range(1, last, whole=True)
        is_pair = isinstance(value, tuple) and len(value) == 2 and all(s in member for s in value)
        if value != () and not (is_pair and value[0] <= value[1]):  # type: ignore[index]  # a pair
            raise UserError(
                f"{key}={value!r} is out of range; allowed are the first and the last of some "
                f"steps from 1 to {last}, or () for none."
            )


@dataclasses.dataclass(frozen=True)
class Numbers:
    """A tuple of numbers from one interval.

    Attributes:
      member: the interval.
      count: how many there are; None: any number of them.
    """

    member: Range
    count: int | None = None

    def check(self, key: str, value: object) -> None:
        """Raises UserError unless `value` is such a tuple."""
        if (
            not isinstance(value, (tuple, list))
            or (self.count is not None and len(value) != self.count)
            or not all(v in self.member for v in value)
        ):
            some = "any number of" if self.count is None else self.count
            raise UserError(
                f"{key}={value!r} is out of range; allowed is a tuple of {some} {self.member}."
            )
