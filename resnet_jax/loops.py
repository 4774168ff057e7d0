"""Whether the equal blocks of a stage run in a loop: compile time against the time of steps.

A loop is compiled once, whatever the depth, but it copies what its blocks keep for the backward
pass into stacks and out again.
"""

import dataclasses
import math

from jax.sharding import Mesh
from ml_collections import ConfigDict

from resnet_jax.networks.architectures import CONVOLUTIONS, EXPANSION, STEMS, architecture
from resnet_jax.parallel.chips import CHIPS


@dataclasses.dataclass(frozen=True)
class Costs:
    """What loops save and cost on a platform; measured in results/README.md, Compile time.

    Attributes:
      seconds: time to trace and compile a convolution, its gradients and the norm after it.
      seconds_of_loop: time to trace and compile a loop itself.
      copied: additional bytes that a step with loops moves, per byte that their blocks keep.
    """

    seconds: float
    seconds_of_loop: float
    copied: float


COSTS = {
    "gpu": Costs(seconds=0.18, seconds_of_loop=1.5, copied=6.0),
    "tpu": Costs(seconds=0.7, seconds_of_loop=5.0, copied=2.0),
}
# The largest number that was timed: CIFAR's ResNet-218.
MOST_CONVOLUTIONS = 210
# GB/s between a device and its memory, where chips.py does not know it: that of the fastest known,
# whose loops cost least.
_FASTEST = max(chip.per_device().bandwidth for chip in CHIPS.values())


@dataclasses.dataclass(frozen=True)
class Estimate:
    """What loops save and cost a run.

    Attributes:
      convolutions: the number that need not be compiled.
      compile_seconds: the time saved before the first step; negative for few blocks.
      step_seconds: the time added to each step.
    """

    convolutions: int
    compile_seconds: float
    step_seconds: float

    def pays(self, steps: int) -> bool:
        """Whether a run of `steps` steps should have loops: it ends sooner, or is too deep."""
        too_deep = self.convolutions > MOST_CONVOLUTIONS
        return too_deep or self.compile_seconds > steps * self.step_seconds


def estimate(config: ConfigDict, mesh: Mesh, seeds_compiled: int) -> Estimate:
    """Estimates what loops save and cost a run on GPUs or TPUs.

    Args:
      config: resolved.
      mesh: its devices; what is neither a GPU nor a TPU is taken for a TPU.
      seeds_compiled: copies of the network in the program of one device.
    """
    device = mesh.devices.flat[0]
    costs = COSTS.get(device.platform, COSTS["tpu"])
    chip = CHIPS.get(device.device_kind)
    bandwidth = chip.per_device().bandwidth if chip else _FASTEST
    model = config.model
    arch = architecture(model.family, model.depth)
    # A stage's first block is apart, and a single other one needs no loop.
    looped = [blocks - 1 if blocks > 2 else 0 for blocks in arch.stage_sizes]
    convolutions = seeds_compiled * CONVOLUTIONS[arch.block] * sum(looped)
    loops = seeds_compiled * sum(blocks > 0 for blocks in looped)
    side = math.ceil(config.data.image_size / STEMS[model.stem])
    kept = 0
    filters = arch.widened(model.width)
    inner_filters = arch.inner_filters(model.width, model.bottleneck_width, model.groups)
    for stage, (blocks, outer, inner) in enumerate(
        zip(looped, filters, inner_filters, strict=True)
    ):
        ends = outer * EXPANSION[arch.block]  # channels of a block's input and of its output
        inside = (CONVOLUTIONS[arch.block] - 1) * inner
        channels = ends if stage + 1 in model.remat else ends + inside + ends
        kept += blocks * math.ceil(side / 2**stage) ** 2 * channels
    images = config.batch_size * config.replicates / mesh.size
    size = 2 if model.dtype == "bfloat16" else 4
    return Estimate(
        convolutions=convolutions,
        compile_seconds=convolutions * costs.seconds - loops * costs.seconds_of_loop,
        step_seconds=kept * size * images * costs.copied / (bandwidth * 1e9),
    )
