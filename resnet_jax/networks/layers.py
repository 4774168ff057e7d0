"""The layers of a network: convolutions, and norms followed by the nonlinearity."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.linen.initializers import Initializer
from jax.typing import DTypeLike

from resnet_jax.kernels.rectifier import relu
from resnet_jax.networks import signals
from resnet_jax.networks.initializers import HE_NORMAL, Initializers
from resnet_jax.networks.nonlinearities import Nonlinearity
from resnet_jax.networks.normalization import BatchNorm

Function = Callable[[jax.Array], jax.Array]
ONES = nn.initializers.ones_init()


@dataclasses.dataclass(frozen=True)
class Layers:
    """Makes the layers of a network.

    Attributes:
      nonlinearity: see nonlinearities.py.
      init: of the kernels.
      convolve: jax.lax.conv_general_dilated for a float32 kernel, computed in the input's dtype.
      standardize: whether kernels are standardised.
      norm_kind: "batch" | "none" (the identity; convolutions have biases) | "group" (Wu & He 2018,
        arXiv 1803.08494) | "frozen" (a BatchNorm that keeps its initial statistics, mean 0 and
        variance 1: a scale and a bias).
      norm_groups: groups of channels of "group".
      epsilon: added to a norm's variance.
      observes: whether the signals of the norms and nonlinearities are recorded, see signals.py.
      train, bn_group, bn_momentum: see BatchNorm.
      dtype: of activations.
      precision: of convolutions.
    """

    nonlinearity: Nonlinearity
    init: Initializers
    convolve: Callable[..., jax.Array]
    standardize: bool
    norm_kind: str
    norm_groups: int
    epsilon: float
    observes: bool
    train: bool
    bn_group: int
    bn_momentum: float
    dtype: DTypeLike
    precision: str

    def conv(
        self,
        filters: int,
        kernel_size: tuple[int, int],
        strides: tuple[int, int],
        *,
        same_padding: bool = False,
        strided: Callable[..., jax.Array] | None = None,
        **options: Any,
    ) -> nn.Conv:
        """Returns a convolution.

        Args:
          filters: its output channels.
          kernel_size: odd numbers.
          strides: of height and width.
          same_padding: pad as TensorFlow's "SAME": with stride 2, windows on an even length start
            one pixel later. By default both ends are padded, as in Caffe and PyTorch.
          strided: computes it by a convolution `convolve`; by default it is computed directly.
          **options: of nn.Conv.
        """
        both_ends = [(size // 2, size // 2) for size in kernel_size]
        convolve = functools.partial(strided, convolve=self.convolve) if strided else self.convolve
        if self.standardize:
            gain = self.nonlinearity.variance**-0.5
            convolve = functools.partial(standardized, convolve=convolve, gain=gain)
        options = {"use_bias": self.norm_kind == "none", **options}  # a norm has biases
        return nn.Conv(
            filters,
            kernel_size,
            strides,
            padding="SAME" if same_padding else both_ends,
            conv_general_dilated=convolve,
            promote_dtype=for_convolve,
            dtype=self.dtype,
            precision=self.precision,
            **options,
        )

    def connection(self, filters: int, name: str) -> nn.Conv:
        """Returns a fully connected layer, with biases, for inputs (B, 1, 1, C).

        It is a convolution, so that several seeds and devices are treated as in `convolve`. Its
        kernel is never standardised.
        """
        return dataclasses.replace(self, standardize=False).conv(
            filters, (1, 1), (1, 1), name=name, use_bias=True, kernel_init=HE_NORMAL
        )

    def norm(self, name: str, activate: bool = False, scale_init: Initializer = ONES) -> Function:
        """Returns a norm, followed by the nonlinearity if `activate` is set.

        Args:
          name: of the module.
          activate: see above.
          scale_init: initialiser of the norm's scales.
        """
        nonlinearity = self.nonlinearity.apply
        is_batch_norm = self.norm_kind in ("batch", "frozen")
        # Its input is a signal, so nothing is fused while signals are recorded.
        is_fused = activate and nonlinearity is relu and is_batch_norm and not self.observes
        layer: nn.Module
        if is_batch_norm:
            layer = BatchNorm(
                train=self.train and self.norm_kind == "batch",
                group=self.bn_group,
                momentum=self.bn_momentum,
                epsilon=self.epsilon,
                dtype=self.dtype,
                rectify=is_fused,
                scale_init=scale_init,
                name=name,
            )
        elif self.norm_kind == "group":
            layer = nn.GroupNorm(
                self.norm_groups,
                epsilon=self.epsilon,
                dtype=self.dtype,
                scale_init=scale_init,
                use_fast_variance=False,  # it loses the variance when |mean| >> std
                name=name,
            )
        else:
            layer = _Identity(name=name)

        def apply(x: jax.Array) -> jax.Array:
            y: jax.Array = layer(x)
            signals.record_spread(layer, "response", y)
            if not activate or is_fused:
                return y
            signals.record_units(layer, y)
            return nonlinearity(y)

        return apply


def for_convolve(
    *args: jax.Array | None, dtype: Any = None, inexact: bool = True
) -> list[jax.Array | None]:
    """Converts a convolution's (input, kernel, bias) to the activations' dtype, for nn.Conv.

    The kernel stays float32, see Layers.convolve. Each example gets its own copy of a bias in
    bfloat16, so that the gradient is summed over the batch in float32.
    """
    x_BHWC, kernel, bias = args
    assert x_BHWC is not None
    x_BHWC = x_BHWC.astype(dtype)
    if bias is not None and bias.dtype != dtype:
        bias = jnp.broadcast_to(bias, (x_BHWC.shape[0], 1, 1, bias.size)).astype(dtype)
    return [x_BHWC, kernel, bias]


class _Identity(nn.Module):
    """In place of a norm, so that its signals have the norm's name."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return x


def standardized(
    x_BHWC: jax.Array,
    kernel: jax.Array,
    *args: Any,
    convolve: Callable[..., jax.Array],
    gain: float,
    **options: Any,
) -> jax.Array:
    """Convolves with the kernel's scaled weight standardisation (Brock et al. 2021, eq. 1).

    Each filter gets mean 0 and variance gain^2 / fan-in (arXiv 2101.08692). With gain^2 = 1 / Var
    f(z), for the nonlinearity f, variance stays the same from layer to layer. Their learned factor
    per filter is left out: a norm has one, and without a norm the scale of the branch takes its
    place.

    Args:
      x_BHWC: the input.
      kernel: float32 (height, width, C, filters).
      *args: of `convolve`.
      convolve: jax.lax.conv_general_dilated or an equivalent.
      gain: see above.
      **options: of `convolve`.
    """
    axes = tuple(range(kernel.ndim - 1))
    variance = kernel.var(axes, keepdims=True) * math.prod(kernel.shape[:-1])
    centred = kernel - kernel.mean(axes, keepdims=True)
    weights = centred * (gain * jax.lax.rsqrt(jnp.maximum(variance, 1e-4)))
    return convolve(x_BHWC, weights, *args, **options)
