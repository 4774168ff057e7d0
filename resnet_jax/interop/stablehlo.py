"""Writes a network and its normalisation as StableHLO, which JAX runs without this package."""

from typing import Any

import jax
import jax.export  # `import jax` does not import it
import jax.numpy as jnp

from resnet_jax.data.augment import Normalization
from resnet_jax.errors import require_packages
from resnet_jax.networks.resnet import ResNet
from resnet_jax.state import Variables

PLATFORMS = ("cpu", "cuda", "tpu")


def to_stablehlo(
    model: ResNet,
    variables: Variables,
    image_shape: tuple[int, int, int],
    normalization: Normalization,
) -> jax.export.Exported:
    """Returns a function from uint8 pixels (b, H, W, C) to float32 logits (b, K), for PLATFORMS.

    The batch size b is free, and the variables are constants. Activations have the network's dtype
    and products its precision. `serialize()` returns the bytes of a file; in another process,
    `jax.export.deserialize(bytearray(content)).call(pixels)` runs it.

    Args:
      model: the network.
      variables: {"params", "batch_stats"} of one seed, block by block.
      image_shape: (H, W, C).
      normalization: of the pixels.

    Raises:
      UserError: the package that serialises is not installed.
    """
    require_packages(["flatbuffers"], "Writing StableHLO")

    def logits(pixels_BHWC: jax.Array) -> Any:
        return model.apply(variables, normalization(pixels_BHWC), train=False)

    (batch,) = jax.export.symbolic_shape("b")
    pixels = jax.ShapeDtypeStruct((batch, *image_shape), jnp.uint8)
    return jax.export.export(jax.jit(logits), platforms=PLATFORMS)(pixels)
