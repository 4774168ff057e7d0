"""The rearranged stem is the 7x7 stem."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet_jax.kernels import space_to_depth
from resnet_jax.networks.architectures import Architecture
from resnet_jax.networks.resnet import ResNet
from resnet_jax.networks.summary import summarize

LAYOUT = ("NHWC", "HWIO", "NHWC")


def drawn(height, width, size, dtype=np.float32):
    rng = np.random.default_rng(0)
    images = rng.normal(size=(2, height, width, 3)).astype(dtype)
    return images, rng.normal(size=(size, size, 3, 5)).astype(dtype)


def plain(x, kernel, strides, padding):
    return jax.lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=LAYOUT)


@pytest.mark.parametrize(("height", "width"), [(16, 16), (15, 16), (16, 13), (9, 11), (7, 7)])
@pytest.mark.parametrize("size", [3, 5, 7])
def test_values_and_gradients_are_the_strided_convolutions(height, width, size):
    images, kernel = drawn(height, width, size)
    pad = [(size // 2, size // 2)] * 2
    result, pull_back = jax.vjp(
        lambda *a: space_to_depth.convolution(*a, (2, 2), pad), images, kernel
    )
    wanted, pull_back_wanted = jax.vjp(lambda *a: plain(*a, (2, 2), pad), images, kernel)
    assert result.shape == wanted.shape
    np.testing.assert_allclose(result, wanted, atol=1e-4)
    along = np.random.default_rng(1).normal(size=result.shape).astype(np.float32)
    for gradient, expected in zip(pull_back(along), pull_back_wanted(along), strict=True):
        np.testing.assert_allclose(gradient, expected, atol=2e-4)


def test_whole_numbers_are_convolved_exactly():
    rng = np.random.default_rng(0)
    images = rng.integers(-8, 8, (2, 16, 16, 3)).astype(np.float32)
    kernel = rng.integers(-8, 8, (7, 7, 3, 5)).astype(np.float32)
    pad = [(3, 3), (3, 3)]
    np.testing.assert_array_equal(
        space_to_depth.convolution(images, kernel, (2, 2), pad), plain(images, kernel, (2, 2), pad)
    )


def test_the_given_convolution_is_used():
    images, kernel = drawn(16, 13, 7)
    calls = []

    def convolve(*args, **options):
        calls.append(args)
        return 2 * jax.lax.conv_general_dilated(*args, **options)

    pad = [(3, 3), (3, 3)]
    result = space_to_depth.convolution(images, kernel, (2, 2), pad, convolve=convolve)
    np.testing.assert_allclose(result, 2 * plain(images, kernel, (2, 2), pad), atol=2e-4)
    ((blocks, weights, strides, _),) = calls
    assert (blocks.shape[-1], weights.shape, strides) == (12, (4, 4, 12, 5), (1, 1))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_network_keeps_its_parameters_and_its_function(dtype):
    arch = Architecture("basic", (1, 1), (8, 16))
    usual, rearranged = (
        ResNet(arch, num_classes=5, stem="imagenet", dtype=dtype, space_to_depth=option)
        for option in (False, True)
    )
    images = np.random.default_rng(0).normal(size=(4, 32, 32, 3)).astype(np.float32)
    variables = usual.init(jax.random.key(0), images, train=True)
    other = rearranged.init(jax.random.key(0), images, train=True)
    jax.tree.map(np.testing.assert_array_equal, variables, other)

    def program(model):
        step = jax.jit(lambda v, x: model.apply(v, x, train=True, mutable=["batch_stats"])[0])
        return step.lower(variables, images).as_text(), step(variables, images)

    (text, wanted), (rearranged_text, result) = program(usual), program(rearranged)
    assert ("7x7x3x8" in text, "4x4x12x8" in text) == (True, False)
    assert "4x4x12x8" in rearranged_text
    tolerance = {jnp.float32: 1e-5, jnp.bfloat16: 5e-2}[dtype]
    np.testing.assert_allclose(result, wanted, atol=tolerance)
    assert summarize(rearranged, (32, 32, 3)) == summarize(usual, (32, 32, 3))
