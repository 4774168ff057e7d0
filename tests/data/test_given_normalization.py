"""A normalisation that the config or the run folder has is used as it is."""

import json
import math

import jax
import numpy as np
import pytest

from configs import digits
from resnet_jax.data import datasets
from resnet_jax.data.augment import Normalization
from resnet_jax.errors import UserError
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


ONE = [[[[1.0]]]]


def test_a_saved_normalization_reads_back_bit_for_bit():
    saved = Normalization(
        mean=np.full((1, 2, 2, 1), 0.1, np.float32), std=np.full((1, 1, 1, 1), 3.3, np.float32)
    )
    read = Normalization.from_json(json.loads(json.dumps(saved.to_json())), "here")
    for ours, theirs in ((read.mean, saved.mean), (read.std, saved.std)):
        assert ours.dtype == np.float32
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(
    "content",
    [
        {"mean": ONE},
        {"mean": ONE, "std": "x"},
        {"mean": ONE, "std": [1.0]},
        {"mean": [[[[1.0], [1.0, 2.0]]]], "std": ONE},
        {"mean": [[[[None]]]], "std": ONE},
        {"mean": ONE, "std": [[[[0.0]]]]},
        {"mean": ONE, "std": [[[[math.inf]]]]},
    ],
)
def test_a_malformed_saved_normalization_is_refused(content):
    with pytest.raises(UserError, match=r"^a/normalization\.json is malformed: it needs a mean "):
        Normalization.from_json(content, "a/normalization.json")
