"""An example is correct only if no other class ties with or beats its label."""

import jax.numpy as jnp
import pytest

from resnet_jax import losses

NAN, INF = jnp.nan, jnp.inf


@pytest.mark.parametrize(
    ("logits", "correct"),
    [
        ([1.0, 3.0, 2.0], [1]),
        ([3.0, 3.0, 2.0], []),
        ([0.0, 0.0, 0.0], []),  # a dead network
        ([NAN, NAN, NAN], []),
        ([NAN, 3.0, 2.0], []),
        ([1.0, 3.0, NAN], []),
        ([1.0, INF, 2.0], [1]),
        ([INF, INF, 2.0], []),
        ([-INF, -INF, -INF], []),
    ],
)
def test_top1_error(logits, correct):
    for label in range(3):
        error = losses.top1_error(jnp.array([logits]), jnp.array([label]))
        assert error.tolist() == [0.0 if label in correct else 100.0]


@pytest.mark.parametrize(
    ("logits", "correct"),
    [
        ([9.0, 8, 7, 6, 5, 4, 3], [0, 1, 2, 3, 4]),
        ([9.0, 8, 7, 6, 4, 4, 3], [0, 1, 2, 3]),
        ([9.0, 8, 7, 6, 5, 4, NAN], [0, 1, 2, 3]),
        ([1.0] * 7, []),
        ([NAN] * 7, []),
        ([1.0] * 5 + [0.0] * 2, [0, 1, 2, 3, 4]),  # in any order these are the top five
    ],
)
def test_top5_error(logits, correct):
    for label in range(7):
        error = losses.top5_error(jnp.array([logits]), jnp.array([label]))
        assert error.tolist() == [0.0 if label in correct else 100.0], label
