"""The curves of a group as numbers, and the names and styles that both kinds of figure share."""

import dataclasses
import math
from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.colors import to_hex

from experiments.report.cells import CellResult
from experiments.report.groups import Group
from experiments.report.replicates import Points, Replicate, window_means

KINDS = {"training": "train/error", "validation": "validation/error"}
SIDES = ("Plain nets", "Residual nets")
# Readable for the colour-blind; darker is deeper. Plasma's last quarter, near yellow, is too faint
# for thin lines on white.
COLOURS = matplotlib.colormaps["plasma"]
LIGHTEST, DARKEST = 0.76, 0.02
# The first fraction of a run, which the range of the y-axis ignores: errors fall from chance there,
# and run off the top as in the paper's Fig. 6.
START = 0.2
LEAST_GAP = 0.07  # fraction of the axis between the labels of two depths


@dataclasses.dataclass(frozen=True)
class LineStyle:
    """The lines of one kind of net, in Matplotlib, Plotly and SVG."""

    colour: str  # against depth; against iterations the colour shows the depth
    dash: str
    plotly_dash: str
    svg_dash: str
    marker: str
    plotly_marker: str


LINE_STYLES = {  # by shortcut
    "none": LineStyle("#b3401f", "solid", "solid", "none", "o", "circle"),
    "A": LineStyle("#1f5fa8", "solid", "solid", "none", "s", "square"),
    "B": LineStyle("#3d87c9", "dashed", "dash", "5 3", "^", "triangle-up"),
    "C": LineStyle("#6fb0e0", "dotted", "dot", "2 3", "D", "diamond"),
}


@dataclasses.dataclass(frozen=True)
class Curve:
    """Error against iterations: mean and standard deviation over replicates."""

    cell: CellResult
    kind: str  # training | validation
    steps: list[int]
    mean: list[float]
    std: list[float | None]  # None for a point of a single replicate
    n: list[int]

    def band(self) -> tuple[list[int], list[float], list[float]]:
        """Returns steps, mean - std and mean + std of the points that have a std."""
        points = zip(self.steps, self.mean, self.std, strict=True)
        shown = [(step, mean - std, mean + std) for step, mean, std in points if std is not None]
        return (
            [s for s, _, _ in shown],
            [low for _, low, _ in shown],
            [high for _, _, high in shown],
        )


def of_cell(cell: CellResult, window: int) -> list[Curve]:
    """Returns a cell's curves, without empty ones.

    Means leave out diverged replicates. If all have diverged, the curves show them up to there.

    Args:
      cell: the cell.
      window: steps of a trailing mean over the training errors; 0 draws them as logged.
    """
    replicates = cell.healthy or cell.diverged
    curves = []
    for kind, key in KINDS.items():
        smooth = window if kind == "training" else 0
        series = [_smoothed(_finite(r, key), smooth) for r in replicates]
        curve = _mean(cell, kind, [points for points in series if points])
        if curve.steps:
            curves.append(curve)
    return curves


def side(cell: CellResult) -> str:
    """Returns the panel that a cell belongs to."""
    return SIDES[0] if cell.plain else SIDES[1]


def emptiness(group: Group, panel: str) -> str:
    """Returns the reason why a panel has no curve."""
    has_cells = any(side(cell) == panel for cell in group.cells)
    return "nothing logged yet" if has_cells else "no such nets in these runs"


def colours(depths: Sequence[int]) -> dict[int, str]:
    """Returns one colour per depth, from light (shallow) to dark (deep)."""
    shades = np.linspace(LIGHTEST, DARKEST, len(depths)) if len(depths) > 1 else [0.35]
    return {depth: to_hex(COLOURS(x)) for depth, x in zip(sorted(depths), shades, strict=True)}


def depth_ticks(depths: Sequence[int], is_log: bool) -> list[int]:
    """Returns the depths to label: all, or as many as do not overlap, with the deepest."""
    places = [math.log(depth) if is_log else depth for depth in depths]
    least = LEAST_GAP * (places[-1] - places[0])
    kept = [-1]
    for i in reversed(range(len(depths) - 1)):
        if places[kept[-1]] - places[i] >= least:
            kept.append(i)
    return [depths[i] for i in reversed(kept)]


def legend_name(cell: CellResult, group: Group) -> str:
    """Returns the name of a cell in its panel's legend."""
    letter = "" if cell.plain or len(group.letters) < 2 else f", shortcut {cell.shortcut}"
    unfinished = "" if cell.status == "completed" else f" ({cell.status})"
    return f"depth {cell.depth}{letter}{unfinished}"


def tops(groups: Sequence[Group], window: int) -> dict[str, float]:
    """Returns, by data set, the top of the y-axis of all groups' panels."""
    drawn: dict[str, list[Curve]] = {}
    for group in groups:
        drawn.setdefault(group.data, []).extend(c for x in group.cells for c in of_cell(x, window))
    return {data: y_top(own) for data, own in drawn.items()}


def y_top(drawn: Sequence[Curve]) -> float:
    """Returns the top of the y-axis shared by panels with these curves, in percent."""
    late = [
        mean
        for curve in drawn
        for step, mean in zip(curve.steps, curve.mean, strict=True)
        if step >= START * curve.cell.steps or curve.steps[-1] < START * curve.cell.steps
    ]
    return min(100.0, max(1.0, 1.05 * max(late))) if late else 100.0


def _finite(replicate: Replicate, key: str) -> list[tuple[int, float]]:
    return [(step, value) for step, value in replicate.series(key) if math.isfinite(value)]


def _smoothed(points: Points, window: int) -> Points:
    if not window or not points:
        return points
    steps = [step for step, _ in points if step > 0]  # step 0 has no mean
    starts = [step - window for step in steps]
    return list(zip(steps, window_means(points, starts, steps).tolist(), strict=True))


def _mean(cell: CellResult, kind: str, series: Sequence[Points]) -> Curve:
    """Averages over replicates, at the steps logged by all that have reached them.

    Otherwise runs that log at different steps would give a zigzag between subsets of replicates.
    """
    by_step: dict[int, list[float]] = {}
    for points in series:
        for step, value in points:
            by_step.setdefault(step, []).append(value)
    ends = [points[-1][0] for points in series]
    kept = [s for s in sorted(by_step) if len(by_step[s]) == sum(end >= s for end in ends)]
    values = [by_step[step] for step in kept]
    return Curve(
        cell,
        kind,
        kept,
        [float(np.mean(v)) for v in values],
        [float(np.std(v, ddof=1)) if len(v) > 1 else None for v in values],
        [len(v) for v in values],
    )
