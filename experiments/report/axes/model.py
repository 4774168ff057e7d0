"""The axes of a study: settings that vary among its runs, beside depth, shortcut and seed."""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Mapping

from experiments.report import cells
from experiments.report.cells import CellResult
from experiments.report.groups import VARIANT, Group
from experiments.report.replicates import Observation, Replicate
from resnet_jax.runs import reader

LOG, LINEAR, NAMES = "log", "linear", "names"
BASE = "base"  # the name of the commonest combination, if it has no other
LOG_RATIO = 3.0  # of the largest value to the smallest, from which a scale is logarithmic


@dataclasses.dataclass(frozen=True)
class Error:
    """The error that a study compares along an axis.

    Attributes:
      name: ``training error``.
      measure: in percent, for tables and figures.
      observe: the same for differences, with what a diverged seed counts as.
    """

    name: str
    measure: Callable[[Replicate], float | None]
    observe: Callable[[Replicate], Observation | None]


TRAINING = Error("training error", Replicate.train_error, Replicate.final)
VALIDATION = Error("validation error", Replicate.validation_error, Replicate.validated)
TEST = Error("test error", Replicate.test_error, Replicate.tested)


@dataclasses.dataclass(frozen=True)
class Value:
    """A value on an axis.

    Attributes:
      label: the number or name.
      number: None for names.
      note: the settings of a named variant that differ from most variants.
    """

    label: str
    number: float | None = None
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Axis:
    """One axis.

    Attributes:
      keys: dotted; several if their combinations are the values. VARIANT comes first if
        these have names.
      values: numbers in ascending order, names by their error.
    """

    keys: tuple[str, ...]
    values: tuple[Value, ...]

    @property
    def name(self) -> str:
        """The last part of its key, ``rate``; the whole key if that part says nothing."""
        if len(self.keys) > 1:
            return VARIANT
        last = self.keys[0].split(".")[-1]
        return self.keys[0] if last == "name" else last

    @property
    def scale(self) -> str:
        """LOG, LINEAR or NAMES."""
        numbers = [value.number for value in self.values if value.number is not None]
        if len(numbers) < len(self.values):
            return NAMES
        return LOG if min(numbers) > 0 and max(numbers) >= LOG_RATIO * min(numbers) else LINEAR

    @property
    def step(self) -> float:
        """The largest ratio of neighbouring values; they are positive."""
        numbers = [value.number or 0.0 for value in self.values]
        return max(high / low for low, high in itertools.pairwise(numbers))


@dataclasses.dataclass(frozen=True)
class Line:
    """One network along an axis.

    Attributes:
      name: ``plain-56``, or ``plain-56, momentum=0.5`` if the study has other axes.
      kind: the name without the depth: ``plain``, ``residual`` or ``residual, shortcut A``.
      others: its values on the study's other axes, as in ``momentum=0.5``.
      cells: by value.
      best: the value with the lowest measure; None if no run has ended.
      at_best: the network at its best value; with fresh seeds in a tuned study.
    """

    name: str
    kind: str
    others: str
    cells: Mapping[Value, CellResult]
    best: Value | None
    at_best: CellResult | None

    @property
    def depth(self) -> int:
        """The network's depth."""
        return next(iter(self.cells.values())).depth

    @property
    def shortcut(self) -> str:
        """The network's shortcut, ``none`` for a plain net; along the axis it may be times 0."""
        return next(iter(self.cells.values())).config["model"]["shortcut"]

    @property
    def is_at_the_edge(self) -> bool:
        """Whether the best value is the lowest or highest of at least two numbers."""
        numbers = [value.number for value in self.cells if value.number is not None]
        return len(numbers) > 1 and self.best is not None and (
            self.best.number in (min(numbers), max(numbers))
        )  # fmt: skip

    def ended(self, value: Value) -> CellResult | None:
        """Returns the cell at a value if its runs have ended."""
        cell = self.cells.get(value)
        return cell if cell and cell.status in reader.ENDED else None


@dataclasses.dataclass(frozen=True)
class Across:
    """The networks of one study along one of its axes.

    Attributes:
      study: its folder.
      axis: the axis.
      lines: by shortcut, then by depth.
      by: the measure that is lowest at the best value, one of tuned.MEASURES.
      is_tuned: whether the cells are pilots; networks at their best values have fresh seeds.
      tuned: settings at their best value in each cell, which pilots found.
    """

    study: str
    axis: Axis
    lines: tuple[Line, ...]
    by: str
    is_tuned: bool
    tuned: tuple[str, ...] = ()

    @property
    def error(self) -> Error:
        """What is compared: a study that chooses by validation error asks what networks learn.

        Its pilots are compared by the error that chose, and its networks by their test error.
        """
        if self.by != "validation_error":
            return TRAINING
        return VALIDATION if self.is_tuned else TEST

    @property
    def is_variants(self) -> bool:
        """Whether the axis is of named variants, which are compared with one another."""
        return self.axis.keys[0] == VARIANT

    @property
    def kinds(self) -> list[str]:
        """The kinds of nets."""
        return list(dict.fromkeys(line.kind for line in self.lines))

    @property
    def others(self) -> list[str]:
        """The distinct values of the other axes."""
        return list(dict.fromkeys(line.others for line in self.lines))

    @property
    def common(self) -> list[Value]:
        """The values at which every network was trained."""
        return [v for v in self.axis.values if all(v in line.cells for line in self.lines)]


def all_variants(across: Across) -> Group:
    """Returns the nets of all variants as a group, for claims that compare them."""
    every = [cell for line in across.lines for cell in line.cells.values()]
    return as_group(f"{across.study}: all variants", every)


def as_group(label: str, networks: Iterable[CellResult]) -> Group:
    """Returns cells as a group whose claims can be judged."""
    return Group(label, {}, "", tuple(sorted(networks, key=cells.order)))
