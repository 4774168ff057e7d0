"""The convolution for several seeds equals XLA's in values, gradients and parameters."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from resnet_jax.kernels import space_to_depth
from resnet_jax.kernels.convolution import convolution, one_by_one
from resnet_jax.networks import layers, layout
from resnet_jax.networks.architectures import Architecture
from resnet_jax.networks.resnet import ResNet
from resnet_jax.networks.summary import summarize
from tests import tiny

# (kernel size, stride, side): all that the networks use; stride 2 with even and odd sides.
GEOMETRIES = [(1, 1, 8), (1, 2, 9), (3, 1, 8), (3, 2, 8), (3, 2, 9), (7, 2, 8), (7, 2, 9)]
TOLERANCES = {"float32": 1e-5, "bfloat16": 1e-2}
SEEDS = 3


def layer(size, stride, dtype, **options):
    return nn.Conv(
        6,
        (size, size),
        (stride, stride),
        padding=[(size // 2, size // 2)] * 2,
        use_bias=False,
        dtype=dtype,
        **options,
    )


def difference(a, b):
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return np.linalg.norm(a - b) / np.linalg.norm(a)


def gradients(conv):
    """Returns a jitted f(variables, inputs, output weights), each with a leading axis of seeds."""

    def weighed(variables, x_BHWC, weights):
        y = conv.apply(variables, x_BHWC)
        return (weights * y.astype(jnp.float32)).sum(), y

    return jax.jit(jax.vmap(jax.value_and_grad(weighed, argnums=(0, 1), has_aux=True)))


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize(("size", "stride", "side"), GEOMETRIES)
def test_values_and_gradients_are_those_of_xla(size, stride, side, dtype):
    theirs = layer(size, stride, dtype)
    ours = layer(size, stride, dtype, conv_general_dilated=one_by_one)
    x = jax.random.normal(jax.random.key(0), (SEEDS, 2, side, side + 3, 5))
    kernel = jax.random.normal(jax.random.key(1), (SEEDS, size, size, 5, 6))
    outputs = (2, (side + stride - 1) // stride, (side + 3 + stride - 1) // stride, 6)
    weights = jax.random.normal(jax.random.key(2), (SEEDS, *outputs))
    arguments = ({"params": {"kernel": kernel}}, x, weights)

    programs = [gradients(conv).lower(*arguments) for conv in (theirs, ours)]
    grouped, one_by_one_text = (program.as_text() for program in programs)
    assert grouped.count(f"feature_group_count = {SEEDS}") == 3
    convolutions = one_by_one_text.count("stablehlo.convolution")
    assert one_by_one_text.count("group_count = 1") == 2 * convolutions
    assert convolutions == 3 * SEEDS
    ((_, y), dy), ((_, z), dz) = (program.compile()(*arguments) for program in programs)
    assert y.shape == (SEEDS, *outputs)
    assert y.dtype == dtype
    assert jax.tree.structure(dy) == jax.tree.structure(dz)
    for a, b in zip(jax.tree.leaves((y, dy)), jax.tree.leaves((z, dz)), strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        assert difference(a, b) < TOLERANCES[dtype]


def test_the_parameters_are_those_of_xla():
    x = jnp.ones((1, 8, 8, 5))
    plain = layer(3, 1, "float32").init(jax.random.key(1), x)
    conv = layer(3, 1, "float32", conv_general_dilated=one_by_one)
    tiny.assert_bit_equal(plain, conv.init(jax.random.key(1), x))


@pytest.mark.parametrize("ours", [one_by_one, space_to_depth.convolution])
def test_the_precision_is_passed_on(ours):
    x = jnp.ones((1, 8, 8, 3))

    def program(precision):
        conv = layer(3, 2, "float32", conv_general_dilated=ours, precision=precision)
        variables = conv.init(jax.random.key(0), x)
        return jax.jit(conv.apply).lower(variables, x).as_text()

    assert "HIGHEST" in program("highest")
    assert "HIGHEST" not in program(None)


def test_all_seeds_may_see_the_same_images():
    x = jax.random.normal(jax.random.key(0), (1, 4, 4, 2))
    kernels = jax.random.normal(jax.random.key(1), (SEEDS, 3, 3, 2, 2))
    conv = functools.partial(
        one_by_one,
        strides=(1, 1),
        padding=[(1, 1)] * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    mapped = jax.jit(jax.vmap(conv, in_axes=(None, 0)))(x, kernels)
    np.testing.assert_allclose(mapped, [conv(x, kernel) for kernel in kernels], rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options", [{"scan": True, "remat": (2,), "space_to_depth": True}, {}], ids=str
)
def test_the_network_is_the_same(options):
    common = {"num_classes": 3, "shortcut": "B", "stem": "imagenet"}
    xla, ours = (
        ResNet(Architecture("bottleneck", (1, 3), (4, 8)), **common, **settings)
        for settings in ({}, {"convolution": one_by_one} | options)
    )
    assert summarize(xla, (32, 32, 3)) == summarize(ours, (32, 32, 3))
    x = jax.random.normal(jax.random.key(0), (SEEDS, 4, 32, 32, 3))
    variables = jax.vmap(lambda key: xla.init(key, x[0], train=True))(
        jax.random.split(jax.random.key(1), SEEDS)
    )

    def loss(model, params, x):
        logits, _ = model.apply(variables_of(params), x, train=True, mutable=["batch_stats"])
        return (logits**2).mean()

    def variables_of(params):
        batch_stats = jax.tree.map(lambda a: a[0], statistics)
        if any(map(layout.is_stacked, params)):
            batch_stats = layout.stacked(batch_stats)
        return {"params": params, "batch_stats": batch_stats}

    def as_in_loops(params):
        return layout.stacked(params, lambda arrays: jnp.stack(arrays, axis=1))

    params, statistics = variables["params"], variables["batch_stats"]
    (a, da), (b, db) = (
        jax.jit(jax.vmap(jax.value_and_grad(functools.partial(loss, model))))(
            as_in_loops(params) if model.scan else params, x
        )
        for model in (xla, ours)
    )
    db = layout.by_block(db, lambda stack: jnp.unstack(stack, axis=1))
    np.testing.assert_allclose(a, b, rtol=1e-5)
    for one, other in zip(jax.tree.leaves(da), jax.tree.leaves(db), strict=True):
        assert difference(one, other) < 1e-4


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_a_float32_kernel_and_bias_compute_the_same_and_their_gradients_are_not_rounded(dtype):
    theirs = layer(3, 1, dtype).copy(use_bias=True)
    ours = theirs.copy(conv_general_dilated=convolution, promote_dtype=layers.for_convolve)
    x = jax.random.normal(jax.random.key(0), (64, 8, 8, 5))
    variables = theirs.init(jax.random.key(1), x)
    variables["params"]["bias"] = jax.random.normal(jax.random.key(2), (6,))
    tiny.assert_bit_equal(ours.apply(variables, x), theirs.apply(variables, x))
    weights = jax.random.normal(jax.random.key(3), (64, 8, 8, 6))

    def gradient(conv):
        def weighed(variables):
            return (weights * conv.apply(variables, x).astype(jnp.float32)).sum()

        return jax.grad(weighed)(variables)["params"]

    expected, found = gradient(theirs), gradient(ours)
    assert difference(expected["kernel"], found["kernel"]) < TOLERANCES[dtype]
    assert difference(weights.sum((0, 1, 2)), found["bias"]) < TOLERANCES[dtype]
    # Each example's share of the bias's gradient is rounded, but not their sum.
    bias = found["bias"]
    assert np.abs(bias - bias.astype(jnp.bfloat16).astype(jnp.float32)).max() > 1e-3
