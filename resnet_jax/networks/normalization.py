"""BatchNorm (Ioffe & Szegedy 2015) with an explicit group size for its statistics.

Under `jit`, the usual BatchNorm takes its statistics over the global batch, so the group grows with
the number of devices. Here the batch consists of groups of consecutive examples, each with its own
statistics: a group of 64 gives the same numbers on 1 device and on 8.
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
    moments_G2C = checkpoint_name(_moments(x_BHWC, options.group), MOMENTS_OF_GROUPS)
    centred_BHWC, factor_B11C, _ = _centre(x_BHWC, moments_G2C, scale, options)
    y_BHWC = centred_BHWC * factor_B11C + _over_positions(bias, centred_BHWC)
    y_BHWC = y_BHWC.astype(options.dtype)
    if options.rectify:
        y_BHWC = relu(y_BHWC)
    return (y_BHWC, moments_G2C), (x_BHWC, moments_G2C, scale, bias)


def _backward(
    options: _Options, residuals: _Residuals, gradients: _Pair
) -> tuple[jax.Array, jax.Array, jax.Array]:
    x_BHWC, moments_G2C, scale, bias = residuals
    dy_BHWC, _ = gradients

    def start(x_BHWC: jax.Array, dy_BHWC: jax.Array) -> tuple[jax.Array, ...]:
        centred_BHWC, factor_B11C, inverse_std_GC = _centre(x_BHWC, moments_G2C, scale, options)
        dy_BHWC = dy_BHWC.astype(jnp.float32)
        if options.rectify:
            # y <= 0, but not in the forward pass's words: common-subexpression elimination would
            # merge the two and keep the forward mask alive.
            is_off = centred_BHWC * factor_B11C <= -_over_positions(bias, dy_BHWC)
            dy_BHWC = jnp.where(is_off, 0, dy_BHWC)
        return centred_BHWC, factor_B11C, inverse_std_GC, dy_BHWC

    centred_BHWC, _, inverse_std_GC, masked_BHWC = start(x_BHWC, dy_BHWC)
    sum_GC, product_GC = _sums(masked_BHWC, masked_BHWC * centred_BHWC, options.group)
    dscale = (product_GC * inverse_std_GC).sum(axis=0)
    dbias = sum_GC.sum(axis=0)
    # The barrier makes the second pass recompute from x and dy: reusing the first pass's
    # intermediates would mean writing them to memory.
    x_BHWC, dy_BHWC, sum_GC, product_GC = jax.lax.optimization_barrier(
        (x_BHWC, dy_BHWC, sum_GC, product_GC)
    )
    centred_BHWC, factor_B11C, inverse_std_GC, masked_BHWC = start(x_BHWC, dy_BHWC)
    count = options.group * math.prod(x_BHWC.shape[1:-1])
    mean_B11C = _spread(sum_GC / count, x_BHWC)
    slope_B11C = _spread(product_GC / count * jnp.square(inverse_std_GC), x_BHWC)
    dx_BHWC = (masked_BHWC - mean_B11C - centred_BHWC * slope_B11C) * factor_B11C
    return dx_BHWC.astype(x_BHWC.dtype), dscale, dbias


_normalize.defvjp(_forward, _backward)


def _moments(x_BHWC: jax.Array, group: int) -> jax.Array:
    """Returns the mean and variance of each channel per group, (G, 2, C)."""
    # One pass for both moments, over differences from a guess of the mean: E[x^2] - E[x]^2 loses
    # the variance when |mean| >> std (Chan et al. 1983, section 3). The guess is the mean of the
    # group's first example. Any single value may be an outlier; the mean of one example out of g
    # is at most sqrt(g) standard deviations off. Devices that share a group exchange one number
    # per channel for it.
    x_BHWC = x_BHWC.astype(jnp.float32)
    first_GHWC = _grouped(x_BHWC, group)[:, 0]
    guess_GC = first_GHWC.mean(tuple(range(1, first_GHWC.ndim - 1)))
    shifted_BHWC = x_BHWC - _spread(guess_GC, x_BHWC)
    count = group * math.prod(x_BHWC.shape[1:-1])
    sums = _sums(shifted_BHWC, jnp.square(shifted_BHWC), group)
    shift_GC, square_GC = (total / count for total in sums)
    var_GC = jnp.maximum(square_GC - jnp.square(shift_GC), 0)
    return jnp.stack([guess_GC + shift_GC, var_GC], axis=1)


def _centre(
    x_BHWC: jax.Array, moments_G2C: jax.Array, scale: jax.Array, options: _Options
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns x - mean, gamma / std (B, 1, 1, C) and 1 / std (G, C)."""
    mean_GC, var_GC = moments_G2C[:, 0], moments_G2C[:, 1]
    inverse_std_GC = jax.lax.rsqrt(var_GC + options.epsilon)
    centred_BHWC = x_BHWC.astype(jnp.float32) - _spread(mean_GC, x_BHWC)
    factor_GC = inverse_std_GC * _over_positions(scale, inverse_std_GC)
    return centred_BHWC, _spread(factor_GC, x_BHWC), inverse_std_GC


def _grouped(x_B: jax.Array, group: int) -> jax.Array:
    """Splits the batch into groups: (B, ...) -> (G, g, ...)."""
    return x_B.reshape(-1, group, *x_B.shape[1:])


def _spread(values_GC: jax.Array, x_BHWC: jax.Array) -> jax.Array:
    """Repeats each group's values for its examples: (G, C) -> (B, 1, 1, C)."""
    batch, *positions, channels = x_BHWC.shape
    values_BC = jnp.repeat(values_GC, batch // values_GC.shape[0], axis=0)
    return values_BC.reshape(batch, *(1 for _ in positions), channels)


def _over_positions(values_C: jax.Array, x: jax.Array) -> jax.Array:
    """Reshapes one value per channel so that it broadcasts against x."""
    return values_C.reshape((1,) * (x.ndim - 1) + values_C.shape)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def _sums(a_BHWC: jax.Array, b_BHWC: jax.Array, group: int) -> _Pair:
    """Returns the sums of two arrays over each group and all positions, (G, C) each."""
    # On GPUs, a single reduction lets XLA read the operands once. XLA for CPU reads them once
    # either way, but does not vectorise a reduction of two arrays.
    return jax.lax.platform_dependent(
        a_BHWC,
        b_BHWC,
        cuda=functools.partial(_sums_together, group=group),
        cpu=functools.partial(_sums_by_chunk, group=group),
        default=functools.partial(_sums_apart, group=group),
    )


@_sums.defjvp
def _sums_jvp(group: int, primals: _Pair, tangents: _Pair) -> tuple[_Pair, _Pair]:
    # For Hessian-vector products: JAX cannot differentiate a reduction of two arrays.
    return _sums(*primals, group), _sums_apart(*tangents, group)


def _sums_together(a_BHWC: jax.Array, b_BHWC: jax.Array, group: int) -> _Pair:
    pair = _grouped(a_BHWC, group), _grouped(b_BHWC, group)
    zero = jnp.zeros((), a_BHWC.dtype)
    within = tuple(range(1, a_BHWC.ndim))
    return jax.lax.reduce(pair, (zero, zero), lambda x, y: (x[0] + y[0], x[1] + y[1]), within)


def _sums_apart(a_BHWC: jax.Array, b_BHWC: jax.Array, group: int) -> _Pair:
    # Positions first, so that only a small array is split into groups. TPUs have the batch in the
    # last dimension, whose size they round up to 128: the groups of a large array would be padded.
    within = tuple(range(1, a_BHWC.ndim - 1))
    a_BC, b_BC = a_BHWC.sum(within), b_BHWC.sum(within)
    return _grouped(a_BC, group).sum(1), _grouped(b_BC, group).sum(1)


def _sums_by_chunk(a_BHWC: jax.Array, b_BHWC: jax.Array, group: int) -> _Pair:
    return _sum_by_chunk(a_BHWC, group), _sum_by_chunk(b_BHWC, group)


def _sum_by_chunk(x_BHWC: jax.Array, group: int) -> jax.Array:
    # XLA for CPU splits a long sum into windows: it first writes all summands to memory, and its
    # loop over a window is not vectorised. It vectorises a sum of up to 16 numbers and computes the
    # summands in the same loop.
    batch, *positions, channels = x_BHWC.shape
    chunk = max(n for n in range(1, 17) if math.prod(positions) % n == 0)
    sums_BPC = x_BHWC.reshape(batch, -1, chunk, channels).sum(axis=2)
    # Without the barrier XLA would merge the two sums.
    return _grouped(jax.lax.optimization_barrier(sums_BPC), group).sum((1, 2))


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
