"""The kinds of values that a setting, or an argument of the library, may have."""

import dataclasses
import math
import numbers
from collections.abc import Iterable
from typing import Any, Protocol

from resnet_jax.errors import UserError, listing, nearest

INT32_MAX = 2**31 - 1  # steps and seeds are int32
_FLOAT32_MAX = 3.4e38


class Allowed(Protocol):
    """A set of allowed values."""

    def check(self, key: str, value: object) -> None:
        """Raises UserError unless `value` is allowed; the message names `key` and the values."""


def check_choice(key: str, value: object, allowed: Iterable[object]) -> None:
    """Raises UserError unless `value` is one of `allowed`."""
    allowed = list(allowed)
    if value not in allowed:
        hint = nearest(value, allowed)
        raise UserError(f"{key}={value!r} is not known; allowed are {listing(allowed)}{hint}.")


@dataclasses.dataclass(frozen=True)
class Choice:
    """One name from a list."""

    names: tuple[str, ...]

    def check(self, key: str, value: object) -> None:
        """Raises UserError unless `value` is one of the names."""
        check_choice(key, value, self.names)


@dataclasses.dataclass(frozen=True)
class Choices:
    """A tuple of distinct names from a list.

    Attributes:
      names: the list.
      or_none: whether the tuple may be empty.
    """

    names: tuple[str, ...]
    or_none: bool = False

    def check(self, key: str, value: object) -> None:
        """Raises UserError unless `value` is a tuple of distinct names."""
        if not isinstance(value, (tuple, list)):
            raise UserError(f"{key}={value!r} is not a tuple of {listing(self.names)}.")
        for name in value:
            check_choice(key, name, self.names)
        if not (value or self.or_none) or len(set(value)) < len(value):
            count = "any" if self.or_none else "one or more"
            raise UserError(
                f"{key}={value}; allowed are {count} of {listing(self.names)}, each once."
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
      low: the lower end.
      high: the upper end; by default the largest int32 or float32.
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
        """The upper end, never infinite."""
        largest = INT32_MAX if self.whole else _FLOAT32_MAX
        return largest if math.isinf(self.high) else self.high

    def __contains__(self, value: object) -> bool:
        """Whether `value` is a number in the interval; bools do not count as numbers."""
        if isinstance(value, bool) or not isinstance(value, numbers.Real):
            return False
        if self.whole and not isinstance(value, numbers.Integral):
            return False
        number: Any = value  # not converted: a large int may overflow a float
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
    """A number, or None if another setting gives the length."""

    def check(self, key: str, value: object) -> None:
        """Raises UserError unless `value` is None or in the interval."""
        if value is not None:
            super().check(key, value)


class Span:
    """The first and last step of a range, counted from 1; or () for no steps."""

    def check(self, key: str, value: object, last: int = INT32_MAX) -> None:
        """Raises UserError unless `value` is a span of steps up to `last`."""
        member = Range(1, last, whole=True)
        is_pair = isinstance(value, tuple) and len(value) == 2 and all(s in member for s in value)
        if value != () and not (is_pair and value[0] <= value[1]):  # type: ignore[index]  # a pair
            raise UserError(
                f"{key}={value!r} is out of range; allowed are the first and the last step of a "
                f"range within 1 to {last}, or () for none."
            )


@dataclasses.dataclass(frozen=True)
class Numbers:
    """A tuple of numbers from one interval.

    Attributes:
      member: the interval.
      count: the length of the tuple; None: any length.
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
            count = "any number of" if self.count is None else self.count
            raise UserError(
                f"{key}={value!r} is out of range; allowed is a tuple of {count} {self.member}."
            )
