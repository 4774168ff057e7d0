"""Claims 1, 2 and 4, which are judged from training errors.

Each chooses the networks to compare; comparisons.py compares, and docs/statistics.md gives the
reasons.
"""

import dataclasses
from collections.abc import Sequence

from experiments.report.cells import CellResult
from experiments.report.claims.comparisons import (
    ABOVE,
    BELOW,
    SATURATED,
    UNDECIDED,
    Comparison,
    family,
    unfinished,
)
from experiments.report.claims.nets import (
    PLAIN,
    RESIDUAL,
    ended,
    lacks_depths,
    lacks_pair,
    of_kind,
    of_one_shortcut,
    pairs,
)
from experiments.report.claims.registry import CONFIRMED, REJECTED, Claim, Finding, judges
from experiments.report.groups import Group
from experiments.report.replicates import Replicate
from resnet_jax.runs import reader


@judges(
    Claim(
        id="1",
        statement="Deeper plain nets have higher training error",
        source="He et al. 2015, sections 1 and 4.1, Figures 1 and 4",
        needs=lambda group: lacks_depths(group, PLAIN),
        rule="(plain nets) is confirmed if an interval lies above 0 and rejected if all lie below.",
        words={
            CONFIRMED: "Deeper plain nets train worse.",
            REJECTED: "Deeper plain nets train better, not worse.",
            SATURATED: "Shallow and deep plain nets both reach 0 %: this task cannot tell them "
            "apart.",
            UNDECIDED: "Whether deeper plain nets train worse is undecided.",
        },
    )
)
def plain_nets_get_worse(group: Group, margin: float) -> Finding:
    """Judges each deeper plain net's training error minus the shallowest's against 0."""
    return _rise(group, PLAIN, 0.0, CONFIRMED, REJECTED)


@judges(
    Claim(
        id="2",
        statement="Deeper residual nets do not have higher training error",
        source="He et al. 2015, section 4.1, Figure 4",
        needs=lambda group: lacks_depths(group, RESIDUAL),
        rule="(residual nets) allows a rise of up to {margin} points: it is confirmed if all "
        "intervals lie below that and rejected if one lies above.",
        words={
            CONFIRMED: "Deeper residual nets do not train worse.",
            REJECTED: "Deeper residual nets also train worse.",
            SATURATED: "Shallow and deep residual nets both reach 0 %: this task cannot tell them "
            "apart.",
            UNDECIDED: "Whether deeper residual nets train worse is undecided.",
        },
    )
)
def residual_nets_do_not(group: Group, margin: float) -> Finding:
    """Judges each deeper residual net's training error minus the shallowest's.

    A rise up to the margin counts as none.
    """
    finding = _rise(group, RESIDUAL, margin, REJECTED, CONFIRMED)
    shallow = min(
        ended(of_one_shortcut(of_kind(group, RESIDUAL))), key=lambda c: c.depth, default=None
    )
    if finding.verdict != CONFIRMED or not shallow or not shallow.diverged:
        return finding
    remark = f"{shallow.name} cannot be the baseline of this claim, because it diverged"
    return dataclasses.replace(finding, verdict=UNDECIDED, detail=f"{finding.detail}; {remark}")


@judges(
    Claim(
        id="4",
        statement="Residual nets converge faster early on",
        source="He et al. 2015, section 4.1, Figure 4",
        needs=lacks_pair,
        rule="compares the plain with the residual net at the shallowest depth that has both, over "
        "the first quarter of the steps.",
        words={
            CONFIRMED: "Residual nets converge faster early on.",
            REJECTED: "Residual nets converge slower early on.",
            SATURATED: "Both kinds of net are at 0 % early on: this task cannot tell them apart.",
            UNDECIDED: "Whether residual nets converge faster early on is undecided.",
        },
    )
)
def residual_nets_are_faster(group: Group, margin: float) -> Finding:
    """Judges the early error, plain minus residual, at the shallowest depth that has both.

    The paper makes this claim at 18 layers, with comparable final accuracies; deeper plain nets are
    worse anyway (claim 1).
    """
    found = pairs(group)
    if not found:
        return Finding(UNDECIDED, "needs a plain and a residual net of one depth, both ended")
    one, other = found[0]
    (comparison,) = family([(one, other)], Replicate.early, 0.0)
    result = comparison.result
    verdict = {ABOVE: CONFIRMED, BELOW: REJECTED}.get(result, result)
    later = [
        f"{cell.name} ({len(cell.diverged) - early} of {len(cell.replicates)} seeds)"
        for cell, early in zip((one, other), comparison.diverged, strict=True)
        if len(cell.diverged) > early
    ]
    remarks = [f"diverged after the early steps: {', '.join(later)}"] if later else []
    return _finding(verdict, result, [comparison], remarks)


def _rise(group: Group, kind: str, threshold: float, if_above: str, if_below: str) -> Finding:
    """Compares each deeper net's training error with the shallowest's, for one shortcut.

    The error rises if *some* difference lies above the threshold (the verdict `if_above`); it does
    not if *all* lie below (`if_below`).
    """
    nets = of_one_shortcut(of_kind(group, kind))
    done = ended(nets)
    waiting = _waiting(of_kind(group, kind))
    if len(done) < 2:
        have = f"only {done[0].name} has" if done else f"no {kind} net has"
        reason = f"needs two depths of {kind} nets, but {have} ended"
        return Finding(UNDECIDED, "; ".join([reason, *waiting]))
    shallow, *deeper = done
    comparisons = family([(deep, shallow) for deep in deeper], Replicate.final, threshold)
    comparisons += [
        unfinished(cell, shallow, threshold)
        for cell in nets
        if cell.status not in reader.ENDED and cell.diverged and cell.depth > shallow.depth
    ]
    results = {comparison.result for comparison in comparisons}
    if ABOVE in results:
        verdict, decisive = if_above, ABOVE
    elif results == {BELOW}:
        verdict, decisive = if_below, BELOW
    else:
        verdict = decisive = UNDECIDED if UNDECIDED in results else SATURATED
    return _finding(verdict, decisive, comparisons, waiting)


def _finding(
    verdict: str, decisive: str, comparisons: Sequence[Comparison], remarks: Sequence[str]
) -> Finding:
    """Returns a finding that shows the largest difference among those of the decisive result."""
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
    return Finding(verdict, detail, shown.difference, shown.ci95, tuple(comparisons))


def _waiting(cells: Sequence[CellResult]) -> list[str]:
    """Returns a remark on unfinished cells, since they may include the deepest one."""
    names = [f"{cell.name} ({cell.status})" for cell in cells if cell.status not in reader.ENDED]
    return [f"not counted: {', '.join(names)}"] if names else []
