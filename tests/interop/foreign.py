"""Random networks that stand for those of others."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from resnet_jax.interop import export, run_folder, weights
from resnet_jax.networks import layout
from resnet_jax.networks.builders import resnet
from resnet_jax.resolve import resolve
from tests import tiny


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


def write_run(folder, **fields):
    """Writes a run of a random network for digits, with a mean per pixel; `fields` of ResNet."""
    model = resnet("cifar", 8, width=0.25, **fields)
    tensors = export.to_torchvision(model, drawn(model, channels=1))
    same_padding = fields.get("same_padding", ())
    network = weights.convert(tensors, "no file", same_padding=same_padding)
    config = tiny.config(**{f"model__{name}": value for name, value in fields.items()})
    run_folder.write(network, resolve(config), folder, __file__)
    return folder
