"""The views of a full-size picture that an evaluation averages over (section 3.4 of the paper).

Pictures whose views have equal shapes form a bucket; its batches share a compiled program.
"""

import dataclasses
from collections.abc import Hashable, Sequence
from fractions import Fraction
from typing import Protocol, TypeVar

import numpy as np
from ml_collections import ConfigDict

from resnet_jax.allowed import check_choice
from resnet_jax.data.crops import source_of

VIEWS = ("center", "ten_crop", "fully_convolutional")
# For fully convolutional evaluation: the network's total stride, and the aspects of buckets.
_STRIDE = 32
_ASPECTS = tuple(Fraction(a, 12) for a in (12, 14, 16, 18, 20, 24))  # long side / short side
Bucket = TypeVar("Bucket", bound=Hashable)
_LONG = 8  # long side / short side above which a picture is cut before it is resized


class Views(Protocol[Bucket]):
    """A set of views of a picture; its predictions are averaged over all of them."""

    @property
    def mirrored(self) -> bool:
        """Whether each view's mirror image is a view too."""

    @property
    def needs_sizes(self) -> bool:
        """Whether a bucket depends on a picture's size."""

    def bucket(self, height: int, width: int) -> Bucket:
        """Returns the bucket of pictures of this size."""

    def shapes(self, bucket: Bucket) -> list[tuple[int, int, int]]:
        """Returns (views, height, width) for each shape of view."""

    def cut(self, image: np.ndarray, bucket: Bucket) -> list[np.ndarray]:
        """Cuts uint8 (H, W, 3) into one uint8 (V, h, w, C) for each of `shapes`."""


def pictures_per_batch(
    views: Views[Bucket], bucket: Bucket, batch_size: int, size: int, devices: int
) -> int:
    """Returns the number of pictures of a bucket to evaluate at once.

    Their views hold at most the pixels of `batch_size` training crops, but there is at least one
    picture per device. Evaluation keeps no activations for a backward pass, so with no more pixels
    than a training step it needs less memory: see results/README.md. Shapes of views are evaluated
    one after another, so only the largest counts.

    Args:
      views: the views of each picture.
      bucket: of the pictures.
      batch_size: the limit, in training crops.
      size: side of a training crop, in pixels.
      devices: number of devices that share the batch; divides the result.
    """
    mirrored = 2 if views.mirrored else 1
    pixels = mirrored * max(count * height * width for count, height, width in views.shapes(bucket))
    return max(1, batch_size * size**2 // (pixels * devices)) * devices


def make_views(name: str, data: ConfigDict, evaluation: ConfigDict) -> Views:
    """Returns the views called `name`, for a resolved config's `data` and `eval` sections."""
    check_choice("view", name, VIEWS)
    if name == "fully_convolutional":
        return Whole(tuple(evaluation.scales), data.resample)
    return Crops(name == "ten_crop", data.image_size, evaluation.short_side, data.resample)


@dataclasses.dataclass(frozen=True)
class Crops:
    """Square crops of side `size` from the picture resized to a short side of `short_side`.

    Only the centre; or (`ten`) the centre, the four corners and their mirror images.
    """

    ten: bool
    size: int
    short_side: int
    resample: str

    needs_sizes = False

    @property
    def mirrored(self) -> bool:
        """Five of the ten crops are mirror images."""
        return self.ten

    def bucket(self, height: int, width: int) -> tuple[()]:
        """All pictures share one bucket."""
        return ()

    def shapes(self, bucket: tuple[()]) -> list[tuple[int, int, int]]:
        """One shape, of one crop or five."""
        return [(5 if self.ten else 1, self.size, self.size)]

    def cut(self, image: np.ndarray, bucket: tuple[()]) -> list[np.ndarray]:
        """Resizes and cuts."""
        height, width = image.shape[:2]
        short = min(height, width)
        resized = round(height * self.short_side / short), round(width * self.short_side / short)
        bottom, right = (length - self.size for length in resized)
        corners = [(round(bottom / 2), round(right / 2))]
        if self.ten:
            corners += [(0, 0), (0, right), (bottom, 0), (bottom, right)]
        size = self.size, self.size
        return [np.stack(_parts(image, resized, size, corners, self.resample))]


@dataclasses.dataclass(frozen=True)
class Fitted(Crops):
    """A user's picture as an image of a resident set; with short_side = size.

    A picture of this size keeps its pixels. Colours become grey (ITU-R BT.601) if the set is grey;
    grey pixels keep their value.

    Attributes:
      channels: of the set, 1 or 3.
      white: the set's largest pixel, which the picture's 255 becomes.
    """

    channels: int
    white: int

    def cut(self, image: np.ndarray, bucket: tuple[()]) -> list[np.ndarray]:
        """Resizes, cuts and converts."""
        (parts,) = super().cut(image, bucket)
        if self.channels == 1:
            weighted = parts.astype(np.uint32) @ np.array((299, 587, 114), np.uint32)
            parts = (weighted[..., None] + 500) // 1000
        return [((parts.astype(np.uint32) * self.white + 127) // 255).astype(np.uint8)]


@dataclasses.dataclass(frozen=True)
class Whole:
    """The whole picture and its mirror image at several scales: fully convolutional evaluation.

    With global average pooling the network accepts any size. To limit the number of programs, the
    long side is cut, equally at both ends, to an aspect in _ASPECTS and a multiple of the network's
    stride.

    Attributes:
      scales: lengths of the short side.
    """

    scales: tuple[int, ...]
    resample: str

    mirrored = True
    needs_sizes = True

    def bucket(self, height: int, width: int) -> tuple[bool, Fraction]:
        """Returns (whether the picture is upright, its aspect after cutting)."""
        aspect = Fraction(max(height, width), min(height, width))
        cut_aspect = max((a for a in _ASPECTS if a <= aspect), default=_ASPECTS[0])
        return height > width and cut_aspect > 1, cut_aspect

    def shapes(self, bucket: tuple[bool, Fraction]) -> list[tuple[int, int, int]]:
        """One shape per scale."""
        upright, aspect = bucket
        shapes = []
        for short in self.scales:
            long = max(short, int(short * aspect) // _STRIDE * _STRIDE)
            shapes.append((1, long, short) if upright else (1, short, long))
        return shapes

    def cut(self, image: np.ndarray, bucket: tuple[bool, Fraction]) -> list[np.ndarray]:
        """Resizes to each scale and cuts the long side."""
        height, width = image.shape[:2]
        views = []
        for (_, keep_height, keep_width), short in zip(
            self.shapes(bucket), self.scales, strict=True
        ):
            scale = short / min(height, width)
            resized = max(keep_height, round(height * scale)), max(keep_width, round(width * scale))
            corner = (resized[0] - keep_height) // 2, (resized[1] - keep_width) // 2
            (part,) = _parts(image, resized, (keep_height, keep_width), [corner], self.resample)
            views.append(part[None])
        return views


def _parts(
    image: np.ndarray,
    resized: tuple[int, int],
    size: tuple[int, int],
    corners: Sequence[tuple[int, int]],
    resample: str,
) -> list[np.ndarray]:
    """Resizes a picture to `resized` and cuts a part of `size` at each corner (top, left).

    A very long picture is cut first, as training crops are, to whole source pixels: 1 x 2,000
    pixels would otherwise become 640 x 1,280,000.
    """
    from resnet_jax.data import jpeg  # imported here: digits need no decoder

    if max(resized) <= _LONG * min(resized):
        image = jpeg.resize(image, *resized, resample)
        return [image[top : top + size[0], left : left + size[1]] for top, left in corners]
    parts = []
    for corner in corners:
        rows, columns = (
            slice(first, first + count)
            for first, count in map(source_of, image.shape[:2], resized, corner, size)
        )
        parts.append(jpeg.resize(image[rows, columns], *size, resample))
    return parts
