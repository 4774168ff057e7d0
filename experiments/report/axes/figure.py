"""Training error and loss along every axis, as PNG and SVG."""

import math
import pathlib
import textwrap
from collections.abc import Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter, NullLocator

from experiments.report import curves
from experiments.report.axes import series
from experiments.report.axes.answers import BestByDepth
from experiments.report.axes.model import LOG, NAMES, Across, Axis, Line
from experiments.report.axes.rows import Section
from experiments.report.axes.series import QUANTITIES, Point, Quantity, Range
from experiments.report.curves import LINE_STYLES
from experiments.report.figures import LEGEND_ROWS, STYLE

RING = 11  # points: the ring around a network's best value


def write(sections: Sequence[Section], out: pathlib.Path) -> None:
    """Writes axes.png and axes.svg, with one row of panels per quantity and section."""
    if not sections:
        return
    ranges = {q.name: series.y_range([s.across for s in sections], q) for q in QUANTITIES}
    columns = max(_columns(section) for section in sections)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(3.5 * columns + 1.6, 6.4 * len(sections)), layout="constrained")
        rows = figure.subfigures(len(sections), 1, squeeze=False)[:, 0]
        for row, section in zip(rows, sections, strict=True):
            _draw_section(row, section, ranges, columns)
        figure.savefig(out / "axes.png", dpi=150)
        figure.savefig(out / "axes.svg", metadata={"Date": None})


def _columns(section: Section) -> int:
    return len(section.across.kinds) + bool(section.fits)


def _draw_section(row: SubFigure, section: Section, ranges: dict[str, Range], columns: int) -> None:
    across = section.across
    palette = series.palette(across)
    grid = row.subplots(len(QUANTITIES), columns, squeeze=False)
    title = textwrap.wrap(f"{section.title} ({across.study})", 36 * columns)
    row.suptitle("\n".join(title), fontsize=11, fontweight="bold", x=0.01, ha="left")
    for axes, quantity in zip(grid, QUANTITIES, strict=True):
        for ax, kind in zip(axes, across.kinds, strict=False):
            own = [line for line in across.lines if line.kind == kind]
            for line in own:
                _draw_line(ax, across, line, quantity, palette[line.depth])
            _set_axes(ax, across.axis, quantity, ranges[quantity.name])
            ax.set_title(f"{kind} nets")
    for ax in grid[:, len(across.kinds) :].flat:
        ax.set_visible(False)
    if section.fits:
        ax = grid[0, len(across.kinds)]
        ax.set_visible(True)
        _draw_best(ax, across.axis, section.fits)
    handles = _handles(across, palette)
    columns = math.ceil(len(handles) / (LEGEND_ROWS * len(QUANTITIES)))
    row.legend(handles=handles, ncols=columns, loc="outside right center", handlelength=2.0)


def _draw_line(ax: Axes, across: Across, line: Line, quantity: Quantity, colour: str) -> None:
    style = LINE_STYLES[line.shortcut]
    points = series.points(across, line, quantity)
    if points:
        _draw_points(ax, points, colour, style.marker, "" if across.axis.scale == NAMES else "-")
    for point in points:
        if point.is_best:
            ring: dict[str, Any] = {
                "marker": "o",
                "ms": RING,
                "mfc": "none",
                "mec": colour,
                "clip_on": False,
            }
            ax.plot(point.x, point.mean, **ring)
    if fresh := series.fresh_point(across, line, quantity):
        _draw_points(ax, [fresh], colour, "D", "", mfc="white")
    for x, _ in series.diverged(across, line):
        transform = ax.get_xaxis_transform()
        ax.plot(x, series.CROSS, "x", mew=2, color=colour, transform=transform, clip_on=False)


def _draw_points(
    ax: Axes, points: Sequence[Point], colour: str, marker: str, dash: str, **more: Any
) -> None:
    ax.errorbar(
        [p.x for p in points],
        [p.mean for p in points],
        yerr=[p.std for p in points],
        color=colour,
        marker=marker,
        ms=5,
        ls=dash,
        lw=1.6,
        capsize=2.5,
        elinewidth=1,
        **more,
    )


def _set_axes(ax: Axes, axis: Axis, quantity: Quantity, y: Range) -> None:
    if y.is_log:
        ax.set_yscale("log")
    ax.set_ylim(y.low, y.high)
    places = series.places(axis)
    if axis.scale == LOG:
        ax.set_xscale("log")
    ax.set_xlim(series.limits(axis))
    ax.xaxis.set_major_locator(FixedLocator(list(places.values())))
    ax.xaxis.set_minor_locator(NullLocator())
    labels = {x: value.label for value, x in places.items()}
    ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: labels.get(x, "")))
    is_wide = sum(map(len, labels.values())) > 26
    ax.tick_params(axis="x", labelrotation=40 if is_wide else 0)
    ax.set(xlabel=axis.name, ylabel=quantity.label)


def _draw_best(ax: Axes, axis: Axis, fits: Sequence[BestByDepth]) -> None:
    """Draws the best values against depth, with the fitted power laws."""
    depths = sorted({line.depth for fit in fits for line in fit.lines})
    for fit, size in zip(fits, series.BEST_SIZES, strict=False):
        style = LINE_STYLES[fit.lines[0].shortcut]
        best = [line.best.number or 0.0 for line in fit.lines if line.best]
        own = [line.depth for line in fit.lines]
        look: dict[str, Any] = {"marker": style.marker, "ms": size, "mfc": "none", "mew": 1.8}
        ax.plot(own, best, ls="", color=style.colour, label=fit.kind, **look)
        if fit.law:
            law = fit.law
            fitted = [law.factor * depth**law.exponent for depth in own]
            low, high = law.interval
            label = f"depth^{law.exponent:+.2f} [{low:+.2f}, {high:+.2f}]"
            ax.plot(own, fitted, ls="--", lw=1.2, color=style.colour, label=label)
    ax.set(xscale="log", yscale="log", ylim=series.limits(axis), xlabel="depth (layers)")
    ax.set(ylabel=f"best {axis.name}")
    ax.set_title(f"best {axis.name} against depth")
    ax.xaxis.set_major_locator(FixedLocator(curves.depth_ticks(depths, is_log=True)))
    ax.yaxis.set_major_locator(FixedLocator([value.number or 0.0 for value in axis.values]))
    for one, names in ((ax.xaxis, None), (ax.yaxis, {v.number: v.label for v in axis.values})):
        one.set_minor_locator(NullLocator())
        one.set_minor_formatter(NullFormatter())
        one.set_major_formatter(FuncFormatter(lambda x, _, n=names: n[x] if n else f"{x:.0f}"))
    ax.legend(fontsize=8, loc="best")


def _handles(across: Across, palette: dict[int, str]) -> list[Line2D]:
    handles = [Line2D([], [], color=c, marker="o", ms=5, label=f"depth {d}")
               for d, c in palette.items()]  # fmt: skip
    grey: dict[str, Any] = {"ls": "", "color": "#404040"}
    handles.append(Line2D([], [], **grey, marker="o", ms=RING, mfc="none", label="best value"))
    if across.is_tuned:
        handles.append(
            Line2D([], [], **grey, marker="D", mfc="white", label="fresh seeds\nat the best value")
        )
    if any(series.diverged(across, line) for line in across.lines):
        handles.append(Line2D([], [], **grey, marker="x", mew=2, label="seeds diverged"))
    return handles
