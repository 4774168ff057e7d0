"""The networks of a group that claims compare, and what a group lacks."""

from collections.abc import Sequence

from experiments.report.cells import CellResult
from experiments.report.groups import Group
from resnet_jax.networks.architectures import SHORTCUTS
from resnet_jax.runs import reader

PLAIN, RESIDUAL = "plain", "residual"


def of_kind(group: Group, kind: str) -> list[CellResult]:
    """Returns a group's plain or residual nets."""
    return [cell for cell in group.cells if cell.plain == (kind == PLAIN)]


def ended(cells: Sequence[CellResult]) -> list[CellResult]:
    """Returns the networks of which all runs have ended."""
    return [cell for cell in cells if cell.status in reader.ENDED]


def of_one_shortcut(nets: Sequence[CellResult]) -> list[CellResult]:
    """Returns the nets of the first shortcut (A, B, C) of which two depths have ended."""
    by_shortcut = [[c for c in nets if c.shortcut == shortcut] for shortcut in SHORTCUTS]
    most = max(by_shortcut, key=lambda own: len(ended(own)))
    return next((own for own in by_shortcut if len(ended(own)) > 1), most)


def pairs(group: Group) -> list[tuple[CellResult, CellResult]]:
    """Returns the plain and the residual net of every depth that has both, by depth.

    Only nets that have ended count; of several residual ones, the first shortcut.
    """
    plain, residual = (
        {c.depth: c for c in reversed(ended(of_kind(group, kind)))} for kind in (PLAIN, RESIDUAL)
    )
    return [(plain[depth], residual[depth]) for depth in sorted(plain.keys() & residual.keys())]


def lacks_depths(group: Group, kind: str) -> str:
    """Returns why a group has no two depths of a kind of net, or ""."""
    nets = of_kind(group, kind)
    by_shortcut = {cell.shortcut: {c.depth for c in nets if c.shortcut == cell.shortcut}
                   for cell in nets}  # fmt: skip
    if any(len(depths) > 1 for depths in by_shortcut.values()):
        return ""
    names = ", ".join(cell.name for cell in nets)
    have = f"there is only {names}" if nets else "there is none"
    of_one = " of one shortcut" if kind == RESIDUAL else ""
    return f"needs two depths of {kind} nets{of_one}, but {have}"


def lacks_pair(group: Group) -> str:
    """Returns why a group has no plain and residual net of one depth, or ""."""
    depths = [{cell.depth for cell in of_kind(group, kind)} for kind in (PLAIN, RESIDUAL)]
    return "" if depths[0] & depths[1] else "needs a plain and a residual net of one depth"
