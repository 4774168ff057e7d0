"""The numbers that both kinds of figure draw along an axis."""

import dataclasses
import math
from collections.abc import Sequence

from experiments.report import curves
from experiments.report.axes.answers import BestByDepth
from experiments.report.axes.model import LOG, NAMES, Across, Axis, Line, Value
from experiments.report.cells import CellResult, Measure
from experiments.report.curves import LINE_STYLES
from experiments.report.replicates import Replicate

CROSS = 0.97  # the height of the crosses of diverged seeds, as a fraction of the axis
ARROW = 0.92  # and that of the arrows of exploded losses
EXPLODED = 100.0  # nats: higher mean losses would leave the others no room on the axis
BEST_SIZES = (13, 3)  # the largest and the smallest hollow marker of a best value
# The width of a label's digit and the gap between labels, as fractions of the axis; a point is half
# a digit.
DIGIT, GAP = 0.034, 0.014
LOG_LOSSES = 10.0  # a ratio of losses from which their axis is logarithmic


@dataclasses.dataclass(frozen=True)
class Quantity:
    """What a row of panels shows."""

    name: str
    unit: str
    measure: Measure

    @property
    def label(self) -> str:
        """The label of the y-axis."""
        return f"{self.name} ({self.unit})"


LOSS = Quantity("training loss", "nats", Replicate.train_loss)


def quantities(across: Across) -> tuple[Quantity, Quantity]:
    """Returns what the two rows of panels of a study show."""
    return Quantity(across.error.name, "%", across.error.measure), LOSS


@dataclasses.dataclass(frozen=True)
class Point:
    """A network with one value.

    Attributes:
      x: the place on the axis: the number, or the index of a name.
      label: the value.
      mean: over the seeds that did not diverge.
      std: 0 for a single seed.
      n: the seeds in the mean.
      is_best: whether it is the network's best value.
      is_exploded: whether an arrow at the edge stands for its mean, a loss.
    """

    x: float
    label: str
    mean: float
    std: float
    n: int
    is_best: bool = False
    is_exploded: bool = False

    @property
    def bar(self) -> float:
        """The length of the error bar."""
        return 0.0 if self.is_exploded else self.std


@dataclasses.dataclass(frozen=True)
class Range:
    """A y-axis, common to all panels of a quantity."""

    low: float
    high: float
    is_log: bool

    def at(self, fraction: float) -> float:
        """Returns the value at a fraction of the axis's length."""
        if self.is_log:
            return self.low * (self.high / self.low) ** fraction
        return self.low + fraction * (self.high - self.low)


def palette(across: Across) -> dict[int, str]:
    """Returns one colour per depth."""
    return curves.colours(sorted({line.depth for line in across.lines}))


@dataclasses.dataclass(frozen=True)
class Look:
    """How the best values of one kind of net are drawn."""

    size: float
    colour: str


def best_looks(fits: Sequence[BestByDepth]) -> list[Look]:
    """Returns hollow markers of decreasing size: one on another, all stay visible.

    Kinds that share a shortcut, such as doses of it, also have colours of their own.
    """
    largest, smallest = BEST_SIZES
    step = min(4.0, (largest - smallest) / max(len(fits) - 1, 1))
    shortcuts = [fit.lines[0].shortcut for fit in fits]
    shades = curves.colours(range(len(fits)))
    is_unique = len(set(shortcuts)) == len(shortcuts)
    return [
        Look(largest - i * step, LINE_STYLES[shortcut].colour if is_unique else shades[i])
        for i, shortcut in enumerate(shortcuts)
    ]


def places(axis: Axis) -> dict[Value, float]:
    """Returns each value's place on the x-axis."""
    if axis.scale == NAMES:
        return {value: float(i) for i, value in enumerate(axis.values)}
    return {value: value.number or 0.0 for value in axis.values}


def labels(axis: Axis) -> dict[float, str]:
    """Returns the label of each place; those of numbers that would touch are left out."""
    every = {x: value.label for value, x in places(axis).items()}
    if axis.scale == NAMES:
        return every
    along = {x: math.log(x) if axis.scale == LOG else x for x in every}
    length = max(along.values()) - min(along.values())
    shown: list[float] = []
    for x in sorted(every, reverse=True):
        if shown:
            both = every[shown[-1]] + every[x]
            apart = DIGIT * (len(both) - both.count(".") / 2) / 2 + GAP
            if along[shown[-1]] - along[x] < apart * length:
                continue
        shown.append(x)
    return {x: every[x] for x in shown}


def points(across: Across, line: Line, quantity: Quantity) -> list[Point]:
    """Returns the points of a network whose runs have ended, in the order of the axis."""
    x = places(across.axis)
    ended = [(value, cell) for value in line.cells if (cell := line.ended(value))]
    made = [_point(x[v], v, cell, quantity, v == line.best) for v, cell in ended]
    return [point for point in made if point]


def fresh_point(across: Across, line: Line, quantity: Quantity) -> Point | None:
    """Returns the network's own seeds at its best value, if the study was tuned."""
    if not across.is_tuned or not line.at_best or not line.best or line.best not in line.cells:
        return None
    x = places(across.axis)[line.best]
    return _point(x, line.best, line.at_best, quantity, is_best=True)


def diverged(across: Across, line: Line) -> list[tuple[float, str]]:
    """Returns the place and the words for each value at which seeds diverged."""
    x = places(across.axis)
    return [
        (x[value], f"{len(cell.diverged)} of {len(cell.replicates)} seeds diverged")
        for value, cell in line.cells.items()
        if cell.diverged
    ]


def exploded(across: Across, line: Line, quantity: Quantity) -> list[tuple[float, str]]:
    """Returns the place and the words for each mean loss that an arrow stands for."""
    drawn = (*points(across, line, quantity), fresh_point(across, line, quantity))
    return [(p.x, f"mean {quantity.name} {p.mean:.3g}") for p in drawn if p and p.is_exploded]


def y_ranges(every: Sequence[Across]) -> dict[str, Range]:
    """Returns the range of each quantity over all panels of a report, by its name."""
    shown = {quantity.name: quantity for across in every for quantity in quantities(across)}
    return {
        name: _y_range([each for each in every if quantity in quantities(each)], quantity)
        for name, quantity in shown.items()
    }


def _y_range(every: Sequence[Across], quantity: Quantity) -> Range:
    shown = [
        point
        for across in every
        for line in across.lines
        for point in (*points(across, line, quantity), fresh_point(across, line, quantity))
        if point and not point.is_exploded
    ]
    high = 1.06 * max((p.mean + p.std for p in shown), default=0.0) or 1.0
    least = min((p.mean for p in shown), default=0.0)
    if quantity is LOSS and least > 0 and high >= LOG_LOSSES * least:
        return Range(least / 1.3, high * 1.2, is_log=True)
    return Range(0.0, high if quantity is LOSS else min(high, 104.0), is_log=False)


def limits(axis: Axis) -> tuple[float, float]:
    """Returns the ends of the x-axis, in numbers or indices."""
    x = list(places(axis).values())
    if axis.scale == LOG:
        margin = (max(x) / min(x)) ** 0.06
        return min(x) / margin, max(x) * margin
    margin = 0.5 if axis.scale == NAMES else 0.06 * (max(x) - min(x))
    return min(x) - margin, max(x) + margin


def _point(
    x: float, value: Value, cell: CellResult, quantity: Quantity, is_best: bool
) -> Point | None:
    stat = cell.stat(quantity.measure)
    if stat.mean is None:
        return None
    is_exploded = quantity is LOSS and stat.mean > EXPLODED
    return Point(x, value.label, stat.mean, stat.std or 0.0, stat.n, is_best, is_exploded)
