"""What the report draws of a group's signals: by layer, and by step."""

import dataclasses
import math
import statistics
from collections.abc import Callable

from experiments.report.cells import CellResult
from experiments.report.groups import Group
from experiments.report.signals.profiles import (
    DEAD,
    GRADIENTS,
    RATIO,
    RESPONSES,
    UPDATES,
    Profile,
    common_steps,
    first_and_last,
    main_path,
    mean_profile,
)


@dataclasses.dataclass(frozen=True)
class Line:
    """One network's line: means over its healthy seeds."""

    cell: CellResult
    x: list[int]
    y: list[float]
    labels: list[str]  # of the points: a layer or a step


@dataclasses.dataclass(frozen=True)
class Panel:
    """One plot.

    Attributes:
      title, x_label, y_label: in words.
      is_log: whether the y-axis is logarithmic.
      lines: one per network that has the signal.
      scale: panels with the same name share the range of their y-axis.
    """

    title: str
    x_label: str
    y_label: str
    is_log: bool
    lines: list[Line]
    scale: str

    def y_range(self, panels: list["Panel"]) -> tuple[float, float]:
        """Returns the range of the y-axis, shared with the panels of the same scale."""
        own = [panel for panel in panels if panel.scale == self.scale]
        values = [y for panel in own for line in panel.lines for y in line.y]
        if self.is_log:
            return min(values) / 1.6, max(values) * 1.6
        return 0.0, 1.08 * max(values) or 1.0


def of_group(group: Group) -> list[Panel]:
    """Returns the panels that have at least one line; none without signals."""
    steps = common_steps(group.cells, GRADIENTS)
    if not steps:
        return []
    first, last = steps[0], steps[-1]
    panels = [
        _by_layer(group, RESPONSES, last, f"Responses at step {last:,} (Fig. 7)", "std", False),
        _by_layer(group, GRADIENTS, first, f"Gradients at step {first:,}", "norm", True),
        _by_layer(group, GRADIENTS, last, f"Gradients at step {last:,}", "norm", True),
        _by_layer(group, RATIO, last, f"Branch over shortcut at step {last:,}", "ratio", False),
        _by_step(group, GRADIENTS, steps, "First over last gradient", "ratio", True, _ratio),
        _by_step(group, UPDATES, steps, "Update over weight", "mean over layers", True, _geometric),
        _by_step(group, DEAD, steps, "Dead units", "% of channels", False, _mean),
    ]
    return [panel for panel in panels if panel.lines]


def _by_layer(group: Group, kind: str, step: int, title: str, y_label: str, is_log: bool) -> Panel:
    lines = []
    for cell in group.cells:
        profile = main_path(mean_profile(cell, kind, step))
        numbers = {layer: i for i, layer in enumerate(profile, start=1)}
        if known := _finite(profile):
            x = [numbers[layer] for layer in known]
            lines.append(Line(cell, x, list(known.values()), list(known)))
    unit = "block" if kind == RATIO else "layer"
    return Panel(title, unit, y_label, is_log, lines, kind)


def _by_step(
    group: Group,
    kind: str,
    steps: list[int],
    title: str,
    y_label: str,
    is_log: bool,
    reduce: Callable[[Profile], float | None],
) -> Panel:
    lines = []
    for cell in group.cells:
        found = [(step, reduce(main_path(mean_profile(cell, kind, step)))) for step in steps]
        points = [(step, value) for step, value in found if value is not None]
        if points:
            x, y = (list(values) for values in zip(*points, strict=True))
            lines.append(Line(cell, x, y, [f"step {step:,}" for step in x]))
    return Panel(title, "iterations", y_label, is_log, lines, title)


def _ratio(profile: Profile) -> float | None:
    ends = first_and_last(profile)
    return ends[0] / ends[1] if ends else None


def _geometric(profile: Profile) -> float | None:
    known = _finite(profile)
    return statistics.geometric_mean(known.values()) if known else None


def _mean(profile: Profile) -> float | None:
    known = _finite(profile)
    return statistics.mean(known.values()) if known else None


def _finite(profile: Profile) -> Profile:
    return {layer: value for layer, value in profile.items() if math.isfinite(value)}
