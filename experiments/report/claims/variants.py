"""Claim 3d, which compares nets of different recipes: the variants of a study."""

from experiments.report.claims.comparisons import UNDECIDED
from experiments.report.claims.nets import PLAIN, ended, of_kind
from experiments.report.claims.registry import (
    CONFIRMED,
    REJECTED,
    VARIANTS,
    Claim,
    Finding,
    judges,
)
from experiments.report.claims.signals import ORDERS, Ends
from experiments.report.groups import Group
from experiments.report.replicates import Replicate
from experiments.report.signals.profiles import GRADIENTS, first_and_last, profiles
from experiments.report.statistics import rank_correlation

LEAST_NETS = 8  # with fewer, only an almost perfect order would be certain


def _lacks_nets(group: Group) -> str:
    plain = of_kind(group, PLAIN)
    if len(plain) < LEAST_NETS:
        return f"needs {LEAST_NETS} variants of plain nets, and there are {len(plain)}"
    logged = [c for c in plain if any(0 in profiles(r, GRADIENTS) for r in c.replicates)]
    if len(logged) < LEAST_NETS:
        return (
            f"needs the norms of every layer's gradients at step 0 (log.signals.every) of "
            f"{LEAST_NETS} plain nets, and {len(logged)} have them"
        )
    return ""


@judges(
    Claim(
        id="3d",
        over=VARIANTS,
        statement="Plain nets whose gradients are healthy before training train better",
        source="the explanation of degradation that He et al. 2015, section 4.1, argue against",
        needs=_lacks_nets,
        rule="compares the plain nets of a study's variants, each at its best rate if that was "
        "tuned: how much the gradient norms of first and last convolution differ before training, "
        "in powers of ten, larger over smaller, with the final training error. The rank "
        "correlation is Kendall's tau over nets. It is confirmed if the interval lies above 0 and "
        "rejected if it lies below.",
        words={
            CONFIRMED: "Plain nets whose gradients are healthy before training train better.",
            REJECTED: "Plain nets whose gradients are healthy before training train worse.",
            UNDECIDED: "Whether plain nets with healthy gradients before training train better is "
            "undecided.",
        },
        unit="in Kendall's tau",
    )
)
def healthy_gradients_train_better(group: Group, margin: float) -> Finding:
    """Judges the rank correlation of unhealthy gradients with errors; means over seeds."""
    found = []  # pairs of powers of ten and error, by net
    for cell in ended(of_kind(group, PLAIN)):
        apart = [
            abs(Ends(*ends, step=0).orders)
            for replicate in cell.replicates
            if (ends := first_and_last(profiles(replicate, GRADIENTS).get(0, {})))
        ]
        sample = cell.sample(Replicate.final)
        if apart and sample.errors:
            found.append((sum(apart) / len(apart), sample.mean))
    if len(found) < LEAST_NETS:
        return Finding(UNDECIDED, f"only {len(found)} plain nets have ended")
    tau, interval = rank_correlation(*zip(*found, strict=True))
    verdict = CONFIRMED if interval[0] > 0 else REJECTED if interval[1] < 0 else UNDECIDED
    healthy = [error for powers, error in found if powers < ORDERS]
    others = [error for powers, error in found if powers >= ORDERS]
    detail = f"{_errors(healthy)} differ by less than a factor of 100; {_errors(others)} by more"
    return Finding(verdict, f"gradient norms of {detail}", tau, interval)


def _errors(errors: list[float]) -> str:
    """Returns ``3 plain nets (errors of 0.21 to 7.66 %)``."""
    if not errors:
        return "no plain net"
    ends = [f"{error:.2f}" for error in dict.fromkeys((min(errors), max(errors)))]
    nets = "plain net" if len(errors) == 1 else "plain nets"
    return f"{len(errors)} {nets} (errors of {' to '.join(ends)} %)"
