"""Error and loss along an axis as Plotly specifications, with one legend."""

import html
import math
from collections.abc import Iterator, Mapping, Sequence

import plotly.graph_objects as go

from experiments.report import curves
from experiments.report.axes import series
from experiments.report.axes.model import LOG, NAMES, Across, Axis, Line
from experiments.report.axes.rows import Section
from experiments.report.axes.series import Point, Quantity, Range
from experiments.report.curves import LINE_STYLES
from experiments.report.interactive import HEIGHT, Entry, Panel, layout

ROW_HEIGHT = 24  # pixels of a name
_FEW_DECADES = 4  # powers of ten with room for labels between them
DIGITS = 4  # significant digits of the numbers in the plots


def ranges(sections: Sequence[Section]) -> dict[str, Range]:
    """Returns the y-range of each quantity, common to all panels of a page."""
    return series.y_ranges([section.across for section in sections])


def panels(section: Section, y: Mapping[str, Range]) -> list[list[Panel]]:
    """Returns a row of panels for the error and one for the loss.

    A row has a panel per kind of net; for an axis of names it is one panel.
    """
    across = section.across
    palette = series.palette(across)
    quantities = series.quantities(across)
    if across.axis.scale == NAMES:
        return [[_names(across, quantity, y[quantity.name], palette)] for quantity in quantities]
    return [
        [_panel(across, kind, quantity, y[quantity.name], palette) for kind in across.kinds]
        for quantity in quantities
    ]


def entries(section: Section) -> list[Entry]:
    """Returns the legend: one entry per network, which all panels share."""
    across = section.across
    palette = series.palette(across)
    return [
        Entry(line.name, line.kind, line.name, line.kind, palette[line.depth], 2.2,
              LINE_STYLES[line.shortcut].svg_dash)
        for line in across.lines
    ]  # fmt: skip


def best_panel(section: Section) -> Panel | None:
    """Returns the best values against depth with their fits; None if the axis has no such fit."""
    axis = section.across.axis
    if not section.fits:
        return None
    figure = go.Figure(layout=layout("depth (layers)", f"best {axis.name}", 1.0, "best"))
    legend = []
    depths: set[int] = set()
    for fit, shown in zip(section.fits, series.best_looks(section.fits), strict=True):
        style = LINE_STYLES[fit.lines[0].shortcut]
        own = [line.depth for line in fit.lines]
        depths |= set(own)
        figure.add_trace(
            go.Scatter(
                x=own,
                y=[line.best.number for line in fit.lines if line.best],
                text=[html.escape(line.name) for line in fit.lines],
                mode="markers",
                marker={
                    "symbol": f"{style.plotly_marker}-open",
                    "size": shown.size + 2,
                    "color": shown.colour,
                    "line": {"width": 2},
                },
                hovertemplate="<b>%{text}</b><br>%{y}<extra></extra>",
                meta=fit.kind,
            )
        )
        if fit.law:
            figure.add_trace(
                go.Scatter(
                    x=own,
                    y=[_rounded(fit.law.factor * d**fit.law.exponent) for d in own],
                    mode="lines",
                    line={"color": shown.colour, "width": 1.6, "dash": "dash"},
                    hoverinfo="skip",
                    meta=fit.kind,
                )
            )
        legend.append(Entry(fit.kind, "", fit.kind, "", shown.colour, 2.2, style.svg_dash))
    ticks = curves.depth_ticks(sorted(depths), is_log=True)
    figure.update_xaxes(type="log", tickvals=ticks, ticktext=[*map(str, ticks)])
    low, high = map(math.log10, series.limits(axis))
    figure.update_yaxes(
        type="log",
        range=[low, high],
        tickvals=[value.number for value in axis.values],
        ticktext=[value.label for value in axis.values],
    )
    return Panel(f"Best {axis.name} against depth", figure, legend)


def _panel(
    across: Across, kind: str, quantity: Quantity, y: Range, palette: Mapping[int, str]
) -> Panel:
    lines = [line for line in across.lines if line.kind == kind]
    title = f"{kind} nets: {quantity.name}".capitalize()
    figure = go.Figure(layout=layout(across.axis.name, quantity.label, y.high, title))
    _set_axes(figure, across.axis, y)
    drawn = []
    for line in lines:
        points = series.points(across, line, quantity)
        drawn += points
        colour = palette[line.depth]
        if points:
            figure.add_trace(_trace(across.axis, line, points, quantity, colour))
        if fresh := series.fresh_point(across, line, quantity):
            figure.add_trace(_fresh(line, fresh, quantity, colour))
        for marks in _at_the_edge(across, line, quantity, y, colour):
            figure.add_trace(marks)
    return Panel(title, figure, [], "" if drawn else "no run has ended")


def _names(across: Across, quantity: Quantity, y: Range, palette: Mapping[int, str]) -> Panel:
    """Returns a panel with the names from top to bottom by their error."""
    axis = across.axis
    title = quantity.name.capitalize()
    figure = go.Figure(layout=layout(quantity.label, "", y.high, title))
    drawn = []
    for line in across.lines:
        points = series.points(across, line, quantity)
        drawn += points
        colour = palette[line.depth]
        figure.add_trace(
            go.Scatter(
                x=[_rounded(p.mean) for p in points],
                y=[p.x for p in points],
                error_x=_bars(points),
                customdata=[_words(p, axis, "") for p in points],
                mode="markers",
                marker={"symbol": LINE_STYLES[line.shortcut].plotly_marker, "color": colour,
                        "size": 8},
                hovertemplate=_hover(line, quantity, "x"),
                cliponaxis=False,
                meta=line.name,
            )
        )  # fmt: skip
        for marks in _at_the_edge(across, line, quantity, y, colour):
            figure.add_trace(marks)
    places = series.places(axis)
    low, high = series.limits(axis)
    figure.update_yaxes(
        range=[high, low],
        tickvals=[*places.values()],
        ticktext=[html.escape(value.label) for value in places],
        automargin=True,
    )
    figure.update_xaxes(**_scale(y))
    figure.update_layout(height=max(HEIGHT, ROW_HEIGHT * len(places) + 100))
    return Panel(title, figure, [], "" if drawn else "no run has ended")


def _scale(y: Range) -> dict[str, object]:
    """Returns the axis of a quantity."""
    if not y.is_log:
        return {"range": [y.low, y.high]}
    ends = [math.log10(y.low), math.log10(y.high)]
    ticks = _ticks(y)
    labels = [f"{tick:g}" for tick in ticks]  # Plotly would write 20µ
    return {"type": "log", "range": ends, "tickvals": ticks, "ticktext": labels}


def _set_axes(figure: go.Figure, axis: Axis, y: Range) -> None:
    places, labels = series.places(axis), series.labels(axis)
    low, high = series.limits(axis)
    is_log = axis.scale == LOG
    figure.update_xaxes(
        type="log" if is_log else "linear",
        range=[math.log10(low), math.log10(high)] if is_log else [low, high],
        tickvals=list(places.values()),
        ticktext=[html.escape(labels.get(x, "")) for x in places.values()],
        automargin=True,
    )
    if y.is_log:
        figure.update_yaxes(**_scale(y))


def _ticks(y: Range) -> list[float]:
    """Returns the powers of ten in a range, and in a short one 2 and 5 times each as well."""
    decades = range(math.floor(math.log10(y.low)), math.ceil(math.log10(y.high)) + 1)
    digits = (1, 2, 5) if len(decades) <= _FEW_DECADES else (1,)
    return [_rounded(digit * 10.0**decade) for decade in decades for digit in digits]


def _trace(
    axis: Axis, line: Line, points: Sequence[Point], quantity: Quantity, colour: str
) -> go.Scatter:
    """Returns a network's points, larger and ringed at its best value."""
    style = LINE_STYLES[line.shortcut]
    return go.Scatter(
        x=[p.x for p in points],
        y=[_rounded(p.mean) for p in points],
        error_y=_bars(points),
        customdata=[_words(p, axis, "best value" if p.is_best else "") for p in points],
        mode="lines+markers",
        line={"color": colour, "width": 2.0, "dash": style.plotly_dash},
        marker={
            "symbol": style.plotly_marker,
            "size": [13 if p.is_best else 7 for p in points],
            "color": ["#ffffff" if p.is_best else colour for p in points],
            "line": {"color": colour, "width": [2.5 if p.is_best else 0 for p in points]},
        },
        hovertemplate=_hover(line, quantity),
        cliponaxis=False,
        meta=line.name,
    )


def _fresh(line: Line, point: Point, quantity: Quantity, colour: str) -> go.Scatter:
    return go.Scatter(
        x=[point.x],
        y=[_rounded(point.mean)],
        error_y=_bars([point]),
        customdata=[[point.label, _spread(point), point.n, "fresh seeds at the best value"]],
        mode="markers",
        marker={"symbol": "diamond", "size": 9, "color": colour},
        hovertemplate=_hover(line, quantity),
        cliponaxis=False,
        meta=line.name,
    )


def _at_the_edge(
    across: Across, line: Line, quantity: Quantity, y: Range, colour: str
) -> Iterator[go.Scatter]:
    """Yields crosses for diverged seeds and arrows for exploded losses."""
    is_names = across.axis.scale == NAMES
    arrow = "triangle-right" if is_names else "triangle-up"
    for marks, symbol, height in (
        (series.diverged(across, line), "x-thin", series.CROSS),
        (series.exploded(across, line, quantity), arrow, series.ARROW),
    ):
        places, ends = [x for x, _ in marks], [y.at(height)] * len(marks)
        look = {"symbol": symbol, "size": 9, "color": colour}
        if marks:
            yield go.Scatter(
                x=ends if is_names else places,
                y=places if is_names else ends,
                text=[f"<b>{html.escape(line.name)}</b><br>{words}" for _, words in marks],
                mode="markers",
                marker=look | {"line": {"width": 2.5, "color": colour}},
                hovertemplate="%{text}<extra></extra>",
                cliponaxis=False,
                meta=line.name,
            )


def _bars(points: Sequence[Point]) -> dict[str, object]:
    return {"type": "data", "array": [_rounded(p.bar) for p in points], "thickness": 1.2,
            "width": 3}  # fmt: skip


def _words(point: Point, axis: Axis, remark: str) -> list[object]:
    return [f"{axis.name} {html.escape(point.label)}", _spread(point), point.n, remark]


def _spread(point: Point) -> str:
    return f" ± {point.std:.{DIGITS}g}" if point.n > 1 else ""


def _hover(line: Line, quantity: Quantity, direction: str = "y") -> str:
    unit = html.escape(quantity.unit)
    return (
        f"<b>{html.escape(line.name)}, {quantity.name}</b><br>%{{customdata[0]}}<br>"
        f"%{{{direction}:.{DIGITS}g}}%{{customdata[1]}} {unit} (n = %{{customdata[2]}})"
        "<br>%{customdata[3]}<extra></extra>"
    )


def _rounded(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")
