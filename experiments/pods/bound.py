"""The shortest time that a compiled training step can take, from its needs and the chip's peaks.

Each resource sets a bound by itself: the matrix unit, the memory, the links between chips. Nothing
is said about what else takes time: small kernels, latencies, the host.
"""

import dataclasses
import math

from experiments.pods.collectives import Collective
from experiments.pods.program import Needs
from experiments.pods.target import GPUS, Target

# Torus axes of this length are closed to a ring: of v5e and v6e those of a whole pod, of v4 and v5p
# those of whole cubes (cloud.google.com/tpu/docs/system-architecture-tpu-vm).
_RING_2D, _RING_3D = 16, 4


@dataclasses.dataclass(frozen=True)
class Bound:
    """The bounds of a training step, in seconds.

    Attributes:
      matrix: convolutions and products at the peak rate.
      memory: all bytes at the full bandwidth.
      links: everything sent, at the rate of all links.
      exposed: the part of `links` during which the program does nothing else.
    """

    matrix: float
    memory: float
    links: float
    exposed: float

    @property
    def step(self) -> float:
        """The bound of a step: the slowest resource, and what is exposed of the links."""
        return max(self.matrix, self.memory, self.links - self.exposed) + self.exposed

    @property
    def resource(self) -> str:
        """The name of the resource that takes longest."""
        times = {"matrix unit": self.matrix, "memory": self.memory, "links": self.links}
        return max(times, key=times.__getitem__)


def of_step(needs: Needs, target: Target, dtype: str) -> Bound:
    """Returns the bounds of a step.

    Args:
      needs: of the step.
      target: the chips it is compiled for.
      dtype: of the activations.
    """
    chip = target.chip.per_device()
    peak = chip.peaks.get(dtype) or chip.peaks["bfloat16"]
    sent = [(each, seconds(each, target) / needs.steps) for each in needs.collectives]
    return Bound(
        matrix=needs.flops / (peak * 1e12),
        memory=needs.moved / (chip.bandwidth * 1e9),
        links=sum(time for _, time in sent),
        exposed=sum(time for each, time in sent if not each.is_overlapped),
    )


def seconds(collective: Collective, target: Target) -> float:
    """Returns the shortest time of all executions of a collective."""
    chip, sent = target.chip, collective.sent
    if target.name in GPUS:
        hosts, gpus = target.shape
        inside = sent / (chip.sends * 1e9)
        if collective.chips <= gpus or hosts == 1:
            return inside
        # Each GPU's share of what its host sends to the others.
        across = math.ceil(collective.chips / gpus)
        share = sent / gpus * ((across - 1) / across) / ((collective.chips - 1) / collective.chips)
        return max(inside, share / (chip.network * 1e9))
    return sent / (chip.sends * 1e9 * usable_links(target) / chip.links)


def usable_links(target: Target) -> int:
    """Returns the number of links of a chip at a slice's corner, which has the fewest."""
    is_cube = len(target.shape) == 3 and all(n % _RING_3D == 0 for n in target.shape)
    return sum(
        2 if is_cube or (len(target.shape) == 2 and length == _RING_2D) else 1
        for length in target.shape
        if length > 1
    )
