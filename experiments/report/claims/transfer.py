"""Claims 8 and 8b, which compare test errors of networks that started from trained weights.

docs/finetuning.md has the study.
"""

from collections.abc import Sequence

from experiments.report.cells import CellResult
from experiments.report.claims.comparisons import (
    ABOVE,
    BELOW,
    SATURATED,
    UNDECIDED,
    Comparison,
    Side,
    compare,
    show_error,
)
from experiments.report.claims.nets import ended, lacks_pair, pairs
from experiments.report.claims.registry import (
    CONFIRMED,
    REJECTED,
    VARIANTS,
    Claim,
    Finding,
    judges,
)
from experiments.report.groups import Group
from experiments.report.replicates import Replicate

_UNIT = "points of test error"


def _starts_trained(cell: CellResult) -> bool:
    return bool(cell.config["init"]["from"])


def _factors(cell: CellResult) -> Sequence[float]:
    return cell.config["optimizer"]["rate_factors"]


def _is_probe(cell: CellResult) -> bool:
    """Whether a network's classifier alone was trained, on the features of trained weights."""
    *body, _ = _factors(cell) or (1, 1)
    return _starts_trained(cell) and not any(body)


def _tuned_pairs(group: Group) -> list[tuple[CellResult, CellResult]]:
    """Returns each network trained from scratch and the same one fine-tuned as a whole."""
    whole = [cell for cell in ended(group.cells) if not _factors(cell)]
    tuned = {cell.name: cell for cell in whole if _starts_trained(cell)}
    return [(cell, tuned[cell.name]) for cell in whole
            if not _starts_trained(cell) and cell.name in tuned]  # fmt: skip


def _lacks_tuned(group: Group) -> str:
    kinds = {_starts_trained(cell) for cell in group.cells if not _factors(cell)}
    if kinds == {False, True}:
        return ""
    return "needs networks trained from scratch and from trained weights (init.from)"


@judges(
    Claim(
        id="8",
        over=VARIANTS,
        statement="Networks that start from trained weights have lower test error than those "
        "trained from scratch",
        source="Yosinski et al. 2014, arXiv 1411.1792, section 4",
        needs=_lacks_tuned,
        rule="compares the test error of each network trained from scratch with that of the same "
        "network fine-tuned as a whole. It is confirmed if all intervals lie above 0 and rejected "
        "if one lies below.",
        words={
            CONFIRMED: "Trained weights lower the test error of every network.",
            REJECTED: "Trained weights raise the test error of some network.",
            SATURATED: "With and without trained weights there are no errors: this task cannot "
            "tell them apart.",
            UNDECIDED: "Whether trained weights lower the test error is undecided.",
        },
        unit=_UNIT,
    )
)
def trained_weights_help(group: Group, margin: float) -> Finding:
    """Judges test errors, from scratch minus fine-tuned, for each network."""
    return _all_above(_tuned_pairs(group), "a network and its fine-tuned twin")


@judges(
    Claim(
        id="8b",
        statement="Frozen features of residual nets transfer better than those of plain nets",
        source="a question of this project: what degradation does to features",
        needs=lambda group: (
            lacks_pair(group)
            or ("" if all(map(_is_probe, group.cells)) else "is about frozen features (init.from)")
        ),
        rule="compares the test errors of classifiers on frozen features of plain and residual "
        "nets at each depth that has both. It is confirmed if all intervals lie above 0 and "
        "rejected if one lies below.",
        words={
            CONFIRMED: "Frozen features of residual nets transfer better.",
            REJECTED: "Frozen features of plain nets transfer better at some depth.",
            SATURATED: "There are no errors with either features: this task cannot tell them "
            "apart.",
            UNDECIDED: "Whether frozen features of residual nets transfer better is undecided.",
        },
        unit=_UNIT,
    )
)
def residual_features_transfer_better(group: Group, margin: float) -> Finding:
    """Judges test errors, plain minus residual net, at each depth."""
    return _all_above(pairs(group), "a plain and a residual net of one depth")


def _all_above(pairs: Sequence[tuple[CellResult, CellResult]], needed: str) -> Finding:
    sides = [(_side(one), _side(other)) for one, other in pairs]
    if not sides:
        return Finding(UNDECIDED, f"needs {needed}, both ended")
    comparisons = compare(sides, 0.0)
    results = {comparison.result for comparison in comparisons}
    verdict = UNDECIDED
    if BELOW in results:
        verdict = REJECTED
    elif results == {ABOVE}:
        verdict = CONFIRMED
    elif UNDECIDED not in results:
        verdict = SATURATED
    shown = _shown(comparisons, {CONFIRMED: ABOVE, REJECTED: BELOW}.get(verdict, verdict))
    detail = "; ".join(comparison.detail for comparison in comparisons)
    return Finding(verdict, detail, shown.difference, shown.ci95, tuple(comparisons))


def _shown(comparisons: Sequence[Comparison], decisive: str) -> Comparison:
    """Returns the comparison of a result with the smallest difference."""
    named = [one for one in comparisons if one.result == decisive] or list(comparisons)
    return min(named, key=lambda one: 101.0 if one.difference is None else one.difference)


def _side(cell: CellResult) -> Side:
    sample = cell.sample(Replicate.tested)
    name = ", ".join(filter(None, [cell.name, cell.config["variant"]]))
    return Side(name, sample, show_error(name, sample))
