"""The networks' function: every option changes it, in the way that the paper describes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from resnet_jax.losses import cross_entropy
from resnet_jax.networks import initializers, layout
from resnet_jax.networks.architectures import Architecture
from resnet_jax.networks.blocks import Block, shortcut
from resnet_jax.networks.resnet import ResNet

BASIC = Architecture("basic", (1, 1), (4, 8))
BOTTLENECK = Architecture("bottleneck", (1, 1), (4, 8))
BASE = {"arch": BASIC, "num_classes": 10, "shortcut": "B", "stem": "cifar"}


@pytest.fixture(autouse=True)
def cheap_weights(monkeypatch):
    """He's weights from numpy: XLA takes a second to compile the draw of each new shape."""

    def he_normal(key, shape, dtype):
        deviation = np.sqrt(2 / np.prod(shape[:-1]))
        return jnp.asarray(np.random.default_rng(shape).normal(0, deviation, shape), dtype)

    monkeypatch.setattr(initializers, "HE_NORMAL", he_normal)


def images(batch=8, size=8):
    return np.random.default_rng(0).normal(size=(batch, size, size, 3)).astype(np.float32)


def run(capture=False, **options):
    """Returns (logits, updated collections, variables) of one training pass."""
    model = ResNet(**{**BASE, **options})
    # Not under jit: single operations are compiled once for all tests.
    variables = model.init(jax.random.key(0), images(), train=True)
    logits, updated = model.apply(
        variables,
        images(),
        train=True,
        mutable=["batch_stats", "intermediates"],
        capture_intermediates=capture,
    )
    return logits, updated, variables


# ------------------------------------------------------- every option changes the function


@pytest.mark.parametrize(
    ("option", "values", "same"),
    [
        ("bottleneck_stride", ("v1", "v1.5"), {"arch": BOTTLENECK}),
        ("preactivation", (False, True), {}),
        ("shortcut", ("none", "A"), {}),
        ("shortcut", ("none", "B"), {}),
        ("shortcut", ("none", "C"), {}),
        ("shortcut", ("A", "B"), {}),
        ("shortcut", ("A", "C"), {}),
        ("shortcut", ("B", "C"), {}),
        ("stem", ("cifar", "imagenet"), {}),
        ("zero_init_residual", (False, True), {}),
        ("width", (1.0, 0.5), {}),
        ("stem_filters", (0, 3), {}),
        ("same_padding", ((), ("blocks",)), {}),
        ("same_padding", ((), ("stem",)), {"stem": "imagenet"}),
        ("same_padding", ((), ("pool",)), {"stem": "imagenet"}),
        ("dtype", (jnp.float32, jnp.bfloat16), {}),
        ("arch", (BASIC, BOTTLENECK), {}),
        ("bn_group", (0, 4), {}),
        ("bn_epsilon", (1e-5, 1e-1), {}),
    ],
)
def test_option_changes_the_function(option, values, same):
    first, second = (run(**same, **{option: value})[0] for value in values)
    assert first.shape == second.shape == (8, 10)
    assert np.isfinite(first).all()
    assert np.isfinite(second).all()
    assert np.abs(first - second).max() > 1e-4


def test_number_of_classes():
    assert run(num_classes=7)[0].shape == (8, 7)


def test_bn_momentum_changes_only_the_moving_averages():
    (logits, kept, _), (other_logits, other, _) = run(bn_momentum=0.9), run(bn_momentum=0.5)
    pairs = zip(jax.tree.leaves(kept), jax.tree.leaves(other), strict=True)
    assert all(np.abs(a - b).max() > 0 for a, b in pairs)
    np.testing.assert_array_equal(logits, other_logits)


def test_bfloat16_is_for_activations_only():
    logits, updated, variables = run(capture=True, dtype=jnp.bfloat16)
    assert logits.dtype == jnp.float32
    for tree in (variables["params"], variables["batch_stats"], updated["batch_stats"]):
        assert {leaf.dtype for leaf in jax.tree.leaves(tree)} == {jnp.dtype("float32")}
    outputs = dict(updated["intermediates"])
    # The mean over positions is not rounded to bfloat16 on its way to the logits.
    pooled = np.asarray(outputs["stage2_block1"]["__call__"][0], np.float64).mean((1, 2))
    dense = variables["params"]["logits"]
    assert not dense["bias"].any()
    np.testing.assert_allclose(logits, pooled @ np.asarray(dense["kernel"]), atol=1e-5)
    assert outputs.pop("logits")["__call__"][0].dtype == jnp.float32
    del outputs["__call__"]  # the network's own output, the logits
    assert {leaf.dtype for leaf in jax.tree.leaves(outputs)} == {jnp.dtype("bfloat16")}
    # Stem, blocks and the projection in stage 2.
    assert len(jax.tree.leaves(outputs)) == 2 + 2 * (1 + 4) + 2


# --------------------------------------------------------------------------- the shortcut


def test_option_a_by_hand():
    x = jnp.arange(2 * 3 * 3 * 2, dtype=jnp.float32).reshape(2, 3, 3, 2)
    added = shortcut(x, "A", channels=5, stride=2, conv=None, norm=None)
    assert added.shape == (2, 2, 2, 5)
    # Rows and columns 0 and 2; the old channels first.
    np.testing.assert_array_equal(added[0, :, :, :2], [[[0, 1], [4, 5]], [[12, 13], [16, 17]]])
    np.testing.assert_array_equal(added[1, :, :, :2], added[0, :, :, :2] + 18)
    np.testing.assert_array_equal(added[..., 2:], 0)


@pytest.mark.parametrize("kind", ["A", "B"])
def test_the_shortcut_is_the_identity_if_the_shape_stays(kind):
    x = jnp.ones((1, 4, 4, 3))
    assert shortcut(x, kind, channels=3, stride=1, conv=None, norm=None) is x


def test_plain_net_has_no_shortcut():
    assert shortcut(jnp.ones((1, 4, 4, 3)), "none", 3, 1, conv=None, norm=None) is None


def last_convolution_to_zero(kind, shortcut_kind, preactivation=False, stride=1, filters=4):
    """Returns a block's input, its output, and its output with the last kernel zeroed.

    The block has no normalisation.
    """

    def conv(features, size, strides, name):
        return nn.Conv(features, size, strides, use_bias=False, name=name)

    block = Block(
        kind=kind,
        filters=filters,
        stride=stride,
        shortcut_kind=shortcut_kind,
        bottleneck_stride="v1",
        preactivation=preactivation,
        conv=conv,
        project=conv,
        norm=lambda name, activate=False, scale_init=None: nn.relu if activate else lambda x: x,
        zero_init_residual=False,
    )
    channels = 4 if kind == "basic" else 16
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 4, 4, channels)), jnp.float32)
    variables = block.init(jax.random.key(0), x)
    last = "conv2" if kind == "basic" else "conv3"
    kernel = variables["params"][last]["kernel"]
    params = {**variables["params"], last: {"kernel": jnp.zeros_like(kernel)}}
    return x, block.apply(variables, x), block.apply({"params": params}, x)


@pytest.mark.parametrize("preactivation", [False, True])
@pytest.mark.parametrize("kind", ["basic", "bottleneck"])
def test_the_shortcut_carries_the_input_that_a_plain_block_loses(kind, preactivation):
    for shortcut_kind in ("none", "A"):
        x, before, after = last_convolution_to_zero(kind, shortcut_kind, preactivation)
        assert np.abs(before - after).max() > 0.1
        carried = x if preactivation else nn.relu(x)
        expected = jnp.zeros_like(x) if shortcut_kind == "none" else carried
        np.testing.assert_array_equal(after, expected)


def test_residual_block_adds_its_input_to_the_plain_one():
    x, plain, _ = last_convolution_to_zero("basic", "none", preactivation=True)
    _, residual, _ = last_convolution_to_zero("basic", "A", preactivation=True)
    assert np.abs(plain).max() > 0.1
    np.testing.assert_array_equal(residual, plain + x)


def test_bottleneck_strides_where_the_option_says():
    def shapes(option):
        _, updated, _ = run(capture=True, arch=BOTTLENECK, bottleneck_stride=option)
        block = updated["intermediates"]["stage2_block1"]
        return [block[f"conv{i}"]["__call__"][0].shape[1] for i in (1, 2, 3)]

    assert shapes("v1") == [4, 4, 4]
    assert shapes("v1.5") == [8, 4, 4]


# -------------------------------------------------------------- branches that start at zero

LAST = {"basic": "2", "bottleneck": "3"}


@pytest.mark.parametrize(("preactivation", "layer"), [(False, "norm"), (True, "conv")])
@pytest.mark.parametrize("kind", LAST)
def test_zero_init_residual_is_one_rule_for_both_blocks(kind, preactivation, layer):
    arch = Architecture(kind, (2, 1), (4, 8))
    _, _, variables = run(arch=arch, zero_init_residual=True, preactivation=preactivation)
    _, _, usual = run(arch=arch, preactivation=preactivation)

    def zeros(tree):
        paths = jax.tree_util.tree_leaves_with_path(layout.by_block(tree["params"]))
        return [
            [p.key for p in path][:2]
            for path, leaf in paths
            if path[-1].key in ("scale", "kernel") and not leaf.any()
        ]

    assert zeros(usual) == []
    blocks = ["stage1_block1", "stage1_block2", "stage2_block1"]
    assert zeros(variables) == [[block, layer + LAST[kind]] for block in blocks]


@pytest.mark.parametrize("preactivation", [False, True])
@pytest.mark.parametrize("kind", LAST)
def test_zero_init_residual_makes_a_block_its_shortcut(kind, preactivation):
    options = {"arch": Architecture(kind, (2,), (4,)), "shortcut": "A"}
    for zero, same in ((False, False), (True, True)):
        _, updated, _ = run(
            capture=True, preactivation=preactivation, zero_init_residual=zero, **options
        )
        outputs = layout.by_block(updated["intermediates"])
        first, second = (outputs[f"stage1_block{i}"]["__call__"][0] for i in (1, 2))
        assert np.abs(first).max() > 0.1
        # A post-activation block's input is already rectified, so its last ReLU changes nothing.
        assert bool((first == second).all()) is same


NETWORKS = [
    pytest.param(
        {"kind": kind, "preactivation": pre, "shortcut": shortcut, "stem": stem, "zero": zero},
        id=f"{kind}-{'pre' if pre else 'post'}-{shortcut}-{stem}-{'zero' if zero else 'he'}",
        # Each compiles a network; the quick suite samples every kind.
        marks=[]
        if (shortcut, stem, zero) in (("A", "cifar", True), ("B", "imagenet", False))
        else pytest.mark.slow,
    )
    for kind in LAST
    for pre in (False, True)
    for shortcut in ("none", "A", "B", "C")
    for stem in ("cifar", "imagenet")
    for zero in ((False,) if shortcut == "none" else (False, True))
]


@pytest.mark.parametrize("network", NETWORKS)
def test_every_parameter_is_moved_by_its_gradient(network):
    model = ResNet(
        Architecture(network["kind"], (1, 2), (3, 4)),
        num_classes=3,
        shortcut=network["shortcut"],
        preactivation=network["preactivation"],
        stem=network["stem"],
        zero_init_residual=network["zero"],
    )
    x = np.random.default_rng(0).normal(size=(4, 16, 16, 2)).astype(np.float32)
    labels = jnp.arange(4) % 3
    variables = dict(model.init(jax.random.key(0), x, train=True))

    def three_steps(params):
        def loss(params):
            state = {"params": params, "batch_stats": variables["batch_stats"]}
            logits, _ = model.apply(state, x, train=True, mutable=["batch_stats"])
            return cross_entropy(logits, labels, 0.0).mean()

        def step(params, _):
            gradients = jax.grad(loss)(params)
            return jax.tree.map(lambda p, g: p - 0.1 * g, params, gradients), None

        return jax.lax.scan(step, params, length=3)[0]

    moved = jax.jit(three_steps)(variables["params"])
    paths = jax.tree_util.tree_leaves_with_path(variables["params"])
    unchanged = [
        jax.tree_util.keystr(path)
        for (path, before), after in zip(paths, jax.tree.leaves(moved), strict=True)
        if (before == after).all()
    ]
    assert len(paths) > 15
    assert unchanged == []
