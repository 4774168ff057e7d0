"""The conventions of a network are found by what it computes."""

import dataclasses

import numpy as np
import pytest

from resnet_jax.errors import UserError
from resnet_jax.interop import export, names, trial
from resnet_jax.interop.schemes import Conventions
from resnet_jax.networks.builders import resnet
from resnet_jax.networks.features import features
from tests.interop.foreign import drawn

EVERY = ("stem", "stage1", "stage2", "stage3", "pooled", "logits")


def network(family="cifar", depth=8, size=16, **fields):
    """Returns a network's named tensors, images and what it computes for them."""
    model = resnet(family, depth, **fields)
    variables = drawn(model)
    images = np.random.default_rng(1).normal(size=(2, size, size, 3)).astype(np.float32)
    computed = features(model, variables, images)
    named = names.find(export.to_torchvision(model, variables), "file")
    return named, images, {name: np.asarray(array) for name, array in computed.items()}


def best(named, images, expected, assumed, **given):
    found = list(trial.trials(named, "file", assumed, given, images, expected))
    return found, min(found, key=lambda each: max(each.errors.values()))


def test_a_cifar_network_is_told_by_its_logits():
    named, images, computed = network(same_padding=("blocks",), bn_epsilon=1e-3)
    assumed = Conventions(new_channels="around", shortcut="none", order="BGR")
    found, winner = best(named, images, {"logits": computed["logits"]}, assumed)
    assert len(found) == 2 * 2 * 2 * 2 * 4  # order, shortcut, channels, padding, epsilon
    assert winner.fits
    wanted = Conventions(same_padding=("blocks",), epsilon=1e-3, new_channels="after", order="RGB")
    assert dataclasses.replace(winner.network.conventions, bottleneck_stride="v1.5") == wanted
    fitting = [each for each in found if each.fits]
    assert {each.network.conventions.same_padding for each in fitting} == {("blocks",)}
    assert found[0].network.conventions == assumed
    assert not found[0].fits


def test_a_bottleneck_network_is_told_by_its_stride_and_padding():
    fields = {"width": 0.125, "bottleneck_stride": "v1.5", "same_padding": ("pool", "blocks")}
    named, images, computed = network("imagenet", 50, 64, **fields)
    found, winner = best(
        named, images, {"logits": computed["logits"]}, Conventions(), order="RGB", epsilon=1e-5
    )
    assert len(found) == 2 * 8  # stride, padding
    assert [each.network.conventions for each in found if each.fits] == [
        Conventions(same_padding=("pool", "blocks"))
    ]
    assert winner.network.model.same_padding == ("pool", "blocks")


def test_the_first_endpoint_that_differs_is_named():
    named, images, computed = network(same_padding=("blocks",))
    expected = {name: computed[name] for name in reversed(EVERY)}
    found, _ = best(
        named, images, expected, Conventions(), order="RGB", epsilon=1e-5, shortcut="A",
        new_channels="after",
    )  # fmt: skip
    padded_at_both_ends, right = found
    assert list(right.errors) == list(EVERY)
    assert (right.fits, right.differs_at) == (True, "")
    assert padded_at_both_ends.differs_at == "stage2"  # the first that strides
    assert padded_at_both_ends.errors["stage1"] < 1e-6
    found, _ = best(
        named, images[..., ::-1], expected, Conventions(), epsilon=1e-5, shortcut="A",
        new_channels="after", same_padding=("blocks",),
    )  # fmt: skip
    assert [each.differs_at for each in found] == ["stem", ""]


@pytest.mark.parametrize(
    ("expected", "words"),
    [
        ({"logit": np.zeros((2, 10))}, "expected 'logit' is not an endpoint of this network"),
        ({"logits": np.zeros((2, 7))}, "expected 'logits' has the shape (2, 7), but this network"),
    ],
)
def test_expected_numbers_of_another_network_are_refused(expected, words):
    named, images, _ = network()
    with pytest.raises(UserError) as refused:
        best(named, images, expected, Conventions())
    assert words in str(refused.value)
