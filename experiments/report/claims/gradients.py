"""Claim 3, about the gradients inside plain nets."""

from experiments.report.claims.registry import Claim, register
from experiments.report.groups import Group


def _lack(group: Group) -> str:
    return (
        "needs the norms of every layer's gradients, and these runs logged nothing but errors, "
        "losses and rates"
    )


register(
    Claim(
        id="3",
        statement="Vanishing gradients do not explain why deeper plain nets train worse",
        source="He et al. 2015, section 4.1",
        needs=_lack,
    )
)
