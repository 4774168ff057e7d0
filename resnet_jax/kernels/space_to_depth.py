"""A stride-2 convolution as a stride-1 convolution over 2 x 2 blocks of pixels.

Matrix units multiply blocks of channels. An image's 3 channels leave most of a block to padding; 12
leave less. The function and its parameters stay the same (Ying et al. 2018, arXiv 1811.06992).
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

_SIDE = 2


def convolution(
    x_BHWC: jax.Array,
    kernel: jax.Array,
    strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
    *,
    convolve: Callable[..., jax.Array] = jax.lax.conv_general_dilated,
    precision: jax.lax.PrecisionLike = None,
    dimension_numbers: object = None,
    **options: object,
) -> jax.Array:
    """Computes jax.lax.conv_general_dilated with stride 2, for nn.Conv; equal up to rounding.

    Args:
      x_BHWC: float (B, H, W, C).
      kernel: (k, k, C, filters), k odd; of a dtype that `convolve` takes.
      strides: (2, 2).
      padding: ((k // 2, k // 2),) * 2.
      convolve: jax.lax.conv_general_dilated or an equivalent, for the convolution of stride 1.
      precision: see jax.lax.conv_general_dilated.
      dimension_numbers: ignored; nn.Conv passes channels last.
      **options: ignored; nn.Conv passes no dilation and one group.

    Returns:
      (B, ceil(H / 2), ceil(W / 2), filters), as from `convolve`.
    """
    batch, height, width, channels = x_BHWC.shape
    size, _, _, filters = kernel.shape
    pad, taps = size // 2, -(-size // _SIDE)
    rows, columns = (-(-length // _SIDE) + taps - 1 for length in (height, width))

    def fill(blocks: int, length: int) -> tuple[int, int]:
        return pad, _SIDE * blocks - length - pad

    blocks_BHWC = (
        jnp.pad(x_BHWC, ((0, 0), fill(rows, height), fill(columns, width), (0, 0)))
        .reshape(batch, rows, _SIDE, columns, _SIDE, channels)
        .transpose(0, 1, 3, 2, 4, 5)
        .reshape(batch, rows, columns, _SIDE * _SIDE * channels)
    )
    end = (0, _SIDE * taps - size)
    kernel = (
        jnp.pad(kernel, (end, end, (0, 0), (0, 0)))
        .reshape(taps, _SIDE, taps, _SIDE, channels, filters)
        .transpose(0, 2, 1, 3, 4, 5)
        .reshape(taps, taps, _SIDE * _SIDE * channels, filters)
    )
    return convolve(
        blocks_BHWC,
        kernel,
        (1, 1),
        ((0, 0), (0, 0)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision=precision,
    )
