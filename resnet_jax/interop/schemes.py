"""The names that other code bases give to the layers of a ResNet, one table per code base.

A place is a layer of our network: "stem_conv" and "stem_norm", or "stem_conv1" ... in a deep stem,
"stage2_block1/conv1", "stage2_block1/norm1", "stage2_block1/se_conv1",
"stage2_block1/shortcut_conv", "stage2_block1/shortcut_norm", "logits". Stages and blocks count from
1.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import NamedTuple

from resnet_jax.networks import layout

# Of a tensor, in the order in which a place's kind is told from the rest of its name.
_TORCH_LEAVES = {"running_mean": "mean", "running_var": "var", "bias": "bias"}
_TORCH = {
    "conv": _TORCH_LEAVES | {"weight": "kernel"},
    "norm": _TORCH_LEAVES | {"weight": "scale"},
    "logits": _TORCH_LEAVES | {"weight": "kernel"},
}
# Keras 3 numbers a layer's weights.
_KERAS_LAYER = {"kernel": "kernel", "bias": "bias", "0": "kernel", "1": "bias"}
_KERAS_NORM = {"gamma": "scale", "beta": "bias", "moving_mean": "mean", "moving_variance": "var"}
_KERAS = {
    "conv": _KERAS_LAYER,
    "norm": _KERAS_NORM | {str(n): leaf for n, leaf in enumerate(_KERAS_NORM.values())},
    "logits": _KERAS_LAYER,
}
_FLAX = {
    "conv": {"kernel": "kernel", "bias": "bias"},
    "norm": {"scale": "scale", "bias": "bias", "mean": "mean", "var": "var"},
    "logits": {"kernel": "kernel", "bias": "bias"},
}


@dataclasses.dataclass(frozen=True)
class Conventions:
    """What a network computes beside its tensors, as far as code bases differ.

    Attributes:
      bottleneck_stride, same_padding, shortcut_downsampling, epsilon: see ResNet; epsilon is its
        bn_epsilon.
      order: of the input's channels, "RGB" or "BGR".
      new_channels: where shortcut A adds its zeros, "after" the old channels (ours) or "around"
        them, one half before and one after.
      shortcut: if the tensors have no projection; they cannot tell "A" from the plain net, "none".
    """

    bottleneck_stride: str = "v1.5"
    same_padding: tuple[str, ...] = ()
    shortcut_downsampling: str = "stride"
    epsilon: float = 1e-5
    order: str = "RGB"
    new_channels: str = "after"
    shortcut: str = "A"


class Place(NamedTuple):
    """A tensor's place.

    Attributes:
      stage: from 1; 0 for the stem and the classifier, or if `block` counts through all stages.
      block: from 1; 0 for the stem and the classifier.
      layer: "stem_conv", "conv1", "norm1", "shortcut_conv", "logits", ...
      leaf: "kernel", "bias", "scale", "mean" or "var".
    """

    stage: int
    block: int
    layer: str
    leaf: str

    @property
    def module(self) -> str:
        """The path of the module in our network, such as "stage2_block1/conv1"."""
        return f"{layout.block(self.stage, self.block)}/{self.layer}" if self.block else self.layer


@dataclasses.dataclass(frozen=True)
class Scheme:
    """The names of one code base.

    Attributes:
      title: for messages.
      layers: pattern of a layer's name -> our layer. A pattern may have the groups `stage`,
        `block` and `number`; {number} in our layer is replaced by the last, counted from 1.
      leaves: kind of layer ("conv", "norm" or "logits") -> name of a tensor -> our leaf.
      first: the code base's number of the first stage, block and convolution.
      ignored: pattern of tensors that the network does not use.
      is_transposed: whether kernels are stored as (filters, C, height, width).
      conventions: those of its published networks.
      collections: names that may precede a layer's, which say nothing about its place.
    """

    title: str
    layers: Mapping[str, str]
    leaves: Mapping[str, Mapping[str, str]]
    first: tuple[int, int, int]
    ignored: str
    is_transposed: bool
    conventions: Conventions
    collections: tuple[str, ...] = ()

    def place(self, name: str) -> Place | None:
        """Returns the place of a tensor; None if the code base has no such name."""
        for pattern, ours in self.layers.items():
            match = re.fullmatch(rf"{pattern}[./](?P<leaf>\w+)(:0)?", name)
            if match is None:
                continue
            groups = match.groupdict()
            numbers = [
                int(groups[group]) + 1 - first if groups.get(group) else 0
                for group, first in zip(("stage", "block", "number"), self.first, strict=True)
            ]
            layer = ours.format(number=numbers[2])
            leaf = self.leaves[kind(layer)].get(groups["leaf"])
            return None if leaf is None else Place(numbers[0], numbers[1], layer, leaf)
        return None


def kind(layer: str) -> str:
    """Returns "conv", "norm" or "logits" for one of our layers."""
    return next(each for each in ("conv", "norm", "logits") if each in layer)


def _torch_layers(shortcut: str, classifier: str, first: int = 0) -> dict[str, str]:
    """Returns PyTorch's names; `first` is the number of a shortcut's convolution."""
    block = r"layer(?P<stage>\d+)\.(?P<block>\d+)\."
    return {
        "conv1": "stem_conv",
        "bn1": "stem_norm",  # of a deep stem: "stem_norm3", see names.py
        r"conv1\.0": "stem_conv1",
        r"conv1\.1": "stem_norm1",
        r"conv1\.3": "stem_conv2",
        r"conv1\.4": "stem_norm2",
        r"conv1\.6": "stem_conv3",
        block + r"conv(?P<number>\d)": "conv{number}",
        block + r"bn(?P<number>\d)": "norm{number}",
        block + r"se\.fc(?P<number>\d)": "se_conv{number}",
        block + rf"{shortcut}\.{first}": "shortcut_conv",
        block + rf"{shortcut}\.{first + 1}": "shortcut_norm",
        classifier: "logits",
    }


_HUGGING_FACE = r"encoder\.stages\.(?P<stage>\d+)\.layers\.(?P<block>\d+)\."
_COUNTERS = r".*\.num_batches_tracked"
_GROUP = r"(\w+[./])?"  # Keras names the group of a layer's tensors, too
_KERAS_BLOCK = r"conv(?P<stage>\d)_block(?P<block>\d+)"

SCHEMES = {
    "torchvision": Scheme(
        title="the names of torchvision and timm",
        layers=_torch_layers("downsample", "fc"),
        leaves=_TORCH,
        first=(1, 0, 1),
        ignored=_COUNTERS,
        is_transposed=True,
        conventions=Conventions(),
    ),
    "resnet-d": Scheme(
        title="timm's names of ResNet-D",
        layers=_torch_layers("downsample", "fc", first=1),  # 0 is the average pool
        leaves=_TORCH,
        first=(1, 0, 1),
        ignored=_COUNTERS,
        is_transposed=True,
        conventions=Conventions(shortcut_downsampling="mean"),
    ),
    "cifar": Scheme(
        title="the names of akamaster/pytorch_resnet_cifar10",
        layers=_torch_layers("shortcut", "linear"),
        leaves=_TORCH,
        first=(1, 0, 1),
        ignored=_COUNTERS,
        is_transposed=True,
        conventions=Conventions(new_channels="around"),
    ),
    "huggingface": Scheme(
        title="the names of Hugging Face's ResNetForImageClassification",
        layers={
            r"(resnet\.)?embedder\.embedder\.convolution": "stem_conv",
            r"(resnet\.)?embedder\.embedder\.normalization": "stem_norm",
            rf"(resnet\.)?{_HUGGING_FACE}layer\.(?P<number>\d)\.convolution": "conv{number}",
            rf"(resnet\.)?{_HUGGING_FACE}layer\.(?P<number>\d)\.normalization": "norm{number}",
            rf"(resnet\.)?{_HUGGING_FACE}shortcut\.convolution": "shortcut_conv",
            rf"(resnet\.)?{_HUGGING_FACE}shortcut\.normalization": "shortcut_norm",
            r"classifier\.1": "logits",
        },
        leaves=_TORCH,
        first=(0, 0, 0),
        ignored=_COUNTERS,
        is_transposed=True,
        conventions=Conventions(),
    ),
    "keras": Scheme(
        title="the names of Keras applications",
        layers={
            f"{_GROUP}conv1_conv": "stem_conv",
            f"{_GROUP}conv1_bn": "stem_norm",
            rf"{_GROUP}{_KERAS_BLOCK}_0_conv": "shortcut_conv",
            rf"{_GROUP}{_KERAS_BLOCK}_0_bn": "shortcut_norm",
            rf"{_GROUP}{_KERAS_BLOCK}_(?P<number>\d)_conv": "conv{number}",
            rf"{_GROUP}{_KERAS_BLOCK}_(?P<number>\d)_bn": "norm{number}",
            f"{_GROUP}(predictions|probs|fc1000)": "logits",
        },
        leaves=_KERAS,
        first=(2, 1, 1),
        ignored=r"(?!)",
        is_transposed=False,
        conventions=Conventions(bottleneck_stride="v1", epsilon=1.001e-5, order="BGR"),
    ),
    "flax": Scheme(
        title="the names of Flax's ImageNet example",
        layers={
            "conv_init": "stem_conv",
            "bn_init": "stem_norm",
            r"(Bottleneck)?ResNetBlock_(?P<block>\d+)[./]Conv_(?P<number>\d)": "conv{number}",
            r"(Bottleneck)?ResNetBlock_(?P<block>\d+)[./]BatchNorm_(?P<number>\d)": "norm{number}",
            r"(Bottleneck)?ResNetBlock_(?P<block>\d+)[./]conv_proj": "shortcut_conv",
            r"(Bottleneck)?ResNetBlock_(?P<block>\d+)[./]norm_proj": "shortcut_norm",
            "Dense_0": "logits",
        },
        leaves=_FLAX,
        first=(1, 0, 0),
        ignored=r"(?!)",
        is_transposed=False,
        conventions=Conventions(same_padding=("pool", "blocks")),
        collections=("params", "batch_stats"),
    ),
    # Of ONNX files and whole Keras models: onnx_graph.py.
    "graph": Scheme(
        title="the structure of the model's graph",
        layers={},
        leaves={},
        first=(1, 1, 1),
        ignored=r"(?!)",
        is_transposed=False,
        conventions=Conventions(),
    ),
}
