"""Squeeze and excitation (Hu et al. 2018, arXiv 1709.01507, section 3)."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name

from resnet_jax.kernels.rectifier import relu

LAYERS = ("se_conv1", "se_conv2")  # convolutions of the means, which are 1 x 1


def excited(
    x_BHWC: jax.Array,
    reduction: int,
    connect: Callable[..., Callable[[jax.Array], jax.Array]],
    checkpoint: str,
) -> jax.Array:
    """Multiplies each channel by a factor between 0 and 1.

    The factors are sigmoid(W2 relu(W1 z + b1) + b2) for the means z over all positions (eqs. 2 to
    4). Equation 3 has no biases b1 and b2; timm's networks have them.

    Args:
      x_BHWC: the branch's output, before the addition.
      reduction: r: the hidden layer has C / r channels, rounded down, but at least 1.
      connect: makes a fully connected layer from (filters, name).
      checkpoint: jax.ad_checkpoint's name for the layers' outputs.
    """
    channels = x_BHWC.shape[-1]
    reduced, restored = LAYERS
    means = jnp.mean(x_BHWC.astype(jnp.float32), axis=(1, 2), keepdims=True).astype(x_BHWC.dtype)
    hidden = connect(max(1, channels // reduction), name=reduced)(means)
    hidden = relu(checkpoint_name(hidden, checkpoint))
    logits = checkpoint_name(connect(channels, name=restored)(hidden), checkpoint)
    return x_BHWC * nn.sigmoid(logits)
