"""BatchNorm (Ioffe & Szegedy 2015) with an explicit group size for its statistics.

Under `jit`, the usual BatchNorm takes its statistics over the global batch, so the group grows with
the number of devices. Here the batch is reshaped to (groups, examples per group, ...): a group of
64 gives the same numbers on 1 device and on 8.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike

from resnet_jax.allowed import Range
from resnet_jax.kernels.rectifier import relu
from resnet_jax.pytree import Tree

# The collection of one batch's exact moments, filled if it is mutable: see step.observe_step.
MOMENTS = "moments"
# jax.ad_checkpoint's name for the moments that the backward pass needs beside the input.
MOMENTS_OF_GROUPS = "moments_of_groups"
_Pair = tuple[jax.Array, jax.Array]
_Residuals = tuple[jax.Array, jax.Array, jax.Array, jax.Array]  # x, moments, scale, bias


class BatchNorm(nn.Module):
    """Normalises each channel over a group of examples and all positions.

    Variables: params/{scale, bias} and batch_stats/{mean, var}, all float32 of shape (C,). `var` is
    the biased variance (as in Flax; PyTorch keeps the unbiased one).

    Attributes:
      train: normalise by the group's statistics and update the moving averages; otherwise
        normalise by batch_stats.
      group: examples per group; 0 for the whole batch. Must divide the batch when training.
      momentum: weight of the old moving average; PyTorch's momentum is 1 minus this.
      epsilon: added to the variance.
      dtype: of the output; statistics are always float32.
      rectify: apply a ReLU to the output. Fused here, its gradient needs no pass of its own.
      scale_init: initialiser of gamma.
    """

    train: bool
    group: int = 0
    momentum: float = 0.9
    epsilon: float = 1e-5
    dtype: DTypeLike = jnp.float32
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
            # Not folded into x * a + b, which loses precision when |mean| >> std.
            factor = scale * jax.lax.rsqrt(var.value + self.epsilon)
            y = (x_BHWC - _over_positions(mean.value, x_BHWC)) * _over_positions(factor, x_BHWC)
            y = (y + _over_positions(bias, x_BHWC)).astype(self.dtype)
            return relu(y) if self.rectify else y

        batch = x_BHWC.shape[0]
        group = self.group or batch
        # Initialisation may use any batch size: it needs shapes only and discards the statistics.
        if self.is_initializing():
            group = batch
        if batch % group:
            raise ValueError(f"a BatchNorm group of {group} does not divide a batch of {batch}")
        options = _Options(group, self.epsilon, self.dtype, self.rectify)
        y_BHWC, moments_G2C = _normalize(x_BHWC, scale, bias, options)
        means_GC, vars_GC = jnp.moveaxis(jax.lax.stop_gradient(moments_G2C), 1, 0)
        batch_mean = means_GC.mean(axis=0)
        within_var = vars_GC.mean(axis=0)
        if self.is_mutable_collection("batch_stats") and not self.is_initializing():
            keep = self.momentum
            mean.value = keep * mean.value + (1 - keep) * batch_mean
            var.value = keep * var.value + (1 - keep) * within_var
        if self.is_mutable_collection(MOMENTS) and not self.is_initializing():
            # Law of total variance: the variance over the whole batch.
            between_var = jnp.mean(jnp.square(means_GC - batch_mean[None]), axis=0)
            self.put_variable(MOMENTS, "mean", batch_mean)
            self.put_variable(MOMENTS, "var", within_var + between_var)
        return y_BHWC


class _Options(NamedTuple):
    group: int  # examples per group, never 0
    epsilon: float
    dtype: DTypeLike
    rectify: bool


# This custom gradient takes two passes over x and dy, and keeps only x and the moments. By default
# JAX keeps more and XLA takes three passes.
@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _normalize(
    x_BHWC: jax.Array, scale: jax.Array, bias: jax.Array, options: _Options
) -> tuple[jax.Array, jax.Array]:
    """Returns the normalised batch, and float32 means and variances (G, 2, C).

    The moments have no gradient. jax.jvp is undefined, as for every custom_vjp, but jax.jvp of a
    gradient (a Hessian-vector product) works.
    """
    return _forward(x_BHWC, scale, bias, options)[0]


def _forward(
    x_BHWC: jax.Array, scale: jax.Array, bias: jax.Array, options: _Options
) -> tuple[_Pair, _Residuals]:
    moments_G2C = checkpoint_name(_moments(_grouped(x_BHWC, options.group)), MOMENTS_OF_GROUPS)
    centred_GgHWC, factor_G1C, _ = _centre(x_BHWC, moments_G2C, scale, options)
    y_GgHWC = centred_GgHWC * factor_G1C + _over_positions(bias, centred_GgHWC)
    y_BHWC = y_GgHWC.reshape(x_BHWC.shape).astype(options.dtype)
    if options.rectify:
        y_BHWC = relu(y_BHWC)
    return (y_BHWC, moments_G2C), (x_BHWC, moments_G2C, scale, bias)


def _backward(
    options: _Options, residuals: _Residuals, gradients: _Pair
) -> tuple[jax.Array, jax.Array, jax.Array]:
    x_BHWC, moments_G2C, scale, bias = residuals
    dy_BHWC, _ = gradients

    def start(x_BHWC: jax.Array, dy_BHWC: jax.Array) -> tuple[jax.Array, ...]:
        centred_GgHWC, factor_G1C, inverse_std_G1C = _centre(x_BHWC, moments_G2C, scale, options)
        dy_GgHWC = _grouped(dy_BHWC, options.group)
        if options.rectify:
            # y <= 0, but not in the forward pass's words: common-subexpression elimination would
            # merge the two and keep the forward mask alive.
            is_off = centred_GgHWC * factor_G1C <= -_over_positions(bias, dy_GgHWC)
            dy_GgHWC = jnp.where(is_off, 0, dy_GgHWC)
        return centred_GgHWC, factor_G1C, inverse_std_G1C, dy_GgHWC

    centred_GgHWC, _, inverse_std_G1C, dy_GgHWC = start(x_BHWC, dy_BHWC)
    sum_G1C, product_G1C = _sums(dy_GgHWC, dy_GgHWC * centred_GgHWC)
    all_but_channels = tuple(range(dy_GgHWC.ndim - 1))
    dscale = (product_G1C * inverse_std_G1C).sum(all_but_channels)
    dbias = sum_G1C.sum(all_but_channels)
    # The barrier makes the second pass recompute from x and dy: reusing the first pass's
    # intermediates would mean writing them to memory.
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
    """Returns the mean and variance of each channel per group, (G, 2, C)."""
    # One pass for both moments, over differences from a guess of the mean: E[x^2] - E[x]^2 loses
    # the variance when |mean| >> std (Chan et al. 1983, section 3). The guess is the mean of the
    # group's first example. Any single value may be an outlier; the mean of one example out of g
    # is at most sqrt(g) standard deviations off. Devices that share a group exchange one number
    # per channel for it.
    groups, channels = x_GgHWC.shape[0], x_GgHWC.shape[-1]
    within = tuple(range(1, x_GgHWC.ndim - 1))
    guess_G1C = x_GgHWC[:, :1].mean(within, keepdims=True)
    shifted_GgHWC = x_GgHWC - guess_G1C
    count = math.prod(x_GgHWC.shape[1:-1])
    sums = _sums(shifted_GgHWC, jnp.square(shifted_GgHWC))
    shift_G1C, square_G1C = (total / count for total in sums)
    mean_G1C = guess_G1C + shift_G1C
    var_G1C = jnp.maximum(square_G1C - jnp.square(shift_G1C), 0)
    return jnp.stack([mean_G1C, var_G1C], axis=1).reshape(groups, 2, channels)


def _centre(
    x_BHWC: jax.Array, moments_G2C: jax.Array, scale: jax.Array, options: _Options
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns x - mean (G, g, H, W, C), gamma / std and 1 / std (G, 1, 1, 1, C)."""
    x_GgHWC = _grouped(x_BHWC, options.group)
    groups, _, channels = moments_G2C.shape
    positions = (1,) * (x_GgHWC.ndim - 2)
    mean_G1C, var_G1C = (moments_G2C[:, i].reshape(groups, *positions, channels) for i in range(2))
    inverse_std_G1C = jax.lax.rsqrt(var_G1C + options.epsilon)
    factor_G1C = inverse_std_G1C * _over_positions(scale, x_GgHWC)
    return x_GgHWC - mean_G1C, factor_G1C, inverse_std_G1C


def _over_positions(values_C: jax.Array, x: jax.Array) -> jax.Array:
    """Reshapes one value per channel so that it broadcasts against x."""
    return values_C.reshape((1,) * (x.ndim - 1) + values_C.shape)


@jax.custom_jvp
def _sums(a_GgHWC: jax.Array, b_GgHWC: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the sums of two arrays over each group and all positions, (G, 1, 1, 1, C) each."""
    # On GPUs, a single reduction lets XLA read the operands once. XLA for CPU reads them once
    # either way, but does not vectorise a reduction of two arrays.
    return jax.lax.platform_dependent(
        a_GgHWC, b_GgHWC, cuda=_sums_together, cpu=_sums_by_chunk, default=_sums_apart
    )


@_sums.defjvp
def _sums_jvp(primals: _Pair, tangents: _Pair) -> tuple[_Pair, _Pair]:
    # For Hessian-vector products: JAX cannot differentiate a reduction of two arrays.
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


def _sums_by_chunk(a_GgHWC: jax.Array, b_GgHWC: jax.Array) -> tuple[jax.Array, jax.Array]:
    return _sum_by_chunk(a_GgHWC), _sum_by_chunk(b_GgHWC)


def _sum_by_chunk(x_GgHWC: jax.Array) -> jax.Array:
    # XLA for CPU splits a long sum into windows: it first writes all summands to memory, and its
    # loop over a window is not vectorised. It vectorises a sum of up to 16 numbers and computes the
    # summands in the same loop.
    groups, group, *positions, channels = x_GgHWC.shape
    chunk = max(n for n in range(1, 17) if math.prod(positions) % n == 0)
    sums_GgPC = x_GgHWC.reshape(groups, group, -1, chunk, channels).sum(axis=3)
    # Without the barrier XLA would merge the two sums.
    sums_GC = jax.lax.optimization_barrier(sums_GgPC).sum(axis=(1, 2))
    return jnp.expand_dims(sums_GC, tuple(range(1, x_GgHWC.ndim - 1)))


def pool_moments(moments: Tree) -> Tree:
    """Pools the moments of equal parts of a batch, by the law of total variance.

    Args:
      moments: a MOMENTS collection whose arrays have a leading axis of parts.
    """

    def pool(norm: dict[str, jax.Array]) -> dict[str, jax.Array]:
        return {
            "mean": norm["mean"].mean(axis=0),
            "var": norm["var"].mean(axis=0) + norm["mean"].var(axis=0),
        }

    return jax.tree.map(pool, moments, is_leaf=_is_norm)


@jax.jit
def add_moments(total: Tree, new: Tree, batches: int) -> Tree:
    """Adds one batch to the moments of `batches` batches of equal size (Chan et al. 1979)."""
    share = 1.0 / (batches + 1.0)

    def add(a: dict[str, jax.Array], b: dict[str, jax.Array]) -> dict[str, jax.Array]:
        delta = b["mean"] - a["mean"]
        within = a["var"] + (b["var"] - a["var"]) * share
        between = jnp.square(delta) * share * (1 - share)
        return {"mean": a["mean"] + delta * share, "var": within + between}

    return jax.tree.map(add, total, new, is_leaf=_is_norm)


def _is_norm(node: object) -> bool:
    return isinstance(node, dict) and node.keys() == {"mean", "var"}
