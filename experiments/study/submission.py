"""Cells as jobs of a scheduler: submitting and cancelling them."""

import fnmatch
import sys
from collections.abc import Collection, Mapping, Sequence

from absl import logging

from experiments.launchers import choice
from experiments.launchers.interface import FOLLOW_UP, Job, Queue
from experiments.study import cell_folders
from experiments.study.grid import Cell
from resnet_jax.errors import RunError, UserError
from resnet_jax.runs import storage


def submit(
    queue: Queue, workdir: storage.Path, missing: Sequence[Cell], jobs: Sequence[Job]
) -> int:
    """Submits the jobs of cells that do not run and will not run; returns the exit code.

    With --only_new it leaves out every cell that was ever submitted.

    Args:
      queue: the scheduler.
      workdir: the folder of the cells' folders.
      missing: the cells left to run.
      jobs: theirs.
    """
    before = queue.states() if choice.ONLY_NEW.value else queue.active()
    submitted = set(before) & {cell.name for cell in missing}
    for cell in missing:
        if cell.name not in submitted:
            cell_folders.queue(workdir / cell.name, cell)
    if submitted:
        logging.info("Already submitted to %s: %s.", queue.name, ", ".join(sorted(submitted)))
    new = [job for job in jobs if job.name not in submitted]
    if not new:
        logging.info("There is nothing to submit.")
        return 0
    logging.info("%s", queue.submit(new))
    logging.info("Cells submitted: %d. Add --status or --cancel to the same command to follow or "
                 "cancel them.", len(new))  # fmt: skip
    return 0


def submit_sweep_after(queue: Queue, pilots: Collection[str]) -> str:
    """Lets the scheduler repeat this command when pilots have ended.

    Args:
      queue: that of the pilots.
      pilots: their names.

    Returns:
      A sentence without its full stop; empty if the scheduler cannot do so or no pilot is queued.
    """
    # Pilots that fail must not be submitted for ever.
    flag = f"--{choice.ONLY_NEW.name}"
    command = [sys.executable, *(word for word in sys.orig_argv[1:] if word != flag), flag]
    try:
        number = queue.submit_after(pilots, command)
    except RunError as e:  # the pilots are submitted, and the user can repeat the command
        logging.warning("The job that would submit the cells could not be submitted: %s", e)
        return ""
    return f"{queue.name.capitalize()}'s job {number} submits them then" if number else ""


def follow_up_note(states: Mapping[str, str]) -> list[str]:
    """Returns a line with the state of the newest job that repeats the sweep, if there is one.

    Args:
      states: of the pilots' queue.
    """
    jobs = [state for name, state in states.items() if name.startswith(FOLLOW_UP)]
    return [f"The sweep's next stage is started by job {jobs[-1]}."] if jobs else []


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
