"""The initial kernels of a network.

    he                 normal with variance gain^2 / fan-in (He et al. 2015b, arXiv 1502.01852)
    orthogonal         columns (or rows, if there are fewer) orthogonal, times gain (Saxe et al.
                       2013, arXiv 1312.6120)
    delta_orthogonal   zero, but for an orthogonal centre times gain (Xiao et al. 2018, arXiv
                       1806.05393)
    looks_linear       [W, -W] with W orthogonal, which undoes crelu: the network starts linear
                       (Balduzzi et al. 2017, arXiv 1702.08591)
    dirac              each output channel is an input channel (Zagoruyko & Komodakis 2017, arXiv
                       1706.00388); new channels repeat the old ones
    fixup              of a branch with m layers in a network with L blocks: he times L^(-1/(2m-2)),
                       the last one 0; the classifier 0 (Zhang et al. 2019, arXiv 1901.09321)

gain^2 = 1 / E[f(z)^2] for the network's nonlinearity f, so 2 for ReLU: variance then stays the same
from layer to layer. The stem has the gain too.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.linen.initializers import Initializer

from resnet_jax.networks.architectures import CONVOLUTIONS, Architecture
from resnet_jax.networks.nonlinearities import Nonlinearity

HE_NORMAL = nn.initializers.variance_scaling(2.0, "fan_in", "normal")


class Initializers(NamedTuple):
    """Initialisers by place.

    Attributes:
      stem: of the first convolution.
      branch: of the convolutions of a branch.
      shortcut: of projections.
      classifier: of the fully connected layer.
    """

    stem: Initializer
    branch: Initializer
    shortcut: Initializer
    classifier: Initializer


def initializers(name: str, arch: Architecture, nonlinearity: Nonlinearity) -> Initializers:
    """Returns the initialisers of a network.

    Args:
      name: one of architectures.INITS.
      arch: of the network.
      nonlinearity: of the network; looks_linear needs crelu.
    """
    he = _he(1 / nonlinearity.second_moment)
    gain = nonlinearity.second_moment**-0.5
    orthogonal = nn.initializers.orthogonal(gain)
    if name == "orthogonal":
        return Initializers(*[orthogonal] * 4)
    if name == "delta_orthogonal":
        return Initializers(*[_at_the_centre(orthogonal)] * 4)
    if name == "looks_linear":
        return Initializers(nn.initializers.orthogonal(), *[_looks_linear] * 3)
    if name == "dirac":
        return Initializers(he, _at_the_centre(_identity), he, he)
    if name == "fixup":
        power = -1 / (CONVOLUTIONS[arch.block] - 1)  # of the variance
        branch = _he(arch.blocks**power / nonlinearity.second_moment)
        return Initializers(he, branch, he, nn.initializers.zeros_init())
    return Initializers(he, he, he, he)


def _he(squared_gain: float) -> Initializer:
    # The default of variance_scaling is a truncated normal.
    return (
        HE_NORMAL
        if squared_gain == 2
        else nn.initializers.variance_scaling(squared_gain, "fan_in", "normal")
    )


def _at_the_centre(matrix: Initializer) -> Initializer:
    def init(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
        centre = tuple(size // 2 for size in shape[:-2])
        return jnp.zeros(shape, dtype).at[centre].set(matrix(key, shape[-2:], dtype))

    return init


def _identity(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
    del key
    channels, filters = shape
    return jnp.asarray(jnp.arange(channels)[:, None] == jnp.arange(filters)[None] % channels, dtype)


def _looks_linear(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
    *positions, channels, filters = shape
    half = nn.initializers.orthogonal()(key, (*positions, channels // 2, filters), dtype)
    return jnp.concatenate([half, -half], axis=-2)
