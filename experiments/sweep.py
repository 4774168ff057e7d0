"""Runs a study: every cell of its grid, each as a process of its own.

    python -m experiments.sweep --config=configs/degradation_digits.py \
        --workdir=runs/degradation_digits [--dry_run | --status]

The same command again runs what is missing: completed and diverged cells are done, all others go
on from their checkpoints. --config.base.KEY=VALUE changes a setting for all cells,
--config.grid.model.depth="(20,56)" the grid. Exit codes: 0 all done; 1 a cell failed; 2 a mistake
in the command; 42 stopped, or a cell was, with everything saved.
"""

import fnmatch
import os
import pathlib
import sys
from collections.abc import Mapping, Sequence

import jax
from absl import flags, logging

from experiments import cell_folders, command_line, estimate, ledger, plan, scheduling, study
from experiments.estimate import Size
from experiments.launchers import local
from experiments.launchers.interface import Job
from experiments.overview import Overview
from experiments.study import Cell
from resnet_jax import runs
from resnet_jax.data import sources
from resnet_jax.errors import UserError, check_choice, listing, nearest

_CONFIG = command_line.define_config("The study, as configs/degradation_digits.py.")
_WORKDIR = flags.DEFINE_string("workdir", None, "The study's folder: one run folder a cell.")
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "Print the plan and its cost; start nothing.")
_STATUS = flags.DEFINE_bool("status", False, "Print how far each cell is; start nothing.")
_ONLY = flags.DEFINE_string("only", "*", "Take only cells whose name matches, as 'plain-*'.")
_JOBS = flags.DEFINE_integer(
    "jobs", 0, "Cells at a time; 0: as many as there are cores, or one on GPU and TPU."
)
_LAUNCHER = flags.DEFINE_string("launcher", "local", "What starts the cells: local.")

LAUNCHERS = {"local": local.Local}
_SAVED = pathlib.Path(__file__).parents[1] / "configs" / "saved.py"


def main(argv: Sequence[str]) -> int:
    """Returns the exit code."""
    command_line.no_arguments(argv)
    workdir = pathlib.Path(command_line.required(_WORKDIR))
    check_choice("--launcher", _LAUNCHER.value, LAUNCHERS)
    if _JOBS.value < 0:
        raise UserError(f"--jobs={_JOBS.value} is negative; allowed are 0 and above.")
    # This process only traces shapes: it must not take the devices that its cells need.
    jax.config.update("jax_platforms", "cpu")
    if _STATUS.value:
        print(_status(workdir))
        return 0

    all_cells = study.cells(command_line.required(_CONFIG))
    cells = _matching(all_cells)
    cell_folders.refuse_others(workdir, cells)
    missing = [cell for cell in cells if not cell_folders.has_ended(workdir / cell.name)]
    if not _DRY_RUN.value:
        for cell in missing:
            sources.require(cell.config.data.name, cell.config.data.dir)
    sizes = {cell.name: estimate.size_of(cell) for cell in cells}
    # The longest first, so that none is left running alone at the end.
    for some in (cells, missing):
        some.sort(key=lambda cell: -sizes[cell.name].work)
    platform = local.platform()
    # By the study's size, not by what is left of it: the cores of a cell decide its threads, and
    # these the last digits of its results. A cell that goes on should go on as it began.
    at_once = min(_JOBS.value or local.default_jobs(platform, len(all_cells)), len(all_cells))
    if _DRY_RUN.value:
        print(plan.table(cells, sizes, workdir, at_once, platform))
        return 0

    signals = _run(missing, sizes, workdir, at_once, platform)
    found = [runs.read(workdir / cell.name) for cell in cells]
    print(ledger.table(found))
    return exit_code(found, signals)


def command(folder: pathlib.Path) -> tuple[str, ...]:
    """Returns the command that trains, or goes on training, the cell of a run folder."""
    config = f"{os.path.relpath(_SAVED)}:{folder / 'config.json'}"
    program = (sys.executable, "-m", "experiments.train")
    return (*program, f"--config={config}", f"--workdir={folder}")


def exit_code(found: Sequence[runs.Run], signals: int) -> int:
    """Returns the sweep's exit code, from how its cells ended and how many signals came."""
    statuses = [runs.shown_status(run) for run in found]
    unfinished = [status for status in statuses if status not in (*runs.ENDED, "failed")]
    if unfinished and signals < 2:
        # Also where a cell failed: a scheduler that starts the sweep again tries that one, too.
        logging.info("Not all cells are done; the same command goes on with them.")
        return command_line.PREEMPTED
    return 0 if all(status in runs.ENDED for status in statuses) else 1


def _run(
    missing: Sequence[Cell],
    sizes: Mapping[str, Size],
    workdir: pathlib.Path,
    at_once: int,
    platform: str,
) -> int:
    """Runs cells to their ends and returns how many signals came."""
    for cell in missing:
        cell_folders.queue(workdir / cell.name, cell)
    logging.info("%s: %d cells to run, %d at a time on %s.",
                 workdir, len(missing), at_once, platform)  # fmt: skip
    overview = Overview(missing, sizes, workdir, at_once)
    jobs = [
        Job(cell.name, command(workdir / cell.name), workdir / cell.name / cell_folders.LOG)
        for cell in missing
    ]
    launcher = LAUNCHERS[_LAUNCHER.value](platform, at_once)
    try:
        return scheduling.run(jobs, at_once, launcher, overview)
    finally:
        overview.close()


def _matching(cells: list[Cell]) -> list[Cell]:
    chosen = [cell for cell in cells if fnmatch.fnmatchcase(cell.name, _ONLY.value)]
    if not chosen:
        names = [cell.name for cell in cells]
        raise UserError(
            f"--only={_ONLY.value} matches no cell; there are {listing(names)}"
            f"{nearest(_ONLY.value, names)}."
        )
    return chosen


def _status(workdir: pathlib.Path) -> str:
    expected = []
    if _CONFIG.value is not None:
        expected = [cell.name for cell in _matching(study.cells(_CONFIG.value))]
    found = runs.find([workdir]) if workdir.is_dir() or not expected else []
    return ledger.table(
        [run for run in found if fnmatch.fnmatchcase(run.name, _ONLY.value)], expected
    )


if __name__ == "__main__":
    command_line.run(main)
