"""How many cells of a study run at a time where nobody says."""

import functools
import math
import statistics
from collections.abc import Sequence

from absl import logging

from experiments.launchers import local
from experiments.launchers.local import Machine
from experiments.study.grid import Cell
from experiments.study.side_by_side import Group, GroupFailedError
from resnet_jax.data import sets
from resnet_jax.parallel.cores import usable_cores

_ON_ONE_GPU = (1, 2, 4)  # what is tried
_ROUNDS, _SECONDS = 3, 1.0  # of the most side by side, in which fewer take no longer
_WORTH_IT = 1.1  # cells that share a GPU also share its memory: less is not worth that


def default_jobs(on: Machine, cells: Sequence[Cell], missing: Sequence[Cell]) -> int:
    """Returns how many cells to run at a time.

    On CPU one a core: compilation and small convolutions hardly use a second thread. On GPUs one
    each, and several where they are small enough to train faster so: that is measured. One in all
    on TPU, which no two processes can share, and where a cell needs all there is: its pictures are
    decoded while it trains, or its mesh says how many GPUs it wants.

    It goes by the study's size, not by what is left of it: the cores of a cell decide its threads,
    and these, like a cell's GPUs, the last digits of its results. A cell that goes on should go on
    as it began.

    Args:
      on: this machine.
      cells: all of the study.
      missing: those to be run, the longest first.
    """
    if on.platform == "cpu":
        return min(len(cells), len(usable_cores()))
    if on.platform != "gpu" or any(_needs_all(cell) for cell in cells):
        return 1
    if len(missing) <= on.devices:
        return min(len(cells), on.devices)
    return on.devices * _on_one_gpu(missing[0], len(missing) // on.devices)


def _needs_all(cell: Cell) -> bool:
    config = cell.config
    is_streamed = not sets.KNOWN[config.data.name].resident
    return is_streamed or config.mesh.fsdp > 1 or config.mesh.replicates > 1


def _on_one_gpu(cell: Cell, most: int) -> int:
    """Returns with how many processes like a cell's, up to `most`, one device trains most.

    All are there while some train, with the memory that each of as many has. Of a study's cells
    the longest is taken: the others are smaller and leave more of the device to each other.
    """
    counts = [count for count in _ON_ONE_GPU if count <= most]
    if len(counts) == 1:
        return 1
    logging.info("Timing %s alone and up to %d side by side on one device ...",
                 cell.name, counts[-1])  # fmt: skip
    placed = functools.partial(local.placed, Machine("gpu"), at_once=counts[-1])
    rates: dict[int, list[float]] = {count: [] for count in counts}
    try:
        with Group(cell.config, counts[-1], placed, devices=1) as group:
            group.wait_until_ready()
            steps = math.ceil(_SECONDS / group.seconds_a_step())
            for _ in range(_ROUNDS):
                for count in counts:
                    rates[count].append(count / group.run(steps, count))
    except GroupFailedError as e:
        logging.info("%d side by side do not go (%s).", counts[-1], e)
        return _on_one_gpu(cell, counts[-2])
    medians = {count: statistics.median(found) for count, found in rates.items()}
    best = max(medians, key=medians.__getitem__)
    chosen = best if medians[best] >= _WORTH_IT * medians[1] else 1
    each = ", ".join(f"{rate:.3g} with {count}" for count, rate in medians.items())
    logging.info("Steps a second in all: %s; a device gets %d at a time.", each, chosen)
    return chosen
