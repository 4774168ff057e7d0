"""What parts of a full-size picture an evaluation sees (section 3.4 of the paper).

Pictures whose views have the same shapes share a bucket, and so a batch and a compiled program.
"""

import dataclasses
from collections.abc import Sequence
from fractions import Fraction
from typing import Any, Protocol

import numpy as np
from ml_collections import ConfigDict

from resnet_jax.allowed import check_choice
from resnet_jax.data import jpeg
from resnet_jax.data.crops import source_of

VIEWS = ("center", "ten_crop", "fully_convolutional")
# Fully convolutional: the stride of the whole network, and the shapes of pictures told apart.
_STRIDE = 32
_LONG = 8  # long side over short, from which a picture is cut before it is resized
_ASPECTS = tuple(Fraction(a, 12) for a in (12, 14, 16, 18, 20, 24))  # long side over short


class Views(Protocol):
    """One way to evaluate a picture: its predictions are averaged over all its views."""

    @property
    def mirrored(self) -> bool:
        """Whether the mirror image of each view counts as one more."""

    @property
    def needs_sizes(self) -> bool:
        """Whether a bucket depends on a picture's size."""

    def bucket(self, height: int, width: int) -> Any:
        """Returns what pictures of this size have in common with others; can be hashed."""

    def shapes(self, bucket: Any) -> list[tuple[int, int, int]]:
        """Returns (views, height, width) of each group of views of one shape."""

    def cut(self, image: np.ndarray, bucket: Any) -> list[np.ndarray]:
        """Cuts uint8 (H, W, 3) into a uint8 (V, h, w, 3) for each of `shapes`."""


def pictures_per_batch(views: Views, bucket: Any, batch_size: int, size: int, devices: int) -> int:
    """Returns how many pictures of a bucket are evaluated at once.

    Those whose views hold no more pixels than `batch_size` crops of `size` x `size`, but at least
    one per device. An evaluation keeps no activations for a backward pass, so with at most the
    pixels of a training step it needs less memory than that step: see results/README.md. The shapes
    of a picture's views are evaluated one after another, so the largest counts.

    Args:
      views: what is seen of each picture.
      bucket: of the pictures.
      batch_size: pictures if each were one training crop.
      size: of a training crop, in pixels.
      devices: that share the batch; the result is a multiple of it.
    """
    mirrored = 2 if views.mirrored else 1
    pixels = mirrored * max(count * height * width for count, height, width in views.shapes(bucket))
    return max(1, batch_size * size**2 // (pixels * devices)) * devices


def make_views(name: str, data: ConfigDict, evaluation: ConfigDict) -> Views:
    """Returns the views that a resolved config calls by `name`."""
    check_choice("view", name, VIEWS)
    if name == "fully_convolutional":
        return Whole(tuple(evaluation.scales), data.resample)
    return Crops(name == "ten_crop", data.image_size, evaluation.short_side, data.resample)


@dataclasses.dataclass(frozen=True)
class Crops:
    """Squares of `size` from a picture whose short side is `short_side`.

    The centre alone; or the centre and the four corners, and their mirror images (ten_crop).
    """

    ten: bool
    size: int
    short_side: int
    resample: str

    needs_sizes = False

    @property
    def mirrored(self) -> bool:
        """Of ten crops, five are the mirror images."""
        return self.ten

    def bucket(self, height: int, width: int) -> Any:
        """All pictures are alike."""
        return ()

    def shapes(self, bucket: Any) -> list[tuple[int, int, int]]:
        """One group: one crop, or five."""
        return [(5 if self.ten else 1, self.size, self.size)]

    def cut(self, image: np.ndarray, bucket: Any) -> list[np.ndarray]:
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
class Whole:
    """The picture at several scales, and its mirror images: a fully convolutional network.

    Global average pooling makes the network take any size. So that a few programs serve all
    pictures, the long side is cut, at both ends alike, to an aspect of _ASPECTS and a multiple of
    the network's stride.

    Attributes:
      scales: lengths of the short side.
    """

    scales: tuple[int, ...]
    resample: str

    mirrored = True
    needs_sizes = True

    def bucket(self, height: int, width: int) -> Any:
        """Returns (whether it stands upright, the aspect)."""
        aspect = Fraction(max(height, width), min(height, width))
        kept = max((a for a in _ASPECTS if a <= aspect), default=_ASPECTS[0])
        return height > width and kept > 1, kept

    def shapes(self, bucket: Any) -> list[tuple[int, int, int]]:
        """One group a scale."""
        upright, aspect = bucket
        shapes = []
        for short in self.scales:
            long = max(short, int(short * aspect) // _STRIDE * _STRIDE)
            shapes.append((1, long, short) if upright else (1, short, long))
        return shapes

    def cut(self, image: np.ndarray, bucket: Any) -> list[np.ndarray]:
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
    """Resizes a picture to (height, width), and cuts a part of `size` out at each (top, left).

    A very long picture is cut first, for 1 x 2,000 pixels would become 640 x 1,280,000. Each part
    is then resized from the pixels that it comes from, in whole pixels, as training crops are.
    """
    if max(resized) <= _LONG * min(resized):
        whole = jpeg.resize(image, *resized, resample)
        return [whole[top : top + size[0], left : left + size[1]] for top, left in corners]
    parts = []
    for corner in corners:
        rows, columns = (
            slice(first, first + count)
            for first, count in map(source_of, image.shape[:2], resized, corner, size)
        )
        parts.append(jpeg.resize(image[rows, columns], *size, resample))
    return parts
