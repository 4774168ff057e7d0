"""Convolutions and products, of one seed and of several seeds in one program.

`vmap` over seeds turns a convolution, and each of its gradients, into a grouped convolution with
one group per seed. A compiler may pad the groups with zeros; 0 * NaN then carries one seed's NaN
into all others. XLA for CPU does so in the kernel's gradient, cuDNN cannot be inspected, and XLA
for TPU turns a batched matrix product into one convolution with zeros between the seeds. So here
every convolution and product computes a single seed.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.custom_batching
import jax.numpy as jnp

from resnet_jax.pytree import Tree


def convolution(x_BHWC: jax.Array, kernel: jax.Array, *args: Any, **options: Any) -> jax.Array:
    """Computes jax.lax.conv_general_dilated in the input's dtype, whatever the kernel's."""
    return jax.lax.conv_general_dilated(x_BHWC, kernel.astype(x_BHWC.dtype), *args, **options)


def one_by_one(
    x_BHWC: jax.Array,
    kernel: jax.Array,
    strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
    **options: Any,
) -> jax.Array:
    """Computes jax.lax.conv_general_dilated, under `vmap` as one convolution per seed.

    Args:
      x_BHWC: float (B, H, W, C).
      kernel: (height, width, C, filters), of the same dtype.
      strides: of height and width.
      padding: zeros before and after, of height and width.
      **options: further arguments of jax.lax.conv_general_dilated.

    Returns:
      (B, H', W', filters) of the same dtype.
    """
    plain = functools.partial(
        jax.lax.conv_general_dilated, window_strides=strides, padding=padding, **options
    )
    return _one_by_one(plain, x_BHWC, kernel)


def product_one_by_one(a: jax.Array, b: jax.Array, *dimensions: Any, **options: Any) -> jax.Array:
    """Computes jax.lax.dot_general, under `vmap` as one product per seed."""

    def plain(a: jax.Array, b: jax.Array) -> jax.Array:
        return jax.lax.dot_general(a, b, *dimensions, **options)

    return _one_by_one(plain, a, b)


def _one_by_one(
    plain: Callable[[jax.Array, jax.Array], jax.Array], a: jax.Array, b: jax.Array
) -> jax.Array:

    def gradients(a: jax.Array, b: jax.Array, dy: jax.Array) -> tuple[jax.Array, ...]:
        return jax.vjp(plain, a, b)[1](dy)

    forward, backward = _seed_by_seed(plain), _seed_by_seed(gradients)
    computed = jax.custom_vjp(forward)  # custom_vmap alone has no gradient
    computed.defvjp(lambda a, b: (forward(a, b), (a, b)), lambda saved, dy: backward(*saved, dy))
    return computed(a, b)


def _seed_by_seed(f: Callable[..., Tree]) -> Callable[..., Tree]:
    mapped = jax.custom_batching.custom_vmap(f)

    @mapped.def_vmap
    def rule(size: int, is_batched: list[bool], *args: jax.Array) -> tuple[Tree, Tree]:
        # In evaluation all seeds see the same images, which have no seed axis.
        results = [
            f(*(a[seed] if has_axis else a for a, has_axis in zip(args, is_batched, strict=True)))
            for seed in range(size)
        ]
        stacked = jax.tree.map(lambda *each: jnp.stack(each), *results)
        return stacked, jax.tree.map(lambda _: True, stacked)

    return mapped
