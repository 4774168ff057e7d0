"""The least that a training step must move through a device's memory, in bytes.

Counted is a program that fuses everything which BatchNorm lets it fuse. The statistics of a tensor
are known only when all of it is, so each convolution's output has to be stored, and so has the
gradient that BatchNorm's two sums are taken over. All else (normalising, ReLU, adding, pooling, the
loss, both products of a convolution's backward pass) happens on the way in or out of a convolution
and moves nothing of its own. In elements of one image, post-activation:

    6 x the output y of the stem and of each convolution on a branch
        forward: y is written, with its statistics; y is read by what comes next
        backward: y is read for the sums, and again for the gradient by y; the gradient by
        norm(y) is written between the two, and read
    4 x the input x of a block whose shortcut is the identity
        forward: x is written; what the shortcut passes on is read
        backward: x is read, for the mask of its ReLU and the gradient of the kernel; the gradient
        by what the shortcut passes on is read (option A with a stride passes on less than x)
    2 x the input of a block with a projection, and 5 x the projection's output
        as above, but the gradient by norm(y) is the one that the branch has written already

each in the dtype of activations. To these come two readings of the uint8 images (forward; gradient
of the stem's kernel) and five transfers of each float32 parameter: read forward, read backward,
its velocity read, both written. Tensors are as large as the batch makes them: the bound supposes
that none stays in a cache from one convolution to the next, which small nets on large caches can
beat. No program in use fuses so much: with convolutions from a library, reading and writing plain
tensors, an output alone is moved 14 times in place of 6.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from benchmarks.peers.flax_example import Block

_PARAMETER_BYTES = 5 * 4
_IMAGE_BYTES = 2


@dataclasses.dataclass(frozen=True)
class Traffic:
    """What moves in a step.

    Attributes:
      activations: transfers of elements, of one image.
      pixels: H x W x C of one image.
      parameters: trainable numbers.
    """

    activations: int
    pixels: int
    parameters: int

    def bytes_a_step(self, batch_size: int, dtype: Any) -> int:
        """Returns the bytes of a step on `batch_size` images, activations in `dtype`."""
        an_image = self.activations * jnp.dtype(dtype).itemsize + _IMAGE_BYTES * self.pixels
        return batch_size * an_image + _PARAMETER_BYTES * self.parameters


def traffic(network: nn.Module, image_shape: tuple[int, ...]) -> Traffic:
    """Traces a network of train_step_flax on one image (H, W, C); no device computes anything."""
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
        # A key made outside the trace would be an array, and start the accelerator for it.
        variables = jax.eval_shape(lambda x: network.init(jax.random.key(0), x, train=True), image)
    parameters = sum(math.prod(a.shape) for a in jax.tree.leaves(variables["params"]))
    return Traffic(moved, math.prod(image_shape), parameters)
