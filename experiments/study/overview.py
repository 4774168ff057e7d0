"""What a person sees while a sweep runs: one overview on a terminal, plain lines elsewhere."""

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import rich.progress
from absl import logging

from experiments.study import cell_folders, estimate, ledger
from experiments.study.estimate import Size
from experiments.study.grid import Cell
from resnet_jax.errors import UserError
from resnet_jax.runs import reader, storage
from resnet_jax.runs.progress import Bars, show_time

_TERMINAL_SECONDS = 1.0
_LINES_SECONDS = 15.0


@contextlib.contextmanager
def _despite_unreadable(name: str) -> Iterator[None]:
    """Logs that a cell's folder cannot be read now: a study does not stop for its overview."""
    try:
        yield
    except (OSError, UserError) as e:
        logging.warning("%s: %s", name, e)


class Overview:
    """Follows a sweep by its cells' run folders; a scheduling.Observer."""

    def __init__(
        self, cells: Sequence[Cell], sizes: Mapping[str, Size], workdir: storage.Path, at_once: int
    ):
        """Begins before the first of `cells`, those left to run, is started."""
        self._cells = {cell.name: cell for cell in cells}
        self._sizes, self._workdir, self._at_once = sizes, workdir, at_once
        self._waiting = list(self._cells)
        self._since: dict[str, float] = {}  # of those that run
        self._before: dict[str, dict[str, Any]] = {}  # the status when a cell was started
        self._ended: dict[str, str] = {}
        # What has been trained since the sweep began, and the time its cells took for it.
        self._work = self._seconds = 0.0
        self._began = time.monotonic()
        self._bars = Bars(transient=True)
        self._tasks: dict[str, rich.progress.TaskID] = {}
        self._bars.start()
        is_near = not (self._bars.disable or storage.is_bucket(workdir))
        self._every = _TERMINAL_SECONDS if is_near else _LINES_SECONDS
        self._shown_at = self._began

    def started(self, name: str) -> None:
        """Says so."""
        self._waiting.remove(name)
        self._since[name] = time.monotonic()
        self._before[name] = {}
        with _despite_unreadable(name):
            self._before[name] = cell_folders.status(self._folder(name))
        at = self._before[name].get("step", 0)
        self._tasks[name] = self._bars.add_task(
            name, total=self._cells[name].config.steps, completed=at, figures="starting"
        )
        logging.info("%s: %s", name, f"goes on from step {at}" if at else "started")

    def ended(self, name: str, code: int, stopped: bool) -> None:
        """Settles the cell's status and says how it ended."""
        folder = self._folder(name)
        seconds = time.monotonic() - self._since.pop(name)
        self._bars.remove_task(self._tasks.pop(name))
        with _despite_unreadable(name):
            # Killed on request, or asked before it could listen: its folder says how far it came.
            if not (stopped and code < 0):
                cell_folders.settle(folder, self._cells[name], code, self._before[name])
            self._work += self._trained(name, cell_folders.status(folder).get("step", 0))
            self._seconds += seconds
        self._conclude(name)

    def not_started(self, name: str, reason: str) -> None:
        """Settles the cell's status and says why."""
        self._waiting.remove(name)
        cell_folders.fail(self._folder(name), self._cells[name], reason)
        self._conclude(name)

    def stopping(self, signal_name: str) -> None:
        """Says what happens now."""
        cells = "1 cell" if len(self._since) == 1 else f"{len(self._since)} cells"
        logging.info("%s came: waiting for %s to save; once more kills them", signal_name, cells)

    def tick(self) -> None:
        """Shows the overview where it is due."""
        if time.monotonic() - self._shown_at < self._every:
            return
        self._shown_at = time.monotonic()
        with _despite_unreadable("overview"):
            if not self._bars.disable:
                self._draw()
            else:
                for line in [self._heading(), *map(self._line, self._since)]:
                    logging.info("%s", line)

    def close(self) -> None:
        """Takes the overview off the terminal."""
        self._bars.stop()

    def _folder(self, name: str) -> storage.Path:
        return self._workdir / name

    def _conclude(self, name: str) -> None:
        self._ended[name] = "unknown"
        with _despite_unreadable(name):
            self._say_end(name)

    def _say_end(self, name: str) -> None:
        run = reader.read(self._folder(name))
        self._ended[name] = status = run.status.get("status", "queued")
        remarks = ledger.remarks(run)
        words = f"{name}: {'FAILED' if status == 'failed' else status}"
        words += f" at step {ledger.show_step(run.status)}"
        words = ", ".join(filter(None, [words, ledger.show_errors(run)]))
        logging.info("%s%s", words, f": {remarks}" if remarks else "")

    def _trained(self, name: str, step: int) -> float:
        steps = step - self._before[name].get("step", 0)
        return self._sizes[name].work * steps / self._cells[name].config.steps

    def _heading(self) -> str:
        counts = {
            "done": sum(status in reader.ENDED for status in self._ended.values()),
            "failed": sum(status == "failed" for status in self._ended.values()),
            "running": len(self._since),
            "waiting": len(self._waiting),
        }
        shown = [f"{n} {what}" for what, n in counts.items() if n or what != "failed"]
        passed = show_time(time.monotonic() - self._began)
        return f"{self._workdir.name}: {', '.join(shown)}, {passed} so far, ETA {self._eta()}"

    def _eta(self) -> str:
        now = time.monotonic()
        steps = {name: self._step(name) for name in self._since}
        work = self._work + sum(self._trained(name, step) for name, step in steps.items())
        seconds = self._seconds + sum(now - since for since in self._since.values())
        if work <= 0:
            return "?"
        left = {name: self._before[name].get("step", 0) for name in self._since} | steps
        left |= {n: cell_folders.status(self._folder(n)).get("step", 0) for n in self._waiting}
        durations = [
            self._sizes[name].work * (1 - step / self._cells[name].config.steps) * seconds / work
            for name, step in left.items()
        ]
        return show_time(estimate.makespan(durations, self._at_once))

    def _step(self, name: str) -> int:
        return cell_folders.status(self._folder(name)).get("step", 0)

    def _line(self, name: str) -> str:
        run = reader.read(self._folder(name))
        errors = ledger.show_errors(run) or "no figures yet"
        return f"{name}: step {ledger.show_step(run.status)}, {errors}"

    def _draw(self) -> None:
        for name, task in self._tasks.items():
            run = reader.read(self._folder(name))
            figures = ledger.show_errors(run) or "starting"
            self._bars.update(task, completed=run.status.get("step", 0), figures=figures)
        self._bars.heading = self._heading()
        self._bars.refresh()
