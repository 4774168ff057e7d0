"""The residual block and its shortcut: topology only; what makes their layers is passed in."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.linen.initializers import Initializer
from jax.ad_checkpoint import checkpoint_name
from jax.typing import ArrayLike

from resnet_jax.allowed import Range, check_choice
from resnet_jax.kernels.rectifier import relu, relu_of_sum
from resnet_jax.networks import signals, squeeze
from resnet_jax.networks.architectures import (
    BOTTLENECK_STRIDES,
    DOWNSAMPLINGS,
    EXPANSION,
    GATES,
    SHORTCUTS,
)
from resnet_jax.networks.initializers import HE_NORMAL
from resnet_jax.networks.per_block import UNSCALED, Scales

CONVOLVED = "convolved"  # jax.ad_checkpoint's name for the output of a block's convolution
# Convolutions that do not count as weighted layers.
BESIDE_THE_BRANCH = ("shortcut_conv", "gate_conv", *squeeze.LAYERS)

MakeLayer = Callable[..., Callable[[jax.Array], jax.Array]]


def projects(kind: str, shape_changes: bool) -> bool:
    """Whether a shortcut of this kind is a 1x1 projection (section 3.3, options A, B, C)."""
    return kind == "C" or (kind == "B" and shape_changes)


def shortcut(
    x_BHWC: jax.Array,
    kind: str,
    channels: int,
    stride: int,
    conv: MakeLayer,
    norm: MakeLayer | None,
    downsampling: str = "stride",
) -> jax.Array | None:
    """Returns the shortcut's output, to be added to the branch; None in a plain net.

    Args:
      x_BHWC: the block's input.
      kind: one of SHORTCUTS.
      channels: channels of the block's output.
      stride: stride of the block.
      conv: makes a projection.
      norm: makes the BatchNorm after a projection; None for none (pre-activation).
      downsampling: "stride" takes every stride-th position; "mean" takes the means of 2x2
        positions, and of fewer at the end of an odd length (He et al. 2019, arXiv 1812.01187, Fig.
        2c).
    """
    check_choice("kind", kind, SHORTCUTS)
    check_choice("downsampling", downsampling, DOWNSAMPLINGS)
    if kind == "none":
        return None
    shape_changes = stride != 1 or x_BHWC.shape[-1] != channels
    if stride == 2 and downsampling == "mean":
        x_BHWC, stride = mean_pool(x_BHWC), 1
    if projects(kind, shape_changes):
        x_BHWC = conv(channels, (1, 1), (stride, stride), name="shortcut_conv")(x_BHWC)
        x_BHWC = checkpoint_name(x_BHWC, CONVOLVED)
        return norm(name="shortcut_norm")(x_BHWC) if norm else x_BHWC
    if not shape_changes:
        return x_BHWC
    # Option A: every stride-th position; the new channels, after the old ones, are zeros.
    x_BHWC = x_BHWC[:, ::stride, ::stride]
    return jnp.pad(x_BHWC, ((0, 0), (0, 0), (0, 0), (0, channels - x_BHWC.shape[-1])))


def mean_pool(x_BHWC: jax.Array) -> jax.Array:
    """Returns (B, ceil(H / 2), ceil(W / 2), C), summed in float32."""
    means = nn.avg_pool(
        x_BHWC.astype(jnp.float32), (2, 2), (2, 2), padding="SAME", count_include_pad=False
    )
    return means.astype(x_BHWC.dtype)


class Block(nn.Module):
    """One residual block, or its plain twin (`shortcut_kind` "none").

    Post-activation: conv-BN-ReLU ... conv-BN, add, ReLU (He et al. 2015, Figs. 2 and 5).
    Pre-activation: BN-ReLU-conv ..., add (He et al. 2016, Fig. 4e). A projection takes the output
    of the first BN-ReLU; an identity shortcut takes the block's input. Scales and a gate multiply
    the two terms of the sum.

    Attributes:
      kind: "basic" or "bottleneck".
      filters: filters of the 3x3 convolutions; the output has EXPANSION[kind] times as many.
      stride: of the block.
      shortcut_kind: one of SHORTCUTS.
      bottleneck_stride: "v1", on the first 1x1, or "v1.5", on the 3x3.
      preactivation: see above.
      conv: makes a convolution from (filters, kernel size, strides, name, kernel_init).
      project: the same for the 1x1 convolutions of a projection and a gate.
      norm: makes a norm from (name, activate, scale_init); `activate` adds the nonlinearity.
      nonlinearity: after the addition.
      zero_init_residual: the branch initially outputs 0, so the block starts as its shortcut (Goyal
        et al. 2017, section 5.1). Post-activation zeroes the last norm's scale. Pre-activation
        zeroes the last kernel: the ReLU after a zero scale never passes a gradient.
      is_normalized: whether norms have scales; otherwise the last kernel is zeroed.
      learned: initial values of the scales that are parameters of this block.
      dropout: probability that dropout before the branch's last convolution zeroes a number
        (Zagoruyko & Komodakis 2016, arXiv 1605.07146, section 2.4).
      gate: "none", or with g = sigmoid of a 1x1 convolution of the block's input (He et al. 2016,
        section 3.1): "exclusive", where g multiplies the branch and 1 - g the shortcut, or
        "shortcut_only", where 1 - g multiplies the shortcut.
      gate_bias: initial bias of that convolution.
      inner_filters: filters of a bottleneck's first two convolutions; None for `filters`.
      groups: of a bottleneck's 3x3 convolution.
      shortcut_downsampling: see shortcut().
      se_reduction: of squeeze and excitation at the end of the branch, see squeeze.excited(); 0 for
        none.
      connect: makes a fully connected layer from (filters, name).
    """

    kind: str
    filters: int
    stride: int
    shortcut_kind: str
    bottleneck_stride: str
    preactivation: bool
    conv: MakeLayer
    project: MakeLayer
    norm: MakeLayer
    nonlinearity: Callable[[jax.Array], jax.Array] = relu
    zero_init_residual: bool = False
    is_normalized: bool = True
    learned: Scales = UNSCALED
    dropout: float = 0.0
    gate: str = "none"
    gate_bias: float = 0.0
    inner_filters: int | None = None
    groups: int = 1
    shortcut_downsampling: str = "stride"
    se_reduction: int = 0
    connect: MakeLayer | None = None

    def __post_init__(self) -> None:
        """Raises UserError if a name is unknown or a number is out of range."""
        check_choice("kind", self.kind, EXPANSION)
        check_choice("shortcut_kind", self.shortcut_kind, SHORTCUTS)
        check_choice("bottleneck_stride", self.bottleneck_stride, BOTTLENECK_STRIDES)
        check_choice("gate", self.gate, GATES)
        Range(1, whole=True).check("filters", self.filters)
        Range(1, whole=True).check("stride", self.stride)
        Range(1, whole=True).check("groups", self.groups)
        super().__post_init__()

    def _convolutions(self) -> list[tuple[int, int, int, int]]:
        """Returns (filters, kernel size, stride, groups) of each convolution on the branch."""
        if self.kind == "basic":
            return [(self.filters, 3, self.stride, 1), (self.filters, 3, 1, 1)]
        on_1x1, on_3x3 = (self.stride, 1) if self.bottleneck_stride == "v1" else (1, self.stride)
        inner = self.inner_filters or self.filters
        return [
            (inner, 1, on_1x1, 1),
            (inner, 3, on_3x3, self.groups),
            (self.filters * EXPANSION[self.kind], 1, 1, 1),
        ]

    @nn.compact
    def __call__(
        self, x_BHWC: jax.Array, scales: Scales = UNSCALED, keys_B: jax.Array | None = None
    ) -> jax.Array:
        """Maps (B, H, W, C) to (B, H / stride, W / stride, filters * EXPANSION[kind]).

        Args:
          x_BHWC: the input.
          scales: of the shortcut and the branch, beside those that are learned.
          keys_B: one key per example for dropout; None for no dropout.
        """
        convolutions = self._convolutions()
        channels = convolutions[-1][0]
        shortcut_output = None if self.preactivation else self._shortcut(x_BHWC, channels)
        branch_scale = self._scale("branch", scales.branch, self.learned.branch)
        ends_active = shortcut_output is None and branch_scale is None and not self.se_reduction
        y = x_BHWC
        for i, (filters, size, stride, groups) in enumerate(convolutions, start=1):
            is_last = i == len(convolutions)
            options, zero_scale = self._zero_initializers(is_last)
            if groups > 1:
                options["feature_group_count"] = groups
            if self.preactivation:
                y = self.norm(name=f"norm{i}", activate=True)(y)
                if i == 1:
                    shape_changes = self.stride != 1 or x_BHWC.shape[-1] != channels
                    start = y if projects(self.shortcut_kind, shape_changes) else x_BHWC
                    shortcut_output = self._shortcut(start, channels)
            if is_last and self.dropout and keys_B is not None:
                y = _drop(y, self.dropout, keys_B)
            conv = self.conv(filters, (size, size), (stride, stride), name=f"conv{i}", **options)
            y = checkpoint_name(conv(y), CONVOLVED)
            if not self.preactivation:
                activate = not is_last or ends_active
                y = self.norm(name=f"norm{i}", activate=activate, **zero_scale)(y)
        if self.se_reduction:
            assert self.connect is not None
            y = squeeze.excited(y, self.se_reduction, self.connect, CONVOLVED)
        y = _times(y, branch_scale)
        if shortcut_output is None:
            if self.preactivation or ends_active:
                return y
            signals.record_units(self, y)
            return self.nonlinearity(y)
        shortcut_scale = self._scale("shortcut", scales.shortcut, self.learned.shortcut)
        shortcut_output = _times(shortcut_output, shortcut_scale)
        if self.gate != "none":
            y, shortcut_output = self._gated(x_BHWC, y, shortcut_output)
        signals.record_spread(self, "branch", y)
        signals.record_spread(self, "shortcut", shortcut_output)
        if self.preactivation:
            return y + shortcut_output
        signals.record_units(self, y + shortcut_output)
        if self.nonlinearity is relu:
            return relu_of_sum(y, shortcut_output)
        return self.nonlinearity(y + shortcut_output)

    def _gated(
        self, x_BHWC: jax.Array, branch: jax.Array, shortcut: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Returns branch and shortcut, multiplied by the gate."""
        conv = self.project(
            branch.shape[-1],
            (1, 1),
            (self.stride, self.stride),
            name="gate_conv",
            use_bias=True,
            bias_init=nn.initializers.constant(self.gate_bias),
            kernel_init=HE_NORMAL,
        )
        logits = checkpoint_name(conv(x_BHWC), CONVOLVED)
        if self.gate == "exclusive":
            branch = branch * nn.sigmoid(logits)
        return branch, shortcut * nn.sigmoid(-logits)

    def _scale(self, name: str, given: ArrayLike | None, start: ArrayLike | None) -> Any:
        """Returns the product of a given and a learned scale, None for 1."""
        if start is None:
            return given
        learned = self.param(f"{name}_scale", nn.initializers.constant(start), (), jnp.float32)
        return learned if given is None else given * learned

    def _zero_initializers(self, is_last: bool) -> tuple[dict[str, Any], dict[str, Initializer]]:
        """Returns the extra arguments of a layer's convolution and of its BatchNorm."""
        if not (is_last and self.zero_init_residual):
            return {}, {}
        zeros = nn.initializers.zeros_init()
        if self.preactivation or not self.is_normalized:
            return {"kernel_init": zeros}, {}
        return {}, {"scale_init": zeros}

    def _shortcut(self, x_BHWC: jax.Array, channels: int) -> jax.Array | None:
        # He et al. 2016 add projections without a BatchNorm, to keep the shortcut path clean.
        norm = None if self.preactivation else self.norm
        return shortcut(
            x_BHWC,
            self.shortcut_kind,
            channels,
            self.stride,
            self.project,
            norm,
            self.shortcut_downsampling,
        )


def _times(x: jax.Array, scale: jax.Array | None) -> jax.Array:
    return x if scale is None else (x * scale).astype(x.dtype)


def _drop(x_BHWC: jax.Array, probability: float, keys_B: jax.Array) -> jax.Array:
    # Drawn per example, so that the draw does not depend on the parts of a batch.
    keep = 1 - probability
    draw = jax.vmap(lambda key: jax.random.bernoulli(key, keep, x_BHWC.shape[1:]))
    return jnp.where(draw(keys_B), x_BHWC / keep, 0)
