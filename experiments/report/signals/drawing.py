"""Draws the panels of signals: signals.png and signals.svg, and the page's plots."""

import math
import pathlib
from collections.abc import Sequence

import matplotlib
import plotly.graph_objects as go
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import MaxNLocator

from experiments.report import curves, figures, interactive
from experiments.report.cells import CellResult
from experiments.report.groups import Group
from experiments.report.interactive import Entry
from experiments.report.signals import panels
from experiments.report.signals.panels import Panel

ROWS, COLUMNS = 2, 4
# From the deepest network to the shallowest.
DASHES = (("solid", "solid", "none"), ("dashed", "dash", "5 3"), ("dotted", "dot", "2 3"),
          ("dashdot", "dashdot", "6 2 2 2"))  # fmt: skip


def write(groups: Sequence[Group], out: pathlib.Path) -> None:
    """Writes signals.png and signals.svg, if any group has signals."""
    drawn = [(group, own) for group in groups if (own := panels.of_group(group))]
    if not drawn:
        return
    width = 3.4 * COLUMNS
    with matplotlib.rc_context(figures.STYLE):
        figure = Figure(figsize=(width, 3.0 * ROWS * len(drawn)), layout="constrained")
        rows = figure.subfigures(len(drawn), 1, squeeze=False)[:, 0]
        for row, (group, own) in zip(rows, drawn, strict=True):
            figures.add_title(row, group, width)
            _draw_row(row, group, own)
        figures.save(figure, "signals", out)


def _draw_row(row: SubFigure, group: Group, own: list[Panel]) -> None:
    axes = list(row.subplots(ROWS, COLUMNS).flat)
    by_name = {}
    for ax, panel in zip(axes, own, strict=False):
        for line in panel.lines:
            colour, dash, _, _ = _style(line.cell, group)
            style = {"color": colour, "ls": dash, "lw": 1.4, "clip_on": False}
            (by_name[line.cell.name],) = ax.plot(line.x, line.y, **style)
        ax.set(title=panel.title, xlabel=panel.x_label, ylabel=panel.y_label)
        low, high = panel.y_range(own)
        if panel.is_log:
            ax.set_yscale("log")
            figures.set_log_ticks(ax.yaxis, low, high)
        ax.set_ylim(low, high)
        ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    for ax in axes[len(own) :]:
        ax.set_axis_off()
    # The last place is free: there are at most seven panels.
    axes[-1].legend(by_name.values(), by_name.keys(), loc="center", handlelength=3)


def interactive_panels(group: Group) -> list[interactive.Panel]:
    """Returns the page's plots of a group's signals; none without signals."""
    own = panels.of_group(group)
    return [_interactive(panel, own, group) for panel in own]


def _interactive(panel: Panel, all_panels: list[Panel], group: Group) -> interactive.Panel:
    low, high = panel.y_range(all_panels)
    figure = go.Figure(layout=interactive.layout(panel.x_label, panel.y_label, high, panel.title))
    if panel.is_log:  # Plotly's range of a logarithmic axis is in powers of ten
        figure.update_yaxes(type="log", range=[math.log10(low), math.log10(high)], dtick=1)
    entries = []
    for line in panel.lines:
        colour, _, plotly_dash, svg_dash = _style(line.cell, group)
        figure.add_trace(
            go.Scatter(
                x=line.x,
                y=[float(f"{y:.4g}") for y in line.y],
                text=line.labels,
                mode="lines",
                line={"color": colour, "dash": plotly_dash, "width": 1.8},
                hovertemplate=f"<b>{line.cell.name}</b><br>%{{text}}<br>%{{y:.3g}}<extra></extra>",
                meta=line.cell.name,
            )
        )
        entries.append(Entry(line.cell.name, "", line.cell.name, "", colour, 1.8, svg_dash))
    return interactive.Panel(panel.title, figure, entries)


def _style(cell: CellResult, group: Group) -> tuple[str, str, str, str]:
    """Returns a line's colour, by kind of net, and its dashes, by depth."""
    rank = [*reversed(group.depths)].index(cell.depth)
    return (curves.LINE_STYLES[cell.shortcut].colour, *DASHES[min(rank, len(DASHES) - 1)])
