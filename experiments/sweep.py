"""Runs a study: every cell of its grid, each as a process of its own.

    python -m experiments.sweep --config=configs/degradation_digits.py \
        --workdir=runs/degradation_digits [--dry_run | --status | --cancel]

The same command again runs what is missing: completed and diverged cells are done, all others go
on from their checkpoints. --config.base.KEY=VALUE changes a setting for all cells,
--config.grid.model.depth="(20,56)" the grid. Exit codes: 0 all done, or handed to a scheduler; 1 a
cell failed; 2 a mistake in the command; 42 stopped, or a cell was, with everything saved.

--launcher=slurm hands the missing cells to Slurm as one array and returns, --launcher=skypilot to
SkyPilot as a job each; those that it has already are left alone. --status then tells what it says
of each, --cancel takes them out.
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

_CONFIG = config_flag.define("The study, as configs/degradation_digits.py.", is_study=True)
_WORKDIR = flags.DEFINE_string("workdir", None, "The study's folder: one run folder a cell.")
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "Print the plan and its cost; start nothing.")
_STATUS = flags.DEFINE_bool("status", False, "Print how far each cell is; start nothing.")
_ONLY = flags.DEFINE_string("only", "*", "Take only cells whose name matches, as 'plain-*'.")
_CANCEL = flags.DEFINE_bool("cancel", False, "Take the cells out of the scheduler's queue.")
_RATE = flags.DEFINE_float(
    "rate", None, "For --dry_run: images a second that one device trains of ResNet-50 at 224 "
    "pixels, instead of timing this machine.",
)  # fmt: skip
_DEVICES = flags.DEFINE_integer("devices", None, "For --rate: devices a cell.", lower_bound=1)


def main(argv: Sequence[str]) -> int:
    """Returns the exit code."""
    command_line.no_arguments(argv)
    workdir = storage.locate(command_line.required(_WORKDIR), "--workdir")
    queue, jobs_at_once = choice.queue(workdir), choice.JOBS.value
    _check_reckoning()
    # This process only traces shapes: it must not take the devices that its cells need.
    jax.config.update("jax_platforms", "cpu")
    if _CANCEL.value:
        return _cancel(queue)
    if _STATUS.value:
        tables.show(_status(workdir, queue))
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
    # The longest first, so that none is left running alone at the end.
    for some in (cells, missing):
        some.sort(key=lambda cell: -sizes[cell.name].work)
    on = Machine(queue.name) if queue else local.machine()
    at_once = jobs_at_once
    if not at_once:
        # Where a rate is given nothing is timed.
        timed = [] if _RATE.value else missing
        at_once = len(all_cells) if queue else packing.default_jobs(on, all_cells, timed)
    at_once = min(at_once, len(all_cells))
    jobs = [
        cell_folders.job(workdir / cell.name, with_cluster=queue is not None) for cell in missing
    ]
    if _DRY_RUN.value:
        given = estimate.given_rate(_RATE.value, _DEVICES.value or 1) if _RATE.value else None
        tables.show(plan.table(cells, sizes, workdir, at_once, on, require_data, given))
        if queue and jobs:
            print(f"\n{queue.script(jobs)}", end="")
        return 0
    for sentence in plan.without_effect(cells):
        logging.info("%s.", sentence)
    if queue:
        return _submit(queue, workdir, missing, jobs)

    signals = _run(missing, jobs, sizes, workdir, at_once, on)
    found = [reader.read(workdir / cell.name) for cell in cells]
    tables.show(ledger.table(found))
    return exit_code(found, signals)


def exit_code(found: Sequence[reader.Run], signals: int) -> int:
    """Returns the sweep's exit code, from how its cells ended and how many signals came."""
    statuses = [reader.shown_status(run) for run in found]
    unfinished = [status for status in statuses if status not in (*reader.ENDED, "failed")]
    if unfinished and signals < 2:
        # Also where a cell failed: a scheduler that starts the sweep again tries that one, too.
        logging.info("Not all cells are done; the same command goes on with them.")
        return command_line.PREEMPTED
    return 0 if all(status in reader.ENDED for status in statuses) else 1


def _run(
    missing: Sequence[Cell],
    jobs: Sequence[Job],
    sizes: Mapping[str, Size],
    workdir: storage.Path,
    at_once: int,
    on: Machine,
) -> int:
    """Runs cells to their ends and returns how many signals came."""
    for cell in missing:
        cell_folders.queue(workdir / cell.name, cell)
    logging.info("%s: %d cells to run, %d at a time on %s.",
                 workdir, len(missing), at_once, on.platform)  # fmt: skip
    overview = Overview(missing, sizes, workdir, at_once)
    try:
        return scheduling.run(jobs, at_once, local.Local(on, at_once), overview)
    finally:
        overview.close()


def _check_reckoning() -> None:
    """Raises UserError where --rate and --devices are given in vain."""
    if _RATE.value is not None and _RATE.value <= 0:
        raise UserError(f"--rate={_RATE.value:g} is not above 0; it is in images a second.")
    if _RATE.value is not None and not _DRY_RUN.value:
        raise UserError("--rate is for --dry_run, which reckons with it.")
    if _DEVICES.value is not None and _RATE.value is None:
        raise UserError("--devices is for --rate: what that many devices would take.")


def _matching(cells: list[Cell]) -> list[Cell]:
    chosen = [cell for cell in cells if fnmatch.fnmatchcase(cell.name, _ONLY.value)]
    if not chosen:
        names = [cell.name for cell in cells]
        raise UserError(
            f"--only={_ONLY.value} matches no cell; there are {listing(names)}"
            f"{nearest(_ONLY.value, names)}."
        )
    return chosen


def _submit(
    queue: Queue, workdir: storage.Path, missing: Sequence[Cell], jobs: Sequence[Job]
) -> int:
    has = set(queue.active()) & {cell.name for cell in missing}
    for cell in missing:
        if cell.name not in has:
            cell_folders.queue(workdir / cell.name, cell)
    if has:
        logging.info("%s has already: %s.", queue.name, listing(sorted(has)))
    new = [job for job in jobs if job.name not in has]
    if not new:
        logging.info("There is nothing to submit.")
        return 0
    logging.info("%s", queue.submit(new))
    logging.info("%d cells are submitted; the same command with --status or --cancel follows or "
                 "ends them.", len(new))  # fmt: skip
    return 0


def _cancel(queue: Queue | None) -> int:
    if queue is None:
        raise UserError(
            "--cancel is for a scheduler (--launcher=slurm or skypilot); here, press Ctrl-C."
        )
    chosen = [name for name in queue.active() if fnmatch.fnmatchcase(name, _ONLY.value)]
    if chosen:
        queue.cancel(chosen)
    logging.info("Cancelled: %s.", listing(chosen) if chosen else "none, for none was there")
    return 0


def _status(workdir: storage.Path, queue: Queue | None) -> tables.Parts:
    expected = []
    if _CONFIG.value is not None:
        expected = [cell.name for cell in _matching(grid.cells(_CONFIG.value))]
    found = reader.find([workdir]) if not expected or storage.is_dir(workdir) else []
    return ledger.table(
        [run for run in found if fnmatch.fnmatchcase(run.name, _ONLY.value)],
        expected,
        queue.states() if queue else None,
    )


if __name__ == "__main__":
    command_line.run(main)
