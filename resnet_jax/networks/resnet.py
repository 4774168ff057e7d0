"""One module for every network: stem -> stages -> head."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from resnet_jax.allowed import Choices
from resnet_jax.errors import UserError
from resnet_jax.kernels.convolution import convolution
from resnet_jax.networks import layout, signals
from resnet_jax.networks.architectures import Architecture
from resnet_jax.networks.attributes import ALLOWED
from resnet_jax.networks.blocks import CONVOLVED, Block
from resnet_jax.networks.initializers import initializers
from resnet_jax.networks.layers import Layers
from resnet_jax.networks.nonlinearities import nonlinearity as find_nonlinearity
from resnet_jax.networks.normalization import MOMENTS_OF_GROUPS
from resnet_jax.networks.per_block import UNSCALED, NetworkDraws, PerBlock, Scales, Variation
from resnet_jax.networks.stem import stem

FEATURES = "features"  # the collection of a network's named endpoints
GIVEN = "given"  # the collection of endpoints that replace the computed ones


class ResNet(nn.Module):
    """A plain or residual network.

    Attributes:
      arch: block type, stage sizes and filters, from the depth table.
      num_classes: number of logits.
      shortcut: "none" (plain) | "A" | "B" | "C".
      shortcut_downsampling: "stride" | "mean", see blocks.shortcut.
      bottleneck_stride: "v1" (the first 1x1 strides, as in the paper) | "v1.5" (the 3x3).
      preactivation: the order of He et al. 2016 instead of 2015.
      stem: "imagenet" (7x7/2, BN, ReLU, 3x3/2 max pool) | "cifar" (3x3, BN, ReLU) | "deep" (as
        "imagenet", but 3x3/2, 3x3 and 3x3, each with BN and ReLU, instead of the 7x7/2).
      width: multiplies all numbers of filters.
      bottleneck_width: further factor on the filters of bottlenecks' first two convolutions.
      groups: of the bottlenecks' 3x3 convolutions, their cardinality (Xie et al. 2017, arXiv
        1611.05431).
      se_reduction: see Block; 0 for no squeeze and excitation.
      stem_filters: of the stem; 0 for as many as the first stage's 3x3 convolutions have.
      same_padding: the layers among PADDED that pad as TensorFlow's "SAME", see Layers.conv.
      zero_init_residual: each block starts as its shortcut, see Block.
      shortcut_scale, branch_scale: numbers that multiply each block's shortcut and branch.
      shortcut_scale_by, branch_scale_by: "constant" | "1/sqrt(L)" | "1/L" (times this; L is the
        network's number of blocks) | "learned" (a parameter per block that starts at the number).
      nonlinearity: one of NONLINEARITIES, see nonlinearities.py.
      tailored_eta: of the nonlinearity "tailored".
      norm: "batch" | "none" (convolutions then have biases) | "group" | "frozen", see Layers.
      norm_groups: groups of channels of the norm "group".
      weight_standardization: standardise the kernels, see layers.standardized.
      kernel_init: one of INITS, see initializers.py.
      stochastic_depth: probability that a training step drops the last block's branch. It falls
        linearly to 0 before the first block (Huang et al. 2016, arXiv 1603.09382). In evaluation
        branches are multiplied by their probability to be kept.
      dropout, gate, gate_bias: see Block.
      dtype: of activations; parameters, statistics and logits are float32.
      precision: of float32 products in convolutions and the classifier, one of
        architectures.PRECISIONS.
      bn_group, bn_momentum, bn_epsilon: see BatchNorm.
      frozen: parts, see layout.parts, whose norms keep their moving averages, also in training.
      scan: run a stage's blocks after the first in a loop, compiled once whatever the depth; their
        variables are stacked, see layout.py.
      space_to_depth: compute the stem's convolution of stride 2 by space_to_depth.convolution.
      remat: stages (from 1) whose blocks keep only their inputs and are recomputed in the backward
        pass.
      convolution: see Layers.convolve.
      product: the classifier's; jax.lax.dot_general or an equivalent.
    """

    arch: Architecture
    num_classes: int
    shortcut: str = "A"
    shortcut_downsampling: str = "stride"
    bottleneck_stride: str = "v1"
    preactivation: bool = False
    stem: str = "cifar"
    width: float = 1.0
    bottleneck_width: float = 1.0
    groups: int = 1
    se_reduction: int = 0
    stem_filters: int = 0
    same_padding: tuple[str, ...] = ()
    zero_init_residual: bool = False
    shortcut_scale: float = 1.0
    shortcut_scale_by: str = "constant"
    branch_scale: float = 1.0
    branch_scale_by: str = "constant"
    nonlinearity: str = "relu"
    tailored_eta: float = 0.9
    norm: str = "batch"
    norm_groups: int = 8
    weight_standardization: bool = False
    kernel_init: str = "he"
    stochastic_depth: float = 0.0
    dropout: float = 0.0
    gate: str = "none"
    gate_bias: float = 0.0
    dtype: DTypeLike = jnp.float32
    precision: str = "highest"
    bn_group: int = 0
    bn_momentum: float = 0.9
    bn_epsilon: float = 1e-5
    frozen: tuple[str, ...] = ()
    scan: bool = False
    space_to_depth: bool = False
    remat: tuple[int, ...] = ()
    convolution: Callable[..., jax.Array] = convolution
    product: Callable[..., jax.Array] = jax.lax.dot_general

    def __post_init__(self) -> None:
        """Raises UserError if an attribute is invalid."""
        if not isinstance(self.arch, Architecture):
            raise UserError(
                f"arch={self.arch!r} is not an Architecture; look one up by its depth, as in "
                'ResNet(architecture("imagenet", 50), num_classes=1000).'
            )
        for name, allowed in ALLOWED.items():
            allowed.check(name, getattr(self, name))
        Choices(layout.parts(len(self.arch.stage_sizes)), or_none=True).check("frozen", self.frozen)
        self.arch.inner_filters(self.width, self.bottleneck_width, self.groups)
        super().__post_init__()

    @property
    def is_random(self) -> bool:
        """Whether training draws random numbers."""
        return self.stochastic_depth > 0 or self.dropout > 0

    @property
    def parts(self) -> tuple[str, ...]:
        """The names of its parts, see layout.parts."""
        return layout.parts(len(self.arch.stage_sizes))

    @property
    def has_trained_norms(self) -> bool:
        """Whether any part but the classifier is trained."""
        return not set(self.parts[:-1]) <= set(self.frozen)

    def is_frozen(self, module: str) -> bool:
        """Whether a top-level module is in a frozen part."""
        return layout.part_of(module, len(self.arch.stage_sizes)) in self.frozen

    @nn.compact
    def __call__(
        self,
        images_BHWC: jax.Array,
        *,
        train: bool,
        scales: Scales = UNSCALED,
        draws: NetworkDraws | None = None,
    ) -> jax.Array:
        """Maps float images (B, H, W, C), already normalised, to float32 logits (B, num_classes).

        Args:
          images_BHWC: the images.
          train: whether BatchNorm uses its group's statistics; `batch_stats` must be mutable for
            the moving averages to be updated.
          scales: replace shortcut_scale and branch_scale, so that one program serves all numbers
            but 1.
          draws: the source of stochastic depth and dropout; None for the network of an evaluation.
        """
        make = self._layers(train)
        fixed = dataclasses.replace(make, train=False)

        def layers(part: str) -> Layers:
            return fixed if part in self.frozen else make

        x = stem(
            images_BHWC.astype(self.dtype),
            self.stem,
            self.stem_filters or self._filters(1),
            layers("stem"),
            preactivation=self.preactivation,
            same_padding=self.same_padding,
            in_blocks=self.space_to_depth,
        )
        x = self._endpoint("stem", x)
        per_block = self._variation().of_blocks(scales, draws)
        for stage in range(1, len(self.arch.stage_sizes) + 1):
            name = f"stage{stage}"
            x = self._endpoint(name, self._stage(x, stage, layers(name), per_block))
        if self.preactivation:
            x = layers(self.parts[-2]).norm(name="head_norm", activate=True)(x)
        pooled_BC = self._endpoint("pooled", jnp.mean(x.astype(jnp.float32), axis=(1, 2)))
        # float32, so that bfloat16's 8 bits never reach the loss.
        classifier = nn.Dense(
            self.num_classes,
            kernel_init=make.init.classifier,
            precision=self.precision,
            dot_general=self.product,
            name="logits",
        )
        return classifier(pooled_BC)

    def _layers(self, train: bool) -> Layers:
        nonlinearity = find_nonlinearity(self.nonlinearity, self.arch, self.tailored_eta)
        return Layers(
            nonlinearity=nonlinearity,
            init=initializers(self.kernel_init, self.arch, nonlinearity),
            convolve=self.convolution,
            standardize=self.weight_standardization,
            norm_kind=self.norm,
            norm_groups=self.norm_groups,
            epsilon=self.bn_epsilon,
            observes=signals.observed(self),
            train=train,
            bn_group=self.bn_group,
            bn_momentum=self.bn_momentum,
            dtype=self.dtype,
            precision=self.precision,
        )

    def _variation(self) -> Variation:
        return Variation(
            blocks=self.arch.blocks,
            numbers=(self.shortcut_scale, self.branch_scale),
            factors=(self.shortcut_scale_by, self.branch_scale_by),
            stochastic_depth=self.stochastic_depth,
            dropout=self.dropout,
        )

    def _filters(self, stage: int) -> int:
        return self.arch.widened(self.width)[stage - 1]

    def _stage(self, x: jax.Array, stage: int, make: Layers, per_block: PerBlock) -> jax.Array:
        inner_filters = self.arch.inner_filters(self.width, self.bottleneck_width, self.groups)
        block = functools.partial(
            self._block,
            stage=stage,
            kind=self.arch.block,
            filters=self._filters(stage),
            inner_filters=inner_filters[stage - 1],
            groups=self.groups,
            shortcut_kind=self.shortcut,
            shortcut_downsampling=self.shortcut_downsampling,
            bottleneck_stride=self.bottleneck_stride,
            preactivation=self.preactivation,
            conv=functools.partial(
                make.conv,
                kernel_init=make.init.branch,
                same_padding="blocks" in self.same_padding,
            ),
            project=functools.partial(make.conv, kernel_init=make.init.shortcut),
            connect=make.connection,
            norm=make.norm,
            nonlinearity=make.nonlinearity.apply,
            zero_init_residual=self.zero_init_residual or self.kernel_init == "fixup",
            is_normalized=self.norm != "none",
            learned=self._variation().learned,
            dropout=self.dropout,
            gate=self.gate,
            gate_bias=self.gate_bias,
            se_reduction=self.se_reduction,
        )
        first = sum(self.arch.stage_sizes[: stage - 1])
        blocks = self.arch.stage_sizes[stage - 1]
        per_block = jax.tree.map(lambda a: a[first : first + blocks], per_block)

        def of_block(number: int) -> PerBlock:
            return jax.tree.map(lambda a: a[number - 1], per_block)

        x = block(stride=2 if stage > 1 else 1, name=layout.block(stage, 1))(x, *of_block(1))
        if self.scan and blocks > 1:
            rest = block(stride=1, name=layout.rest(stage), looped=True)
            x, _ = _loop(blocks - 1)(rest, x, jax.tree.map(lambda a: a[1:], per_block))
            return x
        for number in range(2, blocks + 1):
            x = block(stride=1, name=layout.block(stage, number))(x, *of_block(number))
        return x

    def _endpoint(self, name: str, x: jax.Array) -> jax.Array:
        """Returns an endpoint, or its replacement in GIVEN; stores it if FEATURES is mutable."""
        if self.has_variable(GIVEN, name):
            x = self.get_variable(GIVEN, name)
        if not self.is_initializing():
            self.sow(FEATURES, name, x)
        return x

    def _block(self, *, stage: int, looped: bool = False, **attributes: Any) -> Block:
        if stage in self.remat:
            # Outside a loop, CSE would merge the recomputation with the forward pass.
            return nn.remat(Block, prevent_cse=not looped)(**attributes)
        if looped:
            # A loop copies what it keeps; all but these are cheaper to recompute than to copy.
            kept = jax.checkpoint_policies.save_only_these_names(CONVOLVED, MOMENTS_OF_GROUPS)
            return nn.remat(Block, prevent_cse=False, policy=kept)(**attributes)
        return Block(**attributes)


def _loop(blocks: int) -> Callable[[Block, jax.Array, PerBlock], tuple[jax.Array, None]]:
    """Returns f(block, x, per_block) -> (x, None): it applies `blocks` stacked blocks in turn."""
    return nn.scan(
        lambda block, x, per_block: (block(x, *per_block), None),
        variable_axes={True: 0},  # every collection is stacked
        split_rngs={"params": True},  # otherwise all blocks start with equal weights
        length=blocks,
        unroll=0 if blocks == 1 else 1,  # 0: no loop
    )
