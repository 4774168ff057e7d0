"""Networks without BatchNorm, with group norm, with frozen statistics and standardised kernels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet_jax.networks import layout, signals
from resnet_jax.networks.architectures import NORMS, architecture
from resnet_jax.networks.layers import standardized
from resnet_jax.networks.normalization import MOMENTS
from resnet_jax.networks.resnet import ResNet
from resnet_jax.networks.summary import summarize
from tests import tiny
from tests.networks import small
from tests.networks.small import IMAGES, network


def count(depth, **options):
    net = ResNet(architecture("cifar", depth), num_classes=10, shortcut="A", **options)
    return summarize(net, (32, 32, 3)).parameters


@pytest.mark.parametrize("depth", [20, 56])
def test_parameters(depth):
    n = (depth - 2) // 6
    filters = 16 + 2 * n * (16 + 32 + 64)  # of all convolutions
    assert count(depth, norm="group") == count(depth, norm="frozen") == count(depth)
    # A bias instead of a scale and a bias.
    assert count(depth, norm="none") == count(depth) - filters
    assert count(depth, weight_standardization=True) == count(depth)


@pytest.mark.parametrize("norm", NORMS)
def test_statistics_exist_with_batchnorm_only(norm):
    model = network("B", norm=norm, norm_groups=2)
    shapes = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=True), IMAGES)
    assert ("batch_stats" in shapes) == (norm in ("batch", "frozen"))
    names = small.parameters(model)
    assert any("norm" in name for name in names) == (norm != "none")
    assert any("conv" in name and name.endswith("bias") for name in names) == (norm == "none")


@pytest.mark.parametrize("norm", NORMS)
def test_only_batchnorm_learns_statistics_and_mixes_examples(norm):
    model = network(norm=norm, norm_groups=2)
    variables = small.variables(model)

    @jax.jit
    def train(images):
        return model.apply(variables, images, train=True, mutable=["batch_stats", MOMENTS])

    logits, updated = train(IMAGES)
    other = IMAGES.copy()
    other[1:] *= 2
    alone = train(other)[0][0]
    assert np.allclose(alone, logits[0], rtol=1e-5) == (norm != "batch")
    assert (MOMENTS in updated) == (norm == "batch")
    if norm == "batch":
        assert np.abs(updated["batch_stats"]["stem_norm"]["mean"]).max() > 0
    elif norm == "frozen":
        tiny.assert_bit_equal(updated["batch_stats"], variables["batch_stats"])
    else:
        assert not updated.get("batch_stats", {})


def test_group_norm_is_over_its_groups():
    model = network(norm="group", norm_groups=2)
    variables = small.variables(model)
    # The mean is a thousand standard deviations from 0.
    variables["params"]["stem_conv"]["kernel"][1, 1] += 100
    images = 1 + 1e-3 * IMAGES
    _, kept = model.apply(
        variables, images, train=True, capture_intermediates=True, mutable=["intermediates"]
    )
    x, y = (kept["intermediates"][n]["__call__"][0] for n in ("stem_conv", "stem_norm"))
    x = np.asarray(x, np.float64).reshape(4, 8, 8, 2, 2)
    axes = (1, 2, 4)
    expected = (x - x.mean(axes, keepdims=True)) / np.sqrt(x.var(axes, keepdims=True) + 1e-5)
    params = variables["params"]["stem_norm"]
    expected = expected.reshape(4, 8, 8, 4) * params["scale"] + params["bias"]
    np.testing.assert_allclose(y, expected, atol=1e-2)


def test_standardized_kernels():
    kernel = np.random.default_rng(0).normal(2, 3, (3, 3, 4, 8)).astype(np.float32)

    def applied(kernel, gain=1.5):
        return standardized(None, kernel, convolve=lambda x, weights: weights, gain=gain)

    weights = np.asarray(applied(kernel), np.float64)
    np.testing.assert_allclose(weights.mean((0, 1, 2)), 0, atol=1e-6)
    np.testing.assert_allclose(weights.var((0, 1, 2)), 1.5**2 / 36, rtol=1e-5)
    np.testing.assert_allclose(applied(5 * kernel), weights, atol=1e-6)
    assert applied(kernel.astype(jnp.bfloat16)).dtype == jnp.bfloat16


def test_weight_standardization_makes_the_scale_of_kernels_irrelevant():
    for standardize in (True, False):
        model = network(norm="none", weight_standardization=standardize)
        variables = small.variables(model)
        scaled = jax.tree.map(lambda a: 3 * a if a.ndim == 4 else a, variables)
        apply = jax.jit(lambda v, m=model: m.apply(v, IMAGES, train=True))
        same = np.allclose(apply(variables), apply(scaled), rtol=1e-3, atol=1e-4)
        assert same == standardize


@pytest.mark.parametrize("norm", ["none", "group"])
def test_scanned_is_unrolled(norm):
    model = network(norm=norm, norm_groups=2, nonlinearity="gelu", gate="exclusive")
    variables = small.variables(model)
    stacked = {"params": layout.stacked(variables["params"])}
    scanned = network(norm=norm, norm_groups=2, nonlinearity="gelu", gate="exclusive", scan=True)
    expected = jax.jit(lambda v: model.apply(v, IMAGES, train=True))(variables)
    results = jax.jit(lambda v: scanned.apply(v, IMAGES, train=True))(stacked)
    np.testing.assert_allclose(results, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("nonlinearity", ["relu", "gelu"])
@pytest.mark.parametrize("norm", NORMS)
def test_every_norm_and_nonlinearity_has_its_signals(norm, nonlinearity):
    model = network("B", norm=norm, norm_groups=2, nonlinearity=nonlinearity)
    variables = small.variables(model)

    def observe():
        _, kept = model.apply(variables, IMAGES, train=True, mutable=[signals.SIGNALS])
        return signals.of_forward_pass(kept[signals.SIGNALS])

    layers = {}
    for name in jax.eval_shape(observe):
        _, kind, layer = name.split("/", 2)
        layers.setdefault(kind, set()).add(layer)
    inside = {f"{block}/norm1" for block in small.BLOCKS}
    last = {f"{block}/norm2" for block in small.BLOCKS}
    assert layers["response_std"] == {
        "stem_norm", "stage2_block1/shortcut_norm", *inside, *last
    }  # fmt: skip
    assert layers["dead_units"] == {"stem_norm", *inside, *small.BLOCKS}
