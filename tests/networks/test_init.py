"""Initial weights: He's normal distribution, different for every layer and seed."""

import itertools

import jax
import numpy as np
import pytest

from resnet_jax.networks import layout
from resnet_jax.networks.architectures import Architecture, architecture
from resnet_jax.networks.resnet import ResNet


@pytest.fixture(scope="module")
def kernels():
    """The convolution kernels of a residual net with three blocks per stage."""
    model = ResNet(architecture("cifar", 20), num_classes=10, shortcut="B")
    images = np.zeros((1, 8, 8, 3), np.float32)
    params = layout.by_block(model.init(jax.random.key(0), images, train=True)["params"])
    leaves = jax.tree_util.tree_leaves_with_path(params)
    named = {"/".join(p.key for p in path): np.asarray(leaf) for path, leaf in leaves}
    return {name: leaf for name, leaf in named.items() if leaf.ndim == 4}


def test_deviation_is_he_normal(kernels):
    assert len(kernels) == 19 + 2
    for name, kernel in kernels.items():
        fan_in = np.prod(kernel.shape[:-1])
        expected = np.sqrt(2 / fan_in)
        # The sample deviation of n normal draws has a relative standard error of 1 / sqrt(2 n).
        error = expected / np.sqrt(2 * kernel.size)
        assert abs(kernel.std() - expected) < 4 * error, name
        assert abs(kernel.mean()) < 4 * expected / np.sqrt(kernel.size), name


def test_tails_are_not_cut(kernels):
    standard = np.concatenate(
        [(k / np.sqrt(2 / np.prod(k.shape[:-1]))).ravel() for k in kernels.values()]
    )
    assert standard.size > 250_000
    # 1.242 % of a normal distribution lies beyond 2.5 deviations. Flax's truncated normal ends at
    # 2.27 of its own deviations (2 of the untruncated normal).
    share = (np.abs(standard) > 2.5).mean()
    assert share == pytest.approx(0.01242, rel=0.1)
    assert np.abs(standard).max() > 4


def test_all_layers_start_differently(kernels):
    for (a, x), (b, y) in itertools.combinations(kernels.items(), 2):
        if x.shape == y.shape:
            assert np.abs(x - y).min() < np.abs(x - y).max(), (a, b)
            assert abs(np.corrcoef(x.ravel(), y.ravel())[0, 1]) < 0.2, (a, b)


def test_seeds_start_differently():
    model = ResNet(Architecture("basic", (1,), (16,)), num_classes=10)
    images = np.zeros((1, 8, 8, 3), np.float32)
    first, again, other = (
        model.init(jax.random.key(seed), images, train=True)["params"]["stem_conv"]["kernel"]
        for seed in (0, 0, 1)
    )
    assert np.abs(first - other).max() > 0.1
    np.testing.assert_array_equal(first, again)
