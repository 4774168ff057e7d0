"""The paper's figures as PNG and SVG: error against iterations (Fig. 6), and against depth."""

import dataclasses
import math
import pathlib
import textwrap
from collections.abc import Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure, SubFigure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import (
    FixedLocator,
    FuncFormatter,
    LogLocator,
    MaxNLocator,
    NullFormatter,
    NullLocator,
    StrMethodFormatter,
)

from experiments.report import curves, paper
from experiments.report.cells import CellResult, Measure
from experiments.report.curves import LINE_STYLES
from experiments.report.groups import Group, kind_name
from experiments.report.replicates import Replicate

WIDTHS = {"training": 0.9, "validation": 2.2}
MEASURES: dict[str, Measure] = {
    "training": Replicate.train_error,
    "validation": Replicate.validation_error,
    "test": Replicate.test_error,
}
CURVES_WIDTH = 10.5  # inches
FEW_TICKS = 100.0  # a ratio of the ends of a logarithmic axis
LOG_DEPTHS = 12  # a ratio of deepest to shallowest from which the depth axis is logarithmic
LEGEND_ROWS = 18  # entries that fit beside one row of panels
CROSS_STEP = 0.06  # fraction of the axis between the crosses of nets that diverged at one depth
STYLE: dict[Any, Any] = {  # Any: matplotlib's type for the keys is a literal of 300 names
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e6e6",
    "axes.edgecolor": "#808080",
    "axes.titlesize": 11,
    "legend.frameon": False,
    "text.parse_math": False,  # a $ in the name of a folder is no formula
    "svg.fonttype": "none",  # keep text as text: searchable and small
    "svg.hashsalt": "report",  # reproducible files
}


@dataclasses.dataclass(frozen=True)
class DepthLine:
    """Final errors of one kind of net, by depth."""

    shortcut: str
    depths: list[int]
    mean: list[float]
    std: list[float]  # 0 for a single replicate
    n: list[int]
    name: list[str]


def write(groups: Sequence[Group], window: int, out: pathlib.Path) -> None:
    """Writes curves.png, curves.svg, depth.png and depth.svg."""
    with matplotlib.rc_context(STYLE):
        for name, figure in (
            ("curves", _curves_figure(groups, window)),
            ("depth", _depth_figure(compared(groups))),
        ):
            save(figure, name, out)


def save(figure: Figure, name: str, out: pathlib.Path) -> None:
    """Writes a figure as PNG and SVG."""
    figure.savefig(out / f"{name}.png", dpi=150)
    figure.savefig(out / f"{name}.svg", metadata={"Date": None})


def panels(group: Group) -> list[str]:
    """Returns the final errors that the group has: training, and validation or test if measured."""
    return [
        name
        for name, measure in MEASURES.items()
        if name == "training" or any(cell.values(measure) for cell in group.cells)
    ]


def depth_lines(group: Group, measure: Measure) -> list[DepthLine]:
    """Returns one line per kind of net, through its completed cells."""
    lines = []
    completed = [cell for cell in group.cells if cell.status == "completed"]
    for shortcut in LINE_STYLES:
        cells = [c for c in completed if c.shortcut == shortcut and c.values(measure)]
        if cells:
            stats = [cell.stat(measure) for cell in cells]
            lines.append(
                DepthLine(
                    shortcut,
                    [cell.depth for cell in cells],
                    [stat.mean or 0.0 for stat in stats],
                    [stat.std or 0.0 for stat in stats],
                    [stat.n for stat in stats],
                    [cell.name for cell in cells],
                )
            )
    return lines


def published_points(group: Group, split: str) -> list[tuple[CellResult, paper.PublishedError]]:
    """Returns the paper's errors on a split, for the cells of the group."""
    numbers = [(cell, paper.published(cell.config)) for cell in group.cells]
    return [(cell, number) for cell, number in numbers if number and number.split == split]


def diverged_points(group: Group, top: float) -> list[tuple[CellResult, float, str]]:
    """Returns (cell, height of its cross, label) for each cell with diverged seeds.

    The cross is near the top of the axis: at 100 % it would compress everything else.
    """
    cells = [cell for cell in group.cells if cell.diverged]
    points = []
    for i, cell in enumerate(cells):
        rank = sum(other.depth == cell.depth for other in cells[:i])
        label = f"{len(cell.diverged)} of {len(cell.replicates)} seeds diverged"
        points.append((cell, top * (1 - CROSS_STEP * rank), label))
    return points


def depth_tops(groups: Sequence[Group]) -> dict[str, float]:
    """Returns, by data set, the top of the error axis of all groups' panels against depth."""
    tops: dict[str, float] = {}
    for group in groups:
        tops[group.data] = max(tops.get(group.data, 0.0), _depth_top(group))
    return tops


def _depth_top(group: Group) -> float:
    tops = [number.error for split in MEASURES for _, number in published_points(group, split)]
    for measure in MEASURES.values():
        for line in depth_lines(group, measure):
            tops += [mean + std for mean, std in zip(line.mean, line.std, strict=True)]
    return 1.08 * max(tops, default=0) or 1.0


def log_depths(group: Group) -> bool:
    """Whether the depth axis is logarithmic."""
    return max(group.depths) >= LOG_DEPTHS * min(group.depths)


def title(group: Group) -> str:
    """Returns a group's label with its note."""
    return f"{group.label} \N{EM DASH} {group.note}" if group.note else group.label


def _curves_figure(groups: Sequence[Group], window: int) -> Figure:
    figure = Figure(figsize=(CURVES_WIDTH, 4.0 * len(groups)), layout="constrained")
    rows = figure.subfigures(len(groups), 1, squeeze=False)[:, 0]
    tops = curves.tops(groups, window)
    for row, group in zip(rows, groups, strict=True):
        drawn = [curve for cell in group.cells for curve in curves.of_cell(cell, window)]
        palette = curves.colours(group.depths)
        axes = row.subplots(1, 2, sharey=True)
        add_title(row, group, CURVES_WIDTH)
        for ax, side in zip(axes, curves.SIDES, strict=True):
            for curve in drawn:
                if curves.side(curve.cell) == side:
                    _draw(ax, curve, palette[curve.cell.depth])
            ax.set(title=side, xlabel="iterations", xlim=(0, max(c.steps for c in group.cells)))
            ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
            ax.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
            if not any(curves.side(curve.cell) == side for curve in drawn):
                _add_text(ax, curves.emptiness(group, side))
        axes[0].set(ylabel="error (%)", ylim=(0, tops[group.data]))
        axes[1].tick_params(labelleft=True)
        handles = _curve_handles(group, palette, window)
        columns = math.ceil(len(handles) / LEGEND_ROWS)
        row.legend(handles=handles, ncols=columns, loc="outside right center", handlelength=2.2)
    return figure


def _draw(ax: Axes, curve: curves.Curve, colour: str) -> None:
    bold = curve.kind == "validation"
    ax.fill_between(*curve.band(), color=colour, alpha=0.22 if bold else 0.12, lw=0)
    ax.plot(
        curve.steps,
        curve.mean,
        color=colour,
        lw=WIDTHS[curve.kind],
        ls=LINE_STYLES[curve.cell.shortcut].dash,
        alpha=1.0 if bold else 0.85,
        label=f"{curve.cell.name} {curve.kind}",
    )
    if curve.cell.status != "completed":
        ax.plot(curve.steps[-1], curve.mean[-1], "x", color=colour)


def _curve_handles(group: Group, palette: dict[int, str], window: int) -> list[Line2D | Patch]:
    handles: list[Line2D | Patch] = [
        Patch(color=colour, label=f"depth {depth}") for depth, colour in palette.items()
    ]
    smoothed = f", mean over {window} steps" if window else ""
    averages = ", moving averages" if group.has_batch_norm else ""
    for kind, width in WIDTHS.items():
        label = f"{kind} error{smoothed if kind == 'training' else averages}"
        handles.append(Line2D([], [], color="#404040", lw=width, label=label))
    for shortcut in sorted({c.shortcut for c in group.cells} - {"none", "A"}):
        dash, label = LINE_STYLES[shortcut].dash, f"shortcut {shortcut}"
        handles.append(Line2D([], [], color="#404040", ls=dash, label=label))
    if any(len(cell.healthy) > 1 for cell in group.cells):
        handles.append(Patch(color="#c8c8c8", label="±1 std over replicates"))
    open_cells = [cell for cell in group.cells if cell.status != "completed"]
    for cell in open_cells:
        label = f"{cell.name}: {cell.status} at {cell.step:,}"
        handles.append(Line2D([], [], color=palette[cell.depth], lw=0, marker="x", label=label))
    return handles


def compared(groups: Sequence[Group]) -> Sequence[Group]:
    """Returns the groups to draw against depth: those with several networks, or all if none has."""
    return [group for group in groups if len(group.cells) > 1] or groups


def _depth_figure(groups: Sequence[Group]) -> Figure:
    columns = max(len(panels(group)) for group in groups)
    width = 3.4 * columns + 1.8
    figure = Figure(figsize=(width, 3.5 * len(groups)), layout="constrained")
    rows = figure.subfigures(len(groups), 1, squeeze=False)[:, 0]
    tops = depth_tops(groups)
    for row, group in zip(rows, groups, strict=True):
        axes = row.subplots(1, len(panels(group)), sharey=True, squeeze=False)[0]
        add_title(row, group, width)
        for ax, name in zip(axes, panels(group), strict=True):
            _draw_depths(ax, group, name, tops[group.data])
        axes[0].set_ylabel("final error (%)")
        axes[0].set_ylim(0, tops[group.data])
        by_label = {
            label: handle
            for ax in axes
            for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)
        }
        if by_label:
            row.legend(by_label.values(), by_label.keys(), loc="outside right center")
    return figure


def _draw_depths(ax: Axes, group: Group, name: str, top: float) -> None:
    lines = depth_lines(group, MEASURES[name])
    for line in lines:
        style = LINE_STYLES[line.shortcut]
        ax.errorbar(
            line.depths,
            line.mean,
            yerr=line.std,
            color=style.colour,
            marker=style.marker,
            ls=style.dash,
            capsize=3,
            clip_on=False,  # a marker at 0 % is not cut off
            label=f"{kind_name(line.shortcut, group.letters)}, mean ± std",
        )
    points = published_points(group, name)
    for shortcut in LINE_STYLES:
        errors = [(cell.depth, number.error) for cell, number in points
                  if cell.shortcut == shortcut]  # fmt: skip
        if errors:
            ax.plot(
                *zip(*errors, strict=True),
                ls="none",
                marker="D",
                mfc="white",
                mec=LINE_STYLES[shortcut].colour,
                label=f"paper, {kind_name(shortcut, group.letters)}",
            )
    for cell, height, label in diverged_points(group, top):
        ax.plot(
            cell.depth,
            height,
            ls="none",
            marker="x",
            mew=2,
            color=LINE_STYLES[cell.shortcut].colour,
            clip_on=False,
            label=f"{cell.name}: {label}",
        )
    if log_depths(group):
        ax.set_xscale("log")
    ax.xaxis.set_major_locator(FixedLocator(curves.depth_ticks(group.depths, log_depths(group))))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(StrMethodFormatter("{x:.0f}"))
    ax.set(title=f"{name} error", xlabel="depth (layers)")
    if not lines:
        _add_text(ax, "no completed run")


def set_log_ticks(axis: Axis, low: float, high: float) -> None:
    """Labels powers of ten between two ends, and 2 and 5 times them if these are close."""
    subs = (1.0, 2.0, 5.0) if high < FEW_TICKS * low else (1.0,)
    axis.set_major_locator(LogLocator(subs=subs))
    axis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    axis.set_minor_formatter(NullFormatter())


def add_title(row: SubFigure, group: Group, width: float) -> None:
    """Writes a group's title above its panels, wrapped to `width` inches."""
    lines = textwrap.wrap(title(group), int(10 * width))  # ten bold letters per inch
    row.suptitle("\n".join(lines), fontsize=11, fontweight="bold", x=0.01, ha="left")


def _add_text(ax: Axes, text: str) -> None:
    ax.text(0.5, 0.5, text, transform=ax.transAxes, ha="center", color="#808080")
