"""Verdicts on the paper's claims about depth: confirmed, rejected, undecided or saturated.

This module chooses the networks to compare and words the results; statistics.py computes, and
docs/statistics.md gives the reasons. Claim 3 (vanishing gradients do not explain the gap) is about
signals inside the networks and cannot be judged from errors, so the report leaves it out.
"""

import dataclasses
from collections.abc import Callable, Sequence

from experiments.report.cells import CellResult
from experiments.report.groups import Group
from experiments.report.replicates import Observation, Replicate
from experiments.report.statistics import MOST_SEEDS, Difference, Sample, Stat, correct
from resnet_jax.runs import reader

CONFIRMED, REJECTED, UNDECIDED = "confirmed", "rejected", "undecided"
SATURATED = "saturated"  # both networks are at 0 %, so errors cannot tell them apart
ABOVE, BELOW = "above", "below"  # the side of the threshold on which an interval lies
STATEMENTS = {
    1: "Deeper plain nets have higher training error",
    2: "Deeper residual nets do not have higher training error",
    4: "Residual nets converge faster early on",
}
NOT_TESTED = (
    "Claim 3, that vanishing gradients do not explain the gap, is not tested by this report: it "
    "needs a diagnosis of the signals inside the networks."
)
COMPARED = (
    "Every deeper net is compared with the shallowest. The 95 % intervals of one claim hold "
    "together, and its p-values are corrected likewise (Holm); docs/statistics.md has the formulas."
)
Observe = Callable[[Replicate], Observation | None]


@dataclasses.dataclass(frozen=True)
class Comparison:
    """One network minus another, in percentage points of training error."""

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
class Claim:
    """A claim's verdict within one group, and the comparisons that decide it."""

    id: int
    group: str
    verdict: str
    difference: float | None
    ci95: tuple[float, float] | None
    detail: str  # the networks compared and their errors, or why none were compared
    comparisons: tuple[Comparison, ...] = ()

    @property
    def statement(self) -> str:
        """The claim in words."""
        return STATEMENTS[self.id]


def judge(group: Group, margin: float) -> list[Claim]:
    """Returns the verdicts on claims 1, 2 and 4 for one group.

    Only cells whose runs have ended are compared. A diverged replicate counts with an error of
    100 %.

    Args:
      group: comparable cells.
      margin: percentage points. Claim 2 says that the error does *not* rise, which no finite sample
        can show, so a rise below the margin counts as none (a test of non-inferiority).
    """
    plain = [cell for cell in group.cells if cell.plain]
    residual = [cell for cell in group.cells if not cell.plain]
    return [
        _rise(1, group, plain, 0.0),
        _rise(2, group, _one_shortcut(residual), margin),
        _early(group, plain, residual),
    ]


def _one_shortcut(residual: Sequence[CellResult]) -> list[CellResult]:
    """Returns the cells of the first of A, B and C of which two depths have ended."""
    by_letter = [[c for c in residual if c.shortcut == letter] for letter in "ABC"]
    most = max(by_letter, key=lambda nets: len(_ended(nets)))
    return next((nets for nets in by_letter if len(_ended(nets)) > 1), most)


def _rise(number: int, group: Group, nets: Sequence[CellResult], threshold: float) -> Claim:
    """Judges claim 1 or 2 by the training error of each deeper net minus the shallowest's.

    The error rises if *some* difference lies above the threshold; it does not if *all* lie below.
    """
    kind = "plain" if number == 1 else "residual"
    ended = sorted(_ended(nets), key=lambda cell: cell.depth)
    waiting = _waiting([cell for cell in group.cells if cell.plain == (number == 1)])
    if len(ended) < 2:
        have = f"only {ended[0].name} has" if ended else f"no {kind} net has"
        reason = f"needs two depths of {kind} nets, but {have} ended"
        return Claim(number, group.label, UNDECIDED, None, None, "; ".join([reason, *waiting]))
    shallow, *deeper = ended
    comparisons = _family([(deep, shallow) for deep in deeper], Replicate.final, threshold)
    comparisons += [
        _unfinished(cell, shallow, threshold)
        for cell in nets
        if cell.status not in reader.ENDED and cell.diverged and cell.depth > shallow.depth
    ]
    results = {comparison.result for comparison in comparisons}
    remarks = []
    if ABOVE in results:
        verdict, decisive = (CONFIRMED if number == 1 else REJECTED), ABOVE
    elif results == {BELOW}:
        verdict, decisive = (REJECTED if number == 1 else CONFIRMED), BELOW
    else:
        verdict = decisive = UNDECIDED if UNDECIDED in results else SATURATED
    if verdict == CONFIRMED and number == 2 and shallow.diverged:
        verdict = UNDECIDED
        remarks = [f"{shallow.name} cannot be the baseline of this claim, because it diverged"]
    return _claim(number, group, verdict, decisive, comparisons, [*remarks, *waiting])


def _early(group: Group, plain: Sequence[CellResult], residual: Sequence[CellResult]) -> Claim:
    """Judges claim 4 at the shallowest depth that has both kinds of net.

    The paper makes this claim at 18 layers, with comparable final accuracies (section 4.1); deeper
    plain nets are worse anyway (claim 1).
    """
    common = {c.depth for c in _ended(plain)} & {c.depth for c in _ended(residual)}
    if not common:
        reason = "needs a plain and a residual net of one depth, both ended"
        return Claim(4, group.label, UNDECIDED, None, None, reason)
    depth = min(common)
    one = next(c for c in _ended(plain) if c.depth == depth)
    other = min((c for c in _ended(residual) if c.depth == depth), key=lambda c: c.shortcut)
    (comparison,) = _family([(one, other)], Replicate.early, 0.0)
    result = comparison.result
    verdict = {ABOVE: CONFIRMED, BELOW: REJECTED}.get(result, result)
    later = [
        f"{cell.name} ({len(cell.diverged) - early} of {len(cell.replicates)} seeds)"
        for cell, early in zip((one, other), comparison.diverged, strict=True)
        if len(cell.diverged) > early
    ]
    remarks = [f"diverged after the early steps: {', '.join(later)}"] if later else []
    return _claim(4, group, verdict, result, [comparison], remarks)


def _claim(
    number: int,
    group: Group,
    verdict: str,
    decisive: str,
    comparisons: Sequence[Comparison],
    remarks: Sequence[str],
) -> Claim:
    """Makes a claim that shows the largest difference among comparisons of the decisive result."""
    named = [c for c in comparisons if c.result == decisive]
    shown = max(named, key=lambda c: -101 if c.difference is None else c.difference)
    parts = [shown.detail]
    if len(comparisons) > 1:
        names = ", ".join(c.network for c in named)
        parts.append(
            f"of {len(comparisons)} deeper nets, {len(named)} {'is' if len(named) == 1 else 'are'} "
            f"{shown.outcome} ({names}), by intervals that hold together (Holm)"
        )
    counts = {c.network: (c.diverged[0], c.seeds[0]) for c in comparisons}
    counts |= {c.baseline: (c.diverged[1], c.seeds[1]) for c in comparisons}
    diverged = [f"{name} ({k} of {n} seeds)" for name, (k, n) in counts.items() if k]
    if diverged:
        parts.append(f"diverged, each seed counted as 100 %: {', '.join(diverged)}")
    detail = "; ".join([*parts, *remarks])
    return Claim(
        number, group.label, verdict, shown.difference, shown.ci95, detail, tuple(comparisons)
    )


def _family(
    pairs: Sequence[tuple[CellResult, CellResult]], observe: Observe, threshold: float
) -> list[Comparison]:
    """Compares each pair, corrected for the number of pairs."""
    samples = [(one.sample(observe), other.sample(observe)) for one, other in pairs]
    tested = {
        i: Difference.of(*sides)
        for i, sides in enumerate(samples)
        if min(len(side.errors) for side in sides) > 1
    }
    p_values, alphas = correct(list(tested.values()), threshold)
    corrected = dict(zip(tested, zip(p_values, alphas, strict=True), strict=True))
    comparisons = []
    for i, ((one, other), (a, b)) in enumerate(zip(pairs, samples, strict=True)):
        errors = f"{_show_error(one, a)} against {_show_error(other, b)}"
        comparison = Comparison(
            network=one.name,
            baseline=other.name,
            threshold=threshold,
            seeds=(len(a.errors), len(b.errors)),
            diverged=(len(a.diverged), len(b.diverged)),
            detail=f"{errors}: an interval needs two replicates on each side",
            difference=a.mean - b.mean if a.errors and b.errors else None,
        )
        if i in tested:
            at_zero = not any([*a.values, *b.values])
            decided = _decide(comparison, tested[i], *corrected[i], at_zero)
            comparison = dataclasses.replace(decided, detail=errors + _remark(decided))
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


def _unfinished(cell: CellResult, shallow: CellResult, threshold: float) -> Comparison:
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


def _show_error(cell: CellResult, sample: Sample) -> str:
    stat = Stat.of([e for seed, e in sample.errors.items() if seed not in sample.diverged])
    diverged = f"{len(sample.diverged)} diverged" if sample.diverged else ""
    if stat.mean is None:
        return f"{cell.name} ({diverged or 'n = 0'})"
    return f"{cell.name} {stat} % (n = {stat.n}{diverged and f' and {diverged}'})"


def _waiting(cells: Sequence[CellResult]) -> list[str]:
    """Returns a remark on unfinished cells, since they may include the deepest one."""
    names = [f"{cell.name} ({cell.status})" for cell in cells if cell.status not in reader.ENDED]
    return [f"not counted: {', '.join(names)}"] if names else []


def _ended(cells: Sequence[CellResult]) -> list[CellResult]:
    return [cell for cell in cells if cell.status in reader.ENDED]
