"""Error and loss along every axis, as PNG and SVG."""

import math
import pathlib
import textwrap
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import (
    FixedFormatter,
    FixedLocator,
    FuncFormatter,
    NullFormatter,
    NullLocator,
)

from experiments.report import curves
from experiments.report.axes import series
from experiments.report.axes.answers import BestByDepth
from experiments.report.axes.model import LOG, NAMES, Across, Axis, Line
from experiments.report.axes.rows import Section
from experiments.report.axes.series import LOSS, Point, Quantity, Range
from experiments.report.curves import LINE_STYLES
from experiments.report.figures import LEGEND_ROWS, STYLE, save, set_log_ticks

RING = 11  # points: the ring around a network's best value
MOST_LAWS = 3  # in the legend of the best values
_QUANTITIES = 2  # an error and the loss
MOST_COLUMNS = 5  # kinds of nets side by side


def write(sections: Sequence[Section], out: pathlib.Path) -> None:
    """Writes axes.png and axes.svg for the first section, axes-2.png and so on for the others."""
    for stale in (*out.glob("axes.*"), *out.glob("axes-*.*")):
        stale.unlink()
    ranges = series.y_ranges([section.across for section in sections])
    for number, section in enumerate(sections, start=1):
        with matplotlib.rc_context(STYLE):
            size = 3.5 * _columns(section) + 1.6, _height(section)
            figure = Figure(figsize=size, layout="constrained")
            is_names = section.across.axis.scale == NAMES
            draw = _draw_names if is_names else _draw_numbers
            draw(figure, section, ranges)
            save(figure, "axes" if number == 1 else f"axes-{number}", out)


def _panels(section: Section) -> int:
    """Returns the number of panels per quantity."""
    return len(section.across.kinds) + bool(section.fits)


def _is_side_by_side(section: Section) -> bool:
    """Whether error and loss stand in one figure, with a panel each."""
    return section.across.axis.scale == NAMES or _panels(section) == 1


def _columns(section: Section) -> int:
    return _QUANTITIES if _is_side_by_side(section) else min(_panels(section), MOST_COLUMNS)


def _rows(section: Section) -> int:
    if _is_side_by_side(section):
        return 1
    return _QUANTITIES * math.ceil(_panels(section) / MOST_COLUMNS)


def _height(section: Section) -> float:
    """Returns the height in inches."""
    if section.across.axis.scale == NAMES:
        return 1.8 + 0.27 * len(section.across.axis.values)
    return 3.2 * _rows(section)


def _title(figure: Figure, section: Section) -> None:
    title = textwrap.wrap(f"{section.title} ({section.across.study})", 36 * _columns(section))
    figure.suptitle("\n".join(title), fontsize=11, fontweight="bold", x=0.01, ha="left")


def _draw_numbers(figure: Figure, section: Section, ranges: dict[str, Range]) -> None:
    """Draws a panel per kind of net and quantity, and the best values."""
    across = section.across
    palette = series.palette(across)
    grid = figure.subplots(_rows(section), _columns(section), squeeze=False)
    _title(figure, section)
    quantities = series.quantities(across)
    for i, (quantity, axes) in enumerate(zip(quantities, np.split(grid.ravel(), 2), strict=True)):
        for ax, kind in zip(axes, across.kinds, strict=False):
            own = [line for line in across.lines if line.kind == kind]
            for line in own:
                _draw_line(ax, across, line, quantity, palette[line.depth])
            _set_axes(ax, across.axis, quantity, ranges[quantity.name])
            ax.set_title(textwrap.fill(f"{kind} nets" if across.others == [""] else kind, 36))
        for ax in axes[len(across.kinds) :]:
            ax.set_visible(False)
        if section.fits and i == 0:
            ax, *spare = axes[len(across.kinds) :]
            ax.set_visible(True)
            _draw_best(ax, across.axis, section.fits, beside=bool(spare))
    _legend(figure, across, palette, _rows(section))


def _draw_names(figure: Figure, section: Section, ranges: dict[str, Range]) -> None:
    """Draws a panel per quantity, with the names from top to bottom by their error."""
    across = section.across
    palette = series.palette(across)
    grid = figure.subplots(1, _QUANTITIES, sharey=True)
    _title(figure, section)
    places = series.places(across.axis)
    for ax, quantity in zip(grid, series.quantities(across), strict=True):
        for line in across.lines:
            colour = palette[line.depth]
            for p in series.points(across, line, quantity):
                look: dict[str, Any] = {"marker": LINE_STYLES[line.shortcut].marker, "ms": 5}
                look |= {"capsize": 2.5, "elinewidth": 1, "color": colour}
                ax.errorbar(p.mean, p.x, xerr=p.bar, ls="", **look)
            edge = {"ls": "", "color": colour, "transform": ax.get_yaxis_transform()}
            for y, _ in series.exploded(across, line, quantity):
                ax.plot(series.ARROW, y, marker=">", **edge)
            for y, _ in series.diverged(across, line):
                ax.plot(series.CROSS, y, marker="x", mew=2, **edge)
        own_range = ranges[quantity.name]
        if own_range.is_log:
            ax.set_xscale("log")
            set_log_ticks(ax.xaxis, own_range.low, own_range.high)
        ax.set_xlim(own_range.low, own_range.high)
        ax.set_xlabel(quantity.label)
        ax.yaxis.set_major_locator(FixedLocator([*places.values()]))
        ax.yaxis.set_major_formatter(FixedFormatter([value.label for value in places]))
    low, high = series.limits(across.axis)
    grid[0].set_ylim(high, low)
    _legend(figure, across, palette, 1)


def _legend(figure: Figure, across: Across, palette: dict[int, str], rows: int) -> None:
    handles = _handles(across, palette)
    columns = math.ceil(len(handles) / (LEGEND_ROWS * rows))
    figure.legend(handles=handles, ncols=columns, loc="outside right center", handlelength=2.0)


def _draw_line(ax: Axes, across: Across, line: Line, quantity: Quantity, colour: str) -> None:
    style = LINE_STYLES[line.shortcut]
    points = series.points(across, line, quantity)
    if points:
        _draw_points(ax, points, colour, style.marker, "-")
    for point in points:
        if point.is_best:
            ring: dict[str, Any] = {
                "marker": "o",
                "ms": RING,
                "mfc": "none",
                "mec": colour,
                "clip_on": point.is_exploded,
            }
            ax.plot(point.x, point.mean, **ring)
    if fresh := series.fresh_point(across, line, quantity):
        _draw_points(ax, [fresh], colour, "D", "", mfc="white")
    edge: dict[str, Any] = {"ls": "", "color": colour, "transform": ax.get_xaxis_transform()}
    for x, _ in series.exploded(across, line, quantity):
        ax.plot(x, series.ARROW, marker="^", **edge)
    for x, _ in series.diverged(across, line):
        ax.plot(x, series.CROSS, marker="x", mew=2, clip_on=False, **edge)


def _draw_points(
    ax: Axes, points: Sequence[Point], colour: str, marker: str, dash: str, **more: Any
) -> None:
    ax.errorbar(
        [p.x for p in points],
        [p.mean for p in points],
        yerr=[p.bar for p in points],
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
        set_log_ticks(ax.yaxis, y.low, y.high)
    ax.set_ylim(y.low, y.high)
    places = series.places(axis)
    if axis.scale == LOG:
        ax.set_xscale("log")
    ax.set_xlim(series.limits(axis))
    ax.xaxis.set_major_locator(FixedLocator(list(places.values())))
    ax.xaxis.set_minor_locator(NullLocator())
    labels = series.labels(axis)
    ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: labels.get(x, "")))
    is_wide = sum(map(len, labels.values())) > 26
    ax.tick_params(axis="x", labelrotation=40 if is_wide else 0)
    ax.set(xlabel=axis.name, ylabel=quantity.label)


def _draw_best(ax: Axes, axis: Axis, fits: Sequence[BestByDepth], beside: bool) -> None:
    """Draws the best values against depth, with the fitted power laws.

    The legend lies beside the panel if there is room.
    """
    depths = sorted({line.depth for fit in fits for line in fit.lines})
    for fit, shown in zip(fits, series.best_looks(fits), strict=True):
        style = LINE_STYLES[fit.lines[0].shortcut]
        best = [line.best.number or 0.0 for line in fit.lines if line.best]
        own = [line.depth for line in fit.lines]
        look: dict[str, Any] = {"marker": style.marker, "ms": shown.size, "mfc": "none"}
        ax.plot(own, best, ls="", mew=1.8, color=shown.colour, label=fit.kind, **look)
        if fit.law:
            law = fit.law
            fitted = [law.factor * depth**law.exponent for depth in own]
            low, high = law.interval
            label = f"depth^{law.exponent:+.2f} [{low:+.2f}, {high:+.2f}]"
            if len(fits) > MOST_LAWS:  # the table has them
                label = "_nolegend_"
            ax.plot(own, fitted, ls="--", lw=1.2, color=shown.colour, label=label)
    ax.set(xscale="log", yscale="log", ylim=series.limits(axis), xlabel="depth (layers)")
    ax.set(ylabel=f"best {axis.name}")
    ax.set_title(f"best {axis.name} against depth")
    ax.xaxis.set_major_locator(FixedLocator(curves.depth_ticks(depths, is_log=True)))
    ax.yaxis.set_major_locator(FixedLocator([value.number or 0.0 for value in axis.values]))
    for one, names in ((ax.xaxis, None), (ax.yaxis, {v.number: v.label for v in axis.values})):
        one.set_minor_locator(NullLocator())
        one.set_minor_formatter(NullFormatter())
        one.set_major_formatter(FuncFormatter(lambda x, _, n=names: n[x] if n else f"{x:.0f}"))
    place: dict[str, Any] = {"loc": "best", "fontsize": 8 if len(fits) <= MOST_LAWS else 6}
    if beside:
        place = {"loc": "upper left", "fontsize": 8, "bbox_to_anchor": (1.02, 1)}
    ax.legend(**place).set_in_layout(not beside)


def _handles(across: Across, palette: dict[int, str]) -> list[Line2D]:
    handles = [Line2D([], [], color=c, marker="o", ms=5, label=f"depth {d}")
               for d, c in palette.items()]  # fmt: skip
    grey: dict[str, Any] = {"ls": "", "color": "#404040"}
    if across.axis.scale == NAMES:
        kinds = {line.kind: LINE_STYLES[line.shortcut].marker for line in across.lines}
        handles += [Line2D([], [], **grey, marker=m, ms=5, label=k) for k, m in kinds.items()]
    else:
        handles.append(Line2D([], [], **grey, marker="o", ms=RING, mfc="none", label="best value"))
    if across.is_tuned:
        handles.append(
            Line2D([], [], **grey, marker="D", mfc="white", label="fresh seeds\nat the best value")
        )
    if any(series.diverged(across, line) for line in across.lines):
        handles.append(Line2D([], [], **grey, marker="x", mew=2, label="seeds diverged"))
    if any(series.exploded(across, line, LOSS) for line in across.lines):
        marker = ">" if across.axis.scale == NAMES else "^"
        handles.append(
            Line2D([], [], **grey, marker=marker, label=f"loss above {series.EXPLODED:g}")
        )
    return handles
