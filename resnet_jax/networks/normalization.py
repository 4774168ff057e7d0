"""BatchNorm (Ioffe & Szegedy 2015) whose statistics group is a setting, not the device count.

Under `jit` over a sharded batch the usual BatchNorm takes its statistics over the global batch, so
the group grows with the devices. Here a batch is reshaped to (groups, examples a group, ...): the
paper's "64 a GPU" gives the same numbers on 1 device and on 8.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name

from resnet_jax.allowed import Range
from resnet_jax.kernels.rectifier import relu

# Exact moments of one batch, asked for with mutable=["moments"]: see step.moments_step.
MOMENTS = "moments"
# What the backward pass is left beside the input, by jax.ad_checkpoint's name.
MOMENTS_OF_GROUPS = "moments_of_groups"


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
      rectify: a ReLU follows. It is computed here because its gradient costs nothing together with
        the normalisation's.
      scale_init: initialiser of gamma.
    """

    train: bool
    group: int = 0
    momentum: float = 0.9
    epsilon: float = 1e-5
    dtype: Any = jnp.float32
    rectify: bool = False
    scale_init: nn.initializers.Initializer = nn.initializers.ones_init()

    def __post_init__(self) -> None:
        """Raises UserError if a number is out of range."""
        Range(0, whole=True).check("group", self.group)
        Range(0, 1, below=True).check("momentum", self.momentum)
        Range(0).check("epsilon", self.epsilon)
        super().__post_init__()

    @nn.compact
    def __call__(self, x_BHWC: jax.Array) -> jax.Array:
        """Normalises float `x_BHWC`, and may rectify it; returns the same shape in `dtype`.

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
            factor = scale * jax.lax.rsqrt(var.value + self.epsilon)
            y = (x_BHWC - _over_positions(mean.value, x_BHWC)) * _over_positions(factor, x_BHWC)
            y = (y + _over_positions(bias, x_BHWC)).astype(self.dtype)
            return relu(y) if self.rectify else y

        batch = x_BHWC.shape[0]
        group = self.group or batch
        # Initialisation runs on any batch: it makes shapes, and its statistics are thrown away.
        if self.is_initializing():
            group = batch
        if batch % group:
            raise ValueError(f"a BatchNorm group of {group} does not divide a batch of {batch}")
        how = _How(group, self.epsilon, self.dtype, self.rectify)
        y_BHWC, moments_G2C = _normalize(x_BHWC, scale, bias, how)
        means_GC, vars_GC = jnp.moveaxis(jax.lax.stop_gradient(moments_G2C), 1, 0)
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


class _How(NamedTuple):
    """The attributes of BatchNorm that its function depends on, of one call."""

    group: int  # not 0
    epsilon: float
    dtype: Any
    rectify: bool


# A custom gradient, so that it is two passes over x and the output's gradient, and so that nothing
# but x and the moments is kept for it. Left to themselves, JAX keeps more and XLA makes it three.
@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _normalize(
    x_BHWC: jax.Array, scale: jax.Array, bias: jax.Array, how: _How
) -> tuple[jax.Array, jax.Array]:
    """Returns the normalised batch, and float32 means and variances (G, 2, C).

    The moments have no gradient of their own. As of every custom gradient there is no jax.jvp, but
    jax.jvp of a gradient, a Hessian's product with a vector.
    """
    return _forward(x_BHWC, scale, bias, how)[0]


def _forward(
    x_BHWC: jax.Array, scale: jax.Array, bias: jax.Array, how: _How
) -> tuple[tuple[jax.Array, jax.Array], Any]:
    moments_G2C = checkpoint_name(_moments(_grouped(x_BHWC, how.group)), MOMENTS_OF_GROUPS)
    centred_GgHWC, factor_G1C, _ = _centre(x_BHWC, moments_G2C, scale, how)
    y_GgHWC = centred_GgHWC * factor_G1C + _over_positions(bias, centred_GgHWC)
    y_BHWC = y_GgHWC.reshape(x_BHWC.shape).astype(how.dtype)
    if how.rectify:
        y_BHWC = relu(y_BHWC)
    return (y_BHWC, moments_G2C), (x_BHWC, moments_G2C, scale, bias)


def _backward(
    how: _How, kept: Any, gradients: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, jax.Array, jax.Array]:
    x_BHWC, moments_G2C, scale, bias = kept
    dy_BHWC, _ = gradients

    def start(x_BHWC: jax.Array, dy_BHWC: jax.Array) -> tuple[jax.Array, ...]:
        centred_GgHWC, factor_G1C, inverse_std_G1C = _centre(x_BHWC, moments_G2C, scale, how)
        dy_GgHWC = _grouped(dy_BHWC, how.group)
        if how.rectify:
            # Where y is at most 0, written otherwise than in the forward pass: else the compiler
            # finds it to be the same, and keeps it.
            is_off = centred_GgHWC * factor_G1C <= -_over_positions(bias, dy_GgHWC)
            dy_GgHWC = jnp.where(is_off, 0, dy_GgHWC)
        return centred_GgHWC, factor_G1C, inverse_std_G1C, dy_GgHWC

    centred_GgHWC, _, inverse_std_G1C, dy_GgHWC = start(x_BHWC, dy_BHWC)
    sum_G1C, product_G1C = _sums(dy_GgHWC, dy_GgHWC * centred_GgHWC)
    all_but_channels = tuple(range(dy_GgHWC.ndim - 1))
    dscale = (product_G1C * inverse_std_G1C).sum(all_but_channels)
    dbias = sum_G1C.sum(all_but_channels)
    # The second pass starts from what the first read, not from what it computed on the way, which
    # would have to be written.
    x_BHWC, dy_BHWC, sum_G1C, product_G1C = jax.lax.optimization_barrier(
        (x_BHWC, dy_BHWC, sum_G1C, product_G1C)
    )
    centred_GgHWC, factor_G1C, inverse_std_G1C, dy_GgHWC = start(x_BHWC, dy_BHWC)
    count = math.prod(dy_GgHWC.shape[1:-1])
    slope_G1C = product_G1C / count * jnp.square(inverse_std_G1C)
    dx_GgHWC = (dy_GgHWC - sum_G1C / count - centred_GgHWC * slope_G1C) * factor_G1C
    return dx_GgHWC.reshape(x_BHWC.shape).astype(x_BHWC.dtype), dscale, dbias


_normalize.defvjp(_forward, _backward)


def _grouped(x_BHWC: jax.Array, group: int) -> jax.Array:
    batch, *rest = x_BHWC.shape
    return x_BHWC.astype(jnp.float32).reshape(batch // group, group, *rest)


def _moments(x_GgHWC: jax.Array) -> jax.Array:
    """Returns each group's mean and variance of each channel, (G, 2, C)."""
    # One pass for both moments, of differences to a guess of the mean: E[x^2] - E[x]^2 itself loses
    # the variance where |mean| >> std (Chan et al. 1983, section 3). The guess is the mean of the
    # group's first example. A single value may lie far from all others; a mean of the 1/g-th part
    # of them is off by at most sqrt(g) standard deviations. Devices that share a group send one
    # number per channel for it.
    groups, channels = x_GgHWC.shape[0], x_GgHWC.shape[-1]
    within = tuple(range(1, x_GgHWC.ndim - 1))
    guess_G1C = x_GgHWC[:, :1].mean(within, keepdims=True)
    off_GgHWC = x_GgHWC - guess_G1C
    count = math.prod(x_GgHWC.shape[1:-1])
    off_mean_G1C, square_G1C = (total / count for total in _sums(off_GgHWC, jnp.square(off_GgHWC)))
    mean_G1C = guess_G1C + off_mean_G1C
    var_G1C = jnp.maximum(square_G1C - jnp.square(off_mean_G1C), 0)
    return jnp.stack([mean_G1C, var_G1C], axis=1).reshape(groups, 2, channels)


def _centre(
    x_BHWC: jax.Array, moments_G2C: jax.Array, scale: jax.Array, how: _How
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns x less its mean (G, g, H, W, C), gamma / std, and 1 / std (G, 1, 1, 1, C)."""
    x_GgHWC = _grouped(x_BHWC, how.group)
    groups, _, channels = moments_G2C.shape
    positions = (1,) * (x_GgHWC.ndim - 2)
    mean_G1C, var_G1C = (moments_G2C[:, i].reshape(groups, *positions, channels) for i in range(2))
    inverse_std_G1C = jax.lax.rsqrt(var_G1C + how.epsilon)
    factor_G1C = inverse_std_G1C * _over_positions(scale, x_GgHWC)
    return x_GgHWC - mean_G1C, factor_G1C, inverse_std_G1C


def _over_positions(of_channels_C: jax.Array, x: jax.Array) -> jax.Array:
    """Returns what there is one of for each channel in a shape that is broadcast to x."""
    return of_channels_C.reshape((1,) * (x.ndim - 1) + of_channels_C.shape)


@jax.custom_jvp
def _sums(a_GgHWC: jax.Array, b_GgHWC: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the sums of two arrays over each group and all positions, (G, 1, 1, 1, C) each."""
    # As one reduction, XLA for GPUs reads what they are computed from once; that for CPUs does so
    # anyway, and computes such reductions number by number.
    return jax.lax.platform_dependent(a_GgHWC, b_GgHWC, cuda=_sums_together, default=_sums_apart)


@_sums.defjvp
def _sums_jvp(primals: Any, tangents: Any) -> tuple[Any, Any]:
    # A Hessian needs it: JAX does not differentiate a reduction of two arrays.
    return _sums(*primals), _sums_apart(*tangents)


def _sums_together(a_GgHWC: jax.Array, b_GgHWC: jax.Array) -> tuple[jax.Array, jax.Array]:
    within = tuple(range(1, a_GgHWC.ndim - 1))
    zero = jnp.zeros((), a_GgHWC.dtype)
    a_GC, b_GC = jax.lax.reduce(
        (a_GgHWC, b_GgHWC), (zero, zero), lambda x, y: (x[0] + y[0], x[1] + y[1]), within
    )
    return jnp.expand_dims(a_GC, within), jnp.expand_dims(b_GC, within)


def _sums_apart(a_GgHWC: jax.Array, b_GgHWC: jax.Array) -> tuple[jax.Array, jax.Array]:
    within = tuple(range(1, a_GgHWC.ndim - 1))
    return a_GgHWC.sum(within, keepdims=True), b_GgHWC.sum(within, keepdims=True)


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
