"""One module for every network: stem -> stages -> head."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import ArrayLike, DTypeLike

from resnet_jax.allowed import Range, check_choice
from resnet_jax.errors import UserError, nearest
from resnet_jax.kernels import space_to_depth
from resnet_jax.kernels.pooling import max_pool
from resnet_jax.networks import layout
from resnet_jax.networks.architectures import (
    BOTTLENECK_STRIDES,
    SCALED_BY,
    SHORTCUTS,
    Architecture,
    architecture,
)
from resnet_jax.networks.blocks import CONVOLVED, UNSCALED, Block, MakeLayer, Scales
from resnet_jax.networks.normalization import MOMENTS_OF_GROUPS, BatchNorm

# He et al. 2015b (arXiv 1502.01852), as the paper cites: normal with variance 2 / fan-in.
# The default of variance_scaling is a truncated normal.
HE_NORMAL = nn.initializers.variance_scaling(2.0, "fan_in", "normal")

FEATURES = "features"  # the collection of a network's named endpoints
STEMS = ("cifar", "imagenet")
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
# JAX's names. Only "highest" is float32 on every device; the others depend on the device.
PRECISIONS = ("highest", "high", "default")


class ResNet(nn.Module):
    """A plain or residual network.

    Attributes:
      arch: block type, stage sizes and filters, from the depth table.
      num_classes: number of logits.
      shortcut: "none" (plain) | "A" | "B" | "C".
      bottleneck_stride: "v1" (the first 1x1 strides, as in the paper) | "v1.5" (the 3x3).
      preactivation: the order of He et al. 2016 instead of 2015.
      stem: "imagenet" (7x7/2, BN, ReLU, 3x3/2 max pool) | "cifar" (3x3, BN, ReLU).
      width: multiplies all numbers of filters.
      zero_init_residual: each block starts as its shortcut, see Block.
      shortcut_scale, branch_scale: numbers that multiply each block's shortcut and branch.
      shortcut_scale_by, branch_scale_by: "constant" | "1/sqrt(L)" | "1/L" (times this; L is the
        network's number of blocks) | "learned" (a parameter per block that starts at the number).
      dtype: of activations; parameters, statistics and logits are float32.
      precision: of float32 products in convolutions and the classifier, one of PRECISIONS.
      bn_group, bn_momentum, bn_epsilon: see BatchNorm.
      scan: run a stage's blocks after the first in a loop, compiled once whatever the depth; their
        variables are stacked, see layout.py.
      space_to_depth: compute the imagenet stem's convolution by space_to_depth.convolution.
      remat: stages (from 1) whose blocks keep only their inputs and are recomputed in the backward
        pass.
      convolution: jax.lax.conv_general_dilated or an equivalent, see convolution.py.
      product: the classifier's; jax.lax.dot_general or an equivalent.
    """

    arch: Architecture
    num_classes: int
    shortcut: str = "A"
    bottleneck_stride: str = "v1"
    preactivation: bool = False
    stem: str = "cifar"
    width: float = 1.0
    zero_init_residual: bool = False
    shortcut_scale: float = 1.0
    shortcut_scale_by: str = "constant"
    branch_scale: float = 1.0
    branch_scale_by: str = "constant"
    dtype: DTypeLike = jnp.float32
    precision: str = "highest"
    bn_group: int = 0
    bn_momentum: float = 0.9
    bn_epsilon: float = 1e-5
    scan: bool = False
    space_to_depth: bool = False
    remat: tuple[int, ...] = ()
    convolution: Callable[..., jax.Array] = jax.lax.conv_general_dilated
    product: Callable[..., jax.Array] = jax.lax.dot_general

    def __post_init__(self) -> None:
        """Raises UserError if an attribute is invalid."""
        if not isinstance(self.arch, Architecture):
            raise UserError(
                f"arch={self.arch!r} is not an Architecture; look one up by its depth, as in "
                'ResNet(architecture("imagenet", 50), num_classes=1000).'
            )
        check_choice("shortcut", self.shortcut, SHORTCUTS)
        check_choice("shortcut_scale_by", self.shortcut_scale_by, SCALED_BY)
        check_choice("branch_scale_by", self.branch_scale_by, SCALED_BY)
        check_choice("bottleneck_stride", self.bottleneck_stride, BOTTLENECK_STRIDES)
        check_choice("stem", self.stem, STEMS)
        check_choice("precision", self.precision, PRECISIONS)
        Range(1, whole=True).check("num_classes", self.num_classes)
        Range(0, above=True).check("width", self.width)
        Range(0, whole=True).check("bn_group", self.bn_group)
        Range(0, 1, below=True).check("bn_momentum", self.bn_momentum)
        super().__post_init__()

    @nn.compact
    def __call__(
        self, images_BHWC: jax.Array, *, train: bool, scales: Scales = UNSCALED
    ) -> jax.Array:
        """Maps float images (B, H, W, C), already normalised, to float32 logits (B, num_classes).

        With `train`, BatchNorm uses its group's statistics and `batch_stats` must be mutable for
        the moving averages to be updated. `scales` replace shortcut_scale and branch_scale, so that
        one program serves all numbers but 1.
        """
        conv = functools.partial(
            _convolution,
            conv_general_dilated=self.convolution,
            dtype=self.dtype,
            precision=self.precision,
        )
        norm = functools.partial(
            BatchNorm,
            train=train,
            group=self.bn_group,
            momentum=self.bn_momentum,
            epsilon=self.bn_epsilon,
            dtype=self.dtype,
        )
        x = self._stem(images_BHWC.astype(self.dtype), conv, norm)
        self._keep("stem", x)
        scales_of_blocks = self._scales(scales)
        for stage in range(1, len(self.arch.stage_sizes) + 1):
            x = self._stage(x, stage, conv, norm, scales_of_blocks)
            self._keep(f"stage{stage}", x)
        if self.preactivation:
            x = norm(name="head_norm", rectify=True)(x)
        pooled_BC = jnp.mean(x.astype(jnp.float32), axis=(1, 2))
        self._keep("pooled", pooled_BC)
        # float32, so that bfloat16's 8 bits never reach the loss.
        classifier = nn.Dense(
            self.num_classes,
            kernel_init=HE_NORMAL,
            precision=self.precision,
            dot_general=self.product,
            name="logits",
        )
        return classifier(pooled_BC)

    def _filters(self, stage: int) -> int:
        return max(1, round(self.arch.filters[stage - 1] * self.width))

    def _stem(self, x_BHWC: jax.Array, conv: MakeLayer, norm: MakeLayer) -> jax.Array:
        if self.stem == "imagenet":
            if self.space_to_depth:
                conv = functools.partial(
                    conv,
                    conv_general_dilated=functools.partial(
                        space_to_depth.convolution, convolve=self.convolution
                    ),
                )
            x = conv(self._filters(1), (7, 7), (2, 2), name="stem_conv")(x_BHWC)
        else:
            x = conv(self._filters(1), (3, 3), (1, 1), name="stem_conv")(x_BHWC)
        if not self.preactivation:
            x = norm(name="stem_norm", rectify=True)(x)
        return max_pool(x) if self.stem == "imagenet" else x

    def _scales(self, given: Scales) -> Scales:
        """Returns the scales that are not learned, for each of the L blocks."""

        def one(number: ArrayLike | None, default: float, by: str) -> jax.Array | None:
            if by == "learned" or (by == "constant" and default == 1):
                return None
            factor = {"constant": 1.0, "1/sqrt(L)": blocks**-0.5, "1/L": 1 / blocks}[by]
            number = jnp.asarray(default if number is None else number, jnp.float32)
            return jnp.full((blocks,), number * factor)

        blocks = self.arch.blocks
        return Scales(
            one(given.shortcut, self.shortcut_scale, self.shortcut_scale_by),
            one(given.branch, self.branch_scale, self.branch_scale_by),
        )

    def _stage(
        self, x: jax.Array, stage: int, conv: MakeLayer, norm: MakeLayer, scales_of_blocks: Scales
    ) -> jax.Array:
        block = functools.partial(
            self._block,
            stage=stage,
            kind=self.arch.block,
            filters=self._filters(stage),
            shortcut_kind=self.shortcut,
            bottleneck_stride=self.bottleneck_stride,
            preactivation=self.preactivation,
            conv=conv,
            norm=norm,
            zero_init_residual=self.zero_init_residual,
            learned=Scales(
                self.shortcut_scale if self.shortcut_scale_by == "learned" else None,
                self.branch_scale if self.branch_scale_by == "learned" else None,
            ),
        )
        first = sum(self.arch.stage_sizes[: stage - 1])
        blocks = self.arch.stage_sizes[stage - 1]
        scales = jax.tree.map(lambda a: a[first : first + blocks], scales_of_blocks)

        def of_block(number: int) -> Scales:
            return jax.tree.map(lambda a: a[number - 1], scales)

        x = block(stride=2 if stage > 1 else 1, name=layout.block(stage, 1))(x, of_block(1))
        if self.scan and blocks > 1:
            rest = block(stride=1, name=layout.rest(stage), looped=True)
            x, _ = _loop(blocks - 1)(rest, x, jax.tree.map(lambda a: a[1:], scales))
            return x
        for number in range(2, blocks + 1):
            x = block(stride=1, name=layout.block(stage, number))(x, of_block(number))
        return x

    def _keep(self, name: str, x: jax.Array) -> None:
        """Stores an endpoint if the collection FEATURES is mutable; see features.py."""
        if not self.is_initializing():
            self.sow(FEATURES, name, x)

    def _block(self, *, stage: int, looped: bool = False, **attributes: Any) -> Block:
        if stage in self.remat:
            # Outside a loop, CSE would merge the recomputation with the forward pass.
            return nn.remat(Block, prevent_cse=not looped)(**attributes)
        if looped:
            # A loop copies what it keeps; all but these are cheaper to recompute than to copy.
            kept = jax.checkpoint_policies.save_only_these_names(CONVOLVED, MOMENTS_OF_GROUPS)
            return nn.remat(Block, prevent_cse=False, policy=kept)(**attributes)
        return Block(**attributes)


def _loop(blocks: int) -> Callable[[Block, jax.Array, Scales], tuple[jax.Array, None]]:
    """Returns f(block, x, scales) -> (x, None), which applies `blocks` stacked blocks in turn."""
    return nn.scan(
        lambda block, x, scales: (block(x, scales), None),
        variable_axes={True: 0},  # every collection is stacked
        split_rngs={"params": True},  # otherwise all blocks start with equal weights
        length=blocks,
        unroll=0 if blocks == 1 else 1,  # 0: no loop
    )


def _convolution(
    filters: int,
    kernel_size: tuple[int, int],
    strides: tuple[int, int],
    kernel_init: nn.initializers.Initializer | None = None,
    **options: Any,
) -> nn.Conv:
    # Symmetric padding, as in Caffe and PyTorch; "SAME" pads a strided 3x3 on one side only.
    padding = [(size // 2, size // 2) for size in kernel_size]
    return nn.Conv(
        filters,
        kernel_size,
        strides,
        padding=padding,
        use_bias=False,  # the BatchNorm that follows has one
        kernel_init=kernel_init or HE_NORMAL,
        **options,
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
        arch=architecture(model["family"], model["depth"]),
        num_classes=model["num_classes"],
        shortcut=model["shortcut"],
        bottleneck_stride=model["bottleneck_stride"],
        preactivation=model["activation"] == "pre",
        stem=model["stem"],
        width=model["width"],
        zero_init_residual=model["zero_init_residual"],
        shortcut_scale=model["shortcut_scale"],
        shortcut_scale_by=model["shortcut_scale_by"],
        branch_scale=model["branch_scale"],
        branch_scale_by=model["branch_scale_by"],
        dtype=DTYPES[model["dtype"]],
        precision=model["precision"],
        bn_group=model["bn_group"],
        bn_momentum=model["bn_momentum"],
        bn_epsilon=model["bn_epsilon"],
        scan=scan,
        space_to_depth=model["space_to_depth"],
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
      family: "imagenet" (depths 18, 34, 50, 101, 152) or "cifar" (depths 6n + 2).
      depth: weighted layers.
      shortcut: "none" (the plain network), "A", "B" or "C"; None for "B" with bottleneck blocks and
        "A" with basic ones.
      num_classes: None for 1000 (imagenet) or 10 (cifar).
      **fields: other attributes of ResNet.

    Raises:
      UserError: the family does not have this depth, or a name or value is invalid.
    """
    arch = architecture(family, depth)
    known = [f.name for f in dataclasses.fields(ResNet) if f.name != "arch"]
    for name in fields:
        if name not in known:
            raise UserError(f"{name} is not an attribute of ResNet{nearest(name, known)}.")
    return ResNet(
        arch=arch,
        num_classes=(1000 if family == "imagenet" else 10) if num_classes is None else num_classes,
        shortcut=("B" if arch.block == "bottleneck" else "A") if shortcut is None else shortcut,
        **{"stem": family} | fields,
    )
