"""BatchNorm: statistics of exactly its group; exact moments; gradients."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from resnet_jax import evaluate
from resnet_jax.data.augment import Normalization
from resnet_jax.data.order import batch_indices
from resnet_jax.data.resident import ResidentSplit
from resnet_jax.networks import initializers
from resnet_jax.networks.architectures import Architecture
from resnet_jax.networks.normalization import (
    MOMENTS,
    BatchNorm,
    _sums_apart,
    _sums_by_chunk,
    _sums_together,
)
from resnet_jax.networks.resnet import ResNet
from resnet_jax.parallel import mesh as meshes
from resnet_jax.programs import Compiler
from tests import tiny

EPSILON = 1e-5


def inputs(batch=8, seed=0):
    draw = np.random.default_rng(seed)
    # The examples' means differ widely, so each grouping has different statistics.
    return draw.normal(size=(batch, 2, 2, 3)).astype(np.float32) + np.arange(
        batch, dtype=np.float32
    ).reshape(-1, 1, 1, 1)


def fresh(channels=3):
    return {
        "params": {"scale": jnp.ones(channels), "bias": jnp.zeros(channels)},
        "batch_stats": {"mean": jnp.zeros(channels), "var": jnp.ones(channels)},
    }


def normalize(x, variables=None, mutable=("batch_stats", MOMENTS), **options):
    norm = BatchNorm(train=True, **options)
    return norm.apply(variables or fresh(), x, mutable=list(mutable))


def by_numpy(x, group):
    pieces = x.astype(np.float64).reshape(-1, group, *x.shape[1:])
    mean = pieces.mean(axis=(1, 2, 3), keepdims=True)
    var = pieces.var(axis=(1, 2, 3), keepdims=True)
    return ((pieces - mean) / np.sqrt(var + EPSILON)).reshape(x.shape), mean, var


def test_group_statistics_by_hand():
    x = np.array([0, 2, 10, 14], np.float32).reshape(4, 1, 1, 1)
    y, _ = normalize(x, fresh(1), group=2, epsilon=0.0)
    np.testing.assert_allclose(y.ravel(), [-1, 1, -1, 1], rtol=1e-6)
    whole, _ = normalize(x, fresh(1), group=0, epsilon=0.0)
    # Mean 6.5, variance (42.25 + 20.25 + 12.25 + 56.25) / 4 = 32.75.
    expected = (np.array([0, 2, 10, 14]) - 6.5) / np.sqrt(32.75)
    np.testing.assert_allclose(whole.ravel(), expected, rtol=1e-6)


@pytest.mark.parametrize("group", [1, 2, 4, 8])
def test_group_statistics_are_numpys(group):
    y, _ = normalize(inputs(), group=group)
    np.testing.assert_allclose(y, by_numpy(inputs(), group)[0], atol=2e-5)


def test_groups_differ_and_zero_is_the_whole_batch():
    y_0, y_4, y_8 = (normalize(inputs(), group=group)[0] for group in (0, 4, 8))
    assert np.abs(y_0 - y_4).max() > 0.1
    np.testing.assert_array_equal(y_0, y_8)


def test_scale_and_bias():
    variables = fresh()
    variables["params"] = {"scale": jnp.array([1.0, 2.0, 3.0]), "bias": jnp.array([0.0, 5.0, 7.0])}
    y, _ = normalize(inputs(), variables, group=4)
    expected = by_numpy(inputs(), 4)[0] * [1, 2, 3] + [0, 5, 7]
    np.testing.assert_allclose(y, expected, atol=5e-5)


@pytest.mark.parametrize("group", [0, 4, 16])
def test_device_count_changes_nothing(group):
    x = inputs(16)
    norm = jax.jit(lambda x: normalize(x, group=group))
    spread = jax.device_put(x, meshes.split_batch(meshes.make_mesh()))
    assert len(spread.sharding.device_set) == 8
    single = norm(jax.device_put(x, jax.devices()[0]))
    for one, eight in zip(jax.tree.leaves(single), jax.tree.leaves(norm(spread)), strict=True):
        np.testing.assert_allclose(one, eight, rtol=2e-6, atol=2e-6)


def test_group_must_divide_the_batch():
    with pytest.raises(ValueError, match="group of 3 does not divide a batch of 8"):
        normalize(inputs(), group=3)


def test_small_deviation_about_a_large_mean():
    # float32 resolves 6e-5 at 1000, but only 0.06 at 1e6, the mean of squares.
    x = (1000 + 0.01 * np.random.default_rng(0).normal(size=(64, 4, 4, 3))).astype(np.float32)
    _, updated = normalize(x, epsilon=0.0)
    expected = x.astype(np.float64).var(axis=(0, 1, 2))
    fast = (x * x).mean(axis=(0, 1, 2)) - x.mean(axis=(0, 1, 2)) ** 2
    assert np.abs(fast / expected - 1).max() > 0.5
    np.testing.assert_allclose(updated[MOMENTS]["var"], expected, rtol=1e-3)
    y, _ = normalize(x, epsilon=0.0)
    np.testing.assert_allclose(np.std(y, axis=(0, 1, 2)), 1, rtol=1e-3)


@pytest.mark.parametrize("distance", [1e2, 1e4, 1e6])
def test_the_first_value_may_be_an_outlier(distance):
    x = np.random.default_rng(0).normal(size=(64, 32, 32, 3)).astype(np.float32)
    x[0, 0, 0] += distance
    expected = x.astype(np.float64).var(axis=(0, 1, 2))
    # With the first value as the guess, float32 loses the variance in the large mean square.
    shifted = x - x[0, 0, 0]
    naive = (shifted * shifted).mean(axis=(0, 1, 2)) - shifted.mean(axis=(0, 1, 2)) ** 2
    assert np.abs(naive / expected - 1).max() > 1e-2
    y, updated = normalize(x)
    np.testing.assert_allclose(updated[MOMENTS]["var"], expected, rtol=2e-3)
    by_definition, _, _ = by_numpy(x, 64)
    np.testing.assert_allclose(y[1:], by_definition[1:], rtol=1e-2, atol=1e-4)


def test_moving_averages_after_two_updates():
    first, second = inputs(seed=1), 3 * inputs(seed=2)
    variables = fresh()
    for x in (first, second):
        _, updated = normalize(x, variables, group=4, momentum=0.75)
        variables["batch_stats"] = updated["batch_stats"]

    def moments(x):
        _, mean, var = by_numpy(x, 4)
        return mean.reshape(2, 3).mean(0), var.reshape(2, 3).mean(0)  # over the two groups

    (mean_1, var_1), (mean_2, var_2) = moments(first), moments(second)
    kept = variables["batch_stats"]
    np.testing.assert_allclose(kept["mean"], 0.75 * 0.25 * mean_1 + 0.25 * mean_2, rtol=1e-5)
    expected = 0.75 * (0.75 * 1 + 0.25 * var_1) + 0.25 * var_2
    np.testing.assert_allclose(kept["var"], expected, rtol=1e-5)


def test_only_mutable_collections_are_updated():
    variables = fresh()
    norm = BatchNorm(train=True)
    y = norm.apply(variables, inputs())
    y_with_averages, updated = norm.apply(variables, inputs(), mutable=["batch_stats"])
    assert MOMENTS not in updated
    np.testing.assert_array_equal(y, y_with_averages)
    initial = norm.init(jax.random.key(0), inputs())
    np.testing.assert_array_equal(initial["batch_stats"]["mean"], 0)
    np.testing.assert_array_equal(initial["batch_stats"]["var"], 1)


def test_evaluation_uses_the_stored_statistics():
    mean, var = np.array([1.0, 2, 3], np.float32), np.array([4.0, 9, 16], np.float32)
    variables = {**fresh(), "batch_stats": {"mean": mean, "var": var}}
    norm = BatchNorm(train=False, epsilon=1.0)
    y = norm.apply(variables, inputs())
    np.testing.assert_allclose(y, (inputs() - mean) / np.sqrt(var + 1), rtol=1e-5, atol=1e-6)
    # One example alone gives the same, so no batch statistics are used.
    np.testing.assert_array_equal(norm.apply(variables, inputs()[:1]), y[:1])


def test_training_and_evaluation_agree_on_the_same_statistics():
    x = (1000 + 0.01 * np.random.default_rng(0).normal(size=(64, 4, 4, 3))).astype(np.float32)
    trained, updated = normalize(x)
    variables = {**fresh(), "batch_stats": updated[MOMENTS]}
    np.testing.assert_allclose(BatchNorm(train=False).apply(variables, x), trained, atol=1e-4)


def plainly(x, scale, bias, group, rectify):
    """The definition, in float64, with JAX's own gradient."""
    pieces = x.astype(jnp.float64).reshape(-1, group, *x.shape[1:])
    axes = (1, 2, 3)
    mean = pieces.mean(axes, keepdims=True)
    var = ((pieces - mean) ** 2).mean(axes, keepdims=True)
    y = ((pieces - mean) / jnp.sqrt(var + EPSILON)).reshape(x.shape)
    y = y * scale.reshape(1, 1, 1, -1) + bias.reshape(1, 1, 1, -1)
    return jnp.maximum(y, 0) if rectify else y


@pytest.mark.parametrize("rectify", [False, True])
@pytest.mark.parametrize("group", [2, 8])
def test_the_gradient_is_that_of_the_definition(group, rectify):
    x = inputs(seed=3)
    scale, bias = np.array([1.0, -2.0, 0.5], np.float32), np.array([0.2, 0.1, -0.3], np.float32)
    upstream = np.random.default_rng(4).normal(size=x.shape).astype(np.float32)
    norm = BatchNorm(train=True, group=group, rectify=rectify)

    def ours(x, scale, bias):
        return norm.apply({**fresh(), "params": {"scale": scale, "bias": bias}}, x)

    y, pull_back = jax.vjp(ours, x, scale, bias)
    with jax.enable_x64(True):
        given = [jnp.asarray(a, jnp.float64) for a in (x, scale, bias)]
        wanted_y, pull_back_wanted = jax.vjp(lambda *a: plainly(*a, group, rectify), *given)
        wanted = pull_back_wanted(jnp.asarray(upstream, jnp.float64))
    np.testing.assert_allclose(y, wanted_y, atol=1e-5)
    assert (np.asarray(y) == 0).any() == rectify
    for gradient, expected in zip(pull_back(upstream), wanted, strict=True):
        assert gradient.dtype == jnp.float32
        np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rectify", [False, True])
def test_the_gradient_of_the_relu_at_zero_is_zero(rectify):
    x = inputs(seed=3)
    norm = BatchNorm(train=True, rectify=rectify)

    def total(scale):
        return norm.apply({**fresh(), "params": {"scale": scale, "bias": jnp.zeros(3)}}, x)

    scale = jnp.asarray([0.0, 1.0, -1.0])
    dscale = jax.grad(lambda scale: (total(scale) * np.abs(x)).sum())(scale)
    assert (dscale[0] == 0) == rectify
    assert (dscale[1:] != 0).all()


@pytest.mark.parametrize("reverse", [False, True])
def test_hessian_vector_products_are_correct(reverse):
    x = inputs(seed=3)
    weights, along = np.random.default_rng(5).normal(size=(2, *x.shape)).astype(np.float32)
    ones, zeros = np.ones(3, np.float32), np.zeros(3, np.float32)
    norm = BatchNorm(train=True, group=4, rectify=True)

    def product(function, x, along, weights):
        def gradient(x):
            return jax.grad(lambda x: jnp.sum(weights * function(x) ** 2))(x)

        if reverse:
            return jax.grad(lambda x: jnp.vdot(gradient(x), along))(x)
        return jax.jvp(gradient, (x,), (along,))[1]

    result = product(lambda x: norm.apply(fresh(), x), x, along, weights)
    with jax.enable_x64(True):
        given = [jnp.asarray(a, jnp.float64) for a in (x, along, weights)]
        wanted = product(lambda x: plainly(x, ones, zeros, 4, True), *given)
    assert np.abs(wanted).max() > 0.1
    np.testing.assert_allclose(result, wanted, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("sums", [_sums_together, _sums_by_chunk, _sums_apart])
@pytest.mark.parametrize(
    ("shape", "group"), [((15, 2, 2, 4), 3), ((16, 3), 8), ((6, 7, 7, 4), 3), ((2, 1, 19, 2), 2)]
)
def test_sums_are_those_of_each_group(shape, group, sums):
    """GPUs, CPUs and TPUs compute them in three ways; see _sums()."""
    pair = np.random.default_rng(0).normal(size=(2, *shape)).astype(np.float32)
    for values, result in zip(pair, sums(*pair, group), strict=True):
        wanted = values.reshape(-1, group * math.prod(shape[1:-1]), shape[-1]).sum(1)
        np.testing.assert_allclose(result, wanted, rtol=1e-5, atol=1e-5)


def test_on_a_cpu_nothing_of_the_batchs_size_is_written_but_the_gradient():
    x = jnp.zeros((128, 8, 8, 16))
    norm = BatchNorm(train=True, group=64)

    def total(x, weights):
        return (norm.apply(fresh(16), x, mutable=["batch_stats"])[0] * weights).sum()

    program = jax.jit(jax.grad(total)).lower(x, x).compile().as_text()
    results = re.findall(r"= f32\[([\d,]+)\]\S* (?!parameter)", program.split("\nENTRY ")[1])
    sizes = [math.prod(map(int, result.split(","))) for result in results]
    assert sizes.count(x.size) == 1, program


def test_in_bfloat16_the_gradient_is_rounded_once():
    x = jnp.asarray(inputs(seed=3), jnp.bfloat16)
    upstream = jnp.asarray(np.random.default_rng(4).normal(size=x.shape), jnp.bfloat16)

    def gradients(dtype):
        norm = BatchNorm(train=True, group=4, dtype=dtype, rectify=True)
        y, pull_back = jax.vjp(lambda x, v: norm.apply(v, x), x.astype(dtype), fresh())
        return y, *pull_back(upstream.astype(dtype))

    (y, dx, dv), (exact_y, exact_dx, exact_dv) = map(gradients, (jnp.bfloat16, jnp.float32))
    assert (y.dtype, dx.dtype) == (jnp.bfloat16, jnp.bfloat16)
    np.testing.assert_array_equal(y, exact_y.astype(jnp.bfloat16))
    np.testing.assert_array_equal(dx, exact_dx.astype(jnp.bfloat16))
    for name in ("scale", "bias"):
        assert dv["params"][name].dtype == jnp.float32
        np.testing.assert_allclose(dv["params"][name], exact_dv["params"][name], rtol=1e-6)


def test_the_gradient_of_a_constant_channel_is_finite():
    x = np.full((4, 2, 2, 1), 3, np.float32)
    norm = BatchNorm(train=True)
    y, pull_back = jax.vjp(lambda x: norm.apply(fresh(1), x), x)
    np.testing.assert_array_equal(y, 0)
    (dx,) = pull_back(np.arange(16, dtype=np.float32).reshape(x.shape))
    np.testing.assert_allclose(dx.ravel(), (np.arange(16) - 7.5) / np.sqrt(EPSILON), rtol=1e-5)


def test_nothing_but_the_input_and_the_moments_is_kept():
    norm = BatchNorm(train=True, group=4, rectify=True)
    x = jnp.asarray(inputs())
    _, pull_back = jax.vjp(lambda x: norm.apply(fresh(), x), x)
    kept = jax.tree.leaves(pull_back)
    assert sorted(a.shape for a in kept) == [(2, 2, 3), (3,), (3,), x.shape]


def test_evaluation_rectifies_too():
    variables = fresh()
    y = BatchNorm(train=False, rectify=True).apply(variables, inputs() - 2)
    plain = BatchNorm(train=False).apply(variables, inputs() - 2)
    assert (np.asarray(plain) < 0).any()
    np.testing.assert_array_equal(y, np.maximum(plain, 0))


@pytest.mark.parametrize("group", [2, 4, 8])
def test_moments_are_those_of_the_whole_batch(group):
    _, updated = normalize(inputs(), group=group)
    _, _, within = by_numpy(inputs(), group)
    x = inputs().astype(np.float64)
    np.testing.assert_allclose(updated[MOMENTS]["mean"], x.mean((0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(updated[MOMENTS]["var"], x.var((0, 1, 2)), rtol=1e-5)
    if group < 8:
        assert (within.mean(0).ravel() < 0.9 * x.var((0, 1, 2))).all()


@pytest.mark.parametrize("parts", [1, 2])
def test_population_statistics_are_numpys(monkeypatch, parts):
    """The first BatchNorm's inputs depend on no statistics, so numpy can compute them."""
    ones = lambda key, shape, dtype: jnp.ones(shape, dtype)  # noqa: E731 - an initialiser
    monkeypatch.setattr(initializers, "HE_NORMAL", ones)
    model = ResNet(Architecture("basic", (1,), (2,)), num_classes=3, shortcut="A", bn_group=4)
    mesh = meshes.make_mesh(devices=jax.devices()[: 8 // parts])
    draw = np.random.default_rng(0)
    images = draw.integers(0, 256, (20, 4, 4, 1)).astype(np.uint8)
    images[10:] //= 8  # so that the batches of seed 11 differ much
    train = ResidentSplit.place(images, np.zeros(20, np.int32), mesh)
    normalization = Normalization(
        mean=np.full((1, 1, 1, 1), 50, np.float32), std=np.full((1, 1, 1, 1), 80, np.float32)
    )
    variables = model.init(jax.random.key(0), jnp.zeros((1, 4, 4, 1)), train=True)
    variables = jax.tree.map(lambda a: jnp.asarray(a)[None], dict(variables))
    config = ConfigDict({"batch_size": 8, "accumulate": parts, "eval": {"population_examples": 0}})
    execution = tiny.execution(mesh)
    task = tiny.task(model, normalization, mesh)
    observe_step = Compiler(execution, replicates=1).observe_step(task, train.select)
    # Sixteen of the twenty examples count: the third batch would not be full.
    population = evaluate.population_statistics(
        observe_step, variables, train, np.array([11]), config, execution
    )

    used = [batch_indices(11, n, 8, 20) for n in (0, 1)]
    x = (images[np.concatenate(used)].astype(np.float64) - 50) / 80
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    # A kernel of ones sums each 3x3 neighbourhood.
    outputs = sum(padded[:, i : i + 4, j : j + 4] for i in range(3) for j in range(3))
    stem = population["batch_stats"]["stem_norm"]
    np.testing.assert_allclose(stem["mean"], np.full((1, 2), outputs.mean()), rtol=1e-5)
    np.testing.assert_allclose(stem["var"], np.full((1, 2), outputs.var()), rtol=1e-5)

    # A moving average would tend to the mean of the batches' variances, which differs.
    halves = outputs.reshape(2, -1)
    assert halves.var(axis=1).mean() < 0.95 * outputs.var()
    for name, norm in population["batch_stats"].items():
        before = variables["batch_stats"][name]
        assert jax.tree.structure(norm) == jax.tree.structure(before)
    assert population["params"] is variables["params"]
