"""The layers before the first stage."""

import jax

from resnet_jax.kernels import space_to_depth
from resnet_jax.kernels.pooling import max_pool
from resnet_jax.networks.architectures import STEMS, stem_convolutions
from resnet_jax.networks.layers import Layers


def stem(
    x_BHWC: jax.Array,
    kind: str,
    filters: int,
    make: Layers,
    *,
    preactivation: bool,
    same_padding: tuple[str, ...],
    in_blocks: bool,
) -> jax.Array:
    """Returns (B, H / stride, W / stride, filters), for the stride that STEMS has.

    A convolution is named "stem_conv", or "stem_conv1" ... if there are several.

    Args:
      x_BHWC: images in the network's dtype.
      kind: one of STEMS, see ResNet.
      filters: of the last convolution.
      make: makes the layers.
      preactivation: whether the last norm and nonlinearity are left to the first block.
      same_padding: see ResNet.
      in_blocks: compute the convolution of stride 2 by space_to_depth.convolution.
    """
    convolutions = stem_convolutions(kind, filters)
    x = x_BHWC
    for number, (channels, size, stride) in enumerate(convolutions, start=1):
        suffix = str(number) if len(convolutions) > 1 else ""
        conv = make.conv(
            channels,
            (size, size),
            (stride, stride),
            name=f"stem_conv{suffix}",
            # A later one follows a nonlinearity and is on no branch, as a projection.
            kernel_init=make.init.stem if number == 1 else make.init.shortcut,
            same_padding="stem" in same_padding,
            strided=space_to_depth.convolution if in_blocks and stride == 2 else None,
        )
        x = conv(x)
        if not preactivation or number < len(convolutions):
            x = make.norm(name=f"stem_norm{suffix}", activate=True)(x)
    return max_pool(x, "pool" in same_padding) if STEMS[kind] == 4 else x
