"""Public classes and functions refuse unknown names and numbers out of range."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest

from configs import imagenet
from resnet_jax.allowed import Range
from resnet_jax.data import augment, crops, views
from resnet_jax.errors import UserError
from resnet_jax.networks import blocks
from resnet_jax.networks.architectures import Architecture, architecture
from resnet_jax.networks.builders import resnet
from resnet_jax.networks.normalization import BatchNorm
from resnet_jax.networks.resnet import ResNet

ARCH = Architecture("basic", (1, 1), (4, 8))
net = functools.partial(ResNet, ARCH, num_classes=3)
block = functools.partial(
    blocks.Block, kind="basic", filters=4, stride=1, shortcut_kind="A", bottleneck_stride="v1",
    preactivation=False, conv=None, project=None, norm=None, zero_init_residual=False,
)  # fmt: skip


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: net(shortcut="D"), "shortcut='D' is not known; allowed are none, A, B or C"),
        (lambda: net(shortcut="a"), "(nearest: A)"),
        (lambda: net(precision="hihg"), "(nearest: high)"),
        (lambda: net(stem="foo"), "stem='foo' is not known; allowed are cifar, imagenet or deep"),
        (lambda: net(bottleneck_stride="1.5"), "(nearest: v1.5)"),
        (lambda: net(width=0), "width=0 is out of range"),
        (lambda: net(nonlinearity="elu"), "nonlinearity='elu' is not known"),
        (lambda: net(norm="layer"), "norm='layer' is not known"),
        (lambda: net(kernel_init="normal"), "kernel_init='normal' is not known"),
        (lambda: net(branch_scale_by="1/l"), "(nearest: 1/L)"),
        (lambda: net(dropout=1.0), "dropout=1.0 is out of range"),
        (lambda: net(stochastic_depth=-0.1), "stochastic_depth=-0.1 is out of range"),
        (lambda: block(gate="exclusiv"), "(nearest: exclusive)"),
        (lambda: net(bn_group=-1), "bn_group=-1 is out of range"),
        (lambda: net(bn_momentum=1.0), "bn_momentum=1.0 is out of range"),
        (lambda: ResNet(50, 10), 'arch=50 is not an Architecture; look one up by its depth, as in'),
        (lambda: ResNet("resnet50", 10), 'ResNet(architecture("imagenet", 50), num_classes=1000)'),
        (lambda: ResNet(ARCH, 0), "num_classes=0 is out of range"),
        (lambda: ResNet(ARCH, True), "num_classes=True is out of range"),
        (lambda: resnet("cifar", 20, kernel_init="fixup"), "model.init='fixup' replaces the norm"),
        (lambda: resnet("cifar", 20, nonlinearity="crelu"), "which its shortcut cannot match"),
        (lambda: resnet("cifar", 20, stem_filters=64), "model.stem_filters=64 are more channels"),
        (
            lambda: resnet("cifar", 20, shortcut="none", zero_init_residual=True),
            "makes a plain net (model.shortcut='none') constant",
        ),
        (lambda: resnet("cifar", 20, remat=(4,)), "model.remat=(4,) names a stage that this"),
        (
            lambda: resnet("cifar", 20, preactivation=True, kernel_init="looks_linear"),
            "model.init='looks_linear' needs model.nonlinearity='crelu'",
        ),
        (lambda: block(kind="botleneck"), "(nearest: bottleneck)"),
        (lambda: block(shortcut_kind="D"), "shortcut_kind='D' is not known"),
        (lambda: block(bottleneck_stride="v2"), "bottleneck_stride='v2' is not known"),
        (lambda: block(stride=0), "stride=0 is out of range"),
        (lambda: blocks.shortcut(jnp.zeros((1, 2, 2, 4)), "D", 4, 1, None, None), "kind='D' is"),
        (lambda: Architecture("basci", (1,), (4,)), "(nearest: basic)"),
        (lambda: Architecture("basic", (1, 1), (4,)), "differ in length"),
        (lambda: Architecture("basic", (0,), (4,)), "stage_sizes or filters=0 is out of range"),
        (lambda: architecture("imagenet", "50"), "model.depth='50' is not a whole number"),
        (lambda: architecture("resnet", 50), "model.family='resnet' is not known"),
        (lambda: BatchNorm(train=True, group=-2), "group=-2 is out of range"),
        (lambda: BatchNorm(train=True, momentum=1.0), "momentum=1.0 is out of range"),
        (lambda: BatchNorm(train=True, epsilon=-1e-5), "epsilon=-1e-05 is out of range"),
        (lambda: augment.Augmentation(pad=-1, flip=True), "pad=-1 is out of range"),
        (lambda: augment.fit_normalization(np.zeros((1, 2, 2, 1), np.uint8), "pixels", True),
         "(nearest: pixel)"),
        (lambda: views.make_views("tencrop", None, None), "(nearest: ten_crop)"),
    ],
)  # fmt: skip
def test_an_invalid_field_is_refused(make, words):
    with pytest.raises(UserError) as refused:
        make()
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)


def test_an_unknown_crop_is_refused():
    data = imagenet.get_config().data
    crops.make_crop(data)
    data.crop = "resized"
    with pytest.raises(UserError, match=r"data\.crop='resized' .*nearest: random_resized"):
        crops.make_crop(data)


@pytest.mark.parametrize(
    ("interval", "inside", "outside", "words"),
    [
        (Range(0, 1), (0, 1, 0.5, np.float32(0.5)), (-1e-9, 1.1, "0", None, True),
         "numbers from 0 to 1"),
        (Range(0, 1, below=True), (0, 0.999), (1, 1.0, float("nan")),
         "numbers at least 0 and below 1"),
        (Range(0, 1, above=True), (1e-9, 1), (0, 0.0), "numbers above 0 and at most 1"),
        (Range(0, 1, above=True, below=True), (0.1,), (0, 1), "numbers above 0 and below 1"),
        (Range(1, whole=True), (1, 2**31 - 1, np.int32(3)), (0, 1.0, 2**31, True, "1"),
         "whole numbers from 1 to 2147483647"),
        (Range(0), (0, 1e30), (1e300, float("inf"), float("nan")), "numbers from 0 to 3.4e+38"),
    ],
)  # fmt: skip
def test_a_range_contains_only_its_numbers(interval, inside, outside, words):
    assert all(value in interval for value in inside)
    assert not any(value in interval for value in outside)
    assert str(interval) == words
