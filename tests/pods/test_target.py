"""Targets on the command line, and the numbers of chips."""

import pytest

from experiments.pods import target
from resnet_jax.errors import UserError


@pytest.mark.parametrize(
    ("text", "shape", "chips"),
    [
        ("v5e", (), 1),
        ("v5e:16x16", (16, 16), 256),
        ("v4:2x4x4", (2, 4, 4), 32),
        ("H100", (), 1),
        ("H100:8", (1, 8), 8),
        ("H200:4x8", (4, 8), 32),
    ],
)
def test_a_target_is_a_chip_or_several(text, shape, chips):
    found = target.parse(text)
    assert (found.shape, found.chips) == (shape, chips)
    assert target.parse(str(found)) == found


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("v5", ["--target=v5 is not a chip", "v6e", "nearest: v5"]),
        ("v5e:16", ["--target=v5e:16 is not a topology", "v5e has 2 numbers", "v5e:16x16"]),
        ("v5e:", ["is not a topology"]),
        ("v5e:0x4", ["is not a topology"]),
        ("v5e:4x4x4", ["v5e has 2 numbers"]),
        ("v4:4x4", ["v4 has 3 numbers"]),
        ("H100:2x2x8", ["one or two numbers", "hosts x GPUs"]),
        ("H100:a", ["is not a topology"]),
        ("", ["is not a chip"]),
    ],
)
def test_a_mistake_is_one_sentence(text, words):
    with pytest.raises(UserError) as error:
        target.parse(text)
    assert all(word in str(error.value) for word in words), error.value


def test_a_flag_is_named():
    with pytest.raises(UserError, match="--topologies=v5 is not a chip"):
        target.parse("v5", "topologies")


def test_every_target_has_the_manufacturers_numbers():
    for name in target.NAMES:
        chip = target.Target(name).chip
        assert min(chip.sends, chip.memory, chip.bandwidth, chip.peaks["bfloat16"]) > 0
        assert chip.source
        host = target.one_host(name)
        assert host.chips == (8 if name in target.GPUS else 4)
        assert bool(chip.links) != bool(chip.network)  # either a torus or a switch
