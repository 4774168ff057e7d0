"""Claim 3 and those of Figure 7, which are judged from signals inside the networks.

docs/signals.md says what the signals are, docs/statistics.md how the claims are judged.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.report.cells import CellResult
from experiments.report.claims.comparisons import ABOVE, BELOW, UNDECIDED, Comparison, Side, compare
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
from experiments.report.signals.profiles import (
    GRADIENTS,
    RESPONSES,
    Profile,
    common_steps,
    first_and_last,
    main_path,
    profiles,
)
from experiments.report.statistics import Sample, Stat

ORDERS = 2.0  # powers of ten between first and last layer that count as vanishing or exploding
Extreme = Callable[..., Any]  # min, max or _most_apart


class Ends(NamedTuple):
    """The gradient norms of the first and the last convolution at a step."""

    first: float
    last: float
    step: int

    @property
    def orders(self) -> float:
        """Their ratio as a power of ten."""
        return math.log10(self.first) - math.log10(self.last)


def _lacks_gradients(group: Group, norm: str) -> str:
    plain = of_kind(group, PLAIN)
    if not plain:
        return "needs plain nets, and there is none"
    if group.cells[0].config["model"]["norm"] != norm:
        which = {"batch": "with BatchNorm", "none": "without BatchNorm"}[norm]
        return f"is about plain nets {which} (model.norm={norm!r})"
    if not any(profiles(r, GRADIENTS) for cell in plain for r in cell.replicates):
        return "needs the norms of every layer's gradients (log.signals.every)"
    return ""


def _lacks_responses(group: Group) -> str:
    if group.cells[0].config["model"]["activation"] != "post":
        return "needs nets whose BatchNorm follows the convolution (model.activation='post')"
    if not any(common_steps([cell], RESPONSES) for cell in group.cells):
        return "needs the responses of every layer (log.signals.every)"
    return ""


_GRADIENT_WORDS = (
    "compares, in each plain net, the gradient norms of the first and of the last convolution, as "
    "the power of ten of their ratio, at the logged step where it is {extreme}. It is confirmed if "
    f"all intervals lie {{side}} {{sign}}{ORDERS:g} and rejected if one does not reach there."
)


@judges(
    Claim(
        id="3",
        statement="Vanishing gradients do not explain why deeper plain nets train worse",
        source="He et al. 2015, section 4.1",
        needs=lambda group: _lacks_gradients(group, "batch"),
        rule=_GRADIENT_WORDS.format(extreme="lowest", side="above", sign="-"),
        words={
            CONFIRMED: "Gradients do not vanish in plain nets.",
            REJECTED: "Gradients vanish in plain nets.",
            UNDECIDED: "Whether gradients vanish in plain nets is undecided.",
        },
        unit="powers of ten",
    )
)
def gradients_do_not_vanish(group: Group, margin: float) -> Finding:
    """Judges the lowest ratio of first to last gradient norm, over the logged steps."""
    return _gradients(group, min, -ORDERS, {ABOVE: CONFIRMED, BELOW: REJECTED})


@judges(
    Claim(
        id="3b",
        statement="Gradients do not explode in plain nets either: their norms are healthy",
        source="He et al. 2015, section 4.1",
        needs=lambda group: _lacks_gradients(group, "batch"),
        rule=_GRADIENT_WORDS.format(extreme="highest", side="below", sign="+"),
        words={
            CONFIRMED: "Gradients do not explode in plain nets.",
            REJECTED: "Gradients explode in plain nets.",
            UNDECIDED: "Whether gradients explode in plain nets is undecided.",
        },
        unit="powers of ten",
    )
)
def gradients_do_not_explode(group: Group, margin: float) -> Finding:
    """Judges the highest ratio of first to last gradient norm, over the logged steps."""
    return _gradients(group, max, ORDERS, {BELOW: CONFIRMED, ABOVE: REJECTED})


@judges(
    Claim(
        id="3c",
        statement="Without BatchNorm, gradients vanish or explode between a plain net's layers",
        source="the counterpart of claim 3; He et al. 2015, section 1, on normalisation",
        needs=lambda group: _lacks_gradients(group, "none"),
        rule="compares, in the deepest plain net, the same norms at the logged step where they "
        "differ most, as the power of ten of the larger over the smaller one. It is confirmed if "
        f"the interval lies above {ORDERS:g} and rejected if it lies below.",
        words={
            CONFIRMED: "Without BatchNorm, the first and the last layer of the deepest plain net "
            "have gradients that differ by more than a factor of 100.",
            REJECTED: "Even without BatchNorm, the first and the last layer of the deepest plain "
            "net have gradients that differ by less than a factor of 100.",
            UNDECIDED: "Whether first and last layer have similar gradients without BatchNorm is "
            "undecided.",
        },
        unit="powers of ten",
    )
)
def gradients_need_batch_norm(group: Group, margin: float) -> Finding:
    """Judges the most extreme ratio of the deepest plain net, in either direction."""
    deepest = ended(of_kind(group, PLAIN))[-1:]
    sides = []
    for cell in deepest:
        found = {r.seed: ends for r in cell.replicates if (ends := _ends(r, _most_apart))}
        if found:
            one = Sample({s: abs(e.orders) for s, e in found.items()}, math.inf)
            steps = _steps(found.values())
            mean = 10**one.mean
            name = f"{cell.name}, first or last layer"
            shown = f"{name}: {mean:.3g} times as large at step {steps}"
            same = Sample(dict.fromkeys(found, 0.0), math.inf)
            sides.append((Side(name, one, shown), Side("the other", same, "the other")))
    if not sides:
        return Finding(UNDECIDED, "needs a plain net that has ended")
    return _finding(compare(sides, ORDERS), {ABOVE: CONFIRMED, BELOW: REJECTED}, [])


@judges(
    Claim(
        id="7a",
        statement="Residual nets have smaller responses than plain nets",
        source="He et al. 2015, section 4.2, Figure 7",
        needs=lambda group: lacks_pair(group) or _lacks_responses(group),
        rule="compares the mean over layers of the responses' standard deviations, at the last "
        "logged step, residual minus plain at each depth. It is confirmed if all intervals lie "
        "below 0 and rejected if one lies above.",
        words={
            CONFIRMED: "Residual nets have smaller responses than plain nets.",
            REJECTED: "Residual nets have larger responses than plain nets.",
            UNDECIDED: "Whether residual nets have smaller responses is undecided.",
        },
        unit="in the mean response",
    )
)
def residual_responses_are_smaller(group: Group, margin: float) -> Finding:
    """Judges the mean response, residual minus plain, at every depth that has both."""
    both = [(residual, plain) for plain, residual in pairs(group)]
    return _responses(both, "a plain and a residual net of one depth")


@judges(
    Claim(
        id="7b",
        statement="Deeper residual nets have smaller responses",
        source="He et al. 2015, section 4.2, Figure 7",
        needs=lambda group: lacks_depths(group, RESIDUAL) or _lacks_responses(group),
        rule="compares the same measure of each deeper residual net with that of the shallowest. "
        "It is confirmed if all intervals lie below 0 and rejected if one lies above.",
        words={
            CONFIRMED: "The deeper a residual net, the smaller its responses.",
            REJECTED: "Deeper residual nets have larger responses.",
            UNDECIDED: "Whether deeper residual nets have smaller responses is undecided.",
        },
        unit="in the mean response",
    )
)
def deeper_responses_are_smaller(group: Group, margin: float) -> Finding:
    """Judges the mean response of each deeper residual net minus the shallowest's."""
    nets = ended(of_one_shortcut(of_kind(group, RESIDUAL)))
    return _responses([(deep, nets[0]) for deep in nets[1:]], "two depths of residual nets")


def _gradients(
    group: Group, extreme: Extreme, threshold: float, verdicts: dict[str, str]
) -> Finding:
    """Compares first and last layer, each seed at the logged step with its extreme ratio."""
    sides = []
    for cell in ended(of_kind(group, PLAIN)):
        found = {r.seed: ends for r in cell.replicates if (ends := _ends(r, extreme))}
        if found:
            at = _steps(found.values())
            first = _layer(f"{cell.name}, first layer", {s: e.first for s, e in found.items()})
            last = _layer(f"last layer, at step {at}", {s: e.last for s, e in found.items()})
            sides.append((first, last))
    if not sides:
        return Finding(UNDECIDED, "needs a plain net that has ended")
    return _finding(compare(sides, threshold), verdicts, [])


def _steps(found: Iterable[Ends]) -> str:
    """Returns ``16``, or ``16 to 32`` if the seeds' steps differ."""
    steps = sorted({ends.step for ends in found})
    return " to ".join(f"{step:,}" for step in dict.fromkeys((steps[0], steps[-1])))


def _layer(name: str, norms: dict[int, float]) -> Side:
    logarithms = {seed: math.log10(norm) for seed, norm in norms.items()}
    mean = 10 ** float(np.mean(list(logarithms.values())))
    return Side(name, Sample(logarithms, math.inf), f"{name}: {mean:.3g}")


def _ends(replicate: Replicate, extreme: Extreme) -> Ends | None:
    """Returns the gradient norms at the step with the extreme ratio of first to last."""
    found = [
        Ends(*ends, step)
        for step, profile in profiles(replicate, GRADIENTS).items()
        if (ends := first_and_last(profile))
    ]
    return extreme(found, key=lambda ends: ends.orders) if found else None


def _most_apart(found: Iterable[Ends], key: Callable[[Ends], float]) -> Ends:
    return max(found, key=lambda ends: abs(key(ends)))


def _responses(compared: Sequence[tuple[CellResult, CellResult]], needed: str) -> Finding:
    """Compares the mean responses of each pair at the last step that both have logged."""
    sides, steps = [], []
    for pair in compared:
        if logged := common_steps(pair, RESPONSES):
            steps.append(logged[-1])
            one, other = (_mean_response(cell, logged[-1]) for cell in pair)
            sides.append((one, other))
    if not sides:
        return Finding(UNDECIDED, f"needs {needed}, ended and with responses at a common step")
    at = ", ".join(f"{step:,}" for step in sorted(set(steps)))
    verdicts = {BELOW: CONFIRMED, ABOVE: REJECTED}
    return _finding(compare(sides, 0.0), verdicts, [f"at step {at}"])


def _mean_response(cell: CellResult, step: int) -> Side:
    def mean(profile: Profile) -> float:
        return float(np.mean(list(main_path(profile).values())))

    means = {r.seed: mean(profiles(r, RESPONSES)[step]) for r in cell.healthy}
    values = {seed: value for seed, value in means.items() if math.isfinite(value)}
    shown = f"{cell.name} {Stat.of(list(values.values()))}"
    return Side(cell.name, Sample(values, math.inf), shown)


def _finding(
    comparisons: Sequence[Comparison], verdicts: dict[str, str], remarks: Sequence[str]
) -> Finding:
    """Returns the verdict: one rejecting comparison rejects, and only all confirm."""
    results = {comparison.result for comparison in comparisons}
    rejecting = [result for result in results if verdicts.get(result) == REJECTED]
    decisive = (rejecting or [UNDECIDED if len(results) > 1 else results.pop()])[0]
    named = [c for c in comparisons if c.result == decisive]
    # The clearest rejection, else the comparison that came closest to one.
    choose: Extreme = max if rejecting else min
    shown = choose(named, key=lambda c: abs((c.difference or 0.0) - c.threshold))
    return Finding(
        verdicts.get(decisive, UNDECIDED),
        "; ".join([shown.detail, *remarks]),
        shown.difference,
        shown.ci95,
        tuple(comparisons),
    )
