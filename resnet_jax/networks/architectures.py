"""The depth table: He et al. 2015, Table 1 (ImageNet) and section 4.2 (CIFAR, depth = 6n + 2).

Bottlenecks on CIFAR (depth = 9n + 2) are those of He et al. 2016 (arXiv 1603.05027), section 4. No
other module knows block types or stage sizes.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping

from resnet_jax.allowed import Range, check_choice
from resnet_jax.errors import UserError

SHORTCUTS = ("none", "A", "B", "C")  # section 3.3; "none" is the plain net
# How a scale of a block's shortcut or branch follows from its number, see blocks.Scale.
SCALED_BY = ("constant", "1/sqrt(L)", "1/L", "learned")
BOTTLENECK_STRIDES = ("v1", "v1.5")  # on the first 1x1 (the paper) | on the 3x3
NONLINEARITIES = ("relu", "leaky_relu", "crelu", "tailored", "gelu", "linear")
NORMS = ("batch", "none", "group", "frozen")
INITS = ("he", "orthogonal", "delta_orthogonal", "looks_linear", "dirac", "fixup")
STEMS = {"cifar": 1, "imagenet": 4, "deep": 4}  # name -> stride of all its layers together
# How a shortcut halves height and width: every second position | means of 2x2 positions.
DOWNSAMPLINGS = ("stride", "mean")
# JAX's names. Only "highest" is float32 on every device; the others depend on the device.
PRECISIONS = ("highest", "high", "default")
PADDED = ("stem", "pool", "blocks")  # layers of stride 2 whose padding can differ
GATES = ("none", "exclusive", "shortcut_only")
CONVOLUTIONS = {"basic": 2, "bottleneck": 3}  # of a block, without its shortcut
EXPANSION = {"basic": 1, "bottleneck": 4}  # a block's output channels / its stage's filters


@dataclasses.dataclass(frozen=True)
class Architecture:
    """Block type and stage sizes of one depth.

    Attributes:
      block: "basic" (two 3x3) or "bottleneck" (1x1, 3x3, 1x1 to four times the filters).
      stage_sizes: blocks per stage.
      filters: of the 3x3 convolutions, per stage, unless inner_filters() changes them. Each stage
        after the first halves the feature maps' height and width.
    """

    block: str
    stage_sizes: tuple[int, ...]
    filters: tuple[int, ...]

    @property
    def blocks(self) -> int:
        """Residual blocks in all stages."""
        return sum(self.stage_sizes)

    @property
    def nonlinear_layers(self) -> int:
        """Nonlinearities on the longest path."""
        return self.blocks * CONVOLUTIONS[self.block] + 1

    def widened(self, width: float) -> tuple[int, ...]:
        """Returns the filters of each stage, times `width`."""
        return tuple(max(1, round(filters * width)) for filters in self.filters)

    def inner_filters(self, width: float, bottleneck_width: float, groups: int) -> tuple[int, ...]:
        """Returns the filters of each stage's convolutions before the last of a block.

        Args:
          width: factor on all filters.
          bottleneck_width: further factor on these.
          groups: of a bottleneck's 3x3 convolution.

        Raises:
          UserError: basic blocks have no such factor and no groups, or the groups do not divide the
            filters.
        """
        widened = self.widened(width)
        given = {"bottleneck_width": bottleneck_width, "groups": groups}
        for name, value in given.items():
            if self.block != "bottleneck" and value != 1:
                raise UserError(
                    f"model.{name}={value} needs bottleneck blocks, but this network has "
                    f"{self.block} ones; allowed is 1, or a depth with bottlenecks."
                )
        inner = tuple(max(1, round(filters * bottleneck_width)) for filters in widened)
        if any(filters % groups for filters in inner):
            raise UserError(
                f"model.groups={groups} does not divide the filters of all 3x3 convolutions, "
                f"{', '.join(map(str, inner))}; allowed are their common divisors."
            )
        return inner

    def __post_init__(self) -> None:
        """Raises UserError if the block is unknown or the lengths differ."""
        check_choice("block", self.block, EXPANSION)
        if len(self.stage_sizes) != len(self.filters):
            raise UserError(
                f"stage_sizes={self.stage_sizes} and filters={self.filters} differ in length; "
                "each needs one number per stage."
            )
        for number in (*self.stage_sizes, *self.filters):
            Range(1, whole=True).check("stage_sizes or filters", number)


def stem_convolutions(stem: str, filters: int) -> tuple[tuple[int, int, int], ...]:
    """Returns (filters, kernel size, stride) of each convolution of a stem that ends in `filters`.

    The two others of "deep" have half as many (He et al. 2019, arXiv 1812.01187, Fig. 2b).
    """
    half = max(1, filters // 2)
    return {
        "cifar": ((filters, 3, 1),),
        "imagenet": ((filters, 7, 2),),
        "deep": ((half, 3, 2), (half, 3, 1), (filters, 3, 1)),
    }[stem]


_IMAGENET_FILTERS = (64, 128, 256, 512)
IMAGENET: Mapping[int, Architecture] = {
    18: Architecture("basic", (2, 2, 2, 2), _IMAGENET_FILTERS),
    34: Architecture("basic", (3, 4, 6, 3), _IMAGENET_FILTERS),
    50: Architecture("bottleneck", (3, 4, 6, 3), _IMAGENET_FILTERS),
    101: Architecture("bottleneck", (3, 4, 23, 3), _IMAGENET_FILTERS),
    152: Architecture("bottleneck", (3, 8, 36, 3), _IMAGENET_FILTERS),
}
# The depths that the paper trains on CIFAR-10; any other 6n + 2 can be built too.
CIFAR_STUDIED = (20, 32, 44, 56, 110, 1202)


def _imagenet(depth: int) -> Architecture:
    if depth not in IMAGENET:
        below = [d for d in IMAGENET if d < depth][-1:]
        above = [d for d in IMAGENET if d > depth][:1]
        raise UserError(_unknown_depth("imagenet", depth, "18, 34, 50, 101 and 152", below + above))
    return IMAGENET[depth]


def _cifar(family: str, block: str, depth: int) -> Architecture:
    layers = 3 * CONVOLUTIONS[block]  # of one block in each stage
    n, rest = divmod(depth - 2, layers)
    if rest or n < 1:
        below = [layers * n + 2] if n >= 1 else []
        above = [layers * (n + 1) + 2] if n >= 0 else [layers + 2]
        raise UserError(_unknown_depth(family, depth, f"{layers}n + 2 for n >= 1", below + above))
    return Architecture(block, (n, n, n), (16, 32, 64))


def _unknown_depth(family: str, depth: int, allowed: str, neighbours: list[int]) -> str:
    return (
        f"model.depth={depth} is not in the {family} family, whose depths are {allowed} "
        f"(nearest: {' and '.join(map(str, neighbours))})."
    )


FAMILIES: Mapping[str, Callable[[int], Architecture]] = {
    "imagenet": _imagenet,
    "cifar": functools.partial(_cifar, "cifar", "basic"),
    "cifar_bottleneck": functools.partial(_cifar, "cifar_bottleneck", "bottleneck"),
}


def architecture(family: str, depth: int) -> Architecture:
    """Looks up a depth.

    Args:
      family: one of FAMILIES. Some depths are in several, with different blocks.
      depth: weighted layers on the longest path, without projections.

    Raises:
      UserError: the family does not have this depth; the message names the nearest ones.
    """
    check_choice("model.family", family, FAMILIES)
    if isinstance(depth, bool) or not isinstance(depth, int):
        raise UserError(f"model.depth={depth!r} is not a whole number.")
    return FAMILIES[family](depth)
