"""Counts the bytes that a training step's forward pass keeps for its backward pass, from shapes."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.extend.core import Var

from resnet_jax import losses
from resnet_jax.pytree import PyTree


def kept_bytes(
    model: nn.Module, variables: Mapping[str, PyTree], batch_size: int, image_shape: tuple[int, ...]
) -> int:
    """Returns the bytes of all arrays that the forward pass computes and the backward pass reads.

    These are the residuals in the program that any compiler is given. Residuals of blocks in a loop
    are stacked over its iterations and fully stored; the compiler may merge or recompute others.
    Parameters and statistics do not count, since they are in memory anyway; the batch of normalised
    images does.

    Args:
      model: called with (images, train=True); it returns float32 logits (B, num_classes).
      variables: arrays or their shapes: {"params", "batch_stats"} of one replicate.
      batch_size: the number of images.
      image_shape: (H, W, C).
    """

    def pull_back(
        params: PyTree, batch_stats: PyTree, images_BHWC: jax.Array, labels_B: jax.Array
    ) -> PyTree:
        def loss(params: PyTree) -> tuple[jax.Array, PyTree]:
            logits_BK, updated = model.apply(
                {"params": params, "batch_stats": batch_stats},
                images_BHWC,
                train=True,
                mutable=["batch_stats"],
            )
            return losses.cross_entropy(logits_BK, labels_B, 0.0).mean(), updated

        _, pull_back, _ = jax.vjp(loss, params, has_aux=True)
        return pull_back  # a tree whose leaves are the residuals

    state = (variables["params"], variables["batch_stats"])
    images_BHWC = jax.ShapeDtypeStruct((batch_size, *image_shape), jnp.float32)
    labels_B = jax.ShapeDtypeStruct((batch_size,), jnp.int32)
    jaxpr = jax.make_jaxpr(pull_back)(*state, images_BHWC, labels_B).jaxpr
    in_memory = jaxpr.invars[: len(jax.tree.leaves(state))]
    # Constants of the program are not Vars.
    kept = {var for var in jaxpr.outvars if isinstance(var, Var)} - set(in_memory)
    shapes: list[Any] = [var.aval for var in kept]
    return sum(shape.size * shape.dtype.itemsize for shape in shapes)
