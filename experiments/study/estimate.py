"""Estimates the mult-adds of a cell's training, and its time at a measured rate."""

import dataclasses
import heapq
from collections.abc import Iterable, Mapping

from experiments.study.grid import Cell
from resnet_jax.data import sets
from resnet_jax.networks import resnet, summary
from resnet_jax.runs import reader

# A backward pass costs two forward passes: one for the inputs' and one for the weights' gradients.
_FORWARD_AND_BACKWARD = 3
RESNET_50_MULT_ADDS = 3.8e9  # forward, per image of 224 pixels (Table 1)


@dataclasses.dataclass(frozen=True)
class Size:
    """A cell's network and its training.

    Attributes:
      parameters: number of trainable parameters of one replicate.
      mult_adds: forward, per image.
      work: mult-adds of the whole training of all replicates.
    """

    parameters: int
    mult_adds: int
    work: float


@dataclasses.dataclass(frozen=True)
class Rate:
    """A measured or given rate of training.

    Attributes:
      mult_adds: per second and cell, on all devices of the cell, while cells run side by side.
      seconds_per_layer: time to compile before the first step; 0 if `mult_adds` includes it.
      source: description of the measurement.
      devices: devices per cell.
    """

    mult_adds: float
    seconds_per_layer: float
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
    """Returns the time that a cell takes from `step` to its end."""
    left = 1 - step / cell.config.steps
    if left <= 0:
        return 0.0
    return size.work * left / rate.mult_adds + cell.config.model.depth * rate.seconds_per_layer


def rate_of_finished(sizes: Mapping[str, Size], finished: Iterable[reader.Run]) -> Rate | None:
    """Returns the mean rate of the completed runs among `finished`, or None without any."""
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
    source = f"the device time of completed cells: {', '.join(names)}"
    return Rate(work / wall, 0.0, source, devices)


def given_rate(images_per_second: float, devices: int) -> Rate:
    """Returns a rate given in the unit of published benchmarks.

    Args:
      images_per_second: at which one device trains ResNet-50 at 224 pixels.
      devices: devices per cell.
    """
    work = images_per_second * RESNET_50_MULT_ADDS * _FORWARD_AND_BACKWARD * devices
    each = f"{devices} devices per cell, each" if devices > 1 else "one device per cell,"
    source = f"--rate: {each} training {images_per_second:,g} images/s of ResNet-50 at 224 pixels"
    return Rate(work, 0.0, source, devices)


def makespan(durations: Iterable[float], at_once: int) -> float:
    """Returns when the last job ends, if jobs start in this order, `at_once` at a time."""
    ends: list[float] = [0.0] * at_once
    for duration in durations:
        heapq.heapreplace(ends, ends[0] + duration)
    return max(ends)
