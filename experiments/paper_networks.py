"""The networks of He et al. 2015 (arXiv 1512.03385) in numbers, to print beside our own."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from resnet_jax.architectures import CIFAR_STUDIED, IMAGENET

# Depths that tables of a family list: those of the paper.
STUDIED = {"imagenet": tuple(IMAGENET), "cifar": CIFAR_STUDIED}


@dataclasses.dataclass(frozen=True)
class Published:
    """One network's published size; None where nothing is published.

    Attributes:
      parameters: trainable numbers.
      mult_adds: of one image, to the two digits that the paper prints.
    """

    parameters: int | None
    mult_adds: float | None


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


def published(
    model: Mapping[str, Any], image_shape: tuple[int, ...], num_classes: int
) -> Published:
    """Returns what the paper says of this very network.

    Args:
      model: a resolved config's `model` section.
      image_shape: (H, W, C) that the network is described at.
      num_classes: logits.
    """
    family, depth, kind = model["family"], model["depth"], model["shortcut"]
    is_papers = (
        model["bottleneck_stride"] == "v1"
        and model["activation"] == "post"
        and model["width"] == 1.0
        and model["stem"] == family
        and image_shape[-1] == 3
        and num_classes == {"imagenet": 1000, "cifar": 10}[family]
    )
    if not is_papers:
        return Published(None, None)
    if family == "cifar":
        return Published(CIFAR_PARAMETERS.get(depth) if kind in ("none", "A") else None, None)
    # Table 1's 18 and 34 layers stand for plain and residual nets alike, deeper ones for B.
    has_mult_adds = kind in (("none", "A", "B") if depth <= 34 else ("B",))
    return Published(
        IMAGENET_PARAMETERS.get(depth) if kind == "B" else None,
        IMAGENET_MULT_ADDS.get(depth) if has_mult_adds and image_shape[0] == 224 else None,
    )
