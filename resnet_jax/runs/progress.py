"""What a person sees of a long run: a bar with an ETA on a terminal, plain lines elsewhere."""

import math
import sys
import time
from collections.abc import Collection, Iterable
from typing import Any

from absl import logging
from tqdm import tqdm

from resnet_jax.runs import reader


def brief(row: dict[str, Any], diverged: Collection[int] = ()) -> str:
    """Returns a row of metrics as ``training error 12.30 %, ...``.

    Replicates are shown as their mean, without the `diverged` ones.
    """
    metrics = {
        "training": "train/error",
        "validation": reader.validation_metric([row]),
        "test": "test/error",
    }
    shown = []
    for split, metric in metrics.items():
        if metric in row:
            values = row[metric] if isinstance(row[metric], list) else [row[metric]]
            kept = [v for r, v in enumerate(values) if r not in diverged]
            shown.append(show_error(split, kept, len(values), metric == reader.MOVING_AVERAGES))
    return ", ".join(shown)


def show_error(
    split: str, errors: Iterable[float | None], replicates: int, moving_averages: bool
) -> str:
    """Returns ``validation error 12.30 % (mean of 3; moving averages)``.

    Args:
      split: training, validation or test.
      errors: percent, of the replicates that did not diverge; None or NaN if not finite.
      replicates: of the run.
      moving_averages: whether BatchNorm used them, and not population statistics.
    """
    finite = [e for e in errors if e is not None and math.isfinite(e)]
    if not finite:
        return f"{split} error not finite"
    notes = [f"mean of {len(finite)}"] if replicates > 1 else []
    notes += ["moving averages"] if moving_averages else []
    text = f"{split} error {sum(finite) / len(finite):.2f} %"
    return f"{text} ({'; '.join(notes)})" if notes else text


def show_time(seconds: float) -> str:
    """Returns ``01:15`` or ``1384:08:51``."""
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes:02}:{seconds:02}"


class Progress:
    """Reports a run's steps on stderr."""

    def __init__(self, start: int, steps: int, images_per_step: int, label: str, bar: bool):
        """Starts at step `start` of `steps`; `label` says what runs, `bar` whether to show one."""
        self._steps, self._images_per_step = steps, images_per_step
        self._label = label
        self._latest: dict[str, Any] = {}
        self._since = (start, time.monotonic())
        self._began = (start, time.monotonic())
        self._bar: tqdm | None = None
        if bar and sys.stderr is not None and sys.stderr.isatty():
            self._bar = tqdm(
                total=steps, initial=start, desc=label, unit="step", dynamic_ncols=True
            )

    def advance(self, steps: int) -> None:
        """Counts steps that have been handed to the device."""
        if self._bar is not None:
            self._bar.update(steps)

    def report(self, row: dict[str, Any], diverged: Collection[int] = ()) -> float | None:
        """Shows a line of metrics; returns the images a second since the last one.

        Returns None if no step was taken since: the line is that of the test. Replicates that
        `diverged` are in no mean.
        """
        step, now = row["step"], time.monotonic()
        since_step, since = self._since
        self._since = (step, now)
        if step == since_step:
            logging.info("%s: step %d/%d, %s", self._label, step, self._steps, brief(row, diverged))
            return None
        rate = (step - since_step) * self._images_per_step / max(now - since, 1e-9)
        self._latest |= row  # validation comes more seldom than training: keep showing the last
        if self._bar is not None:
            self._bar.set_postfix_str(f"{brief(self._latest, diverged)}, {rate:.0f} images/s")
        else:
            logging.info(
                "%s: step %d/%d, %s, %.0f images/s, ETA %s",
                self._label, step, self._steps, brief(row, diverged), rate, self._eta(step, now),
            )  # fmt: skip
        return rate

    def _eta(self, step: int, now: float) -> str:
        began_step, began = self._began
        if step <= began_step:
            return "?"
        seconds = (self._steps - step) * (now - began) / (step - began_step)
        return show_time(seconds)

    def close(self) -> None:
        """Ends the bar."""
        if self._bar is not None:
            self._bar.close()
