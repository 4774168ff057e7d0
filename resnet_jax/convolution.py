"""Convolutions for several seeds in one program.

Under `vmap` over seeds a convolution becomes one with a group of channels a seed, and so does its
gradient, which convolution libraries compute slowly. Here are three that become something else.
"""

import functools
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
    plain = functools.partial(
        jax.lax.conv_general_dilated, window_strides=strides, padding=padding, **rest
    )

    def of_all(x_RBHWC: jax.Array, kernels: jax.Array) -> jax.Array:
        return jnp.stack(list(map(plain, jnp.unstack(x_RBHWC), jnp.unstack(kernels))))

    return _mapped_by(plain, of_all)(x_BHWC, kernel)


def grouped(
    x_BHWC: jax.Array,
    kernel: jax.Array,
    strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
    **rest: Any,
) -> jax.Array:
    """Is jax.lax.conv_general_dilated; under `vmap`, one convolution with a group a seed.

    `vmap` itself makes grouped ones too, of the gradients as well: that of the kernels becomes a
    convolution whose window is the whole image, for which cuDNN is not made. Here it is the
    gradient of a grouped convolution, which cuDNN has.
    """
    convolve = functools.partial(
        jax.lax.conv_general_dilated, window_strides=strides, padding=padding
    )

    def of_all(x_RBHWC: jax.Array, kernels: jax.Array) -> jax.Array:
        seeds = x_RBHWC.shape[0]
        y = convolve(
            _with_seeds_in_channels(x_RBHWC),
            _with_seeds_in_channels(kernels),
            **(rest | {"feature_group_count": seeds}),
        )
        return jnp.moveaxis(y.reshape(*y.shape[:-1], seeds, -1), -2, 0)

    return _mapped_by(functools.partial(convolve, **rest), of_all)(x_BHWC, kernel)


def _with_seeds_in_channels(of_seeds: jax.Array) -> jax.Array:
    """Maps (R, ..., C) to (..., R * C)."""
    last = jnp.moveaxis(of_seeds, 0, -2)
    return last.reshape(*last.shape[:-2], -1)


def _mapped_by(
    convolution: Callable[..., jax.Array], of_all: Callable[..., jax.Array]
) -> Callable[..., jax.Array]:
    """Returns convolution(x, kernel), of which and of whose gradient `of_all` is the `vmap`."""

    def gradients(f: Callable[..., jax.Array]) -> Callable[..., Any]:
        return lambda x, kernel, dy: jax.vjp(f, x, kernel)[1](dy)

    forward = _with_rule(convolution, of_all)
    backward = _with_rule(gradients(convolution), gradients(of_all))
    # custom_vmap alone has no gradient.
    mapped = jax.custom_vjp(forward)
    mapped.defvjp(
        lambda x, kernel: (forward(x, kernel), (x, kernel)),
        lambda kept, dy: backward(*kept, dy),
    )
    return mapped


def _with_rule(f: Callable[..., Any], of_all: Callable[..., Any]) -> Callable[..., Any]:
    mapped = jax.custom_batching.custom_vmap(f)

    @mapped.def_vmap
    def rule(size: int, is_batched: list[bool], *args: jax.Array) -> Any:
        # In evaluation, say, all seeds see the same images.
        stacked = [
            a if has_axis else jnp.broadcast_to(a, (size, *a.shape))
            for a, has_axis in zip(args, is_batched, strict=True)
        ]
        results = of_all(*stacked)
        return results, jax.tree.map(lambda _: True, results)

    return mapped
