"""A cell's run folder: what a sweep writes into it, and the process that trains in it."""

import contextlib
import os
import pathlib
import signal
import sys
from collections.abc import Iterable
from typing import Any

from absl import logging

from experiments.launchers.interface import Job
from experiments.study.grid import Cell
from resnet_jax.errors import UserError
from resnet_jax.runs import identity, reader, storage
from resnet_jax.runs.writer import RunFolder

_SAVED = pathlib.Path(__file__).parents[2] / "configs" / "saved.py"
LOG = "log.txt"  # what a cell's process prints


def command(folder: storage.Path, with_cluster: bool = False) -> tuple[str, ...]:
    """Returns the command that trains, or goes on training, the cell of a run folder.

    `with_cluster` says whether it joins the other processes of a cluster's job: where the sweep
    itself is such a job, cells that it starts are not.
    """
    saved = _SAVED if with_cluster else os.path.relpath(_SAVED)
    config = f"{saved}:{folder / 'config.json'}"
    program = (sys.executable, "-m", "experiments.train")
    cluster = () if with_cluster else ("--cluster=none",)
    return (*program, f"--config={config}", f"--workdir={folder}", *cluster)


def job(folder: storage.Path, with_cluster: bool) -> Job:
    """Returns a cell's job; see command()."""
    if with_cluster:  # it starts elsewhere
        folder = folder.absolute()
    return Job(folder.name, command(folder, with_cluster), folder / LOG)


def status(folder: storage.Path) -> dict[str, Any]:
    """Returns the status of a cell's folder, empty where it was never queued."""
    return storage.read_json(folder / "status.json")


def has_ended(folder: storage.Path, cell: Cell) -> bool:
    """Whether nothing is left to do for a cell: it has ended, and the study wants no more steps."""
    if status(folder).get("status") not in reader.ENDED:
        return False
    return storage.read_json(folder / "config.json").get("steps") == cell.config.steps


def refuse_others(workdir: storage.Path, cells: Iterable[Cell]) -> None:
    """Raises UserError where a cell's folder belongs to another config."""
    for cell in cells:
        identity.refuse_other(workdir / cell.name, cell.config.to_dict())


def queue(folder: storage.Path, cell: Cell) -> None:
    """Writes what a cell's process will find: its config and, if new, the status "queued".

    Raises:
      UserError: the folder cannot be written, is another config's, or a process trains in it.
    """
    opened = RunFolder(folder, cell.config.to_dict())
    try:
        if not opened.status():
            opened.set_status("queued", step=0, steps=cell.config.steps, device_seconds=0.0)
    except OSError as e:
        raise UserError(f"{folder} cannot be written: {storage.reason(e)}.") from e
    finally:
        opened.close()


def settle(folder: storage.Path, cell: Cell, code: int, before: dict[str, Any]) -> None:
    """Sees to it that the status says how a cell's process ended, also where it could not.

    Args:
      folder: the cell's.
      cell: the cell.
      code: the process's exit code; below 0 the signal that killed it.
      before: the status when it was started.
    """
    now = status(folder)
    said_itself = now != before
    if code == 0 and now.get("status") in reader.ENDED:
        return
    if said_itself and now.get("status") in ("preempted", "failed"):
        return
    fail(folder, cell, _reason(folder, code))


def fail(folder: storage.Path, cell: Cell, reason: str) -> None:
    """Sets a cell's status to failed; what it has trained stays."""
    try:
        opened = RunFolder(folder, cell.config.to_dict())
        try:
            last = opened.status()
            opened.set_status(
                "failed",
                step=last.get("step", 0),
                steps=cell.config.steps,
                device_seconds=last.get("device_seconds", 0.0),
                reason=reason,
            )
        finally:
            opened.close()
    except (OSError, UserError) as e:  # the disk is full: the message on the screen has to do
        logging.error("%s: status.json could not be written: %s", cell.name, e)


def _reason(folder: storage.Path, code: int) -> str:
    if code < 0:
        memory = " (is the memory enough?)" if -code == signal.SIGKILL else ""
        return f"{signal.Signals(-code).name} killed its process{memory}"
    lines: list[str] = []
    with contextlib.suppress(OSError):
        lines = (storage.read_bytes(folder / LOG) or b"").decode(errors="replace").splitlines()
    said = [line.strip() for line in lines if line.strip() and not line.startswith("---")]
    last = said[-1].removeprefix("error: ") if said else "its process said nothing"
    return last if code else f"its process ended before the run did; its last words: {last}"
