"""The dry run of a sweep: its cells, what is left to do and the estimated time."""

import functools
from collections.abc import Callable, Mapping, Sequence

from absl import logging

from configs import base
from experiments.cli import tables
from experiments.launchers import local
from experiments.launchers.local import Machine
from experiments.study import cell_folders, estimate, ledger
from experiments.study.estimate import Rate, Size
from experiments.study.grid import Cell
from experiments.study.side_by_side import TimedProcesses, TimingFailedError
from resnet_jax import effect
from resnet_jax.errors import RunError, UserError
from resnet_jax.runs import reader, storage
from resnet_jax.runs.progress import show_time

_HEADINGS = ["cell", "depth", "shortcut", "parameters", "mult-adds", "steps", "replicates"]
_HEADINGS += ["done", "estimated time", "device-hours"]
HERE = ("cpu", "gpu", "tpu")  # platforms of this machine, as opposed to a scheduler's
_CALIBRATION_SECONDS = 300  # a step that takes minutes is not timed


def dry_run(
    cells: Sequence[Cell], sizes: Mapping[str, Size], workdir: storage.Path, at_once: int,
    machine: Machine, require_data: Callable[[str, str], None], rate: Rate | None = None,
) -> tables.Parts:  # fmt: skip
    """Returns the plan as a table with notes, cells in the order in which they would start.

    Args:
      cells: the chosen cells of the study.
      sizes: each cell's size, by name.
      workdir: the study's folder, which need not exist.
      at_once: cells at a time.
      machine: where the cells run.
      require_data: raises UserError if cells would not find their data.
      rate: the rate to estimate with; None to measure it.
    """
    missing = [cell for cell in cells if not cell_folders.has_ended(workdir / cell.name, cell)]
    source = [_source(rate)] if rate else []
    if rate is None and machine.platform not in HERE:
        source = ["There is no estimate for other machines; give --rate and --devices."]
    elif rate is None:
        rate, source = _rate(cells, missing, sizes, workdir, at_once, machine)

    compiling = estimate.first_of_programs(missing)
    rows: list[list[str]] = [_HEADINGS]
    durations: dict[bool, list[float]] = {True: [], False: []}  # of pilots, and of cells
    for cell in cells:
        size, status = sizes[cell.name], cell_folders.status(workdir / cell.name)
        times = ["-", "-"]
        if cell in missing and rate:
            seconds = estimate.seconds(
                cell, size, rate, status.get("step", 0), cell.name in compiling
            )
            durations[estimate.is_pilot(cell)].append(seconds)
            times = [show_time(seconds), hours(seconds * rate.devices / 3600)]
        rows.append([*_facts(cell, size), _progress(status, cell), *times])
    notes = [
        f"{cell.name} is an exception: {', '.join(others)}."
        for cell in cells
        # A cell's name has its variant already.
        if (others := [name for name in cell.exceptions if name != cell.config.variant])
    ]
    notes += [f"{sentence}." for sentence in ineffective_settings(cells)]
    notes += _missing_data(missing, require_data)
    side_by_side = f"{at_once} at a time" if at_once > 1 else "one at a time"
    if machine.platform not in HERE:
        side_by_side = f"at most {side_by_side}"
    pilots = sum(map(estimate.is_pilot, cells))
    kinds = (
        f"{pilots} pilots, then {len(cells) - pilots} cells" if pilots else f"{len(cells)} cells"
    )
    notes.append(
        f"{kinds}, {len(missing)} of them left to run, {side_by_side} on {machine.platform}."
    )
    if any(durations.values()) and rate:
        # Cells start when all pilots have ended.
        total = sum(estimate.makespan(each, at_once) for each in durations.values())
        devices = hours(sum(map(sum, durations.values())) * rate.devices / 3600)
        notes.append(f"Estimated total time: {show_time(total)}, {devices} device-hours.")
    return [tables.aligned(rows), "", *notes, *source, "Nothing was started or written."]


def _source(rate: Rate) -> str:
    return f"Times are estimated from mult-adds and {rate.source}."


def _facts(cell: Cell, size: Size) -> list[str]:
    model, steps = cell.config.model, cell.config.steps
    sizes = [f"{number:,}" for number in (size.parameters, size.mult_adds, steps)]
    return [cell.name, str(model.depth), model.shortcut, *sizes, str(cell.config.replicates)]


def hours(number: float) -> str:
    """Returns hours as text."""
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def _progress(status: Mapping[str, object], cell: Cell) -> str:
    if not status:
        return "not started"
    is_unchanged = status["steps"] == cell.config.steps
    if status["status"] in (*reader.ENDED, "queued") and is_unchanged:
        return str(status["status"])
    return f"{status['status']} {ledger.show_step(status)}"


def ineffective_settings(cells: Sequence[Cell]) -> list[str]:
    """Returns a sentence, without full stop, per setting that has no effect in some cells."""
    names: dict[str, list[str]] = {}
    defaults = base.get_config()
    for cell in cells:
        for sentence in effect.without_effect(cell.config, defaults):
            names.setdefault(sentence, []).append(cell.name)
    return [
        f"{'All cells' if len(affected) == len(cells) else ', '.join(affected)}: {sentence}"
        for sentence, affected in names.items()
    ]


def _missing_data(cells: Sequence[Cell], require_data: Callable[[str, str], None]) -> list[str]:
    problems = set()
    for cell in cells:
        try:
            require_data(cell.config.data.name, cell.config.data.dir)
        except UserError as e:
            problems.add(str(e))
    return [f"The data are missing, so the sweep would not start: {e}" for e in problems]


def _rate(
    cells: Sequence[Cell],
    missing: Sequence[Cell],
    sizes: Mapping[str, Size],
    workdir: storage.Path,
    at_once: int,
    machine: Machine,
) -> tuple[Rate | None, list[str]]:
    """Returns the rate of finished cells, else one measured now, and a note on its source."""
    if not missing:
        return None, []
    finished = [reader.read(workdir / cell.name) for cell in cells if cell not in missing]
    rate = estimate.rate_of_finished(sizes, finished)
    if rate is None:
        cheapest = min(missing, key=lambda cell: sizes[cell.name].work)
        try:
            rate = _measured_rate(cheapest, sizes[cheapest.name], at_once, machine)
        except RunError as e:
            return None, [f"There is no estimate: {e}"]
    return rate, [_source(rate)]


def _measured_rate(cell: Cell, size: Size, at_once: int, machine: Machine) -> Rate:
    """Times the step of a cell in `at_once` processes side by side, as the sweep will run them.

    Raises:
      RunError: the step could not be timed.
    """
    logging.info("Timing a training step of %s on this machine ...", cell.name)
    placed = functools.partial(local.placed, machine, at_once=at_once)
    try:
        with TimedProcesses(cell.config, at_once, placed, limit=_CALIBRATION_SECONDS) as processes:
            slowest = processes.wait_until_ready()
            seconds = processes.seconds_per_step()
    except TimingFailedError as e:
        raise RunError(f"the step of {cell.name} could not be timed here ({e}).") from e
    start, compilation = slowest["start_seconds"], slowest["compile_seconds"]
    return Rate(
        mult_adds=size.work / cell.config.steps / seconds,
        seconds_per_layer=start / cell.config.model.depth,
        compile_seconds_per_layer=compilation / cell.config.model.depth,
        source=f"training steps of {cell.name}, timed now on this machine ({seconds:.3g} s per "
        f"step after {start + compilation:.0f} s of compiling); evaluations and checkpoints take "
        "extra time",
        devices=slowest["devices"],
    )
