"""Runs a study: every cell of its grid, each in its own process.

    python -m experiments.sweep --config=configs/degradation_digits.py \
        --workdir=runs/degradation_digits [--dry_run | --status | --cancel]

The same command resumes the study: completed and diverged cells are done, all others continue from
their last checkpoints. --config.base.KEY=VALUE changes a setting for all cells,
--config.grid.model.depth="(20,56)" changes the grid. Exit codes: 0 all cells are done or submitted
to a scheduler; 1 a cell failed; 2 a mistake in the command; 42 the sweep or a cell was stopped,
with everything saved.

--launcher=slurm submits the missing cells to Slurm as one array, --launcher=skypilot submits one
job per cell to SkyPilot; both return at once and skip cells that are already submitted. --status
then shows the scheduler's state of each cell, and --cancel cancels the jobs.
"""

import fnmatch
from collections.abc import Mapping, Sequence

import jax
from absl import flags, logging

from experiments.cli import command_line, config_flag, tables
from experiments.launchers import choice, local
from experiments.launchers.interface import Job, Queue
from experiments.launchers.local import Machine
from experiments.study import cell_folders, estimate, grid, ledger, packing, plan, scheduling
from experiments.study.estimate import Size
from experiments.study.grid import Cell
from experiments.study.overview import Overview
from resnet_jax.data import sources
from resnet_jax.errors import UserError, listing, nearest
from resnet_jax.runs import reader, storage

_CONFIG = config_flag.define("The study, for example configs/degradation_digits.py.", is_study=True)
_WORKDIR = flags.DEFINE_string("workdir", None, "The study's folder, with one run folder per cell.")
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "Print the plan and its cost; start nothing.")
_STATUS = flags.DEFINE_bool("status", False, "Print the progress of each cell; start nothing.")
_ONLY = flags.DEFINE_string("only", "*", "Only cells whose names match, for example 'plain-*'.")
_CANCEL = flags.DEFINE_bool("cancel", False, "Cancel the cells' jobs in the scheduler's queue.")
_RATE = flags.DEFINE_float(
    "rate", None, "For --dry_run: images per second at which one device trains ResNet-50 at 224 "
    "pixels, instead of timing this machine.",
)  # fmt: skip
_DEVICES = flags.DEFINE_integer("devices", None, "For --rate: devices per cell.", lower_bound=1)


def main(argv: Sequence[str]) -> int:
    """Returns the exit code."""
    command_line.no_arguments(argv)
    workdir = storage.locate(command_line.required(_WORKDIR), "--workdir")
    queue, jobs_at_once = choice.chosen_queue(workdir), choice.JOBS.value
    _check_rate()
    # This process only traces shapes and must not occupy the devices that its cells need.
    jax.config.update("jax_platforms", "cpu")
    if _CANCEL.value:
        return _cancel(queue)
    if _STATUS.value:
        tables.print_parts(_status(workdir, queue))
        return 0

    all_cells = grid.cells(command_line.required(_CONFIG))
    cells = _matching(all_cells)
    cell_folders.refuse_others(workdir, cells)
    missing = [cell for cell in cells if not cell_folders.has_ended(workdir / cell.name, cell)]
    require_data = queue.require_data if queue else sources.require
    if not _DRY_RUN.value:
        for cell in missing:
            require_data(cell.config.data.name, cell.config.data.dir)
    sizes = {cell.name: estimate.size_of(cell) for cell in cells}
    # The longest cells start first, so that no long one runs alone at the end.
    for unsorted in (cells, missing):
        unsorted.sort(key=lambda cell: -sizes[cell.name].work)
    machine = Machine(queue.name) if queue else local.machine()
    at_once = jobs_at_once
    if not at_once:
        # With a given rate nothing is timed.
        timed = [] if _RATE.value else missing
        at_once = len(all_cells) if queue else packing.default_jobs(machine, all_cells, timed)
    at_once = min(at_once, len(all_cells))
    jobs = [
        cell_folders.job(workdir / cell.name, with_cluster=queue is not None) for cell in missing
    ]
    if _DRY_RUN.value:
        rate = estimate.given_rate(_RATE.value, _DEVICES.value or 1) if _RATE.value else None
        tables.print_parts(
            plan.dry_run(cells, sizes, workdir, at_once, machine, require_data, rate)
        )
        if queue and jobs:
            print(f"\n{queue.script(jobs)}", end="")
        return 0
    for sentence in plan.ineffective_settings(cells):
        logging.info("%s.", sentence)
    if queue:
        return _submit(queue, workdir, missing, jobs)

    signals = _run(missing, jobs, sizes, workdir, at_once, machine)
    runs = [reader.read(workdir / cell.name) for cell in cells]
    tables.print_parts(ledger.status_table(runs))
    return exit_code(runs, signals)


def exit_code(runs: Sequence[reader.Run], signals: int) -> int:
    """Returns the sweep's exit code, given the cells' runs and the number of signals received."""
    statuses = [reader.shown_status(run) for run in runs]
    unfinished = [status for status in statuses if status not in (*reader.ENDED, "failed")]
    if unfinished and signals < 2:
        # Even if another cell failed: a scheduler that restarts the sweep retries that one as well.
        logging.info("Not all cells are done; the same command resumes them.")
        return command_line.PREEMPTED
    return 0 if all(status in reader.ENDED for status in statuses) else 1


def _run(
    missing: Sequence[Cell],
    jobs: Sequence[Job],
    sizes: Mapping[str, Size],
    workdir: storage.Path,
    at_once: int,
    machine: Machine,
) -> int:
    """Runs cells until they end; returns the number of signals received."""
    for cell in missing:
        cell_folders.queue(workdir / cell.name, cell)
    logging.info("%s: %d cells to run, %d at a time on %s.",
                 workdir, len(missing), at_once, machine.platform)  # fmt: skip
    overview = Overview(missing, sizes, workdir, at_once)
    try:
        return scheduling.run_jobs(jobs, at_once, local.Local(machine, at_once), overview)
    finally:
        overview.close()


def _check_rate() -> None:
    """Raises UserError if --rate or --devices would have no effect or is out of range."""
    if _RATE.value is not None and _RATE.value <= 0:
        raise UserError(f"--rate={_RATE.value:g} is not allowed; it is images per second, above 0.")
    if _RATE.value is not None and not _DRY_RUN.value:
        raise UserError("--rate has an effect only with --dry_run.")
    if _DEVICES.value is not None and _RATE.value is None:
        raise UserError("--devices has an effect only with --rate.")


def _matching(cells: list[Cell]) -> list[Cell]:
    chosen = [cell for cell in cells if fnmatch.fnmatchcase(cell.name, _ONLY.value)]
    if not chosen:
        names = [cell.name for cell in cells]
        raise UserError(
            f"--only={_ONLY.value} matches no cell; the cells are {listing(names)}"
            f"{nearest(_ONLY.value, names)}."
        )
    return chosen


def _submit(
    queue: Queue, workdir: storage.Path, missing: Sequence[Cell], jobs: Sequence[Job]
) -> int:
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


def _cancel(queue: Queue | None) -> int:
    if queue is None:
        raise UserError(
            "--cancel needs --launcher=slurm or --launcher=skypilot; stop a local sweep with "
            "Ctrl-C."
        )
    chosen = [name for name in queue.active() if fnmatch.fnmatchcase(name, _ONLY.value)]
    if chosen:
        queue.cancel(chosen)
    logging.info("Cancelled: %s.", ", ".join(chosen) if chosen else "no cell was queued or running")
    return 0


def _status(workdir: storage.Path, queue: Queue | None) -> tables.Parts:
    expected = []
    if _CONFIG.value is not None:
        expected = [cell.name for cell in _matching(grid.cells(_CONFIG.value))]
    runs = reader.find([workdir]) if not expected or storage.is_dir(workdir) else []
    return ledger.status_table(
        [run for run in runs if fnmatch.fnmatchcase(run.name, _ONLY.value)],
        expected,
        queue.states() if queue else None,
    )


if __name__ == "__main__":
    command_line.run(main)
