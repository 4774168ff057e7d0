"""Cells as jobs of a scheduler: submitting and cancelling them."""

import fnmatch
from collections.abc import Sequence

from absl import logging

from experiments.launchers import choice
from experiments.launchers.interface import Job, Queue
from experiments.study import cell_folders
from experiments.study.grid import Cell
from resnet_jax.errors import UserError
from resnet_jax.runs import storage


def submit(
    queue: Queue, workdir: storage.Path, missing: Sequence[Cell], jobs: Sequence[Job]
) -> int:
    """Submits the jobs of cells that are not submitted already; returns the exit code.

    Args:
      queue: the scheduler.
      workdir: the folder of the cells' folders.
      missing: the cells left to run.
      jobs: theirs.
    """
    active = set(queue.active()) & {cell.name for cell in missing}
    for cell in missing:
        if cell.name not in active:
            cell_folders.queue(workdir / cell.name, cell)
    if active:
        logging.info("Already submitted to %s: %s.", queue.name, ", ".join(sorted(active)))
    new = [job for job in jobs if job.name not in active]
    if not new:
        logging.info("There is nothing to submit.")
        return 0
    logging.info("%s", queue.submit(new))
    logging.info("Cells submitted: %d. Add --status or --cancel to the same command to follow or "
                 "cancel them.", len(new))  # fmt: skip
    return 0


def cancel(folders: Sequence[storage.Path], only: str) -> None:
    """Cancels the jobs of the cells in `folders` whose names match `only`.

    Raises:
      UserError: --launcher is no scheduler.
    """
    cancelled = []
    for folder in folders:
        queue = choice.chosen_queue(folder)
        if queue is None:
            raise UserError(
                "--cancel needs --launcher=slurm or --launcher=skypilot; stop a local sweep with "
                "Ctrl-C."
            )
        names = [name for name in queue.active() if fnmatch.fnmatchcase(name, only)]
        if names:
            queue.cancel(names)
        cancelled += names
    shown = ", ".join(cancelled) if cancelled else "no cell was queued or running"
    logging.info("Cancelled: %s.", shown)
