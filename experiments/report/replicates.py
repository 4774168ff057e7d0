"""Replicates: the training of one seed, out of a run that may train several."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from resnet_jax import settings
from resnet_jax.errors import UserError
from resnet_jax.runs import reader
from resnet_jax.runs.records import Data, Row

Points = Sequence[tuple[int, float]]  # (step, mean over the steps since the last point)

DIVERGED_ERROR = 100.0  # percent; a network without finite weights classifies nothing
EARLY = 0.25  # the fraction of a run's steps that counts as early
LATE = 0.25  # the largest fraction of a run's steps that counts as its end
REQUIRED = (
    "seed",
    "replicates",
    "batch_size",
    "log.every",
    "model.family",
    "model.depth",
    "model.shortcut",
    "model.norm",
    "data.name",
    "init.from",
    "optimizer.rate_factors",
    "variant",
)


@dataclasses.dataclass(frozen=True)
class Observation:
    """An error for a claim, in percent, and the number of examples it was counted over.

    The error of a diverged replicate is DIVERGED_ERROR.
    """

    error: float
    examples: float
    diverged: bool = False


@dataclasses.dataclass(frozen=True)
class Replicate:
    """One seed of one run."""

    run: reader.Run
    index: int
    seed: int
    diverged_at: int | None  # the step at which it diverged, if it did

    def series(self, key: str) -> list[tuple[int, float]]:
        """Returns (step, value) of each row that has `key`; NaN stands for null.

        Raises:
          UserError: a row does not hold one value per replicate.
        """
        return [(row["step"], self.value(row, key)) for row in self.run.metrics if key in row]

    def value(self, row: Row, key: str) -> float:
        """Returns a row's value of this replicate; NaN stands for null.

        Raises:
          UserError: the row does not hold one value per replicate.
        """
        value = reader.values(self.run, row, key)[self.index]
        return math.nan if value is None else float(value)

    def train_error(self) -> float | None:
        """Returns the mean minibatch training error over the last epoch of the steps so far.

        In a run of less than four epochs it is the mean over the last quarter: errors from its
        first half say little about its end. If the last row covers more, its mean is the result.
        """
        return self._late("train/error")

    def train_loss(self) -> float | None:
        """Returns the mean minibatch training loss (nats) over the steps of train_error()."""
        return self._late("train/loss")

    def _late(self, key: str) -> float | None:
        points = self.series(key)
        if not points:
            return None
        last = points[-1][0]
        return window_mean(points, last - _late_steps(self.run, last), last)

    def early_train_error(self) -> float | None:
        """Returns the mean minibatch training error over the first quarter of the steps."""
        return window_mean(self.series("train/error"), 0, EARLY * total_steps(self.run))

    def final(self) -> Observation | None:
        """Returns the final training error for a claim, or None before the first row."""
        steps = _late_steps(self.run, total_steps(self.run))
        return self._of_steps(self.train_error(), steps, diverged=self.diverged_at is not None)

    def early(self) -> Observation | None:
        """Returns the early training error for a claim, or None before the first row.

        A replicate that diverges only after the early steps counts with its own error.
        """
        error, steps = self.early_train_error(), EARLY * total_steps(self.run)
        diverged = self.diverged_at is not None and (error is None or self.diverged_at <= steps)
        return self._of_steps(error, steps, diverged)

    def tested(self) -> Observation | None:
        """Returns the test error for a claim, or None before the test."""
        return self._of_split(self.test_error(), self._data.get("test"))

    def validated(self) -> Observation | None:
        """Returns the last validation error for a comparison, or None before the first."""
        return self._of_split(self.validation_error(), self._data.get("validation"))

    @property
    def _data(self) -> Data:
        return self.run.environment.get("data", {})

    def _of_split(self, error: float | None, examples: int | None) -> Observation | None:
        known = math.inf if examples is None else examples
        return _observation(error, known, self.diverged_at is not None)

    def _of_steps(self, error: float | None, steps: float, diverged: bool) -> Observation | None:
        return _observation(error, steps * self.run.config["batch_size"], diverged)

    def validation_error(self) -> float | None:
        """Returns the last validation error, with the statistics that `validation_metric` names."""
        return _last(self.series(self.validation_metric))

    @property
    def validation_metric(self) -> str:
        """The key of the validation error: reader.POPULATION or reader.MOVING_AVERAGES."""
        return reader.validation_metric(self.run.metrics)

    @property
    def healthy(self) -> bool:
        """Whether it has training errors and did not diverge; means leave out all others."""
        return self.diverged_at is None and bool(self.series("train/error"))

    def test_error(self) -> float | None:
        """Returns the test error, measured once at the end of a run."""
        return _last(self.series("test/error"))


def _observation(error: float | None, examples: float, diverged: bool) -> Observation | None:
    if diverged:
        return Observation(DIVERGED_ERROR, examples, diverged=True)
    return None if error is None else Observation(error, examples)


def of_run(run: reader.Run) -> list[Replicate]:
    """Returns the replicates of a run; replicate r has the seed ``config.seed + r``.

    Raises:
      UserError: config.json lacks a setting that the report needs.
    """
    flat = settings.flatten(run.config)
    reader.refuse_missing(run, [key for key in REQUIRED if key not in flat])
    replicates = [Replicate(run, i, flat["seed"] + i, None) for i in range(flat["replicates"])]
    return [dataclasses.replace(r, diverged_at=_diverged_at(r)) for r in replicates]


def window_means(points: Points, starts: Sequence[float], stops: Sequence[float]) -> np.ndarray:
    """Returns the mean over the steps of each half-open window ``(start, stop]``.

    A point is the mean over the steps since the last one, so its weight in a window is the number
    of these steps inside the window. The cumulative sum is piecewise linear in the step, and a
    window's mean follows from the difference of two interpolated sums.
    """
    training = [(step, value) for step, value in points if step > 0]
    steps = np.array([0, *(step for step, _ in training)], dtype=float)
    values = np.array([value for _, value in training], dtype=float)
    sums = np.concatenate([[0.0], np.cumsum(values * np.diff(steps))])
    first = np.maximum(np.asarray(starts, dtype=float), 0.0)
    last = np.minimum(np.asarray(stops, dtype=float), steps[-1])
    return (np.interp(last, steps, sums) - np.interp(first, steps, sums)) / (last - first)


def window_mean(points: Points, start: float, stop: float) -> float | None:
    """Returns the mean over ``(start, stop]``, or None if none of its steps was logged."""
    if not points or points[-1][0] <= max(start, 0):
        return None
    mean = float(window_means(points, [start], [stop])[0])
    return mean if math.isfinite(mean) else None


def total_steps(run: reader.Run) -> int:
    """Returns the planned number of steps.

    Raises:
      UserError: neither the status nor the config has it.
    """
    steps = run.status.get("steps") or run.config.get("steps")
    if steps is None:
        raise UserError(f"{run.path / 'config.json'} lacks steps.")
    return steps


def has_long_rows(run: reader.Run) -> bool:
    """Whether a row covers more than the final training error should."""
    return "train" in run.environment.get("data", {}) and (
        run.config["log"]["every"] > _late_steps(run, total_steps(run))
    )


def last_step(run: reader.Run) -> int:
    """Returns the step that the run has reached, by its status or its last row."""
    logged = run.metrics[-1]["step"] if run.metrics else 0
    return max(run.status.get("step") or 0, logged)


def _diverged_at(replicate: Replicate) -> int | None:
    status = replicate.run.status
    recorded = status.get("diverged") or {}
    if str(replicate.index) in recorded:
        return recorded[str(replicate.index)]
    # A run killed after writing the row and before its status has only the null.
    for key in ("train/loss", "train/error"):
        for step, value in replicate.series(key):
            if math.isnan(value):
                return step
    if status.get("status") == "diverged" and not recorded:
        return status.get("step", 0)
    return None


def _steps_per_epoch(run: reader.Run) -> int:
    examples = run.environment.get("data", {}).get("train")
    # A run that has not yet recorded its number of examples: use the last row alone.
    return math.ceil(examples / run.config["batch_size"]) if examples else 1


def _late_steps(run: reader.Run, steps: int) -> float:
    """Returns how many of the last of `steps` steps the final training error covers."""
    return min(_steps_per_epoch(run), LATE * steps)


def _last(points: list[tuple[int, float]]) -> float | None:
    return points[-1][1] if points and math.isfinite(points[-1][1]) else None
