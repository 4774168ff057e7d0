"""Comparisons of two networks' errors, as claims use them.

This module words the results; statistics.py computes, and docs/statistics.md gives the reasons.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence

from experiments.report.cells import CellResult
from experiments.report.replicates import Observation, Replicate
from experiments.report.statistics import MOST_SEEDS, Difference, Sample, Stat, correct

ABOVE, BELOW = "above", "below"  # the side of the threshold on which an interval lies
UNDECIDED = "undecided"
SATURATED = "saturated"  # both networks are at 0 %, so errors cannot tell them apart
COMPARED = (
    "Every deeper net is compared with the shallowest. The 95 % intervals of one claim hold "
    "together, and its p-values are corrected likewise (Holm); docs/statistics.md has the formulas."
)
Observe = Callable[[Replicate], Observation | None]


@dataclasses.dataclass(frozen=True)
class Comparison:
    """One network minus another, in percentage points of error."""

    network: str
    baseline: str
    threshold: float  # 0, or the margin of claim 2
    seeds: tuple[int, int]  # of the network and the baseline, including diverged ones
    diverged: tuple[int, int]
    detail: str
    result: str = UNDECIDED  # above, below, undecided or saturated
    difference: float | None = None
    ci95: tuple[float, float] | None = None  # corrected for the family of comparisons
    level: float | None = None  # the interval's own level before correction, 0.95 or more
    p: float | None = None  # corrected, against the threshold; None if saturated
    paired: bool = False
    seeds_needed: int | None = None  # per side; None: no estimate, or more than MOST_SEEDS

    @property
    def outcome(self) -> str:
        """The result in words: ``above 0.5``, ``below 0``, ``undecided`` or ``saturated``."""
        return f"{self.result} {self.threshold:g}" if self.result in (ABOVE, BELOW) else self.result


@dataclasses.dataclass(frozen=True)
class Side:
    """One side of a comparison.

    Attributes:
      name: of the network, or of its part.
      sample: one value per seed.
      shown: its name and values in words.
    """

    name: str
    sample: Sample
    shown: str


def family(
    pairs: Sequence[tuple[CellResult, CellResult]], observe: Observe, threshold: float
) -> list[Comparison]:
    """Compares the errors of each pair, corrected for the number of pairs."""

    def side(cell: CellResult) -> Side:
        sample = cell.sample(observe)
        return Side(cell.name, sample, show_error(cell.name, sample))

    return compare([(side(one), side(other)) for one, other in pairs], threshold)


def compare(pairs: Sequence[tuple[Side, Side]], threshold: float) -> list[Comparison]:
    """Compares each pair, corrected for the number of pairs."""
    tested = {
        i: Difference.of(one.sample, other.sample)
        for i, (one, other) in enumerate(pairs)
        if min(len(side.sample.errors) for side in (one, other)) > 1
    }
    p_values, alphas = correct(list(tested.values()), threshold)
    corrected = dict(zip(tested, zip(p_values, alphas, strict=True), strict=True))
    comparisons = []
    for i, (one, other) in enumerate(pairs):
        a, b = one.sample, other.sample
        values = f"{one.shown} against {other.shown}"
        comparison = Comparison(
            network=one.name,
            baseline=other.name,
            threshold=threshold,
            seeds=(len(a.errors), len(b.errors)),
            diverged=(len(a.diverged), len(b.diverged)),
            detail=f"{values}: an interval needs two replicates on each side",
            difference=a.mean - b.mean if a.errors and b.errors else None,
        )
        if i in tested:
            at_zero = math.isfinite(a.examples) and not any([*a.values, *b.values])
            decided = _decide(comparison, tested[i], *corrected[i], at_zero)
            comparison = dataclasses.replace(decided, detail=values + _remark(decided))
        comparisons.append(comparison)
    return comparisons


def _decide(
    comparison: Comparison, difference: Difference, p: float, alpha: float, at_zero: bool
) -> Comparison:
    """Fills in the interval and the result."""
    threshold = comparison.threshold
    low, high = difference.interval(alpha)
    if at_zero:
        result = SATURATED
    else:
        result = ABOVE if low > threshold else BELOW if high <= threshold else UNDECIDED
    needed = difference.seeds_to_exclude(threshold, alpha) if result == UNDECIDED else None
    return dataclasses.replace(
        comparison,
        result=result,
        ci95=(low, high),
        level=1 - alpha,
        p=None if at_zero else p,
        paired=difference.paired,
        seeds_needed=needed,
    )


def _remark(comparison: Comparison) -> str:
    paired = ", paired by seed" if comparison.paired else ""
    if comparison.result == SATURATED:
        return f"{paired}; saturated: both are at 0 %, so this measure cannot tell them apart"
    if comparison.result != UNDECIDED:
        return paired
    if comparison.seeds_needed is not None:
        return f"{paired}; about {comparison.seeds_needed} seeds per side would decide it"
    if comparison.difference == comparison.threshold:
        return f"{paired}; no number of seeds would decide it at this difference"
    return f"{paired}; more than {MOST_SEEDS:,} seeds per side would be needed to decide it"


def unfinished(cell: CellResult, shallow: CellResult, threshold: float) -> Comparison:
    """Returns the undecided comparison of an unfinished net of which some seeds have diverged.

    The other seeds' errors are not known yet, but the divergence is and must not be left out.
    """
    counts = len(cell.diverged), len(cell.replicates)
    return Comparison(
        network=cell.name,
        baseline=shallow.name,
        threshold=threshold,
        seeds=(counts[1], len(shallow.replicates)),
        diverged=(counts[0], len(shallow.diverged)),
        detail=f"{cell.name} is {cell.status}, and {counts[0]} of its {counts[1]} seeds diverged",
    )


def show_error(name: str, sample: Sample) -> str:
    """Returns ``plain-20 8.75 ± 0.10 % (n = 5)``."""
    stat = Stat.of([e for seed, e in sample.errors.items() if seed not in sample.diverged])
    diverged = f"{len(sample.diverged)} diverged" if sample.diverged else ""
    if stat.mean is None:
        return f"{name} ({diverged or 'n = 0'})"
    return f"{name} {stat} % (n = {stat.n}{diverged and f' and {diverged}'})"
