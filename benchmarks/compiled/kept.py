"""What a training step's forward pass leaves in memory for its backward pass, by shapes alone."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.extend.core import Var

from resnet_jax import step


def kept_bytes(
    model: nn.Module, variables: Any, batch_size: int, image_shape: tuple[int, ...]
) -> int:
    """Returns the bytes of all arrays that JAX computes forward and reads again backward.

    The program that a compiler is given has them, whatever the platform. Those of blocks in a loop
    are stacked over its rounds, and then lie in memory whole; of the few others a compiler may
    merge some, or compute them again. Parameters and statistics, which are in memory anyway, do not
    count, while the batch of normalised images does.

    Args:
      model: called with (images, train=True); it returns float32 logits (B, num_classes).
      variables: arrays or their shapes, {"params", "batch_stats"} of one replicate.
      batch_size: images.
      image_shape: (H, W, C).
    """

    def pull_back(params: Any, batch_stats: Any, images_BHWC: Any, labels_B: Any) -> Any:
        def loss(params: Any) -> tuple[jax.Array, Any]:
            of_model = {"params": params, "batch_stats": batch_stats}
            logits_BK, updated = model.apply(
                of_model, images_BHWC, train=True, mutable=["batch_stats"]
            )
            return step.cross_entropy(logits_BK, labels_B, 0.0).mean(), updated

        _, pull_back, _ = jax.vjp(loss, params, has_aux=True)
        return pull_back  # a tree, whose leaves are what it keeps

    state = (variables["params"], variables["batch_stats"])
    images_BHWC = jax.ShapeDtypeStruct((batch_size, *image_shape), jnp.float32)
    labels_B = jax.ShapeDtypeStruct((batch_size,), jnp.int32)
    jaxpr = jax.make_jaxpr(pull_back)(*state, images_BHWC, labels_B).jaxpr
    in_memory = jaxpr.invars[: len(jax.tree.leaves(state))]
    # A number that stands in the program itself is no Var.
    kept = {kept for kept in jaxpr.outvars if isinstance(kept, Var)} - set(in_memory)
    shapes: list[Any] = [each.aval for each in kept]
    return sum(shape.size * shape.dtype.itemsize for shape in shapes)
