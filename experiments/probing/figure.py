"""The figure of probes: their error at each endpoint, a line per network."""

import math
from collections.abc import Sequence

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.probing.measured import KINDS, Row
from experiments.report import curves
from experiments.report.figures import STYLE
from experiments.report.statistics import Stat

_ASIDE = 0.3  # between the endpoints of two networks, so that their deviations do not overlap


def draw(rows: Sequence[Row], note: str) -> Figure:
    """Returns a panel per kind of probe; plain nets are solid and residual nets dashed.

    Args:
      rows: of any networks on one data set.
      note: a caveat about the data, or empty.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(10.5, 4.2), layout="constrained")
        axes = figure.subplots(1, len(KINDS), sharey=True)
        for ax, kind in zip(axes, KINDS, strict=True):
            _draw(ax, rows, kind)
        axes[0].set_ylabel("test error of the probe (%)")
        axes[0].set_ylim(bottom=0)
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside right center")
        if note:
            figure.suptitle(note, fontsize=9, x=0.01, ha="left")
        return figure


def _draw(ax: Axes, rows: Sequence[Row], kind: str) -> None:
    palette = curves.colours(sorted({row.depth for row in rows}))
    names = list(dict.fromkeys(row.endpoint for row in rows))
    networks = list(dict.fromkeys(row.network for row in rows))
    for number, network in enumerate(networks):
        aside = _ASIDE * (number - (len(networks) - 1) / 2) / len(networks)
        own = [row for row in rows if row.network == network]
        stats = [
            Stat.of([row.probes[kind].error for row in own if row.endpoint == name])
            for name in names
        ]
        style = curves.LINE_STYLES[own[0].shortcut]
        ax.errorbar(
            [place + aside for place in range(len(names))],
            [math.nan if stat.mean is None else stat.mean for stat in stats],
            yerr=[stat.std or 0.0 for stat in stats],
            color=palette[own[0].depth],
            marker=style.marker,
            ls="solid" if own[0].shortcut == "none" else "dashed",
            capsize=3,
            label=f"{network}, mean ± std",
        )
    ax.set_xticks(range(len(names)), names)
    ax.set(title=kind, xlabel="endpoint")
