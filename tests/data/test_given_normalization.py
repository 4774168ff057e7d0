"""A normalisation that the config gives is used as it is, in training and for a trained network."""

import jax
import numpy as np
import pytest

from configs import digits
from resnet_jax.data import datasets
from resnet_jax.execution import decide
from resnet_jax.resolve import resolve


def config(**data):
    changed = digits.get_config()
    for key, value in data.items():
        changed.data[key] = value
    return resolve(changed)


def numbers(normalization):
    return [np.asarray(part).squeeze().tolist() for part in (normalization.mean, normalization.std)]


@pytest.mark.parametrize(
    ("given", "is_measured"),
    [
        ({"mean": "channel", "channel_mean": (3.5,), "channel_std": (7.0,)}, False),
        ({"mean": "channel", "channel_mean": (3.5,)}, True),
        ({"mean": "channel", "channel_std": (7.0,)}, True),
        ({"mean": "none", "channel_std": (7.0,)}, False),
        ({"mean": "channel", "channel_mean": (3.5,), "std": False}, False),
    ],
)
def test_given_numbers_replace_the_measured_ones(given, is_measured):
    resolved = config(**given)
    measured = {k: v for k, v in given.items() if not k.startswith("channel_")}
    mean, std = numbers(datasets.normalization(config(**measured).data)[0])
    wanted = [
        given.get("channel_mean", [mean])[0],
        given.get("channel_std", [std])[0],
    ]
    assert wanted != [mean, std]
    found, content = datasets.normalization(resolved.data)
    assert numbers(found) == wanted
    assert bool(content) == is_measured
    opened = datasets.open_set(resolved.data, decide(resolved, jax.devices()[:1]).mesh)
    assert numbers(opened.normalization) == wanted


def test_the_mean_image_is_measured_whatever_is_given():
    with_mean, without = (
        datasets.normalization(config(**given).data)[0] for given in ({"channel_mean": (3.5,)}, {})
    )
    np.testing.assert_array_equal(with_mean.mean, without.mean)
    assert with_mean.mean.shape == (1, 8, 8, 1)
