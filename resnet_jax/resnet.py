"""One module for every network: stem -> stages -> head."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from resnet_jax.architectures import Architecture, architecture
from resnet_jax.blocks import Block
from resnet_jax.convolution import by_patches, one_by_one
from resnet_jax.normalization import BatchNorm

# He et al. 2015b (arXiv 1502.01852), as the paper cites: normal with variance 2 / fan-in.
# Not variance_scaling's truncated normal, whose tails are cut.
HE_NORMAL = nn.initializers.variance_scaling(2.0, "fan_in", "normal")

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}

CONVOLUTIONS: dict[str, Callable[..., jax.Array]] = {
    "xla": jax.lax.conv_general_dilated,
    "patches": by_patches,
    "one_by_one": one_by_one,
}


class ResNet(nn.Module):
    """A plain or residual network.

    Attributes:
      arch: block type, stage sizes and filters, from the depth table.
      num_classes: logits.
      shortcut: "none" (plain) | "A" | "B" | "C".
      bottleneck_stride: "v1" (the first 1x1 strides, as in the paper) | "v1.5" (the 3x3).
      preactivation: He et al. 2016's order in place of 2015's.
      stem: "imagenet" (7x7/2, BN, ReLU, 3x3/2 max pool) | "cifar" (3x3, BN, ReLU).
      width: factor on all filters.
      zero_init_last_gamma: each block's last BatchNorm scale starts at 0, for both block types.
      dtype: of activations; parameters, statistics and logits are float32.
      bn_group, bn_momentum, bn_epsilon: see BatchNorm.
      convolution: "xla" | "patches" | "one_by_one", see convolution.py; up to rounding the same.
    """

    arch: Architecture
    num_classes: int
    shortcut: str = "A"
    bottleneck_stride: str = "v1"
    preactivation: bool = False
    stem: str = "cifar"
    width: float = 1.0
    zero_init_last_gamma: bool = False
    dtype: Any = jnp.float32
    bn_group: int = 0
    bn_momentum: float = 0.9
    bn_epsilon: float = 1e-5
    convolution: str = "xla"

    @nn.compact
    def __call__(self, images_BHWC: jax.Array, *, train: bool) -> jax.Array:
        """Maps float images (B, H, W, C), already normalised, to float32 logits (B, num_classes).

        With `train`, BatchNorm uses its group's statistics and `batch_stats` must be mutable for
        the moving averages to be updated.
        """
        conv = functools.partial(
            _convolution, dtype=self.dtype, computed_by=CONVOLUTIONS[self.convolution]
        )
        norm = functools.partial(
            BatchNorm,
            train=train,
            group=self.bn_group,
            momentum=self.bn_momentum,
            epsilon=self.bn_epsilon,
            dtype=self.dtype,
        )
        last_scale_init = (
            nn.initializers.zeros_init()
            if self.zero_init_last_gamma
            else nn.initializers.ones_init()
        )
        filters = [max(1, round(f * self.width)) for f in self.arch.filters]

        x = images_BHWC.astype(self.dtype)
        if self.stem == "imagenet":
            x = conv(filters[0], (7, 7), (2, 2), name="stem_conv")(x)
        else:
            x = conv(filters[0], (3, 3), (1, 1), name="stem_conv")(x)
        if not self.preactivation:
            x = nn.relu(norm(name="stem_norm")(x))
        if self.stem == "imagenet":
            x = nn.max_pool(x, (3, 3), (2, 2), padding=((1, 1), (1, 1)))

        for stage, blocks in enumerate(self.arch.stage_sizes, start=1):
            for block in range(1, blocks + 1):
                x = Block(
                    kind=self.arch.block,
                    filters=filters[stage - 1],
                    stride=2 if stage > 1 and block == 1 else 1,
                    shortcut_kind=self.shortcut,
                    bottleneck_stride=self.bottleneck_stride,
                    preactivation=self.preactivation,
                    conv=conv,
                    norm=norm,
                    last_scale_init=last_scale_init,
                    name=f"stage{stage}_block{block}",
                )(x)

        if self.preactivation:
            x = nn.relu(norm(name="head_norm")(x))
        pooled_BC = jnp.mean(x.astype(jnp.float32), axis=(1, 2))
        # float32, so that bfloat16's 8 bits never reach the loss.
        return nn.Dense(self.num_classes, kernel_init=HE_NORMAL, name="logits")(pooled_BC)


def _convolution(
    filters: int,
    kernel_size: tuple[int, int],
    strides: tuple[int, int],
    *,
    dtype: Any,
    computed_by: Callable[..., jax.Array],
    name: str,
) -> nn.Conv:
    # Symmetric padding, as Caffe and PyTorch: "SAME" pads a strided 3x3 on one side only.
    padding = [(size // 2, size // 2) for size in kernel_size]
    return nn.Conv(
        filters,
        kernel_size,
        strides,
        padding=padding,
        use_bias=False,  # BatchNorm's beta follows
        dtype=dtype,
        kernel_init=HE_NORMAL,
        conv_general_dilated=computed_by,
        name=name,
    )


def from_config(model: Mapping[str, Any]) -> ResNet:
    """Builds the network of a resolved config's `model` section.

    Args:
      model: the section, every key present; settings.resolve() has set num_classes.

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
        zero_init_last_gamma=model["zero_init_last_gamma"],
        dtype=DTYPES[model["dtype"]],
        bn_group=model["bn_group"],
        bn_momentum=model["bn_momentum"],
        bn_epsilon=model["bn_epsilon"],
    )
