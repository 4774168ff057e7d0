"""What is minimised, and the error that the paper plots."""

import jax
import jax.numpy as jnp
import optax


def cross_entropy(logits_BK: jax.Array, labels_B: jax.Array, smoothing: float) -> jax.Array:
    """Returns each example's softmax cross-entropy in nats, float32 (B,).

    Args:
      logits_BK: float32.
      labels_B: int32 classes.
      smoothing: mass spread evenly over all K classes (Szegedy et al. 2015, section 7).
    """
    targets_BK = optax.smooth_labels(jax.nn.one_hot(labels_B, logits_BK.shape[-1]), smoothing)
    return optax.softmax_cross_entropy(logits_BK, targets_BK)


def top1_error(logits_BK: jax.Array, labels_B: jax.Array) -> jax.Array:
    """Returns 100 for each example whose highest logit is another class's, else 0, float32 (B,)."""
    return 100.0 * (jnp.argmax(logits_BK, axis=-1) != labels_B).astype(jnp.float32)


def top5_error(logits_BK: jax.Array, labels_B: jax.Array) -> jax.Array:
    """Returns 100 for each example with five classes or more above its own, else 0, float32 (B,).

    A logit that is not a number is an error, too.
    """
    own_B1 = jnp.take_along_axis(logits_BK, labels_B[:, None], axis=-1)
    is_found = jnp.sum(~(logits_BK <= own_B1), axis=-1) < 5
    return 100.0 * (~is_found).astype(jnp.float32)
