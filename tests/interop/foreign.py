"""Random networks that stand for those of others."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from configs import digits
from resnet_jax.interop import export, run_folder, weights
from resnet_jax.networks import layout, resnet
from resnet_jax.resolve import resolve


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


def converted(folder):
    """Writes a run folder of a random network of 8 layers for digits; returns its path."""
    model = resnet.resnet("cifar", 8, width=0.25)
    np.savez(folder / "net.npz", **export.to_torchvision(model, drawn(model, channels=1)))
    c = digits.get_config()
    c.model.depth, c.model.width, c.data.validation, c.schedule.name = 8, 0.25, 0, "constant"
    found = weights.load(folder / "net.npz")
    run_folder.write(found, resolve(c), folder / "run", folder / "net.npz")
    return folder / "run"
