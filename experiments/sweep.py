"""Runs a study: every cell of its grid, each in its own process.

    python -m experiments.sweep --config=configs/degradation_digits.py \
        --workdir=runs/degradation_digits [--dry_run | --status | --cancel]

The same command resumes the study: completed and diverged cells are done, all others continue from
their last checkpoints. --config.base.KEY=VALUE changes a setting for all cells,
--config.grid.model.depth="(20,56)" changes the grid. Exit codes: 0 all cells are done or submitted
to a scheduler; 1 a cell failed; 2 a mistake in the command; 42 the sweep or a cell was stopped,
with everything saved.

--dry_run --target=v5e:16x16 compiles every cell for absent chips, and says whether it fits and the
least that it takes there (experiments/pods/target.py has the targets).

--part=I/N runs every N-th cell: for N machines that run one study together. --commands prints a
command per cell: for hosts that train each cell together, one cell after another (docs/tpu.md).

--launcher=slurm submits the missing cells to Slurm as one array, --launcher=skypilot submits one
job per cell to SkyPilot; both return at once and skip cells that are already submitted. --status
then shows the scheduler's state of each cell, and --cancel cancels the jobs.
"""

import dataclasses
import fnmatch
from collections.abc import Collection, Iterable, Mapping, Sequence

import jax
from absl import flags, logging

from experiments.cli import command_line, config_flag, tables
from experiments.launchers import choice, local
from experiments.launchers.interface import Job, in_a_checkout
from experiments.launchers.local import Machine
from experiments.pods import target
from experiments.study import (
    cell_folders,
    estimate,
    grid,
    ledger,
    named_claims,
    on_target,
    packing,
    plan,
    scheduling,
    submission,
    tuning,
)
from experiments.study.candidates import Tuning
from experiments.study.estimate import Size
from experiments.study.grid import Cell
from experiments.study.overview import Overview
from resnet_jax import pretrained
from resnet_jax.data import sources
from resnet_jax.errors import UserError
from resnet_jax.runs import reader, storage

_CONFIG = config_flag.define("The study, for example configs/degradation_digits.py.", is_study=True)
_WORKDIR = flags.DEFINE_string("workdir", None, "The study's folder, with one run folder per cell.")
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "Print the plan and its cost; start nothing.")
_STATUS = flags.DEFINE_bool("status", False, "Print the progress of each cell; start nothing.")
_ONLY = flags.DEFINE_string("only", "*", "Only cells whose names match, for example 'plain-*'.")
_EXTEND = flags.DEFINE_bool(
    "extend", False, "If a cell's best candidate is the lowest or highest, try further ones "
    "(docs/tuning.md)."
)  # fmt: skip
_CANCEL = flags.DEFINE_bool("cancel", False, "Cancel the cells' jobs in the scheduler's queue.")
_RATE = flags.DEFINE_float(
    "rate", None, "For --dry_run: images per second at which one device trains ResNet-50 at 224 "
    "pixels, instead of timing this machine.",
)  # fmt: skip
_SHARE = flags.DEFINE_float(
    "share", 0.5, "For --dry_run with --target: the share of the bound's speed that runs reach."
)
_PRICE = flags.DEFINE_float(
    "price", 0.0, "For --dry_run with --target: the price of a chip-hour.", lower_bound=0.0
)
_COMMANDS = flags.DEFINE_bool(
    "commands", False, "Queue the missing cells, print a command for each and start nothing: for a "
    "slice or cluster whose hosts all run the same command."
)  # fmt: skip
_PART = flags.DEFINE_string(
    "part", None, "I/N: only every N-th cell, from the I-th (0 is the first), for N machines that "
    "run one study together."
)  # fmt: skip
_DEVICES = flags.DEFINE_integer("devices", None, "For --rate: devices per cell.", lower_bound=1)


def main(argv: Sequence[str]) -> int:
    """Returns the exit code."""
    command_line.no_arguments(argv)
    workdir = storage.locate(command_line.required(_WORKDIR), "--workdir")
    queue = choice.chosen_queue(workdir)  # refuses flags of another launcher
    if queue and _COMMANDS.value:
        raise UserError(f"--commands has no effect with --launcher={queue.name}.")
    _check_rate()
    # This process only traces shapes and must not occupy the devices that its cells need.
    jax.config.update("jax_platforms", "cpu")
    if _CANCEL.value:
        submission.cancel(_stages(workdir), _ONLY.value)
        return 0
    if _STATUS.value:
        tables.print_parts(_status(workdir))
        return 0

    study = command_line.required(_CONFIG)
    tune, all_cells = tuning.of_study(study), grid.cells(study)
    named_claims.of_study(study)  # refuses unknown ones
    cells = _chosen(all_cells)
    if tune is None:
        if _EXTEND.value:
            raise UserError("--extend has an effect only if the study has a part tune.")
        return _stage(workdir, cells, all_cells)
    return _tune_and_run(tune, workdir, cells, all_cells)


def _tune_and_run(
    tune: Tuning, workdir: storage.Path, cells: Sequence[Cell], all_cells: Sequence[Cell]
) -> int:
    """Runs the pilots of `cells`, then each cell at its best candidate; returns the exit code."""
    tune = tune.recorded(workdir)
    if _DRY_RUN.value:
        if _EXTEND.value:
            tune = tuning.extended(tune, cells, workdir)
        shown = [
            dataclasses.replace(pilot, name=f"{reader.PILOTS}/{pilot.name}")
            for pilot in _pilots(tune, cells)
        ]
        chosen = {cell.name: tuning.chosen(tune, cell, workdir) for cell in cells}
        planned = [*shown, *(chosen[cell.name] or cell for cell in cells)]
        waiting = [name for name, cell in chosen.items() if cell is None]
        return _stage(workdir, planned, [*shown, *all_cells], waiting)
    tune, code = _run_pilots(tune, workdir, cells)
    if code == command_line.PREEMPTED:
        return code
    ready = list(filter(None, (tuning.chosen(tune, cell, workdir) for cell in cells)))
    if len(ready) < len(cells):
        queue = choice.chosen_queue(workdir / reader.PILOTS)
        names = [pilot.name for pilot in _pilots(tune, cells)]
        then = submission.submit_sweep_after(queue, names) if queue else ""
        logging.info("Cells that wait for their pilots to end: %d. %s.", len(cells) - len(ready),
                     then or "The same command goes on then")  # fmt: skip
    return max(code, _stage(workdir, ready, all_cells)) if ready else code


def _run_pilots(tune: Tuning, workdir: storage.Path, cells: Sequence[Cell]) -> tuple[Tuning, int]:
    """Runs the pilots of `cells`, with --extend until each best candidate is inside its axes.

    Returns:
      The tuning with all candidates, and the exit code.
    """
    pilots = _pilots(tune, cells)
    code = _stage(workdir / reader.PILOTS, pilots, pilots)
    tune.write(workdir)
    while _EXTEND.value and code != command_line.PREEMPTED:
        longer = tuning.extended(tune, cells, workdir)
        if longer == tune:
            break
        # Recorded before they are trained: any later command has to know them.
        longer.write(workdir)
        known = {pilot.name for pilot in _pilots(tune, cells)}
        new = [pilot for pilot in _pilots(longer, cells) if pilot.name not in known]
        code = max(code, _stage(workdir / reader.PILOTS, new, pilots))
        tune = longer
    return tune, code


def _pilots(tune: Tuning, cells: Iterable[Cell]) -> list[Cell]:
    return [pilot for cell in cells for pilot in tuning.pilots(tune, cell)]


def _stage(
    workdir: storage.Path,
    cells: Sequence[Cell],
    all_cells: Sequence[Cell],
    waiting: Collection[str] = (),
) -> int:
    """Plans, submits or runs `cells`, whose folders are in `workdir`.

    Args:
      workdir: the study's folder, or that of its pilots.
      cells: those to plan or run.
      all_cells: of the study, which decide how many run at a time.
      waiting: names of cells that are planned but cannot be submitted before their pilots end.

    Returns:
      The exit code.
    """
    queue = choice.chosen_queue(workdir)
    # The values of a cell that waits are not chosen yet.
    cell_folders.refuse_others(workdir, [cell for cell in cells if cell.name not in waiting])
    missing = [cell for cell in cells if not cell_folders.has_ended(workdir / cell.name, cell)]
    require_data = queue.require_data if queue else sources.require
    if not (_DRY_RUN.value or _COMMANDS.value):  # the commands' hosts have the data
        for cell in missing:
            require_data(cell.config.data.name, cell.config.data.dir)
            pretrained.require(cell.config, workdir / cell.name)
    if _DRY_RUN.value and target.TARGET.value:
        chips = target.parse(target.TARGET.value)
        tables.print_parts(on_target.dry_run(missing, chips, _SHARE.value, _PRICE.value))
        return 0
    sizes = {cell.name: estimate.size_of(cell) for cell in cells}
    cells, missing = (estimate.start_order(each, sizes) for each in (cells, missing))
    if _COMMANDS.value and not _DRY_RUN.value:
        _record_claims(workdir)
        for cell in missing:
            cell_folders.queue(workdir / cell.name, cell)
            print(in_a_checkout(cell_folders.job(workdir / cell.name, with_cluster=True)))
        return 0
    machine = Machine(queue.name) if queue else local.machine()
    at_once = choice.JOBS.value
    packing.refuse_shared_chips(machine, at_once)
    if not at_once:
        # With a given rate nothing is timed.
        timed = [] if _RATE.value else missing
        at_once = len(all_cells) if queue else packing.default_jobs(machine, all_cells, timed)
    at_once = min(at_once, len(all_cells))
    jobs = [
        cell_folders.job(workdir / cell.name, with_cluster=queue is not None)
        for cell in missing
        if cell.name not in waiting
    ]
    if _DRY_RUN.value:
        rate = estimate.given_rate(_RATE.value, _DEVICES.value or 1) if _RATE.value else None
        tables.print_parts(
            plan.dry_run(cells, sizes, workdir, at_once, machine, require_data, rate)
        )
        for folder in dict.fromkeys(job.log.parent.parent for job in jobs):
            # Pilots and cells are submitted by themselves.
            if queue := choice.chosen_queue(folder):
                own = [job for job in jobs if job.log.parent.parent == folder]
                print(f"\n{queue.script(own)}", end="")
        return 0
    for sentence in plan.ineffective_settings(cells):
        logging.info("%s.", sentence)
    _record_claims(workdir)
    if queue:
        return submission.submit(queue, workdir, missing, jobs)

    signals = _run(missing, jobs, sizes, workdir, at_once, machine)
    runs = [reader.read(workdir / cell.name) for cell in cells]
    tables.print_parts(ledger.status_table(runs))
    return exit_code(runs, signals)


def _record_claims(workdir: storage.Path) -> None:
    """Records the claims that the study names; `workdir` may be that of its pilots."""
    folder = workdir.parent if workdir.name == reader.PILOTS else workdir
    named_claims.record(folder, named_claims.of_study(_CONFIG.value))


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
    if target.TARGET.value and not _DRY_RUN.value:
        raise UserError("--target has an effect only with --dry_run.")
    if target.TARGET.value and _RATE.value is not None:
        raise UserError("Give either --target or --rate.")
    for flag in (_SHARE, _PRICE):
        if flag.present and not target.TARGET.value:
            raise UserError(f"--{flag.name} has an effect only with --target.")
    if not 0 < _SHARE.value <= 1:
        raise UserError(f"--share={_SHARE.value:g} is not allowed; it is above 0 and at most 1.")


def _chosen(cells: list[Cell]) -> list[Cell]:
    """Returns the cells that --only and --part choose."""
    chosen = grid.matching(cells, _ONLY.value)
    if _PART.value is None:
        return chosen
    if _EXTEND.value:
        raise UserError(
            "--extend needs the pilots of all cells: give it without --part once all parts are "
            "done."
        )
    return grid.part_of(chosen, _PART.value)


def _stages(workdir: storage.Path) -> list[storage.Path]:
    """Returns the folders of a study that hold runs: that of the pilots, if any, and its own."""
    pilots = workdir / reader.PILOTS
    return [pilots, workdir] if storage.is_dir(pilots) else [workdir]


def _status(workdir: storage.Path) -> tables.Parts:
    names: dict[storage.Path, list[str]] = {}  # the runs that the study wants in each folder
    if study := _CONFIG.value:
        cells, tune = _chosen(grid.cells(study)), tuning.of_study(study)
        if tune:
            pilots = _pilots(tune.recorded(workdir), cells)
            names[workdir / reader.PILOTS] = [pilot.name for pilot in pilots]
        names[workdir] = [cell.name for cell in cells]
    parts: list[tables.RenderableType] = []
    folders = [*names] or _stages(workdir)
    for folder in folders:
        queue, expected = choice.chosen_queue(folder), names.get(folder, [])
        states = queue.states() if queue else None
        is_begun = any(storage.is_dir(folder / name) for name in expected)
        found = reader.find([folder]) if is_begun or not expected else []
        kind = "Pilots" if folder.name == reader.PILOTS else "Cells"
        parts += ["", f"{kind}, {folder}:"] if len(folders) > 1 else []
        parts += ledger.status_table(
            [
                run
                for run in found
                if run.name in expected or fnmatch.fnmatchcase(run.name, _ONLY.value)
            ],
            expected,
            states,
        )
        parts += submission.follow_up_note(states or {})
    return parts


if __name__ == "__main__":
    command_line.run(main)
