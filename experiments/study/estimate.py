"""Estimates the mult-adds of a cell's training, and its time at a measured rate."""

import dataclasses
import heapq
from collections.abc import Iterable, Mapping

from experiments.study.grid import Cell
from resnet_jax.data import sets
from resnet_jax.networks import builders, summary
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
      seconds_per_layer: time to start and to trace; 0 if `mult_adds` includes it.
      compile_seconds_per_layer: time to compile, unless an earlier run has; 0 likewise.
      source: description of the measurement.
      devices: devices per cell.
    """

    mult_adds: float
    seconds_per_layer: float
    source: str
    devices: int = 1
    compile_seconds_per_layer: float = 0.0


def size_of(cell: Cell) -> Size:
    """Traces a cell's network; no device computes anything."""
    config = cell.config
    model = builders.from_config(config.model)
    network = summary.summarize(model, sets.image_shape(config.data))
    images = config.batch_size * config.steps * config.replicates
    work = float(network.mult_adds) * _FORWARD_AND_BACKWARD * images
    return Size(network.parameters, network.mult_adds, work)


def start_order(cells: Iterable[Cell], sizes: Mapping[str, Size]) -> list[Cell]:
    """Returns cells in the order in which they start, pilots of a plan before its cells.

    The longest start first, so that no long one runs alone at the end. But before all others come
    the cells that compile a program: of several that start side by side with the same program, each
    would compile it.
    """
    longest_first = sorted(cells, key=lambda cell: -sizes[cell.name].work)
    compiling = first_of_programs(longest_first)
    return sorted(longest_first, key=lambda c: (not is_pilot(c), c.name not in compiling))


def first_of_programs(cells: Iterable[Cell]) -> set[str]:
    """Returns the names of the cells that compile a program for later ones.

    Cells with the same network and number of seeds count as having one program, as the candidates
    of a cell do if they differ in the learning rate: see resnet_jax.optim.Numbers.
    """
    firsts: dict[tuple[str, int], str] = {}
    for cell in cells:
        firsts.setdefault((cell.config.model.to_json(), cell.config.replicates), cell.name)
    return set(firsts.values())


def is_pilot(cell: Cell) -> bool:
    """Whether a plan lists a cell as a pilot."""
    return cell.name.startswith(f"{reader.PILOTS}/")


def seconds(cell: Cell, size: Size, rate: Rate, step: int, compiles: bool = True) -> float:
    """Returns the time that a cell takes from `step` to its end.

    Args:
      cell: the cell.
      size: its size.
      rate: the rate of training.
      step: the steps taken so far.
      compiles: whether the cell compiles its program; otherwise the compilation cache has it.
    """
    left = 1 - step / cell.config.steps
    if left <= 0:
        return 0.0
    per_layer = rate.seconds_per_layer + compiles * rate.compile_seconds_per_layer
    return size.work * left / rate.mult_adds + cell.config.model.depth * per_layer


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
