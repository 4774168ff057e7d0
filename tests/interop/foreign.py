"""Random networks that stand for those of others."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from resnet_jax.networks import layout


def drawn(model, size=32, channels=3):
    """Returns random variables, statistics included, from NumPy: XLA would take longer."""
    image = jax.ShapeDtypeStruct((1, size, size, channels), jnp.float32)
    looped = dataclasses.replace(model, scan=True)  # traced faster
    shapes = jax.eval_shape(
        lambda x: layout.convert(looped.init(jax.random.key(0), x, train=False), layout.by_block),
        image,
    )
    draw = np.random.default_rng(0)

    def fill(path, leaf):
        fan_in = max(1, np.prod(leaf.shape[:-1]))
        values = draw.normal(0, fan_in**-0.5, size=leaf.shape).astype(np.float32)
        return np.abs(values) + 0.5 if path[-1].key == "var" else values

    return jax.tree.map_with_path(fill, shapes)
