"""The arithmetic of a report: means over steps, and mean and spread over replicates."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

Points = Sequence[tuple[int, float]]  # (step, mean over the steps since the point before)


@dataclasses.dataclass(frozen=True)
class Stat:
    """Mean and sample standard deviation (ddof=1) over `n` replicates; None where undefined."""

    mean: float | None
    std: float | None
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> "Stat":
        """Returns the statistics of one value a replicate."""
        n = len(values)
        return cls(
            mean=float(np.mean(values)) if n else None,
            std=float(np.std(values, ddof=1)) if n > 1 else None,
            n=n,
        )


def window_means(points: Points, starts: Sequence[float], stops: Sequence[float]) -> np.ndarray:
    """Returns the mean a step over each half-open window ``(start, stop]`` of steps.

    A logged point is the mean over the steps since the one before, so its weight in a window is
    the number of those steps that lie inside. The sum over steps is then piecewise linear in the
    step, and a window's mean is a difference of two interpolated sums.
    """
    training = [(step, value) for step, value in points if step > 0]
    steps = np.array([0, *(step for step, _ in training)], dtype=float)
    values = np.array([value for _, value in training], dtype=float)
    sums = np.concatenate([[0.0], np.cumsum(values * np.diff(steps))])
    first = np.maximum(np.asarray(starts, dtype=float), 0.0)
    last = np.minimum(np.asarray(stops, dtype=float), steps[-1])
    return (np.interp(last, steps, sums) - np.interp(first, steps, sums)) / (last - first)


def window_mean(points: Points, start: float, stop: float) -> float | None:
    """Returns the mean over ``(start, stop]``, or None where no step of it was logged."""
    if not points or points[-1][0] <= max(start, 0):
        return None
    mean = float(window_means(points, [start], [stop])[0])
    return mean if math.isfinite(mean) else None
