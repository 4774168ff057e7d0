"""Builds a network of a config, or by its family and depth."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from ml_collections import ConfigDict

from resnet_jax.errors import UserError, nearest
from resnet_jax.networks import refusals
from resnet_jax.networks.architectures import architecture
from resnet_jax.networks.resnet import ResNet

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
# Attributes that are settings of the same name.
_SHARED = tuple(
    field.name
    for field in dataclasses.fields(ResNet)
    if field.name not in ("arch", "preactivation", "kernel_init", "dtype", "scan", "remat")
    and field.name not in ("frozen", "convolution", "product", "parent", "name")
)


def from_config(model: Mapping[str, Any], scan: bool = True) -> ResNet:
    """Builds the network of a resolved config's `model` section.

    Args:
      model: the section, with num_classes set by resolve().
      scan: see ResNet; execution.py decides it for a run.

    Raises:
      UserError: the family does not have this depth.
    """
    return ResNet(
        **{name: model[name] for name in _SHARED} | {"same_padding": tuple(model["same_padding"])},
        arch=architecture(model["family"], model["depth"]),
        preactivation=model["activation"] == "pre",
        kernel_init=model["init"],
        dtype=DTYPES[model["dtype"]],
        scan=scan,
        remat=tuple(model["remat"]),
    )


def resnet(
    family: str,
    depth: int,
    *,
    shortcut: str | None = None,
    num_classes: int | None = None,
    **fields: Any,
) -> ResNet:
    """Builds the paper's network of a depth.

    Args:
      family: "imagenet" (depths 18, 34, 50, 101, 152), "cifar" (depths 6n + 2) or
        "cifar_bottleneck" (depths 9n + 2).
      depth: weighted layers.
      shortcut: "none" (the plain network), "A", "B" or "C"; None for "B" with bottleneck blocks and
        "A" with basic ones.
      num_classes: None for 1000 (imagenet) or 10.
      **fields: other attributes of ResNet.

    Raises:
      UserError: the family does not have this depth, a name or value is invalid, or two contradict
        each other. The sentence has the names of the settings, such as model.init for kernel_init.
    """
    arch = architecture(family, depth)
    known = [f.name for f in dataclasses.fields(ResNet) if f.name != "arch"]
    for name in fields:
        if name not in known:
            raise UserError(f"{name} is not an attribute of ResNet{nearest(name, known)}.")
    model = ResNet(
        arch=arch,
        num_classes=(1000 if family == "imagenet" else 10) if num_classes is None else num_classes,
        shortcut=("B" if arch.block == "bottleneck" else "A") if shortcut is None else shortcut,
        **{"stem": "imagenet" if family == "imagenet" else "cifar"} | fields,
    )
    settings = {name: getattr(model, name) for name in _SHARED}
    settings |= {"family": family, "depth": depth, "init": model.kernel_init, "remat": model.remat}
    settings["activation"] = "pre" if model.preactivation else "post"
    refusals.check_model(ConfigDict(settings))
    return model
