"""The progress of a run on screen: a bar with an ETA on a terminal, plain lines elsewhere."""

import math
import sys
import time
from collections.abc import Collection, Iterable

import rich.progress
from absl import logging
from rich.console import Console, RenderableType
from rich.text import Text

from resnet_jax.runs import reader
from resnet_jax.runs.records import Row

_DRAW_SECONDS = 0.5  # between redraws, each of which costs the training thread milliseconds
_SPEED_SECONDS = 300.0  # the ETA follows the speed over this time


def brief(row: Row, diverged: Collection[int] = (), has_batch_norm: bool = True) -> str:
    """Returns a row of metrics as ``training error 12.30 %, ...``.

    Args:
      row: of metrics.
      diverged: replicates that are left out of the means.
      has_batch_norm: whether validation without population statistics used moving averages.
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
            valid = [v for r, v in enumerate(values) if r not in diverged]
            moving_averages = has_batch_norm and metric == reader.MOVING_AVERAGES
            shown.append(show_error(split, valid, len(values), moving_averages))
    return ", ".join(shown)


def show_error(
    split: str, errors: Iterable[float | None], replicates: int, moving_averages: bool
) -> str:
    """Returns ``validation error 12.30 % (mean of 3; moving averages)``.

    Args:
      split: training, validation or test.
      errors: percent, of the replicates that did not diverge; None or NaN if not finite.
      replicates: the number of replicates of the run.
      moving_averages: whether BatchNorm used moving averages instead of population statistics.
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
    """Progress bars on stderr, below the log lines; nothing is drawn unless it is a terminal.

    Bars are redrawn by draw(), not by rich's thread, which could outlive the terminal.
    """

    heading = ""  # a line above the bars

    def __init__(self, wanted: bool = True, transient: bool = False):
        """Prepares the bars; `transient` bars are erased at the end."""
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
        """Draws the bars and redirects log lines to above them."""
        super().start()
        self._log_to_stderr()

    def stop(self) -> None:
        """Draws the bars for the last time; a second call does nothing."""
        super().stop()
        self._log_to_stderr()

    def draw(self) -> None:
        """Redraws the bars, at most every _DRAW_SECONDS."""
        if not self.disable and time.monotonic() - self._drawn_at > _DRAW_SECONDS:
            self._drawn_at = time.monotonic()
            self.refresh()

    def _log_to_stderr(self) -> None:
        if not self.disable:  # rich replaces sys.stderr while bars are shown
            logging.get_absl_handler().python_handler.stream = sys.stderr


class _Console(Console):
    def show_cursor(self, show: bool = True) -> bool:
        """Never hides the cursor, since a killed program could not restore it."""
        return False


class _Figures(rich.progress.ProgressColumn):
    def render(self, task: rich.progress.Task) -> Text:
        """Returns the task's figures, truncated to the width of the terminal."""
        return Text(task.fields["figures"], no_wrap=True, overflow="ellipsis")


class Progress:
    """Reports a run's steps on stderr."""

    def __init__(
        self,
        start: int,
        steps: int,
        images_per_step: int,
        label: str,
        *,
        bar: bool,
        has_batch_norm: bool = True,
    ):
        """Starts at step `start` of `steps`; `label` names the run, `bar` shows a progress bar."""
        self._has_batch_norm = has_batch_norm
        self._steps, self._images_per_step = steps, images_per_step
        self._label = label
        self._latest: Row = {}
        self._since = (start, time.monotonic())
        self._began = (start, time.monotonic())
        self._bars = Bars(wanted=bar)
        self._task = self._bars.add_task(label, total=steps, completed=start, figures="")
        self._bars.start()

    def advance(self, steps: int) -> None:
        """Counts dispatched steps."""
        self._bars.advance(self._task, steps)
        self._bars.draw()

    def report(self, row: Row, diverged: Collection[int] = ()) -> float | None:
        """Shows a row of errors; returns the images per second since the previous one.

        Returns None if no step was taken since, as for the test, or if the row has no errors.
        Replicates in `diverged` are left out of the means.
        """
        shown = brief(row, diverged, self._has_batch_norm)
        if not shown:  # signals alone
            return None
        step, now = row["step"], time.monotonic()
        since_step, since = self._since
        self._since = (step, now)
        if step == since_step:
            logging.info("%s: step %d/%d, %s", self._label, step, self._steps, shown)
            return None
        rate = (step - since_step) * self._images_per_step / max(now - since, 1e-9)
        self._latest |= row  # keeps showing validation errors, which come less often
        latest = brief(self._latest, diverged, self._has_batch_norm)
        figures = f"{latest}, {rate:.0f} images/s"
        self._bars.update(self._task, figures=figures)
        if self._bars.disable:
            logging.info(
                "%s: step %d/%d, %s, %.0f images/s, ETA %s",
                self._label, step, self._steps, shown, rate, self._eta(step, now),
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
