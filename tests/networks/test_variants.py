"""Groups, squeeze and excitation, the deep stem and means on shortcuts, beside sums by hand."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet_jax.errors import UserError
from resnet_jax.losses import cross_entropy
from resnet_jax.networks import layout
from resnet_jax.networks.architectures import Architecture
from resnet_jax.networks.blocks import mean_pool, shortcut
from resnet_jax.networks.initializers import initializers
from resnet_jax.networks.nonlinearities import nonlinearity
from resnet_jax.networks.resnet import ResNet
from tests.networks import small
from tests.networks.small import BASIC, BOTTLENECK, IMAGES, network

ALL = {
    "arch": BOTTLENECK, "shortcut": "B", "bottleneck_width": 2, "groups": 2, "se_reduction": 2,
    "stem": "deep", "shortcut_downsampling": "mean",
}  # fmt: skip
LARGER = np.random.default_rng(3).normal(size=(2, 32, 32, 3)).astype(np.float32)


def logits(model, variables, images=IMAGES):
    return np.asarray(jax.jit(lambda v: model.apply(v, images, train=False))(variables))


# ---------------------------------------------------------------------------------------- groups


def block_diagonal(kernel, groups):
    """Returns the kernel of all channels that computes what a grouped one computes."""
    *sides, channels, filters = kernel.shape
    dense = np.zeros((*sides, groups * channels, filters), np.float32)
    for group in range(groups):
        of_filters = slice(group * filters // groups, (group + 1) * filters // groups)
        of_channels = slice(group * channels, (group + 1) * channels)
        dense[..., of_channels, of_filters] = kernel[..., of_filters]
    return dense


@pytest.mark.parametrize("preactivation", [False, True])
def test_groups_are_blocks_on_the_diagonal_of_the_kernel(preactivation):
    options = {"arch": BOTTLENECK, "bottleneck_width": 2.0, "preactivation": preactivation}
    grouped = network("B", groups=4, **options)
    variables = small.variables(grouped)
    params = {
        name: node
        | {"conv2": {"kernel": block_diagonal(node["conv2"]["kernel"], 4)}}
        if name in small.BLOCKS
        else node
        for name, node in variables["params"].items()
    }  # fmt: skip
    assert variables["params"]["stage2_block1"]["conv2"]["kernel"].shape == (3, 3, 4, 16)
    found = logits(grouped, variables)
    dense = logits(network("B", **options), variables | {"params": params})
    np.testing.assert_allclose(found, dense, rtol=1e-4, atol=1e-5)
    other = small.variables(network("B", **options))
    assert np.abs(found - logits(network("B", **options), other)).max() > 1e-2


def test_the_inside_of_a_bottleneck_is_wider_and_its_ends_are_not():
    shapes = small.parameters(network("B", arch=BOTTLENECK, bottleneck_width=3.0, groups=2))
    assert shapes["stage2_block1/conv1/kernel"] == (1, 1, 16, 24)
    assert shapes["stage2_block1/conv2/kernel"] == (3, 3, 12, 24)
    assert shapes["stage2_block1/conv3/kernel"] == (1, 1, 24, 32)
    assert shapes["stage2_block1/shortcut_conv/kernel"] == (1, 1, 16, 32)


def test_the_fan_in_of_a_grouped_kernel_is_that_of_its_group():
    model = ResNet(Architecture("bottleneck", (1,), (64,)), num_classes=2, shortcut="B", groups=16)
    params = jax.jit(lambda: model.init(jax.random.key(0), IMAGES[:1], train=True)["params"])()
    kernel = np.asarray(params["stage1_block1"]["conv2"]["kernel"])
    assert kernel.shape == (3, 3, 4, 64)
    assert kernel.std() == pytest.approx((2 / (9 * 4)) ** 0.5, rel=0.05)


def test_dirac_makes_a_grouped_convolution_the_identity():
    relu = nonlinearity("relu", BOTTLENECK, 0.9)
    kernel = initializers("dirac", BOTTLENECK, relu).branch(jax.random.key(0), (3, 3, 2, 8), float)
    dense = block_diagonal(np.asarray(kernel), 4)
    np.testing.assert_array_equal(dense[1, 1], np.eye(8))
    assert dense.sum() == 8


# -------------------------------------------------------------------------- squeeze and excitation


def without(tree, *layers):
    return {k: without(v, *layers) if isinstance(v, dict) else v
            for k, v in tree.items() if k not in layers}  # fmt: skip


@pytest.mark.parametrize("shortcut_kind", ["none", "A"])
@pytest.mark.parametrize("preactivation", [False, True])
def test_squeeze_and_excitation_multiplies_the_branch_by_hand(preactivation, shortcut_kind):
    arch = Architecture("basic", (1,), (8,))
    options = {"arch": arch, "preactivation": preactivation}
    model = network(shortcut_kind, se_reduction=4, **options)
    variables = small.variables(model)
    block = variables["params"]["stage1_block1"]
    _, kept = model.apply(
        variables, IMAGES, train=False, mutable=["intermediates"], capture_intermediates=True
    )
    outputs = kept["intermediates"]["stage1_block1"]
    branch = np.asarray(outputs["conv2" if preactivation else "norm2"]["__call__"][0])
    assert branch.min() < 0  # before the nonlinearity
    first, second = (block[f"se_conv{i}"] for i in (1, 2))
    assert first["kernel"].shape == (1, 1, 8, 2)
    hidden = branch.mean((1, 2)) @ first["kernel"][0, 0] + first["bias"]
    factors = hidden.clip(0) @ second["kernel"][0, 0] + second["bias"]
    expected = branch / (1 + np.exp(-factors[:, None, None]))
    if shortcut_kind == "A":
        stem = kept["intermediates"]["stem_conv" if preactivation else "stem_norm"]
        expected = expected + np.asarray(stem["__call__"][0]).clip(None if preactivation else 0)
    expected = expected if preactivation else expected.clip(0)
    np.testing.assert_allclose(outputs["__call__"][0], expected, rtol=1e-4, atol=1e-5)
    usual = logits(network(shortcut_kind, **options), without(variables, "se_conv1", "se_conv2"))
    assert np.abs(usual - logits(model, variables)).max() > 1e-2


def test_squeeze_and_excitation_keeps_one_channel_at_least():
    shapes = small.parameters(network(se_reduction=16))
    assert shapes["stage1_block1/se_conv1/kernel"] == (1, 1, 4, 1)
    assert shapes["stage2_block1/se_conv2/kernel"] == (1, 1, 1, 8)


def test_weight_standardization_leaves_squeeze_and_excitation_alone():
    model = network(se_reduction=2, weight_standardization=True)
    variables = small.variables(model)
    for layer, is_seen in (("conv1", False), ("se_conv1", True)):
        node = variables["params"]["stage1_block1"]
        scaled = node | {layer: {**node[layer], "kernel": 2 * node[layer]["kernel"]}}
        params = variables["params"] | {"stage1_block1": scaled}
        change = np.abs(logits(model, variables | {"params": params}) - logits(model, variables))
        assert (change.max() > 1e-3) == is_seen


# ---------------------------------------------------------------------------------------- ResNet-D


@pytest.mark.parametrize("side", [4, 5])
def test_means_of_2x2_positions_by_hand(side):
    x = np.random.default_rng(0).normal(size=(2, side, side + 2, 3)).astype(np.float32)
    rows, columns = (range(0, length, 2) for length in x.shape[1:3])
    expected = [[x[:, i : i + 2, j : j + 2].mean((1, 2)) for j in columns] for i in rows]
    np.testing.assert_allclose(mean_pool(x), np.moveaxis(expected, 2, 0), rtol=1e-5, atol=1e-6)
    assert mean_pool(x.astype(jnp.bfloat16)).dtype == jnp.bfloat16


def test_a_shortcut_with_means_projects_with_stride_1():
    x = jnp.asarray(LARGER)
    strides = []

    def conv(filters, size, stride, name):
        del size, name
        strides.append(stride)
        return lambda y: y[..., :1] * jnp.ones(filters)[None, None, None]

    projected = shortcut(x, "B", 5, 2, conv, None, downsampling="mean")
    assert strides == [(1, 1)]
    np.testing.assert_array_equal(projected, np.tile(mean_pool(x)[..., :1], 5))
    padded = shortcut(x, "A", 5, 2, conv, None, downsampling="mean")
    np.testing.assert_array_equal(padded[..., :3], mean_pool(x))
    np.testing.assert_array_equal(padded[..., 3:], 0)
    # Without a stride there is nothing to halve.
    np.testing.assert_array_equal(
        shortcut(x, "A", 5, 1, conv, None, downsampling="mean"), shortcut(x, "A", 5, 1, conv, None)
    )


@pytest.mark.parametrize("preactivation", [False, True])
def test_the_deep_stem_has_three_layers(preactivation):
    model = network("B", stem="deep", preactivation=preactivation, stem_filters=6)
    shapes = small.parameters(model)
    names = [name for name in shapes if name.startswith("stem_conv")]
    assert [(name, shapes[name]) for name in sorted(names)] == [
        ("stem_conv1/kernel", (3, 3, 3, 3)),
        ("stem_conv2/kernel", (3, 3, 3, 3)),
        ("stem_conv3/kernel", (3, 3, 3, 6)),
    ]
    # In a pre-activation network the first block has the last norm.
    assert ("stem_norm3/scale" in shapes) is not preactivation
    image = jax.ShapeDtypeStruct((1, 33, 32, 3), jnp.float32)
    _, kept = jax.eval_shape(
        lambda v, x: model.apply(v, x, train=False, mutable=["features"]),
        small.variables(model), image,
    )  # fmt: skip
    assert kept["features"]["stem"][0].shape == (1, 9, 8, 6)


def test_a_deep_stem_in_blocks_of_pixels_is_the_same():
    usual, in_blocks = (network("B", stem="deep", space_to_depth=s) for s in (False, True))
    variables = small.variables(usual)
    np.testing.assert_allclose(
        logits(in_blocks, variables, LARGER), logits(usual, variables, LARGER), rtol=1e-4
    )
    texts = [
        jax.jit(lambda v, m=m: m.apply(v, LARGER, train=False)).lower(variables).as_text()
        for m in (usual, in_blocks)
    ]
    assert "2x2x12x2" not in texts[0]
    assert "2x2x12x2" in texts[1]


# ------------------------------------------------------------------------------------ all together


@pytest.mark.parametrize("preactivation", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_every_parameter_is_moved_and_loops_change_nothing(preactivation):
    model = network(preactivation=preactivation, **ALL)
    variables = small.variables(model)

    def gradients(model, change):
        given = layout.convert(variables, change)

        def loss(params):
            state = given | {"params": params}
            found, _ = model.apply(state, LARGER, train=True, mutable=["batch_stats"])
            return cross_entropy(found, jnp.arange(2), 0.0).mean()

        return jax.jit(jax.grad(loss)).lower(given["params"]), given["params"]

    program, params = gradients(model, lambda tree: tree)
    unrolled = program.as_text().count("stablehlo.convolution(")
    expected = program.compile()(params)
    assert all(np.abs(g).max() > 0 for g in jax.tree.leaves(expected))
    program, params = gradients(dataclasses.replace(model, scan=True), layout.stacked)
    found = layout.by_block(program.compile()(params))
    for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(found), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-2, atol=1e-5)
    # The loop merges two blocks of 3 convolutions and 2 fully connected layers, with 2 gradients.
    assert program.as_text().count("stablehlo.convolution(") == unrolled - 3 * 5


@pytest.mark.parametrize("norm", ["none", "group", "frozen"])
def test_every_norm_has_the_variants(norm):
    model = network(norm=norm, norm_groups=2, **ALL)
    found = logits(model, small.variables(model), LARGER)
    assert np.isfinite(found).all()
    assert np.abs(found[0] - found[1]).max() > 1e-3


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"arch": BASIC, "groups": 2}, "model.groups=2 needs bottleneck blocks"),
        ({"arch": BASIC, "bottleneck_width": 2.0}, "model.bottleneck_width=2.0 needs bottleneck"),
        ({"groups": 3}, "model.groups=3 does not divide the filters of all 3x3 convolutions, 4, 8"),
        ({"groups": 0}, "groups=0 is out of range"),
        ({"bottleneck_width": 0}, "bottleneck_width=0 is out of range"),
        ({"se_reduction": -1}, "se_reduction=-1 is out of range"),
        ({"stem": "deeep"}, "(nearest: deep)"),
        ({"shortcut_downsampling": "maen"}, "(nearest: mean)"),
    ],
)
def test_an_invalid_variant_is_refused(options, words):
    with pytest.raises(UserError) as refused:
        network(**({"arch": BOTTLENECK} | options))
    assert words in str(refused.value)
