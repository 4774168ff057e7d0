"""The paper's claims about depth, each held against the runs: confirmed, rejected or undecided.

Claim 3 (that vanishing gradients do not explain the gap) is about signals inside the networks and
cannot be judged from errors; it is no part of this report.
"""

import dataclasses
from collections.abc import Sequence

from experiments.report.cells import Cell, Measure
from experiments.report.groups import Group
from experiments.report.measures import welch_interval
from experiments.report.replicates import Replicate

CONFIRMED, REJECTED, UNDECIDED = "confirmed", "rejected", "undecided"
STATEMENTS = {
    1: "Deeper plain nets have higher training error",
    2: "Deeper residual nets do not have higher training error",
    4: "Residual nets converge faster early on",
}
NOT_TESTED = (
    "Claim 3, that vanishing gradients do not explain the gap, is not tested by this report: it "
    "needs a diagnosis of the signals inside the networks."
)


@dataclasses.dataclass(frozen=True)
class Claim:
    """A claim's verdict within one group, in percentage points of training error."""

    id: int
    group: str
    verdict: str
    difference: float | None
    ci95: tuple[float, float] | None  # Welch's interval over replicates
    detail: str  # which cells were compared and what they gave, or why nothing was

    @property
    def statement(self) -> str:
        """The claim in words."""
        return STATEMENTS[self.id]


def judge(group: Group, margin: float) -> list[Claim]:
    """Returns the verdicts on claims 1, 2 and 4 for one group.

    Only completed cells count, and of these only replicates that did not diverge.

    Args:
      group: cells that may be compared.
      margin: percentage points; claim 2 says that there is *no* rise, which no finite sample can
        show, so a rise below the margin counts as none (a test of non-inferiority).
    """
    completed = [cell for cell in group.cells if cell.status == "completed"]
    plain = [cell for cell in completed if cell.plain]
    residual = _one_shortcut(completed)
    return [
        _rise(1, group, plain, "plain"),
        _rise(2, group, residual, "residual", margin),
        _early(group, plain, [cell for cell in completed if not cell.plain]),
    ]


def _one_shortcut(completed: Sequence[Cell]) -> list[Cell]:
    """Returns the residual cells of one shortcut: A, else B, else C, if it has two depths."""
    by_letter = [[c for c in completed if c.shortcut == letter] for letter in "ABC"]
    return next((found for found in by_letter if len(found) > 1), max(by_letter, key=len))


def _rise(
    number: int, group: Group, found: Sequence[Cell], kind: str, margin: float = 0.0
) -> Claim:
    """Judges claim 1 or 2: training error of the deepest net minus that of the shallowest."""
    waiting = _unfinished(group, plain=kind == "plain")
    if len(found) < 2:
        have = f"only {found[0].name} has" if found else f"no {kind} net has"
        return _undecided(number, group, f"needs two depths of {kind} nets, but {have} completed")
    deep, shallow = max(found, key=_depth), min(found, key=_depth)
    claim = _compare(number, group, deep, shallow, Replicate.train_error)
    if claim.ci95 is not None:
        low, high = claim.ci95
        if number == 1:
            verdict = _verdict(low > 0, high < 0)
        else:
            verdict = _verdict(high <= margin, low > margin)
        claim = dataclasses.replace(claim, verdict=verdict)
    return dataclasses.replace(claim, detail=claim.detail + waiting)


def _early(group: Group, plain: Sequence[Cell], residual: Sequence[Cell]) -> Claim:
    """Judges claim 4 at the shallowest depth that has both kinds.

    The paper makes this claim where the final accuracies are comparable, at 18 layers
    (section 4.1); deeper plain nets are behind for the reason of claim 1.
    """
    both = sorted({c.depth for c in plain} & {c.depth for c in residual})
    if not both:
        reason = "needs a plain and a residual net of one depth, both completed"
        return _undecided(4, group, reason)
    one = next(c for c in plain if c.depth == both[0])
    other = min((c for c in residual if c.depth == both[0]), key=lambda c: c.shortcut)
    claim = _compare(4, group, one, other, Replicate.early_train_error)
    if claim.ci95 is None:
        return claim
    return dataclasses.replace(claim, verdict=_verdict(claim.ci95[0] > 0, claim.ci95[1] < 0))


def _compare(number: int, group: Group, one: Cell, other: Cell, measure: Measure) -> Claim:
    a, b = one.values(measure), other.values(measure)
    words = f"{_figure(one, measure)} against {_figure(other, measure)}"
    if not a or not b:
        return _undecided(number, group, f"{words}: a side has no usable replicate")
    if min(len(a), len(b)) < 2:
        difference = sum(a) / len(a) - sum(b) / len(b)
        reason = f"{words}: an interval needs two replicates on each side"
        return Claim(number, group.label, UNDECIDED, difference, None, reason)
    difference, low, high = welch_interval(a, b)
    return Claim(number, group.label, UNDECIDED, difference, (low, high), words)


def _figure(cell: Cell, measure: Measure) -> str:
    stat = cell.stat(measure)
    if stat.mean is None:
        return f"{cell.name} (n = 0)"
    spread = "" if stat.std is None else f" ± {stat.std:.2f}"
    return f"{cell.name} {stat.mean:.2f}{spread} % (n = {stat.n})"


def _unfinished(group: Group, plain: bool) -> str:
    """Names what is not counted: the deepest net that completed may not be the deepest planned."""
    left_out = [c for c in group.cells if c.plain == plain and c.status != "completed"]
    names = ", ".join(f"{cell.name} ({cell.status})" for cell in left_out)
    return f"; not counted: {names}" if names else ""


def _undecided(number: int, group: Group, reason: str) -> Claim:
    return Claim(number, group.label, UNDECIDED, None, None, reason)


def _verdict(confirmed: bool, rejected: bool) -> str:
    return CONFIRMED if confirmed else REJECTED if rejected else UNDECIDED


def _depth(cell: Cell) -> int:
    return cell.depth
