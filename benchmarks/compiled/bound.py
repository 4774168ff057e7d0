"""The memory bound: the fewest bytes that a training step must move through a device's memory.

It counts a program that fuses everything BatchNorm allows. A tensor's statistics are known only
after all of it is computed, so each convolution's output must be stored, and so must the gradient
that BatchNorm's two sums are taken over. Everything else (normalising, ReLU, adding, pooling, the
loss, both products of a convolution's backward pass) is fused into a convolution and moves no data
of its own. In elements per image, post-activation:

    6 x the output y of the stem and of each convolution on a branch
        forward: y is written, with its statistics; y is read by the next operation
        backward: y is read for the sums, and again for the gradient w.r.t. y; the gradient
        w.r.t. norm(y) is written in between, and read
    4 x the input x of a block whose shortcut is the identity
        forward: x is written; the shortcut's output is read
        backward: x is read, for its ReLU's mask and the kernel's gradient; the gradient w.r.t. the
        shortcut's output is read (option A with a stride has a smaller output than x)
    2 x the input of a block with a projection, and 5 x the projection's output
        as above, but the gradient w.r.t. norm(y) is the one that the branch has already written

each in the activations' dtype. In addition the uint8 images are read twice (forward; gradient of
the stem's kernel), and each float32 parameter is moved five times: read forward, read backward, its
velocity read, both written. The bound assumes that no tensor stays in a cache from one convolution
to the next, so small nets on large caches can beat it. No existing program fuses that much: with a
library's convolutions, which read and write plain tensors, an output is moved 14 times instead of
6.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from benchmarks.peers.flax_example import Block

_PARAMETER_BYTES = 5 * 4
_IMAGE_BYTES = 2


@dataclasses.dataclass(frozen=True)
class Traffic:
    """The transfers of a step.

    Attributes:
      activations: transfers of elements per image.
      pixels: H x W x C of an image.
      parameters: the number of trainable parameters.
    """

    activations: int
    pixels: int
    parameters: int

    def bytes_a_step(self, batch_size: int, dtype: DTypeLike) -> int:
        """Returns the bytes of a step on `batch_size` images, with activations in `dtype`."""
        per_image = self.activations * jnp.dtype(dtype).itemsize + _IMAGE_BYTES * self.pixels
        return batch_size * per_image + _PARAMETER_BYTES * self.parameters


def traffic(network: nn.Module, image_shape: tuple[int, ...]) -> Traffic:
    """Traces a network of flax_example.py on one image (H, W, C); no device computes anything."""
    moved = 0

    def record(call: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        nonlocal moved
        module, out = context.module, call(*args, **kwargs)
        if context.method_name != "__call__":
            return out
        if isinstance(module, nn.Conv):
            moved += (5 if module.name == "shortcut_conv" else 6) * math.prod(out.shape[1:])
        elif isinstance(module, Block) and module.shortcut != "none":
            _, height, width, channels = args[0].shape
            moved += 2 * height * width * channels
            if "shortcut_conv" not in module.variables["params"]:
                moved += 2 * math.prod(out.shape[1:3]) * channels
        return out

    image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    with nn.intercept_methods(record):
        # A key made outside the trace would be an array and initialise the accelerator.
        variables = jax.eval_shape(lambda x: network.init(jax.random.key(0), x, train=True), image)
    parameters = sum(math.prod(a.shape) for a in jax.tree.leaves(variables["params"]))
    return Traffic(moved, math.prod(image_shape), parameters)
