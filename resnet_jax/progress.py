"""What a person sees of a long run: a bar with an ETA on a terminal, plain lines elsewhere."""

import sys
import time
from typing import Any

from absl import logging
from tqdm import tqdm


def brief(row: dict[str, Any]) -> str:
    """Returns a line of metrics as ``training error 12.30 %, ...``; replicates as their mean."""

    def mean(value: Any) -> str:
        values = value if isinstance(value, list) else [value]
        finite = [v for v in values if v is not None and v == v]
        text = f"{sum(finite) / len(finite):.2f} %" if finite else "not finite"
        return text if len(values) == 1 else f"{text} (mean of {len(values)})"

    names = {
        "train/error": "training error",
        "validation/error": "validation error",
        "test/error": "test error",
    }
    return ", ".join(f"{name} {mean(row[key])}" for key, name in names.items() if key in row)


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

    def report(self, row: dict[str, Any]) -> float | None:
        """Shows a line of metrics; returns the images a second since the last one.

        Returns None if no step was taken since: the line is that of the test.
        """
        step, now = row["step"], time.monotonic()
        since_step, since = self._since
        self._since = (step, now)
        if step == since_step:
            logging.info("%s: step %d/%d, %s", self._label, step, self._steps, brief(row))
            return None
        rate = (step - since_step) * self._images_per_step / max(now - since, 1e-9)
        self._latest |= row  # validation comes more seldom than training: keep showing the last
        if self._bar is not None:
            self._bar.set_postfix_str(f"{brief(self._latest)}, {rate:.0f} images/s")
        else:
            logging.info(
                "%s: step %d/%d, %s, %.0f images/s, ETA %s",
                self._label, step, self._steps, brief(row), rate, self._eta(step, now),
            )  # fmt: skip
        return rate

    def _eta(self, step: int, now: float) -> str:
        began_step, began = self._began
        if step <= began_step:
            return "?"
        seconds = (self._steps - step) * (now - began) / (step - began_step)
        return tqdm.format_interval(seconds)

    def close(self) -> None:
        """Ends the bar."""
        if self._bar is not None:
            self._bar.close()
