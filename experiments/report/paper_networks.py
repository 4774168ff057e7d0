"""The networks and recipes of He et al. 2015 (arXiv 1512.03385), to print beside our own.

What is the paper's network, and what its recipe, is decided here, once: by the presets in
configs/cifar10.py and configs/imagenet.py.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

from configs import cifar10, imagenet
from resnet_jax.networks.architectures import CIFAR_STUDIED, IMAGENET, architecture
from resnet_jax.runs import reader

# Depths that tables of a family list: those of the paper.
STUDIED = {"imagenet": tuple(IMAGENET), "cifar": CIFAR_STUDIED}

PRESETS = {"imagenet": imagenet.get_config, "cifar": cifar10.get_config}
# The presets leave these to the data set.
SETTLED = {
    "imagenet": {"model.num_classes": 1000, "data.image_size": 224, "data.flip": "on"},
    "cifar": {"model.num_classes": 10, "data.image_size": 32, "data.flip": "on"},
}
# These make a network another one than the paper's of the same depth and shortcut.
NETWORK = (
    "model.activation",
    "model.bottleneck_stride",
    "model.num_classes",
    "model.stem",
    "model.width",
)
# Any value of these may be the paper's: it has several, or does not say. Its pixels are those of
# data.std=False; the presets' True is a departure that README.md lists.
FREE = ("model.depth", "model.shortcut", "seed", "replicates", "data.split_seed", "data.std")
# Section 4.2 warms ResNet-110 up and no shallower net, and trains ResNet-1202 "as described above".
WARM_UPS = {110: ("until_error",), 1202: ("until_error", "none")}
NOT_RECORDED = "not recorded"


@dataclasses.dataclass(frozen=True)
class PublishedSize:
    """One network's published size; None where nothing is published.

    Attributes:
      parameters: trainable numbers.
      mult_adds: of one image, to the two digits that the paper prints.
    """

    parameters: int | None
    mult_adds: float | None


@functools.cache
def recipe(family: str) -> Mapping[str, Any]:
    """Returns the paper's recipe, as a resolved config has it: flat, without `FREE` settings."""
    settings = reader.deciding(PRESETS[family]().to_dict()) | SETTLED[family]
    return {key: value for key, value in settings.items() if key not in FREE}


def departures(config: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Returns in what a run is not the paper's of its family: setting -> (the run's, the paper's).

    Args:
      config: a resolved config. A setting that it lacks counts as a departure: an older version
        of the program may have done something else.
    """
    ours, model = reader.flatten(config), config["model"]
    family, depth = model["family"], model["depth"]
    found = {
        key: (ours.get(key, NOT_RECORDED), value)
        for key, value in recipe(family).items()
        if ours.get(key, NOT_RECORDED) != value
    }
    harmless = ["eval.views", "eval.scales"]  # what the paper's number was measured on is a remark
    if architecture(family, depth).block == "basic":
        harmless.append("model.bottleneck_stride")
    if family == "cifar":
        harmless += ["eval.every", "eval.short_side"]  # they decide nothing
        warm_ups = WARM_UPS.get(depth, ("none",)) if model["shortcut"] != "none" else ("none",)
        found.pop("schedule.warmup", None)
        if (warm_up := ours.get("schedule.warmup", NOT_RECORDED)) not in warm_ups:
            found["schedule.warmup"] = (warm_up, warm_ups[0])
    # Fewer held out is nearer to the paper: it trains on all of ImageNet, and may have in Table 6.
    held_out = found.get("data.validation")
    if held_out and held_out[0] != NOT_RECORDED and held_out[0] <= held_out[1]:
        harmless.append("data.validation")
    return {key: values for key, values in found.items() if key not in harmless}


# Mult-adds: Table 1, which calls them FLOPs. Parameters: of the authors' released models, option B.
IMAGENET_PARAMETERS = {
    18: 11_689_512,
    34: 21_797_672,
    50: 25_557_032,
    101: 44_549_160,
    152: 60_192_808,
}
IMAGENET_MULT_ADDS = {18: 1.8e9, 34: 3.6e9, 50: 3.8e9, 101: 7.6e9, 152: 11.3e9}
# Section 4.2 and Table 6 (0.27M to 19.4M, here in full); plain nets have as many, by option A.
CIFAR_PARAMETERS = {
    20: 269_722,
    32: 464_154,
    44: 658_586,
    56: 853_018,
    110: 1_727_962,
    1202: 19_421_274,
}


def published_size(config: Mapping[str, Any], image_shape: tuple[int, ...]) -> PublishedSize:
    """Returns what the paper says of a resolved config's very network.

    Args:
      config: resolved.
      image_shape: (H, W, C) that the network is described at.
    """
    model = config["model"]
    family, depth, kind = model["family"], model["depth"], model["shortcut"]
    if image_shape[-1] != 3 or departures(config).keys() & set(NETWORK):
        return PublishedSize(None, None)
    if family == "cifar":
        return PublishedSize(CIFAR_PARAMETERS.get(depth) if kind in ("none", "A") else None, None)
    # Table 1's 18 and 34 layers stand for plain and residual nets alike, deeper ones for B.
    has_mult_adds = kind in (("none", "A", "B") if depth <= 34 else ("B",))
    return PublishedSize(
        IMAGENET_PARAMETERS.get(depth) if kind == "B" else None,
        IMAGENET_MULT_ADDS.get(depth) if has_mult_adds and image_shape[0] == 224 else None,
    )
