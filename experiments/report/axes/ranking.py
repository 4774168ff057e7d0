"""The ranking of the values on an axis of names, such as the cures of a plain net."""

import dataclasses
import math
from collections.abc import Sequence

from experiments.report.axes.answers import Estimate
from experiments.report.axes.model import BASE, NAMES, Across, Error, Line, Value
from experiments.report.cells import CellResult
from experiments.report.statistics import ALPHA, Difference, holm


@dataclasses.dataclass(frozen=True)
class Rank:
    """A value's place in a ranking.

    Attributes:
      value: on the axis.
      cell: the network with this value.
      minus: its error minus the reference's; None for the reference.
      p: of that difference against 0, corrected for the number of values (Holm).
    """

    value: Value
    cell: CellResult
    minus: Estimate | None
    p: float | None


@dataclasses.dataclass(frozen=True)
class Ranking:
    """Values by their error.

    Attributes:
      error: the error's name.
      networks: the network with all these values; or those of one depth that share no value, as
        plain nets with a cure and residual nets.
      reference: the value that all others are compared with: BASE, else the best.
      ranks: the lowest error first.
    """

    error: str
    networks: str
    reference: Value
    ranks: tuple[Rank, ...]

    @property
    def summary(self) -> str:
        """The values that are certainly better and worse than the reference, and the others."""
        sides: dict[str, list[str]] = {"lower": [], "higher": [], "undecided": []}
        for rank in self.ranks:
            if rank.minus:
                low, high = rank.minus.ci95 or (-math.inf, math.inf)
                side = "lower" if high < 0 else "higher" if low > 0 else "undecided"
                sides[side].append(rank.value.label)
        listed = [f"{side}: {', '.join(names)}" for side, names in sides.items() if names]
        return (
            f"{self.error.capitalize()}, compared with {self.reference.label}: {'; '.join(listed)}."
        )


def rankings(across: Across) -> list[Ranking]:
    """Returns the rankings of at least two values; none on an axis of numbers."""
    if across.axis.scale != NAMES:
        return []
    places: dict[tuple[int, str], list[Line]] = {}
    for line in across.lines:
        places.setdefault((line.depth, line.others), []).append(line)
    ranked = []
    for lines in places.values():
        values = [value for line in lines for value in line.cells]
        together = [lines] if len(values) == len(set(values)) else [[line] for line in lines]
        ranked += [_ranking(own, across.error) for own in together]
    return [ranking for ranking in ranked if ranking]


def _ranking(lines: Sequence[Line], error: Error) -> Ranking | None:
    ended = {
        value: cell
        for line in lines
        for value in line.cells
        if (cell := line.ended(value)) and cell.sample(error.observe).errors
    }
    if len(ended) < 2:
        return None
    samples = {value: cell.sample(error.observe) for value, cell in ended.items()}
    ranked = sorted(samples, key=lambda value: samples[value].mean)
    reference = next((value for value in ranked if value.label == BASE), ranked[0])
    base = samples.pop(reference)
    differences = {
        value: Difference.of(sample, base)
        for value, sample in samples.items()
        if min(len(sample.errors), len(base.errors)) > 1
    }
    corrected = zip(*holm([d.p_value(0.0) for d in differences.values()]), strict=True)
    tested = dict(zip(differences, corrected, strict=True))

    def rank(value: Value) -> Rank:
        if value == reference:
            return Rank(value, ended[value], None, None)
        difference = samples[value].mean - base.mean
        p, alpha = tested.get(value, (None, ALPHA))
        ci95 = differences[value].interval(alpha) if value in differences else None
        return Rank(value, ended[value], Estimate(difference, ci95), p)

    names = lines[0].name if len(lines) == 1 else f"{lines[0].depth} layers"
    return Ranking(error.name, names, reference, tuple(map(rank, ranked)))
