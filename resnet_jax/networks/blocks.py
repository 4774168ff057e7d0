"""The blocks and the shortcut. A block holds topology; `conv` and `norm` come in ready-made."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name

from resnet_jax.allowed import Range, check_choice
from resnet_jax.kernels.rectifier import relu_of_sum
from resnet_jax.networks.architectures import BOTTLENECK_STRIDES, EXPANSION, SHORTCUTS

CONVOLVED = "convolved"  # the output of a block's convolution, by jax.ad_checkpoint's name

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
) -> jax.Array | None:
    """Returns what is added to a block's branch, or None in a plain net.

    Args:
      x_BHWC: the block's input.
      kind: one of SHORTCUTS.
      channels: channels of the block's output.
      stride: stride of the block.
      conv: makes a projection.
      norm: makes the BatchNorm after a projection; None where there is none (pre-activation).
    """
    check_choice("kind", kind, SHORTCUTS)
    if kind == "none":
        return None
    shape_changes = stride != 1 or x_BHWC.shape[-1] != channels
    if projects(kind, shape_changes):
        x_BHWC = conv(channels, (1, 1), (stride, stride), name="shortcut_conv")(x_BHWC)
        x_BHWC = checkpoint_name(x_BHWC, CONVOLVED)
        return norm(name="shortcut_norm")(x_BHWC) if norm else x_BHWC
    if not shape_changes:
        return x_BHWC
    # Option A: every stride-th position, and zeros for the channels that the input lacks.
    x_BHWC = x_BHWC[:, ::stride, ::stride]
    return jnp.pad(x_BHWC, ((0, 0), (0, 0), (0, 0), (0, channels - x_BHWC.shape[-1])))


class Block(nn.Module):
    """One residual block, or its plain twin (`shortcut_kind` "none").

    Post-activation: conv-BN-ReLU ... conv-BN, add, ReLU (He et al. 2015, Figs. 2 and 5).
    Pre-activation: BN-ReLU-conv ..., add (He et al. 2016, Fig. 4e); where the shortcut projects, it
    starts from the first BN-ReLU's output.

    Attributes:
      kind: "basic" or "bottleneck".
      filters: filters of the 3x3 convolutions; the output has EXPANSION[kind] times as many.
      stride: of the block.
      shortcut_kind: one of SHORTCUTS.
      bottleneck_stride: "v1", on the first 1x1, or "v1.5", on the 3x3.
      preactivation: see above.
      conv: makes a convolution from (filters, kernel size, strides, name, kernel_init).
      norm: makes a BatchNorm from (name, rectify, scale_init).
      zero_init_residual: the branch starts at 0, so that the block starts as its shortcut (Goyal et
        al. 2017, section 5.1). Post-activation: the last BatchNorm's scale is 0. Pre-activation:
        the last kernel is; behind a scale of 0 its ReLU would pass no gradient, for ever.
    """

    kind: str
    filters: int
    stride: int
    shortcut_kind: str
    bottleneck_stride: str
    preactivation: bool
    conv: MakeLayer
    norm: MakeLayer
    zero_init_residual: bool

    def __post_init__(self) -> None:
        """Raises UserError if a name is not known or a number is out of range."""
        check_choice("kind", self.kind, EXPANSION)
        check_choice("shortcut_kind", self.shortcut_kind, SHORTCUTS)
        check_choice("bottleneck_stride", self.bottleneck_stride, BOTTLENECK_STRIDES)
        Range(1, whole=True).check("filters", self.filters)
        Range(1, whole=True).check("stride", self.stride)
        super().__post_init__()

    def _convolutions(self) -> list[tuple[int, int, int]]:
        """Returns (filters, kernel size, stride) of each convolution on the branch."""
        if self.kind == "basic":
            return [(self.filters, 3, self.stride), (self.filters, 3, 1)]
        on_1x1, on_3x3 = (self.stride, 1) if self.bottleneck_stride == "v1" else (1, self.stride)
        return [
            (self.filters, 1, on_1x1),
            (self.filters, 3, on_3x3),
            (self.filters * EXPANSION[self.kind], 1, 1),
        ]

    @nn.compact
    def __call__(self, x_BHWC: jax.Array) -> jax.Array:
        """Maps (B, H, W, C) to (B, H / stride, W / stride, filters * EXPANSION[kind])."""
        convolutions = self._convolutions()
        channels = convolutions[-1][0]
        skipped = None if self.preactivation else self._shortcut(x_BHWC, channels)
        y = x_BHWC
        for i, (filters, size, stride) in enumerate(convolutions, start=1):
            is_last = i == len(convolutions)
            zero_kernel, zero_scale = self._zeros(is_last)
            if self.preactivation:
                y = self.norm(name=f"norm{i}", rectify=True)(y)
                if i == 1:
                    changes = self.stride != 1 or x_BHWC.shape[-1] != channels
                    start = y if projects(self.shortcut_kind, changes) else x_BHWC
                    skipped = self._shortcut(start, channels)
            conv = self.conv(
                filters, (size, size), (stride, stride), name=f"conv{i}", **zero_kernel
            )
            y = checkpoint_name(conv(y), CONVOLVED)
            if not self.preactivation:
                rectify = not is_last or skipped is None
                y = self.norm(name=f"norm{i}", rectify=rectify, **zero_scale)(y)
        if skipped is None:
            return y
        return y + skipped if self.preactivation else relu_of_sum(y, skipped)

    def _zeros(self, is_last: bool) -> tuple[dict[str, Any], dict[str, Any]]:
        """Returns what a layer's convolution and BatchNorm are given to start at 0."""
        if not (is_last and self.zero_init_residual):
            return {}, {}
        zeros = nn.initializers.zeros_init()
        return ({"kernel_init": zeros}, {}) if self.preactivation else ({}, {"scale_init": zeros})

    def _shortcut(self, x_BHWC: jax.Array, channels: int) -> jax.Array | None:
        # v2 adds its projections bare: a BatchNorm there would touch the identity path.
        norm = None if self.preactivation else self.norm
        return shortcut(x_BHWC, self.shortcut_kind, channels, self.stride, self.conv, norm)
