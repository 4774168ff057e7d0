"""The loss and the errors of a batch, example by example."""

import jax
import jax.numpy as jnp
import optax

MANY_CLASSES = 100  # with at least this many, top-5 error is reported as well


def cross_entropy(logits_BK: jax.Array, labels_B: jax.Array, smoothing: float) -> jax.Array:
    """Returns each example's softmax cross-entropy in nats, float32 (B,).

    Args:
      logits_BK: float32.
      labels_B: int32 classes.
      smoothing: probability mass spread evenly over all K classes (Szegedy et al. 2015, section 7).
    """
    targets_BK = optax.smooth_labels(jax.nn.one_hot(labels_B, logits_BK.shape[-1]), smoothing)
    return optax.softmax_cross_entropy(logits_BK, targets_BK)


def top1_error(logits_BK: jax.Array, labels_B: jax.Array) -> jax.Array:
    """Returns 0 for each example whose label has the single highest logit, else 100, float32 (B,).

    A tie for the highest or a NaN counts as an error, see _rivals.
    """
    return 100.0 * (_rivals(logits_BK, labels_B) > 0).astype(jnp.float32)


def top5_error(logits_BK: jax.Array, labels_B: jax.Array) -> jax.Array:
    """Returns 100 for each example with five rivals or more, else 0, float32 (B,); see _rivals."""
    return 100.0 * (_rivals(logits_BK, labels_B) > 4).astype(jnp.float32)


def _rivals(logits_BK: jax.Array, labels_B: jax.Array) -> jax.Array:
    """Returns how many other classes' logits are not below the label's logit, int32 (B,).

    Ties and NaNs count as not below. If the label's logit is NaN, all other classes count.
    """
    label_logit_B1 = jnp.take_along_axis(logits_BK, labels_B[:, None], axis=-1)
    return jnp.sum(~(logits_BK < label_logit_B1), axis=-1) - 1  # without the label itself
