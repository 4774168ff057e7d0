"""The default number of cells that run at a time."""

import functools
import math
import statistics
from collections.abc import Sequence

from absl import logging

from experiments.launchers import local
from experiments.launchers.local import Machine
from experiments.study.grid import Cell
from experiments.study.side_by_side import TimedProcesses, TimingFailedError
from resnet_jax.data import sets
from resnet_jax.errors import UserError
from resnet_jax.parallel.cores import usable_cores

_PER_GPU = (1, 2, 4)  # numbers of cells on one GPU that are tried
_ROUNDS = 3
_SECONDS = 1.0  # per round, with the largest number side by side
_MIN_SPEEDUP = 1.1  # a smaller one is not worth sharing a GPU's memory


def default_jobs(machine: Machine, cells: Sequence[Cell], missing: Sequence[Cell]) -> int:
    """Returns how many cells to run at a time.

    On CPU it is one per core, since compilation and small convolutions hardly use a second thread.
    On GPUs it is one per GPU, or several if a measurement shows that they train faster together. On
    TPUs it is one per chip, which processes cannot share. It is one if a cell needs the whole
    machine: to decode pictures while it trains, or because its mesh spans several devices.

    It depends on the size of the whole study, not on the cells that are left: a cell's cores decide
    its threads, and these, like its GPUs, the last digits of its results. A resumed cell should
    keep them.

    Args:
      machine: this machine.
      cells: all cells of the study.
      missing: the cells left to run, the longest first.
    """
    if machine.platform == "cpu":
        return min(len(cells), len(usable_cores()))
    if machine.platform not in ("gpu", "tpu") or any(_needs_machine(cell) for cell in cells):
        return 1
    if len(missing) <= machine.devices or machine.platform == "tpu":
        return min(len(cells), machine.devices)
    return machine.devices * _jobs_per_gpu(missing[0], len(missing) // machine.devices)


def refuse_shared_chips(machine: Machine, jobs: int) -> None:
    """Raises UserError if more cells are asked for at a time than this machine has TPU chips."""
    if machine.platform == "tpu" and jobs > machine.devices:
        raise UserError(
            f"--jobs={jobs} is more than this machine's {machine.devices} TPU chips, which "
            "processes cannot share."
        )


def _needs_machine(cell: Cell) -> bool:
    config = cell.config
    is_streamed = not sets.DATA_SETS[config.data.name].resident
    return is_streamed or config.mesh.fsdp > 1 or config.mesh.replicates > 1


def _jobs_per_gpu(cell: Cell, limit: int) -> int:
    """Returns the number of processes, up to `limit`, at which one GPU trains the most steps.

    All processes are started, each with its share of the memory, and some of them train at a time.
    The cell is the study's longest; the others are smaller and leave more of the GPU to each other.
    """
    counts = [count for count in _PER_GPU if count <= limit]
    if len(counts) == 1:
        return 1
    logging.info("Timing %s alone and up to %d side by side on one device ...",
                 cell.name, counts[-1])  # fmt: skip
    placed = functools.partial(local.placed, Machine("gpu"), at_once=counts[-1])
    rates: dict[int, list[float]] = {count: [] for count in counts}
    try:
        with TimedProcesses(cell.config, counts[-1], placed, devices=1) as processes:
            processes.wait_until_ready()
            steps = math.ceil(_SECONDS / processes.seconds_per_step())
            for _ in range(_ROUNDS):
                for count in counts:
                    rates[count].append(count / processes.run(steps, count))
    except TimingFailedError as e:
        logging.info("%d side by side failed (%s).", counts[-1], e)
        return _jobs_per_gpu(cell, counts[-2])
    medians = {count: statistics.median(rates[count]) for count in counts}
    best = max(medians, key=medians.__getitem__)
    chosen = best if medians[best] >= _MIN_SPEEDUP * medians[1] else 1
    listed = ", ".join(f"{rate:.3g} with {count}" for count, rate in medians.items())
    logging.info("Total steps per second: %s; cells per device: %d.", listed, chosen)
    return chosen
