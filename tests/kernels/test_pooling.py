"""The stem's max pool is Flax's, and its gradient goes to the first maximum."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from resnet_jax.kernels.pooling import max_pool


def theirs(x, same_padding=False):
    padding = "SAME" if same_padding else ((1, 1), (1, 1))
    return nn.max_pool(x, (3, 3), (2, 2), padding=padding)


def gradient(pool, x, dy):
    return jax.jit(lambda x, dy: jax.vjp(pool, x)[1](dy)[0])(x, dy)


def drawn(dtype, *shape):
    """Returns rectified noise, half of it equal (0), and weights for the outputs."""
    x = jax.nn.relu(jax.random.normal(jax.random.key(0), shape)).astype(dtype)
    dy = jax.random.normal(jax.random.key(1), theirs(x).shape).astype(dtype)
    return x, dy


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("size", [(8, 8), (7, 9), (8, 5), (1, 2)], ids=str)
@pytest.mark.parametrize("same_padding", [False, True])
def test_values_and_gradients_are_those_of_flax(size, dtype, same_padding):
    x, dy = drawn(dtype, 3, *size, 5)
    pools = [functools.partial(f, same_padding=same_padding) for f in (max_pool, theirs)]
    assert pools[0](x).dtype == dtype
    np.testing.assert_array_equal(*(np.asarray(pool(x), np.float32) for pool in pools))
    # Up to four windows add to a pixel, in different orders; ours always adds in float32.
    ours, flax = (gradient(pool, x, dy) for pool in pools)
    assert ours.dtype == dtype
    tolerance = {"float32": 1e-6, "bfloat16": 0.05}[dtype]
    np.testing.assert_allclose(
        *(np.asarray(dx, np.float32) for dx in (ours, flax)), rtol=tolerance, atol=tolerance
    )


def test_negative_values_win_over_the_padding():
    x = -1 - jnp.arange(16.0).reshape(1, 4, 4, 1)
    np.testing.assert_array_equal(max_pool(x)[0, :, :, 0], [[-1, -2], [-5, -6]])


def test_the_first_of_equal_maxima_has_the_gradient():
    x = jnp.zeros((1, 4, 4, 1))
    dx = gradient(max_pool, x, jnp.asarray([[1.0, 2.0], [3.0, 4.0]]).reshape(1, 2, 2, 1))
    expected = np.zeros((4, 4))
    # The first inside the image: the padding is never a maximum.
    expected[0, 0], expected[0, 1], expected[1, 0], expected[1, 1] = 1, 2, 3, 4
    np.testing.assert_array_equal(dx[0, :, :, 0], expected)


def test_nan_is_the_maximum():
    x = jnp.zeros((1, 4, 4, 1)).at[0, 1, 1, 0].set(jnp.nan)
    assert jnp.isnan(max_pool(x)).all()  # it lies in all four windows
    x = jnp.zeros((1, 4, 4, 1)).at[0, 3, 3, 0].set(jnp.nan)
    np.testing.assert_array_equal(
        jnp.isnan(max_pool(x))[0, :, :, 0], [[False, False], [False, True]]
    )


def test_the_backward_pass_keeps_one_byte_per_output():
    x, _ = drawn("bfloat16", 2, 8, 8, 4)
    _, pullback = jax.vjp(max_pool, x)
    assert [(a.shape, a.dtype) for a in jax.tree.leaves(pullback)] == [((2, 4, 4, 4), jnp.int8)]


def test_the_gradient_can_be_differentiated():
    x, direction = drawn("float32", 2, 6, 6, 3)[0], jnp.ones((2, 6, 6, 3))

    def product(pool):
        return jax.jvp(jax.grad(lambda x: (pool(x) ** 3).sum()), (x,), (direction,))[1]

    assert float(jnp.abs(product(theirs)).max()) > 1
    np.testing.assert_allclose(product(max_pool), product(theirs), rtol=1e-5, atol=1e-5)
