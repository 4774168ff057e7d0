"""Networks of later papers have exactly the parameters that they have elsewhere."""

import functools

import jax
import jax.numpy as jnp
import pytest

import resnet_jax
from resnet_jax.networks.architectures import architecture
from resnet_jax.networks.summary import summarize

RESNEXT_32X4D = {"groups": 32, "bottleneck_width": 2}
RESNET_D = {"stem": "deep", "shortcut_downsampling": "mean"}
WIDE = {"shortcut": "B", "preactivation": True, "stem_filters": 16}

# Counted by torchvision 0.29.1 (torchvision.models.NAME).
TORCHVISION = {
    "resnext50_32x4d": (25_028_904, 50, RESNEXT_32X4D),
    "resnext101_32x8d": (88_791_336, 101, {"groups": 32, "bottleneck_width": 4}),
    "resnext101_64x4d": (83_455_272, 101, {"groups": 64, "bottleneck_width": 4}),
    "wide_resnet50_2": (68_883_240, 50, {"bottleneck_width": 2}),
    "wide_resnet101_2": (126_886_696, 101, {"bottleneck_width": 2}),
}
# Counted by timm 1.0.31 (timm.create_model(NAME)).
TIMM = {
    "seresnet50": (28_088_024, 50, {"se_reduction": 16}),
    "seresnext50_32x4d": (27_559_896, 50, RESNEXT_32X4D | {"se_reduction": 16}),
    "resnet18d": (11_708_744, 18, RESNET_D | {"shortcut": "B"}),
    "resnet50c": (25_576_264, 50, {"stem": "deep"}),
    "resnet50d": (25_576_264, 50, RESNET_D),
    "resnet50s": (25_680_808, 50, {"stem": "deep", "stem_filters": 128}),
}
# With 10 classes, on pictures of 32 x 32. In millions, as the papers print them: ResNeXt's Table 7,
# Wide ResNets' Table 4.
CIFAR = {
    "resnext29_8x64d": ("34.4", "cifar_bottleneck", 29, {"width": 4, "groups": 8,
                                                         "bottleneck_width": 8}),
    "resnext29_16x64d": ("68.2", "cifar_bottleneck", 29, {"width": 4, "groups": 16,
                                                          "bottleneck_width": 16}),
    "wrn_28_10": ("36.5", "cifar", 26, WIDE | {"width": 10}),
    "wrn_40_4": ("8.9", "cifar", 38, WIDE | {"width": 4}),
    "wrn_16_8": ("11.0", "cifar", 14, WIDE | {"width": 8}),
}  # fmt: skip


@functools.cache
def summary(family, depth, **options):
    side = 224 if family == "imagenet" else 32
    return summarize(resnet_jax.resnet(family, depth, **options), (side, side, 3))


@pytest.mark.parametrize("name", TORCHVISION | TIMM)
def test_parameters_are_those_of_torchvision_and_timm(name):
    parameters, depth, options = (TORCHVISION | TIMM)[name]
    assert summary("imagenet", depth, **options).parameters == parameters


@pytest.mark.parametrize("name", CIFAR)
def test_parameters_are_those_of_the_papers_on_cifar(name):
    millions, family, depth, options = CIFAR[name]
    assert f"{summary(family, depth, **options).parameters / 1e6:.1f}" == millions


@pytest.mark.parametrize(("n", "k"), [(4, 10), (6, 4), (2, 8)])
def test_a_wide_net_by_hand(n, k):
    """WRN-(6n + 4)-k counts its three projections and not the classifier: our depth 6n + 2."""
    stages = [(16, 16 * k), (16 * k, 32 * k), (32 * k, 64 * k)]
    kernels = 9 * 3 * 16 + 64 * k * 10 + 10
    for before, after in stages:
        kernels += 9 * before * after + before * after  # the first convolution, the projection
        kernels += 9 * after * after * (2 * n - 1)
    norms = sum(2 * (before + after * (2 * n - 1)) for before, after in stages) + 2 * 64 * k
    table = summary("cifar", 6 * n + 2, **WIDE, width=k)
    assert table.parameters == kernels + norms
    assert table.projections == 3


# ----------------------------------------------------- pre-activation bottlenecks of He et al. 2016


def by_hand(depth, classes=10):
    """Returns (weights, parameters of the norms) of the network of section 4, with option B."""
    n = (depth - 2) // 9
    weights, norms, before = 9 * 3 * 16, 0, 16
    for filters in (16, 32, 64):
        for block in range(n):
            weights += before * filters + 9 * filters * filters + 4 * filters * filters
            weights += before * 4 * filters if block == 0 else 0
            norms += 2 * (before + filters + filters)
            before = 4 * filters
    return weights + (before + 1) * classes, norms + 2 * before


@pytest.mark.parametrize(("depth", "millions"), [(164, "1.7"), (1001, "10.2")])
def test_parameters_of_preactivation_bottlenecks(depth, millions):
    """Table 5's millions: of 1001 layers without the norms' scales and biases."""
    weights, norms = by_hand(depth)
    table = summary("cifar_bottleneck", depth, preactivation=True)
    assert f"{weights / 1e6:.1f}" == millions
    assert table.parameters == weights + norms
    assert table.parameters == {164: 1_703_258, 1001: 10_327_706}[depth]


@pytest.mark.parametrize("depth", [20, 29, 164, 1001])
def test_weighted_layers_are_the_depth_of_cifar_bottlenecks(depth):
    table = summary("cifar_bottleneck", depth, preactivation=True)
    assert sum(layer.convolutions for layer in table.layers) == depth
    assert sum(layer.blocks for layer in table.layers) == (depth - 2) // 3
    assert table.projections == 3
    shapes = [layer.output_shape for layer in table.layers]
    assert shapes == [(32, 32, 16), (32, 32, 64), (16, 16, 128), (8, 8, 256), (10,)]


def test_a_step_of_1001_layers_does_not_grow_with_depth():
    def lines(depth):
        model = resnet_jax.resnet("cifar_bottleneck", depth, preactivation=True, scan=True)
        image = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
        variables = jax.eval_shape(
            lambda x: dict(model.init(jax.random.key(0), x, train=True)), image
        )

        def loss(params, stats, image):
            state = {"params": params, "batch_stats": stats}
            return model.apply(state, image, train=True, mutable=["batch_stats"])[0].sum()

        program = jax.jit(jax.grad(loss)).lower(
            variables["params"], variables["batch_stats"], image
        )
        return program.as_text().count("\n")

    assert lines(29) == lines(1001)


@pytest.mark.parametrize(
    ("depth", "neighbours"),
    [(163, "155 and 164"), (1000, "992 and 1001"), (2, "11"), (12, "11 and 20")],
)
def test_other_depths_are_refused_with_their_neighbours(depth, neighbours):
    with pytest.raises(resnet_jax.UserError) as refused:
        architecture("cifar_bottleneck", depth)
    assert f"(nearest: {neighbours})" in str(refused.value)
    assert "whose depths are 9n + 2 for n >= 1" in str(refused.value)


# ------------------------------------------------------------------------- what the table counts


def test_groups_squeeze_and_excitation_and_the_deep_stem_are_no_further_layers():
    for options, layers in (({}, 50), (RESNEXT_32X4D, 50), ({"se_reduction": 16}, 50),
                            (RESNET_D, 52)):  # fmt: skip
        table = summary("imagenet", 50, **options)
        assert sum(layer.convolutions for layer in table.layers) == layers
        assert table.projections == 4


def test_mult_adds_by_hand():
    def stage1(**options):
        table = summary("imagenet", 50, bottleneck_stride="v1.5", **options)
        return {layer.name: layer.mult_adds for layer in table.layers}["stage1"]

    inner, positions = 128, 56 * 56
    grouped = (64 + 2 * 256) * inner + 3 * 9 * inner * (inner // 32) + 3 * inner * 256 + 64 * 256
    assert stage1(**RESNEXT_32X4D) == positions * grouped
    assert stage1(se_reduction=16) - stage1() == 3 * 2 * 256 * 16


def test_resnext_50_has_the_mult_adds_of_its_paper():
    """Table 1: 4.1e9 and 4.2e9 of ResNet-50 and ResNeXt-50, which stride on the 3x3."""
    for options, expected in (({}, 4.1e9), (RESNEXT_32X4D, 4.2e9)):
        mult_adds = summary("imagenet", 50, bottleneck_stride="v1.5", **options).mult_adds
        assert mult_adds == pytest.approx(expected, rel=0.02)
