"""Convolutions and products for several seeds in one program.

`vmap` over seeds turns a convolution, and its gradients, into one with a group of channels per
seed. Compilers may compute groups by filling up with zeros, and 0 * NaN then carries one seed's NaN
into all others: XLA for CPU does so for the gradient of the kernels, and cuDNN's kernels cannot be
inspected. XLA for TPU turns a batched matrix product into one convolution with zeros between the
seeds. So no convolution and no product here ever sees two seeds.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.custom_batching
import jax.numpy as jnp


def one_by_one(
    x_BHWC: jax.Array,
    kernel: jax.Array,
    strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
    **rest: Any,
) -> jax.Array:
    """Is jax.lax.conv_general_dilated, but under `vmap` one convolution per seed.

    What lies between the convolutions stays one operation for all seeds.

    Args:
      x_BHWC: float (B, H, W, C).
      kernel: (height, width, C, filters), of the same dtype.
      strides: of height and width.
      padding: zeros before and after, of height and width.
      **rest: as jax.lax.conv_general_dilated's.

    Returns:
      (B, H', W', filters) of the same dtype.
    """
    plain = functools.partial(
        jax.lax.conv_general_dilated, window_strides=strides, padding=padding, **rest
    )

    return _one_by_one(plain, x_BHWC, kernel)


def product_one_by_one(a: jax.Array, b: jax.Array, *numbers: Any, **rest: Any) -> jax.Array:
    """Is jax.lax.dot_general, but under `vmap` one product per seed."""

    def plain(a: jax.Array, b: jax.Array) -> jax.Array:
        return jax.lax.dot_general(a, b, *numbers, **rest)

    return _one_by_one(plain, a, b)


def _one_by_one(
    plain: Callable[[jax.Array, jax.Array], jax.Array], a: jax.Array, b: jax.Array
) -> jax.Array:
    """Returns plain(a, b); `vmap` computes it and its gradients seed by seed."""

    def gradients(a: jax.Array, b: jax.Array, dy: jax.Array) -> Any:
        return jax.vjp(plain, a, b)[1](dy)

    forward, backward = _seed_by_seed(plain), _seed_by_seed(gradients)
    computed = jax.custom_vjp(forward)  # custom_vmap alone has no gradient
    computed.defvjp(lambda a, b: (forward(a, b), (a, b)), lambda kept, dy: backward(*kept, dy))
    return computed(a, b)


def _seed_by_seed(f: Callable[..., Any]) -> Callable[..., Any]:
    """Returns `f`, which `vmap` calls once per seed."""
    mapped = jax.custom_batching.custom_vmap(f)

    @mapped.def_vmap
    def rule(size: int, is_batched: list[bool], *args: jax.Array) -> Any:
        # In evaluation all seeds see the same images, which then have no axis of seeds.
        results = [
            f(*(a[seed] if has_axis else a for a, has_axis in zip(args, is_batched, strict=True)))
            for seed in range(size)
        ]
        stacked = jax.tree.map(lambda *each: jnp.stack(each), *results)
        return stacked, jax.tree.map(lambda _: True, stacked)

    return mapped
