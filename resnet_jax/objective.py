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
    """Returns 100 for each example whose own logit is not the single highest, else 0, float32 (B,).

    See _rivals: with a tie or a NaN no class is correct, not even class 0.
    """
    return 100.0 * (_rivals(logits_BK, labels_B) > 0).astype(jnp.float32)


def top5_error(logits_BK: jax.Array, labels_B: jax.Array) -> jax.Array:
    """Returns 100 for each example with five rivals or more, else 0, float32 (B,); see _rivals."""
    return 100.0 * (_rivals(logits_BK, labels_B) > 4).astype(jnp.float32)


def _rivals(logits_BK: jax.Array, labels_B: jax.Array) -> jax.Array:
    """Returns how many other classes' logits are not below the label's own, int32 (B,).

    An equal logit is not below, and neither is a NaN; if the own logit is NaN, none is.
    """
    own_B1 = jnp.take_along_axis(logits_BK, labels_B[:, None], axis=-1)
    # Its own class is not below itself.
    return jnp.sum(~(logits_BK < own_B1), axis=-1) - 1
