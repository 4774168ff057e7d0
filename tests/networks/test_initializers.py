"""Initial kernels: exactly orthogonal, linear, the identity, or zero, as each promises."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet_jax.networks import initializers
from resnet_jax.networks.architectures import Architecture
from resnet_jax.networks.initializers import Initializers
from resnet_jax.networks.nonlinearities import nonlinearity
from tests.networks import small
from tests.networks.small import BASIC, BOTTLENECK, IMAGES, network


def places(name, activation="relu", arch=BASIC):
    return initializers.initializers(name, arch, nonlinearity(activation, arch, 0.5))


@functools.cache
def draw(init, shape):
    return np.asarray(init(jax.random.key(3), shape, jnp.float32), np.float64)


@pytest.mark.parametrize(
    ("activation", "squared_gain"),
    [("relu", 2), ("leaky_relu", 2 / (1 + 0.01**2)), ("crelu", 2), ("linear", 1)],
)
def test_he_keeps_the_second_moment(activation, squared_gain):
    kernel = draw(places("he", activation).branch, (3, 3, 32, 64))
    assert kernel.var() * 9 * 32 == pytest.approx(squared_gain, rel=0.05)


def test_he_with_relu_is_the_papers():
    assert places("he") == Initializers(*[initializers.HE_NORMAL] * 4)


def test_orthogonal_kernels():
    for place in places("orthogonal"):
        tall, wide = (
            draw(place, (3, 3, 4, 8)).reshape(36, 8),
            draw(place, (1, 1, 4, 8)).reshape(4, 8),
        )
        np.testing.assert_allclose(tall.T @ tall, 2 * np.eye(8), atol=1e-5)
        np.testing.assert_allclose(wide @ wide.T, 2 * np.eye(4), atol=1e-5)
    linear = draw(places("orthogonal", "linear").classifier, (16, 5))
    np.testing.assert_allclose(linear.T @ linear, np.eye(5), atol=1e-5)


def test_delta_orthogonal_kernels():
    kernel = draw(places("delta_orthogonal", "linear").branch, (3, 3, 4, 8))
    centre = kernel[1, 1].copy()
    np.testing.assert_allclose(centre @ centre.T, np.eye(4), atol=1e-5)
    kernel[1, 1] = 0
    assert not kernel.any()
    # So a convolution keeps the norm at every position.
    x = np.random.default_rng(0).normal(size=(5, 5, 4))
    np.testing.assert_allclose(
        np.linalg.norm(x @ centre, axis=-1), np.linalg.norm(x, axis=-1), rtol=1e-5
    )


@pytest.mark.parametrize("preactivation", [False, True])
def test_looks_linear_starts_linear(preactivation):
    shortcut = "B" if preactivation else "none"
    for kernel_init, is_linear in (("looks_linear", True), ("he", False)):
        model = network(
            shortcut, Architecture("basic", (1, 1), (4, 8)), preactivation=preactivation,
            nonlinearity="crelu", norm="none", kernel_init=kernel_init,
        )  # fmt: skip

        @jax.jit
        def logits(scale, model=model):
            variables = model.init(jax.random.key(0), IMAGES[:1], train=True)
            one, other = IMAGES[:2], IMAGES[2:]
            images = jnp.concatenate([one, other, one + scale * other])
            return model.apply(variables, images, train=False)

        one, other, both = np.split(np.asarray(logits(3.0)), 3)
        assert np.abs(one).max() > 0.01
        assert np.allclose(both, one + 3 * other, rtol=1e-3, atol=1e-4) is is_linear


def test_dirac_is_the_identity():
    x = np.random.default_rng(0).normal(size=(2, 5, 5, 4)).astype(np.float32)

    def convolve(filters):
        kernel = draw(places("dirac").branch, (3, 3, 4, filters)).astype(np.float32)
        return jax.lax.conv_general_dilated(
            x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    np.testing.assert_array_equal(convolve(4), x)
    np.testing.assert_array_equal(convolve(8), np.concatenate([x, x], axis=-1))
    np.testing.assert_array_equal(convolve(2), x[..., :2])
    assert places("dirac").classifier == initializers.HE_NORMAL


@pytest.mark.parametrize(("arch", "power"), [(BASIC, -1 / 2), (BOTTLENECK, -1 / 4)])
def test_fixup_scales_branches_and_starts_at_zero(arch, power):
    usual, fixup = places("he", arch=arch), places("fixup", arch=arch)
    shape = (3, 3, 4, 8)
    np.testing.assert_allclose(
        draw(fixup.branch, shape), arch.blocks**power * draw(usual.branch, shape), rtol=1e-5
    )
    assert (fixup.stem, fixup.shortcut) == (usual.stem, usual.shortcut)
    model = network(arch=arch, norm="none", kernel_init="fixup")
    variables = jax.jit(lambda: model.init(jax.random.key(0), IMAGES[:1], train=True))()
    last = "conv2" if arch == BASIC else "conv3"
    zero = {
        name for name, kernel in small.kernels(variables).items() if not np.asarray(kernel).any()
    }
    assert zero == {"logits", *(f"{block}/{last}" for block in small.BLOCKS)}
