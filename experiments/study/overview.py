"""Progress of a running sweep: a live overview on a terminal, log lines elsewhere."""

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence

import rich.progress
from absl import logging

from experiments.study import cell_folders, estimate, ledger
from experiments.study.estimate import Size
from experiments.study.grid import Cell
from resnet_jax.errors import UserError
from resnet_jax.runs import reader, records, storage
from resnet_jax.runs.progress import Bars, show_time

_TERMINAL_SECONDS = 1.0
_LINES_SECONDS = 15.0


@contextlib.contextmanager
def _despite_unreadable(name: str) -> Iterator[None]:
    """Logs errors of an unreadable run folder: the overview must not stop the study."""
    try:
        yield
    except (OSError, UserError) as e:
        logging.warning("%s: %s", name, e)


class Overview:
    """A scheduling.Observer that reads the progress of cells from their run folders."""

    def __init__(
        self, cells: Sequence[Cell], sizes: Mapping[str, Size], workdir: storage.Path, at_once: int
    ):
        """Starts the overview before any of `cells`, the cells left to run, has started."""
        self._cells = {cell.name: cell for cell in cells}
        self._sizes, self._workdir, self._at_once = sizes, workdir, at_once
        is_first_stage = workdir.name == reader.PILOTS
        self._title = f"Pilots of {workdir.parent.name}" if is_first_stage else workdir.name
        self._waiting = list(self._cells)
        self._since: dict[str, float] = {}  # start times of running cells
        self._before: dict[str, records.Status] = {}  # the status before a cell was started
        self._ended: dict[str, str] = {}
        # Mult-adds of cells that ended during this sweep, and the seconds they took.
        self._work = self._seconds = 0.0
        self._began = time.monotonic()
        self._bars = Bars(transient=True)
        self._tasks: dict[str, rich.progress.TaskID] = {}
        self._bars.start()
        is_fast = not (self._bars.disable or storage.is_bucket(workdir))
        self._interval = _TERMINAL_SECONDS if is_fast else _LINES_SECONDS
        self._shown_at = self._began

    def started(self, name: str) -> None:
        """Logs a cell's start."""
        self._waiting.remove(name)
        self._since[name] = time.monotonic()
        self._before[name] = records.NO_STATUS
        with _despite_unreadable(name):
            self._before[name] = cell_folders.status(self._folder(name))
        step = self._before[name].get("step", 0)
        self._tasks[name] = self._bars.add_task(
            name, total=self._cells[name].config.steps, completed=step, figures="starting"
        )
        logging.info("%s: %s", name, f"resumes from step {step}" if step else "started")

    def ended(self, name: str, code: int, stopped: bool) -> None:
        """Completes a cell's status and logs how it ended."""
        folder = self._folder(name)
        seconds = time.monotonic() - self._since.pop(name)
        self._bars.remove_task(self._tasks.pop(name))
        with _despite_unreadable(name):
            # A cell killed on request has not failed; its folder holds its last saved step.
            if not (stopped and code < 0):
                cell_folders.settle(folder, self._cells[name], code, self._before[name])
            self._work += self._trained(name, cell_folders.status(folder).get("step", 0))
            self._seconds += seconds
        self._report_end(name)

    def not_started(self, name: str, reason: str) -> None:
        """Sets the cell's status to failed and logs the reason."""
        self._waiting.remove(name)
        cell_folders.fail(self._folder(name), self._cells[name], reason)
        self._report_end(name)

    def stopping(self, signal_name: str) -> None:
        """Logs that the running cells were asked to save."""
        cells = "1 cell" if len(self._since) == 1 else f"{len(self._since)} cells"
        logging.info(
            "%s received: waiting for %s to save; a second signal kills them", signal_name, cells
        )

    def tick(self) -> None:
        """Shows the overview if it is due."""
        if time.monotonic() - self._shown_at < self._interval:
            return
        self._shown_at = time.monotonic()
        with _despite_unreadable("overview"):
            if not self._bars.disable:
                self._draw()
            else:
                for line in [self._heading(), *map(self._line, self._since)]:
                    logging.info("%s", line)

    def close(self) -> None:
        """Removes the overview from the terminal."""
        self._bars.stop()

    def _folder(self, name: str) -> storage.Path:
        return self._workdir / name

    def _report_end(self, name: str) -> None:
        self._ended[name] = "unknown"
        with _despite_unreadable(name):
            run = reader.read(self._folder(name))
            self._ended[name] = status = run.status.get("status", "queued")
            remarks = ledger.remarks(run)
            text = f"{name}: {'FAILED' if status == 'failed' else status}"
            text += f" at step {ledger.show_step(run.status)}"
            text = ", ".join(filter(None, [text, ledger.show_errors(run)]))
            logging.info("%s%s", text, f": {remarks}" if remarks else "")

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
        shown = [f"{n} {status}" for status, n in counts.items() if n or status != "failed"]
        elapsed = show_time(time.monotonic() - self._began)
        return f"{self._title}: {', '.join(shown)}, {elapsed} so far, ETA {self._eta()}"

    def _eta(self) -> str:
        now = time.monotonic()
        steps = {name: self._step(name) for name in self._since}
        work = self._work + sum(self._trained(name, step) for name, step in steps.items())
        seconds = self._seconds + sum(now - since for since in self._since.values())
        if work <= 0:
            return "?"
        steps |= {name: self._step(name) for name in self._waiting}
        durations = [
            self._sizes[name].work * (1 - step / self._cells[name].config.steps) * seconds / work
            for name, step in steps.items()
        ]
        return show_time(estimate.makespan(durations, self._at_once))

    def _step(self, name: str) -> int:
        return cell_folders.status(self._folder(name)).get("step", 0)

    def _line(self, name: str) -> str:
        run = reader.read(self._folder(name))
        errors = ledger.show_errors(run) or "no errors logged yet"
        return f"{name}: step {ledger.show_step(run.status)}, {errors}"

    def _draw(self) -> None:
        for name, task in self._tasks.items():
            run = reader.read(self._folder(name))
            figures = ledger.show_errors(run) or "starting"
            self._bars.update(task, completed=run.status.get("step", 0), figures=figures)
        self._bars.heading = self._heading()
        self._bars.refresh()
