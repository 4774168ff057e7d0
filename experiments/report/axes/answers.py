"""What a study says along an axis: gaps by depth, best values by depth, verdicts.

statistics.py computes; docs/statistics.md has the formulas.
"""

import dataclasses
from collections.abc import Sequence

from experiments.report import claims
from experiments.report.axes.model import LOG, Across, Error, Line, Value, as_group
from experiments.report.cells import CellResult
from experiments.report.claims import Judgement
from experiments.report.claims.registry import NOT_TESTED
from experiments.report.statistics import (
    ALPHA,
    LEAST_POINTS,
    Difference,
    PowerLaw,
    power_law,
)

Interval = tuple[float, float] | None


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A difference in percentage points, with its 95 % interval if every sample has two seeds."""

    difference: float
    ci95: Interval


@dataclasses.dataclass(frozen=True)
class Gap:
    """The deepest minus the shallowest net of one kind, under one condition.

    Attributes:
      kind: of nets.
      at: the common value; None for each net at its best value.
      deep: the deeper net's name.
      shallow: the shallower net's name.
      gap: the difference of their errors.
      interaction: this gap minus the gap at the best values; None at the best values.
      seeds: of each of the two nets.
    """

    kind: str
    at: Value | None
    deep: str
    shallow: str
    gap: Estimate
    interaction: Estimate | None
    seeds: tuple[int, int]


@dataclasses.dataclass(frozen=True)
class BestByDepth:
    """The best values of one kind of net, by depth.

    Attributes:
      kind: of nets.
      lines: the nets whose best value is known and positive, by depth.
      law: the fitted power law; None if there are fewer than LEAST_POINTS depths.
    """

    kind: str
    lines: tuple[Line, ...]
    law: PowerLaw | None


@dataclasses.dataclass(frozen=True)
class Verdicts:
    """The claims under one condition: one value for all networks, or each at its best value.

    Attributes:
      at: the common value; None for each net at its best value.
      others: the values on the study's other axes.
      judgements: of the claims that could be tested.
    """

    at: Value | None
    others: str
    judgements: tuple[Judgement, ...]


def gaps(across: Across) -> list[Gap]:
    """Returns the gap of every kind of net at the best values, then at each value.

    Variants are not chosen among, so there is no gap at the best one.
    """
    rows = []
    for kind in across.kinds:
        lines = [line for line in across.lines if line.kind == kind]
        deep = max(lines, key=lambda line: line.depth)
        shallow = min(lines, key=lambda line: line.depth)
        if deep.depth == shallow.depth:
            continue
        best = None if across.is_variants else _pair(deep.at_best, shallow.at_best)
        rows += _gap(kind, None, (deep, shallow), best, None, across.error)
        for value in across.axis.values:
            pair = _pair(deep.ended(value), shallow.ended(value))
            rows += _gap(kind, value, (deep, shallow), pair, best, across.error)
    return rows


Pair = tuple[CellResult, CellResult] | None


def _pair(deep: CellResult | None, shallow: CellResult | None) -> Pair:
    return (deep, shallow) if deep and shallow else None


def _gap(
    kind: str, at: Value | None, lines: tuple[Line, Line], pair: Pair, best: Pair, error: Error
) -> list[Gap]:
    """Returns no gap if a net has not ended or has no error."""
    gap = pair and _estimate([(1, pair[0]), (-1, pair[1])], error)
    if not pair or not gap:
        return []
    terms = pair and best and [(1, pair[0]), (-1, pair[1]), (-1, best[0]), (1, best[1])]
    return [
        Gap(
            kind,
            at,
            lines[0].name,
            lines[1].name,
            gap,
            _estimate(terms, error) if terms else None,
            (len(pair[0].replicates), len(pair[1].replicates)),
        )
    ]


def _estimate(terms: Sequence[tuple[int, CellResult]], error: Error) -> Estimate | None:
    """Returns a sum of coefficient * error, in which a cell may occur several times."""
    distinct = {id(cell): cell for _, cell in terms}
    weights = {key: sum(c for c, cell in terms if id(cell) == key) for key in distinct}
    samples = [
        (float(weight), distinct[key].sample(error.observe))
        for key, weight in weights.items()
        if weight
    ]
    if not samples:  # the common value is the best value of both nets
        return Estimate(0.0, None)
    if any(not sample.errors for _, sample in samples):
        return None
    value = sum(weight * sample.mean for weight, sample in samples)
    if any(len(sample.errors) < 2 for _, sample in samples):
        return Estimate(value, None)
    return Estimate(value, Difference.combined(samples).interval(ALPHA))


def best_by_depth(across: Across) -> list[BestByDepth]:
    """Returns the best values of each kind of net with several depths; none if not on LOG."""
    if across.axis.scale != LOG:
        return []
    fits = []
    for kind in across.kinds:
        lines = [line for line in across.lines if line.kind == kind and line.best]
        if len(lines) < 2:
            continue
        numbers = [line.best.number or 0.0 for line in lines if line.best]
        law = power_law([line.depth for line in lines], numbers, across.axis.step)
        fits.append(BestByDepth(kind, tuple(lines), law))
    return fits


def verdicts(across: Across, margin: float) -> list[Verdicts]:
    """Judges the claims with each network at its best value, then with all at each value.

    Variants are not chosen among, so there are no verdicts at the best one.
    """
    rows = []
    contexts = [""] if across.is_tuned else across.others
    for context in contexts if not across.is_variants else ():
        own = [line for line in across.lines if across.is_tuned or line.others == context]
        best = [line.at_best for line in own if line.at_best]
        rows.append(_judged(across, None, context, best, margin))
    for others in across.others:
        own = [line for line in across.lines if line.others == others]
        for value in across.axis.values:
            cells = [line.cells[value] for line in own if value in line.cells]
            rows.append(_judged(across, value, others, cells, margin))
    return [row for row in rows if row.judgements]


def _judged(
    across: Across, at: Value | None, others: str, cells: Sequence[CellResult], margin: float
) -> Verdicts:
    if len({(cell.depth, cell.shortcut) for cell in cells}) < max(len(cells), 2):
        return Verdicts(at, others, ())  # claims compare different networks
    group = as_group(condition(across, at, others), cells)
    tested = [one for one in claims.judge(group, margin) if one.verdict != NOT_TESTED]
    return Verdicts(at, others, tuple(tested))


def condition(across: Across, at: Value | None, others: str = "") -> str:
    """Returns ``each at its best rate``, or ``all at rate=0.1``."""
    name = across.axis.name
    shown = f"each at its best {name}" if at is None else f"all at {show(across, at)}"
    return f"{shown}, {others}" if others else shown


def show(across: Across, value: Value) -> str:
    """Returns ``rate=0.1``, or the name of a combination of settings."""
    return value.label if len(across.axis.keys) > 1 else f"{across.axis.name}={value.label}"


def lacks_depths(fit: BestByDepth) -> str:
    """Returns what a fit needs, or "" if there is one."""
    if fit.law:
        return ""
    depths = len({line.depth for line in fit.lines})
    return f"an exponent needs {LEAST_POINTS} depths of {fit.kind} nets, and there are {depths}"
