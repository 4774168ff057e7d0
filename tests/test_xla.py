"""What the pinned compiler would get wrong by itself."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np

from tests import tiny


def test_products_that_are_summed_at_once_are_right():
    """See resnet_jax/__init__.py: it would give the last rows other values."""

    def squared_norms(rows):
        return jax.vmap(lambda row: jnp.sum((jnp.eye(3) @ row) ** 2))(rows)

    first = np.arange(32_769.0)
    rows = jnp.stack([first, jnp.zeros_like(first), jnp.zeros_like(first)], axis=1)
    np.testing.assert_allclose(jax.jit(squared_norms)(rows), first**2, rtol=1e-6)


def test_flags_of_the_user_stay():
    def flags(given):
        code = "import os, resnet_jax; print(os.environ['XLA_FLAGS'])"
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=tiny.ROOT, env=os.environ | {"XLA_FLAGS": given},
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        return done.stdout.split()

    ours, theirs = "--xla_cpu_experimental_ynn_fusion_type=", "--xla_cpu_enable_fast_math=false"
    assert flags("") == [ours]
    assert flags(theirs) == [theirs, ours]
    assert flags(f"{ours}dot") == [f"{ours}dot"]
    assert flags(ours) == [ours]
