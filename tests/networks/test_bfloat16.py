"""Dtypes of the operations of a bfloat16 training step, read from the lowered program."""

import re

import jax
import pytest

from benchmarks.peers import ours
from experiments.study.calibrate import on_noise
from resnet_jax.data import sets
from resnet_jax.execution import decide
from resnet_jax.networks import builders, summary

NETWORKS = [
    ("cifar", 20, "A"),
    ("cifar", 20, "B"),
    ("imagenet", 18, "B"),
    pytest.param("imagenet", 50, "B", marks=pytest.mark.slow),
]


def operations(family, depth, dtype, shortcut):
    """Returns (config, (name, types) of each operation of its training step, program text)."""
    config = ours.config(
        family, depth, dtype=dtype, shortcut=shortcut, batch_size=2, bn_group=0,
        image_size=None if family == "cifar" else 64,
    )  # fmt: skip
    programs, arguments = on_noise(config, decide(config, jax.devices()[:1]))
    text = programs.train_steps.lower(programs.state, *arguments).as_text()
    typed_operations = []
    for line in text.splitlines():
        if match := re.search(r'"?stablehlo\.(\w+)"?.* : \((.*)\) -> (.*)', line):
            typed_operations.append(
                (match[1], set(re.findall(r"(bf16|f32)>", match[2] + match[3])))
            )
    return config, typed_operations, text


def convolutions(config):
    """Counts a step's convolutions: per layer the forward pass and two gradients.

    The first layer has one gradient: the images need none.
    """
    network = summary.summarize(builders.from_config(config.model), sets.image_shape(config.data))
    return 3 * (config.model.depth - 1 + network.projections) - 1


@pytest.mark.parametrize(("family", "depth", "shortcut"), NETWORKS)
def test_convolutions_are_in_bfloat16_and_sums_in_float32(family, depth, shortcut):
    config, typed_operations, text = operations(family, depth, "bfloat16", shortcut)
    types_by_name = {}
    for name, types in typed_operations:
        types_by_name.setdefault(name, []).append(types)
    assert types_by_name["convolution"] == [{"bf16"}] * convolutions(config)
    # The sums for BatchNorm's statistics and for the gradients of scale and bias.
    assert "stablehlo.reduce(" in text
    reduced = re.findall(r"stablehlo\.reduce\(.*?: \((.*?)\) ->", text)
    assert len(reduced) > 4 * (depth - 1)
    assert not any("bf16" in types for types in reduced)
    # The classifier, its gradients and the loss.
    assert types_by_name["dot_general"] == [{"f32"}] * 3
    losses = re.findall(r"stablehlo\.(?:exponential|log) .* : tensor<.*?(bf16|f32)>", text)
    assert set(losses) == {"f32"}
    # The training state, which is the program's argument.
    state = re.search(r"func\.func public @main\((.*?)\) -> \(", text, re.DOTALL)
    assert state
    assert "bf16" not in state[1]


def test_float32_has_nothing_in_bfloat16():
    config, typed_operations, text = operations("cifar", 20, "float32", "A")
    assert [types for name, types in typed_operations if name == "convolution"] == [
        {"f32"}
    ] * convolutions(config)
    assert "bf16" not in text
