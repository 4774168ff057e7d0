"""The paper's claims about depth, each held against the runs: confirmed, rejected or undecided.

Which networks are compared, and in which words; statistics.py has the arithmetic and
docs/statistics.md the reasons. Claim 3 (that vanishing gradients do not explain the gap) is about
signals inside the networks and cannot be judged from errors; it is no part of this report.
"""

import dataclasses
from collections.abc import Callable, Sequence

from experiments.report.cells import CellResult
from experiments.report.groups import Group
from experiments.report.replicates import Observation, Replicate
from experiments.report.statistics import MOST_SEEDS, Difference, Sample, Stat, correct
from resnet_jax.runs import reader

CONFIRMED, REJECTED, UNDECIDED = "confirmed", "rejected", "undecided"
SATURATED = "saturated"  # both networks are at 0 %: this measure cannot tell them apart
ABOVE, BELOW = "above", "below"  # where an interval lies
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
    seeds: tuple[int, int]  # of the network and of the baseline, those that diverged included
    diverged: tuple[int, int]
    detail: str
    result: str = UNDECIDED  # above or below: where the interval lies; or saturated
    difference: float | None = None
    ci95: tuple[float, float] | None = None  # corrected for the family of comparisons
    level: float | None = None  # of the interval on its own, 0.95 or more
    p: float | None = None  # corrected likewise, against the threshold; None if saturated
    paired: bool = False
    seeds_needed: int | None = None  # per side; None: no estimate, or more than MOST_SEEDS


@dataclasses.dataclass(frozen=True)
class Claim:
    """A claim's verdict within one group, and the comparison that decides it."""

    id: int
    group: str
    verdict: str
    difference: float | None
    ci95: tuple[float, float] | None
    detail: str  # which networks were compared and what they gave, or why nothing was
    comparisons: tuple[Comparison, ...] = ()

    @property
    def statement(self) -> str:
        """The claim in words."""
        return STATEMENTS[self.id]


def judge(group: Group, margin: float) -> list[Claim]:
    """Returns the verdicts on claims 1, 2 and 4 for one group.

    Only cells whose runs have ended are compared. A replicate that diverged takes part with the
    error of a network that failed to train.

    Args:
      group: cells that may be compared.
      margin: percentage points; claim 2 says that there is *no* rise, which no finite sample can
        show, so a rise below the margin counts as none (a test of non-inferiority).
    """
    plain = [cell for cell in group.cells if cell.plain]
    residual = [cell for cell in group.cells if not cell.plain]
    return [
        _rise(1, group, plain, 0.0),
        _rise(2, group, _one_shortcut(residual), margin),
        _early(group, plain, residual),
    ]


def _one_shortcut(residual: Sequence[CellResult]) -> list[CellResult]:
    """Returns the cells of one shortcut: A, else B, else C, if two of its depths have ended."""
    by_letter = [[c for c in residual if c.shortcut == letter] for letter in "ABC"]
    return next((own for own in by_letter if len(_ended(own)) > 1), max(by_letter, key=_size))


def _rise(number: int, group: Group, nets: Sequence[CellResult], threshold: float) -> Claim:
    """Judges claim 1 or 2: training error of each deeper net minus that of the shallowest.

    There is a rise if *some* deeper net lies above the threshold, none if *every* one lies below.
    """
    kind = "plain" if number == 1 else "residual"
    ended = sorted(_ended(nets), key=lambda cell: cell.depth)
    waiting = _waiting([cell for cell in group.cells if cell.plain == (number == 1)])
    if len(ended) < 2:
        have = f"only {ended[0].name} has" if ended else f"no {kind} net has"
        reason = f"needs two depths of {kind} nets, but {have} ended"
        return Claim(number, group.label, UNDECIDED, None, None, "; ".join([reason, *waiting]))
    shallow, *deeper = ended
    found = _family([(deep, shallow) for deep in deeper], Replicate.final, threshold)
    found += [
        _unfinished(cell, shallow, threshold)
        for cell in nets
        if cell.status not in reader.ENDED and cell.diverged and cell.depth > shallow.depth
    ]
    results = {comparison.result for comparison in found}
    words = []
    if ABOVE in results:
        verdict, decisive = (CONFIRMED if number == 1 else REJECTED), ABOVE
    elif results == {BELOW}:
        verdict, decisive = (REJECTED if number == 1 else CONFIRMED), BELOW
    else:
        verdict = decisive = UNDECIDED if UNDECIDED in results else SATURATED
    if verdict == CONFIRMED and number == 2 and shallow.diverged:
        verdict = UNDECIDED
        words = [f"{shallow.name} is no baseline for this claim, because it diverged"]
    return _claim(number, group, verdict, decisive, found, [*words, *waiting])


def _early(group: Group, plain: Sequence[CellResult], residual: Sequence[CellResult]) -> Claim:
    """Judges claim 4 at the shallowest depth that has both kinds.

    The paper makes this claim where the final accuracies are comparable, at 18 layers
    (section 4.1); deeper plain nets are behind for the reason of claim 1.
    """
    both = {c.depth for c in _ended(plain)} & {c.depth for c in _ended(residual)}
    if not both:
        reason = "needs a plain and a residual net of one depth, both ended"
        return Claim(4, group.label, UNDECIDED, None, None, reason)
    one = next(c for c in _ended(plain) if c.depth == min(both))
    other = min((c for c in _ended(residual) if c.depth == min(both)), key=lambda c: c.shortcut)
    found = _family([(one, other)], Replicate.early, 0.0)
    result = found[0].result
    verdict = {ABOVE: CONFIRMED, BELOW: REJECTED}.get(result, result)
    later = [
        f"{cell.name} ({len(cell.diverged) - early} of {len(cell.replicates)} seeds)"
        for cell, early in zip((one, other), found[0].diverged, strict=True)
        if len(cell.diverged) > early
    ]
    words = [f"diverged after the early steps: {', '.join(later)}"] if later else []
    return _claim(4, group, verdict, result, found, words)


def _claim(
    number: int,
    group: Group,
    verdict: str,
    decisive: str,
    found: Sequence[Comparison],
    words: Sequence[str],
) -> Claim:
    """Makes the claim; of the comparisons with the decisive result it shows the largest one."""
    named = [c for c in found if c.result == decisive]
    shown = max(named, key=lambda c: -101 if c.difference is None else c.difference)
    parts = [shown.detail]
    if len(found) > 1:
        names = ", ".join(c.network for c in named)
        where = f"{decisive} {shown.threshold:g}" if decisive in (ABOVE, BELOW) else decisive
        parts.append(
            f"of {len(found)} deeper nets, {len(named)} {'is' if len(named) == 1 else 'are'} "
            f"{where} ({names}), by intervals that hold together (Holm)"
        )
    gone = {c.network: (c.diverged[0], c.seeds[0]) for c in found}
    gone |= {c.baseline: (c.diverged[1], c.seeds[1]) for c in found}
    diverged = [f"{name} ({k} of {n} seeds)" for name, (k, n) in gone.items() if k]
    if diverged:
        parts.append(f"diverged, each seed counted as 100 %: {', '.join(diverged)}")
    detail = "; ".join([*parts, *words])
    return Claim(number, group.label, verdict, shown.difference, shown.ci95, detail, tuple(found))


def _family(
    pairs: Sequence[tuple[CellResult, CellResult]], observe: Observe, threshold: float
) -> list[Comparison]:
    """Compares each pair, with a correction for their number."""
    samples = [(one.sample(observe), other.sample(observe)) for one, other in pairs]
    tested = {
        place: Difference.of(*sides)
        for place, sides in enumerate(samples)
        if min(len(side.errors) for side in sides) > 1
    }
    p_values, alphas = correct(list(tested.values()), threshold)
    corrected = dict(zip(tested, zip(p_values, alphas, strict=True), strict=True))
    found = []
    for place, ((one, other), (a, b)) in enumerate(zip(pairs, samples, strict=True)):
        words = f"{_figure(one, a)} against {_figure(other, b)}"
        comparison = Comparison(
            network=one.name,
            baseline=other.name,
            threshold=threshold,
            seeds=(len(a.errors), len(b.errors)),
            diverged=(len(a.diverged), len(b.diverged)),
            detail=f"{words}: an interval needs two replicates on each side",
            difference=a.mean - b.mean if a.errors and b.errors else None,
        )
        if place in tested:
            at_zero = not any([*a.values, *b.values])
            sure = _decide(comparison, tested[place], *corrected[place], at_zero)
            comparison = dataclasses.replace(sure, detail=words + _remark(sure))
        found.append(comparison)
    return found


def _decide(
    comparison: Comparison, difference: Difference, p: float, alpha: float, at_zero: bool
) -> Comparison:
    """Fills in the interval and what follows from it."""
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
    words = ", paired by seed" if comparison.paired else ""
    if comparison.result == SATURATED:
        return f"{words}; saturated: both are at 0 %, so this measure cannot tell them apart"
    if comparison.result != UNDECIDED:
        return words
    if comparison.seeds_needed is not None:
        return f"{words}; about {comparison.seeds_needed} seeds per side would decide it"
    if comparison.difference == comparison.threshold:
        return f"{words}; no number of seeds would decide it at this difference"
    return f"{words}; more than {MOST_SEEDS:,} seeds per side would be needed to decide it"


def _unfinished(cell: CellResult, shallow: CellResult, threshold: float) -> Comparison:
    """Returns the comparison of a net that is not finished but of which seeds have diverged.

    What its other seeds will give is open, but that some failed is known: so it is not left out.
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


def _figure(cell: CellResult, sample: Sample) -> str:
    stat = Stat.of([e for seed, e in sample.errors.items() if seed not in sample.diverged])
    gone = f"{len(sample.diverged)} diverged" if sample.diverged else ""
    if stat.mean is None:
        return f"{cell.name} ({gone or 'n = 0'})"
    return f"{cell.name} {stat} % (n = {stat.n}{gone and f' and {gone}'})"


def _waiting(cells: Sequence[CellResult]) -> list[str]:
    """Names what is not counted: the deepest net that ended may not be the deepest planned."""
    names = [f"{cell.name} ({cell.status})" for cell in cells if cell.status not in reader.ENDED]
    return [f"not counted: {', '.join(names)}"] if names else []


def _ended(cells: Sequence[CellResult]) -> list[CellResult]:
    return [cell for cell in cells if cell.status in reader.ENDED]


def _size(cells: Sequence[CellResult]) -> int:
    return len(_ended(cells))
