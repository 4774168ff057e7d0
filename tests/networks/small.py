"""A small network and quickly drawn variables for tests."""

import functools
from typing import Any

import jax
import numpy as np

from resnet_jax.networks.architectures import Architecture
from resnet_jax.networks.resnet import ResNet

BASIC = Architecture("basic", (3, 1), (4, 8))  # L = 4
BOTTLENECK = Architecture("bottleneck", (3, 1), (4, 8))
BLOCKS = ("stage1_block1", "stage1_block2", "stage1_block3", "stage2_block1")
IMAGES = np.random.default_rng(0).normal(size=(4, 8, 8, 3)).astype(np.float32)


def network(shortcut: str = "A", arch: Architecture = BASIC, **options: Any) -> ResNet:
    """Returns a network with five classes."""
    return ResNet(arch, num_classes=5, shortcut=shortcut, **options)


@functools.cache
def variables(model: ResNet) -> Any:
    """Returns variables drawn by numpy, which takes less time than to compile Flax's draw."""
    rng = np.random.default_rng(1)
    shapes = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=True), IMAGES[:1])

    def draw(path: Any, a: Any) -> Any:
        name = path[-1].key
        if name.endswith("_scale"):
            return np.float32(rng.uniform(0.2, 0.8))
        if name in ("bias", "mean"):
            return rng.normal(0, 0.1, a.shape).astype(np.float32)
        if name in ("scale", "var"):
            return rng.uniform(0.5, 1.5, a.shape).astype(np.float32)
        return rng.normal(0, np.sqrt(2 / np.prod(a.shape[:-1])), a.shape).astype(np.float32)

    drawn = jax.tree_util.tree_map_with_path(draw, dict(shapes))
    return {"batch_stats": {}} | drawn


def parameters(model: ResNet) -> dict[str, tuple[int, ...]]:
    """Returns the shape of each parameter, by its path."""
    shapes = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=True), IMAGES[:1])
    leaves = jax.tree_util.tree_leaves_with_path(shapes["params"])
    return {"/".join(p.key for p in path): leaf.shape for path, leaf in leaves}


def kernels(collections: Any) -> dict[str, Any]:
    """Returns the kernel of each layer, by the layer's path."""
    leaves = jax.tree_util.tree_leaves_with_path(collections["params"])
    return {
        "/".join(p.key for p in path[:-1]): leaf
        for path, leaf in leaves
        if path[-1].key == "kernel"
    }
