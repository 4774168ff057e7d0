"""Convolutions for several seeds in one program.

Under `vmap` over seeds a convolution becomes one with a group of channels a seed, which convolution
libraries compute slowly where the groups are small. Here are two that do not.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.custom_batching
import jax.numpy as jnp


def by_patches(
    x_BHWC: jax.Array,
    kernel: jax.Array,
    strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
    *,
    precision: Any = None,
    **rest: Any,
) -> jax.Array:
    """Is jax.lax.conv_general_dilated up to rounding; under `vmap`, a batched matrix product.

    Args:
      x_BHWC: float (B, H, W, C).
      kernel: (height, width, C, filters), of the same dtype.
      strides: of height and width.
      padding: zeros before and after, of height and width.
      precision: as jax.lax.dot_general's.
      **rest: what else nn.Conv says: no dilation, one group, channels last.

    Returns:
      (B, H', W', filters) of the same dtype.

    Raises:
      ValueError: dilation or groups are asked for.
    """
    if rest.get("feature_group_count", 1) != 1 or any(
        factor != 1 for key in ("lhs_dilation", "rhs_dilation") for factor in rest.get(key) or ()
    ):
        raise ValueError("a convolution by patches has neither groups nor dilation")
    *size, _, filters = kernel.shape

    def product(x_BHWC: jax.Array, kernel: jax.Array) -> jax.Array:
        patches_BHWP = _patches(x_BHWC, size, strides, padding)
        matrix = kernel.reshape(-1, filters)
        return jnp.dot(patches_BHWP, matrix, precision=precision)

    if tuple(size) == (1, 1):
        return product(x_BHWC, kernel)
    # The gradient of a 3x3 kernel needs the patches, nine times the input. Kept from the forward
    # pass, those of all layers would lie in memory at once; made again from the input, which is
    # kept anyway, those of one layer do. The product itself is not computed again: its gradient
    # does not need it. Not a custom_vjp, whose two copies XLA may find to be one, and keep that.
    return jax.checkpoint(product)(x_BHWC, kernel)


def _patches(
    x_BHWC: jax.Array,
    size: Sequence[int],
    strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
) -> jax.Array:
    """Returns (B, H', W', height * width * C), in a kernel's order.

    By slices: jax.lax.conv_general_dilated_patches is a grouped convolution itself.
    """
    padded = jnp.pad(x_BHWC, ((0, 0), *padding, (0, 0)))
    batch, height, width, channels = padded.shape
    ends = [
        (side - kernel) // stride * stride + 1
        for side, kernel, stride in zip((height, width), size, strides, strict=True)
    ]
    slices = [
        jax.lax.slice(
            padded,
            (0, row, column, 0),
            (batch, row + ends[0], column + ends[1], channels),
            (1, *strides, 1),
        )
        for row in range(size[0])
        for column in range(size[1])
    ]
    return slices[0] if len(slices) == 1 else jnp.concatenate(slices, axis=-1)


def one_by_one(
    x_BHWC: jax.Array,
    kernel: jax.Array,
    strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
    **rest: Any,
) -> jax.Array:
    """Is jax.lax.conv_general_dilated, but under `vmap` one convolution a seed, not grouped ones.

    What lies between the convolutions stays one operation for all seeds.
    """

    def plain(x_BHWC: jax.Array, kernel: jax.Array) -> jax.Array:
        return jax.lax.conv_general_dilated(x_BHWC, kernel, strides, padding, **rest)

    def pull_back(x_BHWC: jax.Array, kernel: jax.Array, dy_BHWC: jax.Array) -> Any:
        return jax.vjp(plain, x_BHWC, kernel)[1](dy_BHWC)

    # custom_vmap alone has no gradient.
    @jax.custom_vjp
    def convolution(x_BHWC: jax.Array, kernel: jax.Array) -> jax.Array:
        return _unrolled_under_vmap(plain)(x_BHWC, kernel)

    convolution.defvjp(
        lambda x_BHWC, kernel: (convolution(x_BHWC, kernel), (x_BHWC, kernel)),
        lambda kept, dy_BHWC: _unrolled_under_vmap(pull_back)(*kept, dy_BHWC),
    )
    return convolution(x_BHWC, kernel)


def _unrolled_under_vmap(f: Callable[..., Any]) -> Callable[..., Any]:
    unrolled = jax.custom_batching.custom_vmap(f)

    @unrolled.def_vmap
    def rule(size: int, is_batched: list[bool], *args: jax.Array) -> Any:
        results = [
            unrolled(
                *(a[i] if has_axis else a for a, has_axis in zip(args, is_batched, strict=True))
            )
            for i in range(size)
        ]
        stacked = jax.tree.map(lambda *each: jnp.stack(each), *results)
        return stacked, jax.tree.map(lambda _: True, stacked)

    return unrolled
