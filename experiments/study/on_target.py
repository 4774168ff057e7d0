"""The dry run of a sweep for a target: per cell whether it fits, and the least time and cost."""

from collections.abc import Mapping, Sequence

from absl import logging

from experiments.cli import tables
from experiments.pods.forecast import Forecast, Forecaster
from experiments.pods.target import Target
from experiments.study import plan
from experiments.study.grid import Cell
from resnet_jax.errors import UserError
from resnet_jax.runs.progress import show_time

_HEADINGS = ["cell", "memory", "fits", "bound per step", "bound by", "time", "chip-hours"]


def dry_run(cells: Sequence[Cell], target: Target, share: float, price: float) -> tables.Parts:
    """Returns a table of the cells that are left to run, with the total and notes.

    Each cell takes all chips of the target, one cell after another. Cells that share a program
    are compiled once.

    Args:
      cells: those that are left to run.
      target: the chips.
      share: of the bound's speed that the estimates assume, above 0 and at most 1.
      price: of a chip-hour in any currency; 0 for no costs.

    Raises:
      UserError: a compiler is not installed, or the chips cannot share a cell.
    """
    forecaster, found = Forecaster(target), {}
    for number, cell in enumerate(cells, start=1):
        logging.info("Compiling %s for %s (%d of %d) ...", cell.name, target, number, len(cells))
        try:
            found[cell.name] = forecaster.of_run(cell.config)
        except UserError as e:
            raise UserError(f"{cell.name} on --target={target}: {e}") from e
    headings = _HEADINGS + (["cost"] if price else [])
    rows = [headings, *(_row(name, each, share, price) for name, each in found.items())]
    return [tables.aligned(rows), "", *_notes(found, target, share, price)]


def _row(name: str, forecast: Forecast, share: float, price: float) -> list[str]:
    memory = f"{forecast.memory / 1e9:.2f} GB" if forecast.memory else "-"
    if not forecast.step:
        return [name, memory, "no", "-", "-", "-", "-"] + (["-"] if price else [])
    hours = forecast.chip_hours / share
    return [
        name,
        memory,
        "yes",
        f"{1e3 * forecast.step.step:.3f} ms",
        forecast.step.resource,
        show_time(forecast.seconds / share),
        plan.hours(hours),
        *([f"{hours * price:,.2f}"] if price else []),
    ]


def _notes(found: Mapping[str, Forecast], target: Target, share: float, price: float) -> list[str]:
    chip, fitting = target.chip.per_device(), [each for each in found.values() if each.step]
    notes = []
    for name, each in found.items():
        if not each.step:
            would = (
                f"it fits with {' or '.join(each.remedies)}"
                if each.remedies
                else ("neither accumulate nor remat nor a smaller batch helps")
            )
            notes.append(
                f"{name} does not fit into the {chip.memory / 1e9:.1f} GB of a chip; {would}."
            )
    total = sum(each.chip_hours for each in fitting) / share
    seconds = sum(each.seconds for each in fitting) / share
    cost = f", {total * price:,.2f} at {price:g} per chip-hour" if price else ""
    notes += [
        f"{len(fitting)} cells, one after another on {target.chips} chips: {show_time(seconds)}, "
        f"{plan.hours(total)} chip-hours{cost}.",
        f"Times are those of the bound divided by --share={share:g}: nothing was run. The bound is "
        f"that of the compiled training step at the manufacturer's rates ({chip.source}); "
        "evaluations, compiling and checkpoints take extra time.",
        "Nothing was started or written.",
    ]  # fmt: skip
    return notes
