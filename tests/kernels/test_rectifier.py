"""relu and relu_of_sum, with their gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from resnet_jax.kernels.rectifier import relu, relu_of_sum

BOTH = pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])


@BOTH
def test_relu_is_the_maximum_of_zero(dtype):
    x = jnp.array([-jnp.inf, -2.5, -0.0, 0.0, 1e-30, 3.0, jnp.inf, jnp.nan], dtype)
    values, pull_back = jax.vjp(relu, x)
    wanted, pull_back_wanted = jax.vjp(nn.relu, x)
    assert values.dtype == dtype
    np.testing.assert_array_equal(values[:-1], wanted[:-1])
    assert np.isnan(values[-1])  # a diverged run must show
    (gradient,), (expected,) = (pull(jnp.ones_like(x)) for pull in (pull_back, pull_back_wanted))
    np.testing.assert_array_equal(gradient[:-1], expected[:-1])


@BOTH
def test_relu_of_sum_has_the_gradient_of_its_parts(dtype):
    x = jnp.array([-2, 2, 1, -1, 0, jnp.nan], dtype)
    y = jnp.array([1, -1, 1, 1, 0, 1], dtype)
    values, pull_back = jax.vjp(relu_of_sum, x, y)
    wanted, pull_back_wanted = jax.vjp(lambda x, y: relu(x + y), x, y)
    assert values.dtype == dtype
    np.testing.assert_array_equal(values.astype(jnp.float32), wanted.astype(jnp.float32))
    upstream = jnp.arange(1, 7).astype(dtype)
    for gradient, expected in zip(pull_back(upstream), pull_back_wanted(upstream), strict=True):
        assert gradient.dtype == dtype
        np.testing.assert_array_equal(gradient, expected)
    np.testing.assert_array_equal(pull_back(upstream)[0], [0, 2, 3, 0, 0, 6])


def test_relu_of_sum_keeps_only_its_output():
    _, pull_back = jax.vjp(relu_of_sum, jnp.ones(7), -jnp.ones(7))
    (kept,) = jax.tree.leaves(pull_back)
    np.testing.assert_array_equal(kept, np.zeros(7))
