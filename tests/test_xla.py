"""The workarounds for XLA are still needed, and work."""

import itertools
import os
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from resnet_jax.kernels import rectifier
from resnet_jax.networks import normalization
from resnet_jax.networks.architectures import Architecture
from resnet_jax.networks.resnet import ResNet
from resnet_jax.runs import flags
from tests import tiny


def test_sums_of_products_are_right():
    """Without the flag in resnet_jax/runs/flags.py the last rows are wrong."""

    def squared_norms(rows):
        return jax.vmap(lambda row: jnp.sum((jnp.eye(3) @ row) ** 2))(rows)

    first = np.arange(32_769.0)
    rows = jnp.stack([first, jnp.zeros_like(first), jnp.zeros_like(first)], axis=1)
    np.testing.assert_allclose(jax.jit(squared_norms)(rows), first**2, rtol=1e-6)


def test_the_users_flags_are_kept():
    def flags_of(given):
        code = "import os, resnet_jax; print(os.environ['XLA_FLAGS'])"
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=tiny.ROOT, env=os.environ | {"XLA_FLAGS": given},
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        return done.stdout.split()

    ours, theirs = "--xla_cpu_experimental_ynn_fusion_type=", "--xla_cpu_enable_fast_math=false"
    assert flags_of("") == [ours]
    assert flags_of(theirs) == [theirs, ours]
    assert flags_of(f"{ours}dot") == [f"{ours}dot"]
    assert flags_of(ours) == [ours]


@pytest.mark.parametrize(
    ("version", "is_off"),
    [("0.9.2", False), ("0.10.1", False), ("0.10.2", True), ("0.11.0", True), ("0.12.0.1", True),
     ("1.0", True)],
)  # fmt: skip
def test_ynn_is_switched_off_in_every_version_that_has_it(version, is_off):
    off = "--xla_cpu_experimental_ynn_fusion_type="
    assert flags.without_ynn("", version) == (off if is_off else "")


def test_a_flag_that_a_newer_compiler_lacks_is_not_set(monkeypatch):
    """XLA aborts on unknown flags."""
    assert not flags.is_known_to_xla("xla_cpu_no_such_flag")
    monkeypatch.setattr(flags, "_FUSIONS", "xla_cpu_no_such_flag")
    assert flags.without_ynn("--xla_foo=1", "0.13.0") == "--xla_foo=1"


def largest_fusion(depth):
    """Returns the number of instructions in the largest fusion of a stage of `depth` blocks."""
    net = ResNet(Architecture("basic", (depth,), (4,)), num_classes=2, stem="cifar")
    images = jnp.zeros((2, 4, 4, 3))
    variables = net.init(jax.random.key(0), images, train=True)

    def loss(params):
        inputs = {"params": params, "batch_stats": variables["batch_stats"]}
        return net.apply(inputs, images, train=True, mutable=["batch_stats"])[0].sum()

    text = jax.jit(jax.grad(loss)).lower(variables["params"]).compile().as_text()
    fused = re.findall(r"^%?fused_computation[^\n]*\{\n(.*?)^\}", text, re.MULTILINE | re.DOTALL)
    assert len(fused) > 10 * depth
    return max(body.count("\n") for body in fused)


def test_a_blocks_output_is_computed_once(monkeypatch):
    """See rectifier.relu(): with nn.relu each block would recompute all earlier blocks."""
    sizes = [largest_fusion(depth) for depth in (2, 4, 6)]
    assert sizes[1] == sizes[2]
    for module in (normalization, rectifier):
        monkeypatch.setattr(module, "relu", nn.relu)
    # If this fails, the compiler has improved and nn.relu will do.
    assert all(many > few + 20 for few, many in itertools.pairwise(map(largest_fusion, (2, 4, 6))))
