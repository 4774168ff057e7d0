"""Every network of the paper has exactly the parameters, projections and mult-adds it should."""

import functools
import math

import jax
import jax.numpy as jnp
import pytest

from resnet_jax.errors import UserError
from resnet_jax.networks import layout
from resnet_jax.networks.architectures import architecture
from resnet_jax.networks.resnet import ResNet
from resnet_jax.networks.summary import summarize

IMAGENET = {18: 11689512, 34: 21797672, 50: 25557032, 101: 44549160, 152: 60192808}
CIFAR = {20: 269722, 32: 464154, 44: 658586, 56: 853018, 110: 1727962, 1202: 19421274}
MULT_ADDS = {18: 1.8e9, 34: 3.6e9, 50: 3.8e9, 101: 7.6e9, 152: 11.3e9}
SHAPE = {"imagenet": (224, 224, 3), "cifar": (32, 32, 3)}
NETWORKS = [("imagenet", d) for d in IMAGENET] + [("cifar", d) for d in CIFAR]


def network(family, depth, shortcut, **options):
    classes = {"imagenet": 1000, "cifar": 10}[family]
    arch = architecture(family, depth)
    return ResNet(arch, num_classes=classes, shortcut=shortcut, stem=family, **options)


@functools.cache
def summary(family, depth, shortcut, bottleneck_stride="v1"):
    net = network(family, depth, shortcut, bottleneck_stride=bottleneck_stride)
    return summarize(net, SHAPE[family])


@functools.cache
def parameter_tree(family, depth, shortcut):
    image = jax.ShapeDtypeStruct((1, *SHAPE[family]), jnp.float32)
    init = network(family, depth, shortcut).init
    params = jax.eval_shape(lambda x: init(jax.random.key(0), x, train=True), image)["params"]
    return jax.eval_shape(layout.by_block, params)


@pytest.mark.parametrize(("family", "depth"), NETWORKS)
def test_parameters_are_the_papers(family, depth):
    shortcut, expected = ("B", IMAGENET[depth]) if family == "imagenet" else ("A", CIFAR[depth])
    assert summary(family, depth, shortcut).parameters == expected


@pytest.mark.parametrize(
    ("family", "depth"),
    [pytest.param(*n, marks=pytest.mark.slow if n[1] > 1000 else []) for n in NETWORKS],
)
def test_initialised_parameters_are_the_papers(family, depth):
    shortcut, expected = ("B", IMAGENET[depth]) if family == "imagenet" else ("A", CIFAR[depth])
    leaves = jax.tree.leaves(parameter_tree(family, depth, shortcut))
    assert sum(math.prod(leaf.shape) for leaf in leaves) == expected


def projections(family, depth, shortcut):
    """Counts projections by hand, from section 3.3."""
    blocks = {18: 8, 34: 16, 50: 16, 101: 33, 152: 50}[depth] if family == "imagenet" else None
    if family == "cifar":
        blocks = (depth - 2) // 2
        changes = 2  # to 32 and to 64 filters
    else:
        # Stages 2, 3 and 4; a bottleneck's output is four times wider, so stage 1 changes too.
        changes = 3 if depth < 50 else 4
    return {"none": 0, "A": 0, "B": changes, "C": blocks}[shortcut]


@pytest.mark.parametrize("shortcut", ["none", "A", "B", "C"])
@pytest.mark.parametrize(("family", "depth"), NETWORKS)
def test_projections(family, depth, shortcut):
    table = summary(family, depth, shortcut)
    assert table.projections == projections(family, depth, shortcut)


@pytest.mark.parametrize(
    ("family", "depth"),
    [
        pytest.param(family, depth, marks=pytest.mark.slow if depth in (101, 1202) else [])
        for family, depth in NETWORKS
    ],
)
def test_plain_twin_has_the_same_parameters_as_option_a(family, depth):
    def named(shortcut):
        leaves = jax.tree_util.tree_leaves_with_path(parameter_tree(family, depth, shortcut))
        return {jax.tree_util.keystr(path): leaf.shape for path, leaf in leaves}

    assert network(family, depth, "none") != network(family, depth, "A")
    assert named("none") == named("A")


def test_option_b_projects_where_the_shape_changes():
    def at(depth, shortcut):
        tree = parameter_tree("imagenet", depth, shortcut)
        return [k for k, v in tree.items() if "shortcut_conv" in v and "shortcut_norm" in v]

    assert at(18, "B") == ["stage2_block1", "stage3_block1", "stage4_block1"]
    assert at(50, "B") == ["stage1_block1", *at(18, "B")]
    assert at(18, "C") == [
        f"stage{stage}_block{block}" for stage in (1, 2, 3, 4) for block in (1, 2)
    ]


@pytest.mark.parametrize(("family", "depth"), NETWORKS)
def test_weighted_layers_are_the_depth(family, depth):
    shortcut = {"imagenet": "B", "cifar": "A"}[family]
    table = summary(family, depth, shortcut)
    assert sum(layer.convolutions for layer in table.layers) == depth
    per_block = 3 if family == "imagenet" and depth >= 50 else 2
    assert sum(layer.blocks for layer in table.layers) == (depth - 2) // per_block


@pytest.mark.parametrize("depth", IMAGENET)
def test_mult_adds_are_those_of_table_1(depth):
    assert summary("imagenet", depth, "B").mult_adds == pytest.approx(MULT_ADDS[depth], rel=0.02)


def test_mult_adds_of_resnet_50_with_the_stride_on_the_3x3():
    v1, later = summary("imagenet", 50, "B"), summary("imagenet", 50, "B", "v1.5")
    assert later.mult_adds > v1.mult_adds
    assert later.mult_adds == pytest.approx(4.1e9, rel=0.02)
    assert later.parameters == v1.parameters


def test_mult_adds_by_hand():
    mult_adds = {layer.name: layer.mult_adds for layer in summary("cifar", 20, "A").layers}
    assert mult_adds["stem"] == 32 * 32 * 9 * 3 * 16
    assert mult_adds["stage1"] == 6 * 32 * 32 * 9 * 16 * 16
    assert mult_adds["stage2"] == 16 * 16 * 9 * 32 * (16 + 5 * 32)
    assert mult_adds["stage3"] == 8 * 8 * 9 * 64 * (32 + 5 * 64)
    assert mult_adds["head"] == 64 * 10


@pytest.mark.parametrize(
    ("family", "depth", "shapes"),
    [
        ("cifar", 20, [(32, 32, 16), (32, 32, 16), (16, 16, 32), (8, 8, 64), (10,)]),
        (
            "imagenet",
            18,
            [(56, 56, 64), (56, 56, 64), (28, 28, 128), (14, 14, 256), (7, 7, 512), (1000,)],
        ),
        (
            "imagenet",
            50,
            [(56, 56, 64), (56, 56, 256), (28, 28, 512), (14, 14, 1024), (7, 7, 2048), (1000,)],
        ),
    ],
)
def test_output_shapes(family, depth, shapes):
    assert [layer.output_shape for layer in summary(family, depth, "B").layers] == shapes


def test_families_build_the_same_depth_from_different_blocks():
    for depth in (50, 152):
        imagenet, cifar = architecture("imagenet", depth), architecture("cifar", depth)
        assert (imagenet.block, cifar.block) == ("bottleneck", "basic")
        assert (len(imagenet.stage_sizes), len(cifar.stage_sizes)) == (4, 3)


@pytest.mark.parametrize(
    ("family", "depth", "neighbours"),
    [
        ("cifar", 21, "20 and 26"),
        ("cifar", 25, "20 and 26"),
        ("cifar", 9, "8 and 14"),
        ("cifar", 2, "8"),
        ("cifar", 1, "8"),
        ("cifar", 0, "8"),
        ("cifar", -4, "8"),
        ("cifar", 1000, "998 and 1004"),
        ("imagenet", 19, "18 and 34"),
        ("imagenet", 20, "18 and 34"),
        ("imagenet", 1, "18"),
        ("imagenet", 1000, "152"),
    ],
)
def test_other_depths_are_refused_with_their_neighbours(family, depth, neighbours):
    with pytest.raises(UserError) as refused:
        architecture(family, depth)
    text = str(refused.value)
    assert f"model.depth={depth} " in text
    assert f"(nearest: {neighbours})" in text


def test_unknown_family_is_refused():
    with pytest.raises(
        UserError, match=r"model\.family='resnet'.*imagenet, cifar or cifar_bottleneck"
    ):
        architecture("resnet", 50)
