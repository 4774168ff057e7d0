"""The nonlinearities, and the variance that each leaves of a standard normal input.

relu          max(x, 0)
leaky_relu    x if x > 0, else 0.01 x (Maas et al. 2013)
crelu         [relu(x), relu(-x)]: twice the channels (Shang et al. 2016, arXiv 1603.05201)
tailored      a leaky ReLU whose slope follows from the depth, see tailored_slope
gelu          x Phi(x) (Hendrycks & Gimpel 2016, arXiv 1606.08415)
linear        x
"""

import dataclasses
import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn

from resnet_jax.errors import UserError
from resnet_jax.kernels.rectifier import relu
from resnet_jax.networks.architectures import Architecture

LEAKY_SLOPE = 0.01


@dataclasses.dataclass(frozen=True)
class Nonlinearity:
    """A nonlinearity f; z below is a standard normal variable.

    Attributes:
      apply: f, for arrays (..., C).
      second_moment: E[f(z)^2], per output channel.
      variance: of f(z).
      doubles: whether f returns 2 C channels.
    """

    apply: Callable[[jax.Array], jax.Array]
    second_moment: float
    variance: float
    doubles: bool = False


def nonlinearity(name: str, arch: Architecture, eta: float) -> Nonlinearity:
    """Returns the nonlinearity of a network.

    Args:
      name: one of architectures.NONLINEARITIES.
      arch: of the network.
      eta: of "tailored".
    """
    if name == "gelu":
        second_moment = 1 / 3 + 1 / (2 * math.pi * math.sqrt(3))
        mean = 1 / (2 * math.sqrt(math.pi))
        gelu = functools.partial(nn.gelu, approximate=False)
        return Nonlinearity(gelu, second_moment, second_moment - mean**2)
    if name == "linear":
        return Nonlinearity(lambda x: x, 1.0, 1.0)
    slope = {
        "leaky_relu": lambda: LEAKY_SLOPE,
        "tailored": lambda: tailored_slope(arch, eta),
    }.get(name, lambda: 0.0)()
    moments = (1 + slope**2) / 2, (1 + slope**2) / 2 - (1 - slope) ** 2 / (2 * math.pi)
    if name == "crelu":
        return Nonlinearity(_crelu, *moments, doubles=True)
    return Nonlinearity(functools.partial(_leaky_relu, slope) if slope else relu, *moments)


def _leaky_relu(slope: float, x: jax.Array) -> jax.Array:
    return jnp.where(x <= 0, slope * x, x)


def _crelu(x: jax.Array) -> jax.Array:
    return jnp.concatenate([relu(x), relu(-x)], axis=-1)


@functools.cache
def tailored_slope(arch: Architecture, eta: float) -> float:
    """Returns the slope of leaky TAT (Zhang et al. 2022, arXiv 2203.08120, section 4).

    Two inputs of a wide layer with a cosine similarity c leave it with similarity C(c), the layer's
    C map (cosine_map). In a deep plain ReLU net all similarities tend to 1, so it cannot tell its
    inputs apart. The slope is solved for C_f(0) = eta, where C_f is the C map of the whole network:
    the composition over all its layers. (The paper takes the maximum over subnetworks; for a plain
    net that is the net itself.) Shortcuts are not counted, so a residual net has the slope of its
    plain twin.

    Args:
      arch: of the network.
      eta: from 0, a linear network, to below similarity_of_relu(arch).

    Raises:
      UserError: even a ReLU net of this depth stays below eta.
    """
    if eta >= (highest := similarity(arch, 0.0)):
        raise UserError(
            f"eta={eta} is not reached in {arch.nonlinear_layers} layers, where ReLU has "
            f"{highest:.3g}; allowed is less than that."
        )
    low, high = 0.0, 1.0  # the similarity falls with the slope
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if similarity(arch, middle) > eta else (low, middle)
    return high


def similarity(arch: Architecture, slope: float) -> float:
    """Returns C_f(0), the final cosine similarity of two orthogonal inputs, of a plain net."""
    c = 0.0
    for _ in range(arch.nonlinear_layers):
        c = cosine_map(c, slope)
    return c


def cosine_map(c: float, slope: float) -> float:
    """Returns the C map of a wide layer and a leaky ReLU, from the arc-cosine kernel of degree 1.

    C(c) = c + (1 - slope)^2 / (pi (1 + slope^2)) * (sqrt(1 - c^2) - c arccos(c))
    (Cho & Saul 2009; Zhang et al. 2022, section 4).
    """
    c = min(c, 1.0)  # it may exceed 1 by rounding
    bend = (1 - slope) ** 2 / (math.pi * (1 + slope**2))
    return c + bend * (math.sqrt(1 - c * c) - c * math.acos(c))
