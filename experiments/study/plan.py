"""What a sweep would do and how long that would take; nothing is started or written."""

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
from experiments.study.side_by_side import Group, GroupFailedError
from resnet_jax import settings
from resnet_jax.errors import RunError, UserError
from resnet_jax.runs import reader, storage
from resnet_jax.runs.progress import show_time

_HEADINGS = ["cell", "depth", "shortcut", "parameters", "mult-adds", "steps", "replicates"]
_HEADINGS += ["done", "estimated time", "device-hours"]
HERE = ("cpu", "gpu", "tpu")  # what cells run on where no scheduler has them
_CALIBRATION_SECONDS = 300  # a step that takes minutes is not worth waiting for


def table(
    cells: Sequence[Cell], sizes: Mapping[str, Size], workdir: storage.Path, at_once: int,
    on: Machine, require_data: Callable[[str, str], None], rate: Rate | None = None,
) -> tables.Parts:  # fmt: skip
    """Returns the plan for people, cells in the order in which they would start.

    Args:
      cells: those of the study that are meant.
      sizes: of each, by name.
      workdir: the study's folder, which need not exist.
      at_once: cells at a time.
      on: what they run on.
      require_data: raises UserError where cells would not find their data.
      rate: what is to be reckoned with; none for one that is measured.
    """
    missing = [cell for cell in cells if not cell_folders.has_ended(workdir / cell.name, cell)]
    words = [f"It is an estimate, by mult-adds, from {rate.source}."] if rate else []
    if rate is None and on.platform not in HERE:
        words = ["There is no estimate, for it runs elsewhere: --rate and --devices give one."]
    elif rate is None:
        rate, words = _rate(cells, missing, sizes, workdir, at_once, on)

    rows, durations = [_HEADINGS], []
    for cell in cells:
        size, status = sizes[cell.name], cell_folders.status(workdir / cell.name)
        estimated = ["-", "-"]
        if cell in missing and rate:
            seconds = estimate.seconds(cell, size, rate, status.get("step", 0))
            durations.append(seconds)
            estimated = [show_time(seconds), _hours(seconds * rate.devices)]
        rows.append([*_about(cell, size), _done(status, cell), *estimated])
    lines = [
        f"{cell.name} is an exception: {', '.join(cell.exceptions)}."
        for cell in cells
        if cell.exceptions
    ]
    lines += [f"{sentence}." for sentence in without_effect(cells)]
    lines += _absent_data(missing, require_data)
    side_by_side = f"{at_once} at a time" if at_once > 1 else "one at a time"
    if on.platform not in HERE:
        side_by_side = f"at most {side_by_side}"
    lines.append(
        f"{len(cells)} cells, {len(missing)} of them left to run, {side_by_side} on {on.platform}."
    )
    if durations and rate:
        total = show_time(estimate.makespan(durations, at_once))
        hours = _hours(sum(durations) * rate.devices)
        lines.append(f"Estimated time in all: {total}, {hours} device-hours.")
    return [tables.aligned(rows), "", *lines, *words, "Nothing was started or written."]


def _about(cell: Cell, size: Size) -> list[str]:
    model, steps = cell.config.model, cell.config.steps
    sizes = [f"{number:,}" for number in (size.parameters, size.mult_adds, steps)]
    return [cell.name, str(model.depth), model.shortcut, *sizes, str(cell.config.replicates)]


def _hours(seconds: float) -> str:
    hours = seconds / 3600
    return f"{hours:,.0f}" if hours >= 100 else f"{hours:.3g}"


def _done(status: Mapping[str, object], cell: Cell) -> str:
    if not status:
        return "not started"
    has_its_length = status["steps"] == cell.config.steps
    if status["status"] in (*reader.ENDED, "queued") and has_its_length:
        return str(status["status"])
    return f"{status['status']} {ledger.show_step(status)}"


def without_effect(cells: Sequence[Cell]) -> list[str]:
    """Returns a sentence, without its full stop, on each setting that has no effect in some cells.

    Args:
      cells: those of the study that are meant.
    """
    names: dict[str, list[str]] = {}
    defaults = base.get_config()
    for cell in cells:
        for sentence in settings.without_effect(cell.config, defaults):
            names.setdefault(sentence, []).append(cell.name)
    return [
        f"{'All cells' if len(which) == len(cells) else ', '.join(which)}: {sentence}"
        for sentence, which in names.items()
    ]


def _absent_data(cells: Sequence[Cell], require_data: Callable[[str, str], None]) -> list[str]:
    refusals = set()
    for cell in cells:
        try:
            require_data(cell.config.data.name, cell.config.data.dir)
        except UserError as e:
            refusals.add(str(e))
    return [f"The data are missing, so the sweep would be refused: {e}" for e in refusals]


def _rate(
    cells: Sequence[Cell],
    missing: Sequence[Cell],
    sizes: Mapping[str, Size],
    workdir: storage.Path,
    at_once: int,
    on: Machine,
) -> tuple[Rate | None, list[str]]:
    """Returns a rate, from what has finished or else timed now, and words on where it is from."""
    if not missing:
        return None, []
    finished = [reader.read(workdir / cell.name) for cell in cells if cell not in missing]
    rate = estimate.rate_of_finished(sizes, finished)
    if rate is None:
        cheapest = min(missing, key=lambda cell: sizes[cell.name].work)
        try:
            rate = _calibrated(cheapest, sizes[cheapest.name], at_once, on)
        except RunError as e:
            return None, [f"There is no estimate: {e}"]
    return rate, [f"It is an estimate, by mult-adds, from {rate.source}."]


def _calibrated(cell: Cell, size: Size, at_once: int, on: Machine) -> Rate:
    """Times the step of a cell, in as many processes side by side as the sweep will have.

    Raises:
      RunError: that cannot be done.
    """
    logging.info("Timing a training step of %s on this machine ...", cell.name)
    placed = functools.partial(local.placed, on, at_once=at_once)
    try:
        with Group(cell.config, at_once, placed, limit=_CALIBRATION_SECONDS) as group:
            found = group.wait_until_ready()
            step = group.seconds_a_step()
    except GroupFailedError as e:
        raise RunError(f"the step of {cell.name} could not be timed here ({e}).") from e
    before = found["start_seconds"] + found["compile_seconds"]
    return Rate(
        mult_adds=size.work / cell.config.steps / step,
        seconds_a_layer=before / cell.config.model.depth,
        source=f"training steps of {cell.name} timed on this machine just now ({step:.3g} s a step "
        f"after {before:.0f} s of compiling); evaluations and checkpoints come on top",
        devices=found["devices"],
    )
