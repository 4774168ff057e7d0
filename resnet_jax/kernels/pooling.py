"""The max pool of the ImageNet stem (He et al. 2015, Table 1)."""

import functools

import jax
import jax.numpy as jnp

_WINDOW, _STRIDE = 3, 2


def max_pool(x_BHWC: jax.Array, same_padding: bool = False) -> jax.Array:
    """Returns the maxima of 3x3 windows of stride 2: float (B, ceil(H/2), ceil(W/2), C).

    Args:
      x_BHWC: float.
      same_padding: pad as TensorFlow's "SAME": windows on an even length start at its first pixel;
        by default one before it, as in PyTorch.

    Among equal maxima, the gradient goes to the first in row-major order, as in Caffe, PyTorch and
    XLA. XLA's gradient reads the input again and scatters. Here the forward pass keeps only the
    position of each maximum in its window, one byte per output.
    """
    size = x_BHWC.shape[1:3]
    # "SAME" pads an odd length by 1 at both ends.
    height, width = (0 if same_padding and length % 2 == 0 else 1 for length in size)
    return _max_pool(x_BHWC, size, (height, width))


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _max_pool(x_BHWC: jax.Array, size: tuple[int, int], before: tuple[int, int]) -> jax.Array:
    return _forward(x_BHWC, size, before)[0]


def _forward(
    x_BHWC: jax.Array, size: tuple[int, int], before: tuple[int, int]
) -> tuple[jax.Array, jax.Array]:
    lowest = jnp.array(-jnp.inf, x_BHWC.dtype)
    around = ((start, 1, 0) for start in before)
    padded = jax.lax.pad(x_BHWC, lowest, ((0, 0, 0), *around, (0, 0, 0)))
    batch, height, width, channels = padded.shape
    y_BHWC = jnp.full((), lowest)
    position_BHWC = jnp.zeros((), jnp.int8)
    for number in range(_WINDOW**2):
        row, column = divmod(number, _WINDOW)
        candidate_BHWC = jax.lax.slice(
            padded,
            (0, row, column, 0),
            (batch, height - _WINDOW + 1 + row, width - _WINDOW + 1 + column, channels),
            (1, _STRIDE, _STRIDE, 1),
        )
        # A NaN in the window is its maximum.
        is_larger = (candidate_BHWC > y_BHWC) | jnp.isnan(candidate_BHWC)
        y_BHWC = jnp.where(is_larger, candidate_BHWC, y_BHWC)
        position_BHWC = jnp.where(is_larger, jnp.int8(number), position_BHWC)
    return y_BHWC, position_BHWC


def _backward(
    size: tuple[int, int], before: tuple[int, int], position_BHWC: jax.Array, dy_BHWC: jax.Array
) -> tuple[jax.Array]:
    dx_BHWC = jnp.zeros((), jnp.float32)
    for number in range(_WINDOW**2):
        routed_BHWC = jnp.where(position_BHWC == number, dy_BHWC.astype(jnp.float32), 0)
        # Row r of output i's window is row 2 i + r - before of the input.
        padding = [
            (first - start, side - (first - start) - (_STRIDE * (windows - 1) + 1), 1)
            for first, start, side, windows in zip(
                divmod(number, _WINDOW), before, size, dy_BHWC.shape[1:3], strict=True
            )
        ]
        spread = jax.lax.pad(routed_BHWC, jnp.float32(0), ((0, 0, 0), *padding, (0, 0, 0)))
        dx_BHWC = dx_BHWC + spread
    return (dx_BHWC.astype(dy_BHWC.dtype),)


_max_pool.defvjp(_forward, _backward)
