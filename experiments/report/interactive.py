"""The page's plots: the curves of the figures as Plotly specifications, with their legends."""

import dataclasses
import html
from collections.abc import Sequence

import plotly.graph_objects as go

from experiments.report import curves, figures
from experiments.report.cells import CellResult
from experiments.report.curves import LINE_STYLES
from experiments.report.groups import Group, kind_name

HEIGHT = 360  # pixels; page.css keeps as much free
DECIMALS = 3  # of percentages in the plots; a pixel is far coarser
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"


@dataclasses.dataclass(frozen=True)
class Entry:
    """A legend entry, which switches one curve on and off."""

    curve: str  # the `meta` of the curve's traces
    row: str  # entries with the same row stand side by side
    name: str
    kind: str
    colour: str
    width: float  # 0 for points without a line
    dash: str  # SVG's


@dataclasses.dataclass(frozen=True)
class Panel:
    """One plot with its legend entries."""

    title: str
    figure: go.Figure
    entries: list[Entry]
    empty: str = ""  # the reason, if there is no curve

    @property
    def json(self) -> str:
        """The figure for a script element; a "<" in it could end the element."""
        return self.figure.to_json().replace("<", "\\u003c")


def curve_panels(group: Group, window: int, top: float) -> list[Panel]:
    """Returns the plain and the residual panel, with the same axes; errors go up to `top`."""
    palette = curves.colours(group.depths)
    drawn = [curve for cell in group.cells for curve in curves.of_cell(cell, window)]
    end = max(cell.steps for cell in group.cells)
    panels = []
    for side in curves.SIDES:
        own = [curve for curve in drawn if curves.side(curve.cell) == side]
        colours = [palette[curve.cell.depth] for curve in own]
        figure = go.Figure(layout=layout("iterations", "error (%)", top, side))
        figure.update_xaxes(range=[0, 1.01 * end], tickformat=",")
        # Bands come first, so that none covers a line.
        figure.add_traces([_band(c, k) for c, k in zip(own, colours, strict=True)])
        figure.add_traces([_line(c, k) for c, k in zip(own, colours, strict=True)])
        entries = [
            Entry(
                curve=_id(curve),
                row=curves.legend_name(curve.cell, group),
                name=curve.kind,
                kind=curve.kind,
                colour=colour,
                width=figures.WIDTHS[curve.kind] * 1.3,
                dash=LINE_STYLES[curve.cell.shortcut].svg_dash,
            )
            for curve, colour in zip(own, colours, strict=True)
        ]
        empty = "" if own else curves.emptiness(group, side)
        panels.append(Panel(side, figure, entries, empty))
    return panels


def depth_panels(group: Group, top: float) -> list[Panel]:
    """Returns one panel per final error (training, validation, test), which go up to `top`."""
    panels = []
    for name in figures.panels(group):
        figure = go.Figure(layout=layout("depth (layers)", "final error (%)", top, name))
        is_log = figures.log_depths(group)
        ticks = curves.depth_ticks(group.depths, is_log)
        figure.update_xaxes(tickvals=ticks, type="log" if is_log else "linear")
        entries = []
        for line in figures.depth_lines(group, figures.MEASURES[name]):
            label = kind_name(line.shortcut, group.letters)
            figure.add_trace(_depth_trace(line, name))
            style = LINE_STYLES[line.shortcut]
            entries.append(Entry(line.shortcut, "", label, "", style.colour, 2.2, style.svg_dash))
        published = figures.published_points(group, name)
        if published:
            figure.add_trace(
                go.Scatter(
                    x=[cell.depth for cell, _ in published],
                    y=[number.error for _, number in published],
                    text=[f"{cell.name}, paper ({p.source})" for cell, p in published],
                    mode="markers",
                    marker={
                        "symbol": "diamond-open",
                        "size": 10,
                        "color": [LINE_STYLES[c.shortcut].colour for c, _ in published],
                    },
                    hovertemplate="%{text}<br>%{y:.2f} %<extra></extra>",
                    meta="paper",
                )
            )
            entries.append(Entry("paper", "", "paper (hollow diamonds)", "", "#606060", 0.0, ""))
        if diverged := figures.diverged_points(group, top):
            figure.add_trace(_diverged_trace(diverged))
        empty = "" if entries else "no completed run"
        panels.append(Panel(f"{name.capitalize()} error", figure, entries, empty))
    return panels


def _id(curve: curves.Curve) -> str:
    return f"{curve.cell.name}/{curve.kind}"


def _line(curve: curves.Curve, colour: str) -> go.Scatter:
    spread = ["" if std is None else f" ± {std:.2f}" for std in curve.std]
    name = html.escape(f"{curve.cell.name}, {curve.kind} error")
    return go.Scatter(
        x=curve.steps,
        y=rounded(curve.mean),
        customdata=list(zip(spread, curve.n, strict=True)),
        mode="lines",
        line={
            "color": colour,
            "width": figures.WIDTHS[curve.kind] * 1.3,
            "dash": LINE_STYLES[curve.cell.shortcut].plotly_dash,
        },
        hovertemplate=(
            f"<b>{name}</b><br>iteration %{{x:,}}<br>"
            "%{y:.2f}%{customdata[0]} % (n = %{customdata[1]})<extra></extra>"
        ),
        meta=_id(curve),
    )


def _band(curve: curves.Curve, colour: str) -> go.Scatter:
    steps, low, high = curve.band()
    return go.Scatter(
        x=steps + steps[::-1],
        y=rounded(high + low[::-1]),
        mode="lines",
        line={"width": 0},
        fill="toself",
        fillcolor=_faint(colour, 0.2 if curve.kind == "validation" else 0.12),
        hoverinfo="skip",
        meta=_id(curve),
    )


def _depth_trace(line: figures.DepthLine, name: str) -> go.Scatter:
    style = LINE_STYLES[line.shortcut]
    spread = [f" ± {s:.2f}" if n > 1 else "" for s, n in zip(line.std, line.n, strict=True)]
    return go.Scatter(
        x=line.depths,
        y=rounded(line.mean),
        error_y={"type": "data", "array": rounded(line.std), "thickness": 1.4, "width": 4},
        customdata=list(zip(line.name, spread, line.n, strict=True)),
        mode="lines+markers",
        line={"color": style.colour, "width": 2.2, "dash": style.plotly_dash},
        marker={"symbol": style.plotly_marker, "size": 8},
        hovertemplate=(
            f"<b>%{{customdata[0]}}, {name} error</b><br>"
            "%{y:.2f}%{customdata[1]} % (n = %{customdata[2]})<extra></extra>"
        ),
        cliponaxis=False,  # a marker at 0 % is not cut off
        meta=line.shortcut,
    )


def _diverged_trace(points: Sequence[tuple[CellResult, float, str]]) -> go.Scatter:
    colours = [LINE_STYLES[cell.shortcut].colour for cell, _, _ in points]
    return go.Scatter(
        x=[cell.depth for cell, _, _ in points],
        y=[height for _, height, _ in points],
        text=[f"<b>{cell.name}</b><br>{label}" for cell, _, label in points],
        mode="markers",
        marker={"symbol": "x-thin", "size": 10, "line": {"width": 2.5, "color": colours}},
        hovertemplate="%{text}<extra></extra>",
        cliponaxis=False,
        meta="diverged",
    )


def layout(x: str, y: str, top: float, name: str) -> go.Layout:
    """Returns the layout of a plot with these axis labels, whose y-axis goes up to `top`."""
    axis: dict[str, object] = {"gridcolor": "#ececec", "linecolor": "#b5b5b5", "zeroline": False}
    return go.Layout(
        template="none",
        height=HEIGHT,
        margin={"l": 52, "r": 12, "t": 30, "b": 44},
        font={"family": FONT, "size": 13, "color": "#333333"},
        showlegend=False,  # the page has its own legend, which wraps and switches bands
        hovermode="closest",
        hoverlabel={"align": "left"},
        xaxis=axis | {"title": {"text": x, "standoff": 8}},
        yaxis=axis | {"title": {"text": y, "standoff": 6}, "range": [0, top]},
        meta=name,
    )


def rounded(values: Sequence[float]) -> list[float]:
    """Returns percentages with as many decimals as a plot can show."""
    return [round(value, DECIMALS) for value in values]


def _faint(colour: str, alpha: float) -> str:
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{alpha})"
