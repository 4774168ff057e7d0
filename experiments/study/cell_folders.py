"""A cell's run folder: what a sweep writes into it, and the command that trains in it."""

import contextlib
import os
import pathlib
import signal
import sys
from collections.abc import Iterable

from absl import logging

from experiments.launchers.interface import Job
from experiments.study.grid import Cell
from resnet_jax.errors import UserError
from resnet_jax.runs import identity, reader, records, storage
from resnet_jax.runs.writer import RunFolder

_SAVED = pathlib.Path(__file__).parents[2] / "configs" / "saved.py"
LOG = "log.txt"  # the output of a cell's process


def command(folder: storage.Path, with_cluster: bool = False) -> tuple[str, ...]:
    """Returns the command that trains the cell of a run folder, or resumes it.

    Args:
      folder: the cell's run folder.
      with_cluster: whether the process joins the other processes of a scheduler's job. Cells that a
        local sweep starts do not, even if the sweep itself is such a job.
    """
    saved = _SAVED if with_cluster else os.path.relpath(_SAVED)
    config = f"{saved}:{folder / 'config.json'}"
    program = (sys.executable, "-m", "experiments.train")
    cluster = () if with_cluster else ("--cluster=none",)
    return (*program, f"--config={config}", f"--workdir={folder}", *cluster)


def job(folder: storage.Path, with_cluster: bool) -> Job:
    """Returns a cell's job; see command()."""
    if with_cluster:  # it starts in another working directory
        folder = folder.absolute()
    return Job(folder.name, command(folder, with_cluster), folder / LOG)


def status(folder: storage.Path) -> records.Status:
    """Returns the status of a cell's folder, empty if it was never queued."""
    return records.read_status(folder)


def has_ended(folder: storage.Path, cell: Cell) -> bool:
    """Whether a cell has ended, and after as many steps as the study wants."""
    if status(folder).get("status") not in reader.ENDED:
        return False
    return storage.read_json(folder / "config.json").get("steps") == cell.config.steps


def refuse_others(workdir: storage.Path, cells: Iterable[Cell]) -> None:
    """Raises UserError if a cell's folder belongs to another config."""
    for cell in cells:
        identity.refuse_other(workdir / cell.name, cell.config.to_dict())


def queue(folder: storage.Path, cell: Cell) -> None:
    """Writes a cell's config and, if it has no status yet, the status "queued".

    Raises:
      UserError: the folder cannot be written, belongs to another config, or a process trains in it.
    """
    run_folder = RunFolder(folder, cell.config.to_dict())
    try:
        if not run_folder.status():
            run_folder.set_status("queued", step=0, steps=cell.config.steps, device_seconds=0.0)
    except OSError as e:
        raise UserError(f"{folder} cannot be written: {storage.reason(e)}.") from e
    finally:
        run_folder.close()


def settle(folder: storage.Path, cell: Cell, code: int, before: records.Status) -> None:
    """Sets the status to failed if a cell's process ended without writing its final status.

    Args:
      folder: the cell's run folder.
      cell: the cell.
      code: the process's exit code; if negative, the signal that killed it.
      before: the status when the process started.
    """
    after = status(folder)
    if code == 0 and after.get("status") in reader.ENDED:
        return
    if after != before and after.get("status") in ("preempted", "failed"):
        return
    fail(folder, cell, _reason(folder, code))


def fail(folder: storage.Path, cell: Cell, reason: str) -> None:
    """Sets a cell's status to failed and keeps its training so far."""
    try:
        run_folder = RunFolder(folder, cell.config.to_dict())
        try:
            last = run_folder.status()
            run_folder.set_status(
                "failed",
                step=last.get("step", 0),
                steps=cell.config.steps,
                device_seconds=last.get("device_seconds", 0.0),
                reason=reason,
            )
        finally:
            run_folder.close()
    except (OSError, UserError) as e:  # for example a full disk: only the log can say it
        logging.error("%s: status.json could not be written: %s", cell.name, e)


def _reason(folder: storage.Path, code: int) -> str:
    if code < 0:
        memory = " (out of memory?)" if -code == signal.SIGKILL else ""
        return f"{signal.Signals(-code).name} killed its process{memory}"
    lines: list[str] = []
    with contextlib.suppress(OSError):
        lines = (storage.read_bytes(folder / LOG) or b"").decode(errors="replace").splitlines()
    printed = [line.strip() for line in lines if line.strip() and not line.startswith("---")]
    last = printed[-1].removeprefix("error: ") if printed else "its process printed nothing"
    return last if code else f"its process ended before the run did; its last line: {last}"
