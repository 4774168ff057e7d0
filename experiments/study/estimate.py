"""How much a cell is to compute, and how long that takes at a measured rate."""

import dataclasses
import heapq
from collections.abc import Iterable, Mapping

from experiments.study.grid import Cell
from resnet_jax.data import sets
from resnet_jax.networks import resnet, summary
from resnet_jax.runs import reader

# A backward pass computes two products of the forward's size: for the input and for the weights.
_FORWARD_AND_BACKWARD = 3
RESNET_50_MULT_ADDS = 3.8e9  # of one image of 224 pixels, forward (Table 1)


@dataclasses.dataclass(frozen=True)
class Size:
    """A cell's network and its training.

    Attributes:
      parameters: trainable numbers of one replicate.
      mult_adds: of one image, forward.
      work: mult-adds of the whole training, all replicates.
    """

    parameters: int
    mult_adds: int
    work: float


@dataclasses.dataclass(frozen=True)
class Rate:
    """What this machine does, measured.

    Attributes:
      mult_adds: a second, on all devices of each of the cells that run side by side.
      seconds_a_layer: before the first step, compiling; 0 where `mult_adds` has that in it.
      source: where it comes from, for people.
      devices: of each cell.
    """

    mult_adds: float
    seconds_a_layer: float
    source: str
    devices: int = 1


def size_of(cell: Cell) -> Size:
    """Traces a cell's network; no device computes anything."""
    config = cell.config
    model = resnet.from_config(config.model)
    network = summary.summarize(model, sets.image_shape(config.data))
    images = config.batch_size * config.steps * config.replicates
    work = float(network.mult_adds) * _FORWARD_AND_BACKWARD * images
    return Size(network.parameters, network.mult_adds, work)


def seconds(cell: Cell, size: Size, rate: Rate, step: int) -> float:
    """Returns how long a cell takes from `step` on."""
    left = 1 - step / cell.config.steps
    if left <= 0:
        return 0.0
    return size.work * left / rate.mult_adds + cell.config.model.depth * rate.seconds_a_layer


def rate_of_finished(sizes: Mapping[str, Size], finished: Iterable[reader.Run]) -> Rate | None:
    """Returns the rate of cells that have completed, or None where none has."""
    work, wall, names, devices = 0.0, 0.0, [], 1
    for run in finished:
        device_seconds = run.status.get("device_seconds")
        if run.status.get("status") == "completed" and device_seconds:
            work += sizes[run.name].work
            devices = max(1, len(run.environment.get("devices", [])))
            wall += device_seconds / devices
            names.append(run.name)
    if not names:
        return None
    source = f"the device time of what has finished here: {', '.join(names)}"
    return Rate(work / wall, 0.0, source, devices)


def given_rate(images_per_second: float, devices: int) -> Rate:
    """Returns a rate that somebody names, as benchmarks are published.

    Args:
      images_per_second: that one device trains of ResNet-50, at 224 pixels.
      devices: of each cell.
    """
    work = images_per_second * RESNET_50_MULT_ADDS * _FORWARD_AND_BACKWARD * devices
    each = f"{devices} devices a cell, each" if devices > 1 else "one device a cell,"
    words = f"--rate: {each} training {images_per_second:,g} images/s of ResNet-50 at 224 pixels"
    return Rate(work, 0.0, words, devices)


def makespan(durations: Iterable[float], at_once: int) -> float:
    """Returns when the last of some jobs ends that are started in this order, `at_once` a time."""
    ends: list[float] = [0.0] * at_once
    for duration in durations:
        heapq.heapreplace(ends, ends[0] + duration)
    return max(ends)
