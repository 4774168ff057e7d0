"""What a person sees of a long run: a bar with an ETA on a terminal, plain lines elsewhere."""

import math
import sys
import time
from collections.abc import Collection, Iterable
from typing import Any

import rich.progress
from absl import logging
from rich.console import Console, RenderableType
from rich.text import Text

from resnet_jax.runs import reader

_DRAW_SECONDS = 0.5  # between drawings, each of which takes the training thread milliseconds
_SPEED_SECONDS = 300.0  # over which the time left is estimated


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


class Bars(rich.progress.Progress):
    """Bars on stderr, log lines above them; nothing unless somebody sees it on a terminal.

    They are drawn when asked to: a thread of their own could outlive what it draws on.
    """

    heading = ""  # a line above them

    def __init__(self, wanted: bool = True, transient: bool = False):
        """Prepares them; `transient` bars are erased at the end."""
        is_terminal = sys.stderr is not None and sys.stderr.isatty()
        console = _Console(stderr=True, force_terminal=is_terminal)
        super().__init__(
            rich.progress.TextColumn("{task.description}:", markup=False),
            rich.progress.TextColumn("{task.percentage:3.0f}%"),
            rich.progress.BarColumn(bar_width=20),
            rich.progress.MofNCompleteColumn(),
            rich.progress.TimeElapsedColumn(),
            rich.progress.TextColumn("ETA"),
            rich.progress.TimeRemainingColumn(),
            _Figures(),
            console=console,
            auto_refresh=False,
            speed_estimate_period=_SPEED_SECONDS,
            transient=transient,
            redirect_stdout=False,
            disable=not (wanted and console.is_interactive),
        )
        self._drawn_at = 0.0

    def get_renderables(self) -> Iterable[RenderableType]:
        """Yields the heading and the bars."""
        if self.heading:
            yield Text(self.heading, no_wrap=True, overflow="ellipsis")
        yield from super().get_renderables()

    def start(self) -> None:
        """Draws the bars, and has log lines written above them."""
        super().start()
        self._log_to_stderr()

    def stop(self) -> None:
        """Draws the bars for the last time; again, it does nothing."""
        super().stop()
        self._log_to_stderr()

    def draw(self) -> None:
        """Draws the bars unless that was done just now."""
        if not self.disable and time.monotonic() - self._drawn_at > _DRAW_SECONDS:
            self._drawn_at = time.monotonic()
            self.refresh()

    def _log_to_stderr(self) -> None:
        if not self.disable:  # while bars are drawn, sys.stderr is rich's and moves them down
            logging.get_absl_handler().python_handler.stream = sys.stderr


class _Console(Console):
    def show_cursor(self, show: bool = True) -> bool:
        """Leaves the cursor alone: a program that is killed could not bring it back."""
        return False


class _Figures(rich.progress.ProgressColumn):
    def render(self, task: rich.progress.Task) -> Text:
        """Returns as much of the task's figures as the line has room for."""
        return Text(task.fields["figures"], no_wrap=True, overflow="ellipsis")


class Progress:
    """Reports a run's steps on stderr."""

    def __init__(self, start: int, steps: int, images_per_step: int, label: str, bar: bool):
        """Starts at step `start` of `steps`; `label` says what runs, `bar` whether to show one."""
        self._steps, self._images_per_step = steps, images_per_step
        self._label = label
        self._latest: dict[str, Any] = {}
        self._since = (start, time.monotonic())
        self._began = (start, time.monotonic())
        self._bars = Bars(wanted=bar)
        self._task = self._bars.add_task(label, total=steps, completed=start, figures="")
        self._bars.start()

    def advance(self, steps: int) -> None:
        """Counts steps that have been handed to the device."""
        self._bars.advance(self._task, steps)
        self._bars.draw()

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
        figures = f"{brief(self._latest, diverged)}, {rate:.0f} images/s"
        self._bars.update(self._task, figures=figures)
        if self._bars.disable:
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
        self._bars.stop()
