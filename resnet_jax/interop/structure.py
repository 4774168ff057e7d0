"""Infers a network's settings from the shapes of its tensors."""

from typing import Any

from resnet_jax.errors import UserError
from resnet_jax.interop.names import Named
from resnet_jax.interop.schemes import SCHEMES, Conventions, Place
from resnet_jax.networks.architectures import (
    CONVOLUTIONS,
    EXPANSION,
    IMAGENET,
    STEMS,
    Architecture,
    architecture,
)
from resnet_jax.networks.blocks import projects
from resnet_jax.networks.squeeze import LAYERS as SE_LAYERS

_STEMS = {3: "cifar", 7: "imagenet"}  # of one convolution, by the size of its kernel
_KINDS = {count: kind for kind, count in CONVOLUTIONS.items()}


def settings(named: Named, conventions: Conventions, path: str) -> dict[str, Any]:
    """Returns the `model.*` settings, without the prefix, that tensors and conventions fix.

    Args:
      named: the tensors.
      conventions: whatever the tensors cannot tell.
      path: of the file, for messages.

    Raises:
      UserError: it is not one of our networks; the sentence names the tensor or the number.
    """
    kernels = _Kernels(named, path)
    sizes, kind = kernels.stage_sizes(), kernels.kind()
    filters = kernels.filters(kind, len(sizes))
    family, arch, depth = _depth(kind, sizes, path)
    stem, stem_filters = _stem(kernels)
    width = filters[0] / arch.filters[0]
    if arch.widened(width) != filters:
        raise UserError(
            f"{path}: its stages have {filters} filters, which are not a multiple of "
            f"{arch.filters}, those of {family} {depth}."
        )
    normed = any(place.layer.endswith(("norm", "norm1")) for place in named.tensors)
    return {
        "family": family,
        "depth": depth,
        "shortcut": _shortcut(kernels, sizes, filters, stem_filters, conventions),
        "shortcut_downsampling": conventions.shortcut_downsampling,
        "bottleneck_stride": conventions.bottleneck_stride if kind == "bottleneck" else "v1",
        "stem": stem,
        "width": width,
        **_inside(kernels, kind, filters[0]),
        "se_reduction": _se_reduction(kernels, len(sizes), filters[-1] * EXPANSION[kind]),
        "stem_filters": 0 if stem_filters == filters[0] else stem_filters,
        "same_padding": _padded(conventions, stem),
        "norm": "batch" if normed else "none",
        "bn_epsilon": conventions.epsilon,
        "num_classes": kernels.shape(0, 0, "logits")[-1],
    }


def image_channels(named: Named, path: str) -> int:
    """Returns the channels of the images that a network takes; see settings()."""
    kernels = _Kernels(named, path)
    first = "stem_conv1" if kernels.has(0, 0, "stem_conv1") else "stem_conv"
    return kernels.shape(0, 0, first)[2]


class _Kernels:
    """The kernels of a file by their place, with shapes in our layout."""

    def __init__(self, named: Named, path: str):
        self._named = named
        self.path = path
        self._is_transposed = SCHEMES[named.scheme].is_transposed

    def shape(self, stage: int, block: int, layer: str) -> tuple[int, ...]:
        """Returns (height, width, C, filters), or (C, classes) of the classifier."""
        place = Place(stage, block, layer, "kernel")
        if place not in self._named.tensors:
            raise UserError(f"{self.path} has no kernel for {place.module} of our network.")
        shape = self._named.tensors[place].shape
        if len(shape) != (2 if layer == "logits" else 4):
            raise UserError(f"{self.path}: {self._named.names[place]!r} has the shape {shape}.")
        return (*shape[2:], shape[1], shape[0]) if self._is_transposed else shape

    def has(self, stage: int, block: int, layer: str) -> bool:
        """Whether the file has a kernel."""
        return Place(stage, block, layer, "kernel") in self._named.tensors

    def name(self, stage: int, block: int, layer: str) -> str:
        """Returns the name of a kernel in the file."""
        return self._named.names[Place(stage, block, layer, "kernel")]

    def stage_sizes(self) -> tuple[int, ...]:
        """Returns the blocks per stage; raises UserError if a block is missing."""
        blocks = {place[:2] for place in self._named.tensors if place.block}
        if not blocks:
            raise UserError(f"{self.path} holds no residual block.")
        stages = range(1, max(stage for stage, _ in blocks) + 1)
        sizes = [max([b for s, b in blocks if s == stage], default=0) for stage in stages]
        for stage, size in zip(stages, sizes, strict=True):
            for block in range(1, max(size, 1) + 1):
                if (stage, block) not in blocks:
                    raise UserError(f"{self.path} lacks block {block} of stage {stage}.")
        return tuple(sizes)

    def filters(self, kind: str, stages: int) -> tuple[int, ...]:
        """Returns the filters of each stage; the insides of bottlenecks may have others."""
        layer = "conv1" if kind == "basic" else "conv3"
        outputs = {stage: self.shape(stage, 1, layer)[-1] for stage in range(1, stages + 1)}
        for stage, channels in outputs.items():
            if channels % EXPANSION[kind]:
                raise UserError(
                    f"{self.path}: {self.name(stage, 1, layer)!r} has {channels} filters; allowed "
                    f"are multiples of {EXPANSION[kind]}."
                )
        return tuple(channels // EXPANSION[kind] for channels in outputs.values())

    def kind(self) -> str:
        """Returns the kind of all blocks."""
        layers = {place.layer for place in self._named.tensors}
        count = sum(f"conv{number}" in layers for number in range(1, 10))
        if count not in _KINDS:
            raise UserError(f"{self.path} has {count} convolutions per block; allowed are 2 and 3.")
        return _KINDS[count]


def _stem(kernels: _Kernels) -> tuple[str, int]:
    """Returns the stem and its output channels."""
    if kernels.has(0, 0, "stem_conv1"):
        return "deep", kernels.shape(0, 0, "stem_conv3")[-1]
    height, width, _, filters = kernels.shape(0, 0, "stem_conv")
    if height not in _STEMS:
        raise UserError(
            f"{kernels.path}: {kernels.name(0, 0, 'stem_conv')!r} is {height} x {width}; known "
            "stems are 3 x 3 and 7 x 7."
        )
    return _STEMS[height], filters


def _inside(kernels: _Kernels, kind: str, filters: int) -> dict[str, Any]:
    """Returns the settings of the insides of blocks, whose stage 1 has these filters."""
    if kind == "basic":
        return {"bottleneck_width": 1.0, "groups": 1}
    *_, channels, inner = kernels.shape(1, 1, "conv2")
    if inner % channels:
        raise UserError(
            f"{kernels.path}: {kernels.name(1, 1, 'conv2')!r} has {channels} channels, which do "
            f"not divide its {inner} filters into groups."
        )
    return {"bottleneck_width": inner / filters, "groups": inner // channels}


def _se_reduction(kernels: _Kernels, stage: int, channels: int) -> int:
    """Returns the reduction of squeeze and excitation; 0 if there is none.

    It is taken from the last stage: a hidden layer of less than one channel is rounded up.
    """
    hidden = SE_LAYERS[0]
    return channels // kernels.shape(stage, 1, hidden)[-1] if kernels.has(stage, 1, hidden) else 0


def _depth(kind: str, sizes: tuple[int, ...], path: str) -> tuple[str, Architecture, int]:
    """Returns the family, architecture and depth with these stages."""
    for depth, arch in IMAGENET.items():
        if (arch.block, arch.stage_sizes) == (kind, sizes):
            return "imagenet", arch, depth
    if len(sizes) == 3 and len(set(sizes)) == 1:
        family = "cifar" if kind == "basic" else "cifar_bottleneck"
        depth = 3 * sizes[0] * CONVOLUTIONS[kind] + 2
        return family, architecture(family, depth), depth
    known = "; ".join(f"{d}: {a.block}, {a.stage_sizes}" for d, a in IMAGENET.items())
    raise UserError(
        f"{path}: stages of {sizes} {kind} blocks are in no family; the imagenet family has "
        f"{known}; the cifar families three equal stages."
    )


def _shortcut(
    kernels: _Kernels,
    sizes: tuple[int, ...],
    filters: tuple[int, ...],
    channels: int,
    conventions: Conventions,
) -> str:
    """Returns the shortcut of which each block's projection is the one that a file has."""
    present, changes = {}, {}
    for stage, size in enumerate(sizes, start=1):
        outputs = filters[stage - 1] * EXPANSION[kernels.kind()]
        for block in range(1, size + 1):
            changes[stage, block] = channels != outputs or (stage > 1 and block == 1)
            present[stage, block] = kernels.has(stage, block, "shortcut_conv")
            channels = outputs
    for name in ("B", "C") if any(present.values()) else (conventions.shortcut,):
        if present == {block: projects(name, changes[block]) for block in changes}:
            return name
    missing = [block for block in changes if changes[block] and not present[block]]
    which = missing[0] if missing else next(b for b in changes if present[b] and not changes[b])
    raise UserError(
        f"{kernels.path}: block {which[1]} of stage {which[0]} has "
        f"{'no' if missing else 'a'} projection, but other blocks tell otherwise; allowed are "
        "none, one wherever the shape changes, and one in every block."
    )


def _padded(conventions: Conventions, stem: str) -> tuple[str, ...]:
    """Returns the layers of stride 2 that this network has and that pad as "SAME"."""
    absent = ("stem", "pool") if STEMS[stem] == 1 else ()
    return tuple(name for name in conventions.same_padding if name not in absent)
