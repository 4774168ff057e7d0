"""BatchNorm (Ioffe & Szegedy 2015) whose statistics group is a setting, not the device count.

Under `jit` over a sharded batch the usual BatchNorm takes its statistics over the global batch, so
the group grows with the devices. Here a batch is reshaped to (groups, examples a group, ...): the
paper's "64 a GPU" gives the same numbers on 1 device and on 8.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name

# Exact moments of one batch, asked for with mutable=["moments"]: see step.make_moments_step.
MOMENTS = "moments"
_GROUP_MOMENTS = "group_moments"  # what the backward pass is left beside the input


class BatchNorm(nn.Module):
    """Normalises each channel over a group of examples and all positions.

    Variables: params/{scale, bias} and batch_stats/{mean, var}, all float32 of shape (C,). `var` is
    the biased variance (as in Flax; PyTorch keeps the unbiased one).

    Attributes:
      train: normalise by the group's statistics and update the moving averages, rather than
        normalise by batch_stats.
      group: examples a group; 0 for the whole batch. Must divide the batch when training.
      momentum: share that the moving averages keep; PyTorch calls 1 - momentum momentum.
      epsilon: added to the variance.
      dtype: of the output; statistics are taken in float32 whatever it is.
      scale_init: initialiser of gamma.
    """

    train: bool
    group: int = 0
    momentum: float = 0.9
    epsilon: float = 1e-5
    dtype: Any = jnp.float32
    scale_init: nn.initializers.Initializer = nn.initializers.ones_init()

    @nn.compact
    def __call__(self, x_BHWC: jax.Array) -> jax.Array:
        """Normalises float `x_BHWC`; returns the same shape in `dtype`.

        Raises:
          ValueError: `group` does not divide the batch.
        """
        channels = x_BHWC.shape[-1]
        scale = self.param("scale", self.scale_init, (channels,), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros_init(), (channels,), jnp.float32)
        mean = self.variable("batch_stats", "mean", jnp.zeros, (channels,), jnp.float32)
        var = self.variable("batch_stats", "var", jnp.ones, (channels,), jnp.float32)

        if not self.train:
            # Folded into x * a + b it would cancel where |mean| >> std.
            channel = (1,) * (x_BHWC.ndim - 1) + (channels,)
            factor = scale * jax.lax.rsqrt(var.value + self.epsilon)
            y = (x_BHWC - mean.value.reshape(channel)) * factor.reshape(channel)
            return (y + bias.reshape(channel)).astype(self.dtype)

        batch = x_BHWC.shape[0]
        group = self.group or batch
        # Initialisation runs on any batch: it makes shapes, and its statistics are thrown away.
        if self.is_initializing():
            group = batch
        if batch % group:
            raise ValueError(f"a BatchNorm group of {group} does not divide a batch of {batch}")
        # What the backward pass needs is computed again from x, which the convolution has left
        # anyway, and the moments: activations in float32 are not kept for it. The compiler may
        # keep them after all where that is cheaper; in a loop over blocks it could not drop them.
        normalize = jax.checkpoint(
            functools.partial(_normalize, group=group, epsilon=self.epsilon, dtype=self.dtype),
            policy=jax.checkpoint_policies.save_only_these_names(_GROUP_MOMENTS),
            prevent_cse=False,
        )
        y_BHWC, means_GC, vars_GC = normalize(x_BHWC, scale, bias)
        batch_mean = means_GC.mean(axis=0)
        within_var = vars_GC.mean(axis=0)
        if self.is_mutable_collection("batch_stats") and not self.is_initializing():
            keep = self.momentum
            mean.value = keep * mean.value + (1 - keep) * batch_mean
            var.value = keep * var.value + (1 - keep) * within_var
        if self.is_mutable_collection(MOMENTS) and not self.is_initializing():
            # Law of total variance: the variance of all activations of the batch about their mean.
            between_var = jnp.mean(jnp.square(means_GC - batch_mean[None]), axis=0)
            self.put_variable(MOMENTS, "mean", batch_mean)
            self.put_variable(MOMENTS, "var", within_var + between_var)
        return y_BHWC


def _normalize(
    x_BHWC: jax.Array, scale: jax.Array, bias: jax.Array, group: int, epsilon: float, dtype: Any
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns the normalised batch in `dtype`, and float32 means and variances (G, C)."""
    batch, channels = x_BHWC.shape[0], x_BHWC.shape[-1]
    x_GgHWC = x_BHWC.astype(jnp.float32).reshape(batch // group, group, *x_BHWC.shape[1:])
    within = tuple(range(1, x_GgHWC.ndim - 1))
    # One pass for both moments, of differences to a guess of the mean, the first value there is:
    # E[x^2] - E[x]^2 itself loses the variance where |mean| >> std (Chan et al. 1983, section 3).
    # The moments depend on the guess by rounding alone, so it has no gradient. More values would
    # guess better, but devices that share a group would have to send them.
    first = (slice(None), *[slice(1)] * len(within))
    guess_G1C = jax.lax.stop_gradient(x_GgHWC[first])
    off_GgHWC = x_GgHWC - guess_G1C
    off_mean_G1C, square_G1C = checkpoint_name(
        (
            jnp.mean(off_GgHWC, axis=within, keepdims=True),
            jnp.mean(jnp.square(off_GgHWC), axis=within, keepdims=True),
        ),
        _GROUP_MOMENTS,
    )
    mean_G1C = guess_G1C + off_mean_G1C
    var_G1C = jnp.maximum(square_G1C - jnp.square(off_mean_G1C), 0)
    channel = (1,) * (x_GgHWC.ndim - 1) + (channels,)
    factor_G1C = jax.lax.rsqrt(var_G1C + epsilon) * scale.reshape(channel)
    y_GgHWC = (x_GgHWC - mean_G1C) * factor_G1C + bias.reshape(channel)
    y_BHWC = y_GgHWC.reshape(x_BHWC.shape).astype(dtype)
    return y_BHWC, mean_G1C.reshape(-1, channels), var_G1C.reshape(-1, channels)


def pool_moments(moments: Any) -> Any:
    """Returns the moments of equal parts taken together: the law of total variance.

    Args:
      moments: what MOMENTS collects, each array with a leading axis of parts.
    """

    def pool(norm: dict[str, jax.Array]) -> dict[str, jax.Array]:
        return {
            "mean": norm["mean"].mean(axis=0),
            "var": norm["var"].mean(axis=0) + norm["mean"].var(axis=0),
        }

    return jax.tree.map(pool, moments, is_leaf=_is_norm)


@jax.jit
def add_moments(total: Any, new: Any, batches: int) -> Any:
    """Returns the moments of `batches` batches and one more of their size (Chan et al. 1979)."""
    share = 1.0 / (batches + 1.0)

    def add(a: dict[str, jax.Array], b: dict[str, jax.Array]) -> dict[str, jax.Array]:
        delta = b["mean"] - a["mean"]
        within = a["var"] + (b["var"] - a["var"]) * share
        between = jnp.square(delta) * share * (1 - share)
        return {"mean": a["mean"] + delta * share, "var": within + between}

    return jax.tree.map(add, total, new, is_leaf=_is_norm)


def _is_norm(node: Any) -> bool:
    return isinstance(node, dict) and node.keys() == {"mean", "var"}
