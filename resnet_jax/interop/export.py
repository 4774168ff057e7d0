"""Variables of our network under the names and in the layouts of torchvision."""

from typing import Any

import jax
import numpy as np

from resnet_jax.errors import UserError
from resnet_jax.networks.resnet import ResNet
from resnet_jax.state import Variables

_LEAVES = {"scale": "weight", "kernel": "weight", "mean": "running_mean", "var": "running_var"}
# Attributes of ResNet that change the function but no tensor, with torchvision's values. ONNX can
# have other conventions, but not other blocks.
CONVENTIONS = {"bottleneck_stride": "v1.5", "same_padding": (), "bn_epsilon": 1e-5}
BLOCKS = {
    "nonlinearity": "relu",
    "weight_standardization": False,
    "shortcut_scale": 1.0,
    "shortcut_scale_by": "constant",
    "branch_scale": 1.0,
    "branch_scale_by": "constant",
    "stochastic_depth": 0.0,
    "se_reduction": 0,
}


def to_torchvision(model: ResNet, variables: Variables) -> dict[str, np.ndarray]:
    """Returns a state_dict of torchvision's ResNet.

    Networks that torchvision does not have, such as those with shortcut A, keep its names:
    "layer2.0.downsample.0.weight" is the projection of the first block of stage 2, "fc.weight" the
    classifier. A deep stem, shortcuts with means and squeeze and excitation have timm's names.

    Args:
      model: the network.
      variables: {"params", "batch_stats"} of one seed, block by block.

    Returns:
      name -> float32 array; kernels as (filters, C, height, width), the classifier's as (classes,
      C); and for each norm the int64 "num_batches_tracked", 0.

    Raises:
      UserError: the network has layers for which torchvision has no name.
    """
    if model.preactivation or model.gate != "none" or model.norm == "group":
        raise UserError(
            "torchvision has no names for the layers of this network; allowed are networks with "
            "model.activation='post', model.norm other than 'group', and model.gate='none'."
        )
    tensors: dict[str, np.ndarray] = {}
    for path, array in jax.tree.leaves_with_path(variables):
        _, *modules, leaf = (key.key for key in path)
        if leaf in ("shortcut_scale", "branch_scale"):
            raise UserError(
                f"torchvision has no name for {'/'.join([*modules, leaf])}; allowed are networks "
                "without learned scales."
            )
        values = np.asarray(array)
        if leaf == "kernel":
            values = values.T if values.ndim == 2 else np.transpose(values, (3, 2, 0, 1))
        layer = _layer(modules, model.shortcut_downsampling)
        tensors[f"{layer}.{_LEAVES.get(leaf, leaf)}"] = np.ascontiguousarray(values)
        if leaf == "mean":
            tensors[f"{layer}.num_batches_tracked"] = np.zeros((), np.int64)
    return tensors


def unlike_torchvision(model: ResNet) -> dict[str, tuple[Any, Any]]:
    """Returns what torchvision's network with the same tensors computes otherwise.

    Returns:
      attribute of ResNet -> (its value, torchvision's).
    """
    acts = {
        "bottleneck_stride": model.arch.block == "bottleneck",
        "bn_epsilon": model.norm in ("batch", "frozen"),
    }
    return {
        name: (getattr(model, name), value)
        for name, value in (CONVENTIONS | BLOCKS).items()
        if acts.get(name, True) and getattr(model, name) != value
    }


def _layer(modules: list[str], downsampling: str) -> str:
    """Returns torchvision's, or timm's, name of a module."""
    *block, layer = modules
    first = 1 if downsampling == "mean" else 0  # in timm, 0 is then the average pool
    layer = {
        "stem_conv": "conv1",
        "stem_norm": "bn1",
        "stem_conv1": "conv1.0",
        "stem_norm1": "conv1.1",
        "stem_conv2": "conv1.3",
        "stem_norm2": "conv1.4",
        "stem_conv3": "conv1.6",
        "stem_norm3": "bn1",
        "logits": "fc",
        "shortcut_conv": f"downsample.{first}",
        "shortcut_norm": f"downsample.{first + 1}",
        "se_conv1": "se.fc1",
        "se_conv2": "se.fc2",
    }.get(layer, layer.replace("norm", "bn"))
    if not block:
        return layer
    stage, number = block[0].removeprefix("stage").split("_block")
    return f"layer{stage}.{int(number) - 1}.{layer}"
