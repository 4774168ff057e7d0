"""Training crops of full-size pictures.

A crop depends only on the picture's size and one row of uniform draws; the draws depend only on
(seed, purpose, step). So a resumed run sees the same crops with any number of processes.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from resnet_jax.allowed import check_choice
from resnet_jax.data.order import stream

CROPS = ("scale", "random_resized")
_ATTEMPTS = 10  # to draw an area and aspect that fit; the usual number for this crop
_PER_ATTEMPT = 4  # draws


class Box(NamedTuple):
    """A rectangle in a picture, in pixels."""

    top: int
    left: int
    height: int
    width: int


@dataclasses.dataclass(frozen=True)
class Crop:
    """One kind of crop.

    Attributes:
      draws: uniform draws per picture.
      box: maps (height, width, draws in [0, 1)) to the box that is resized to the network's input.
    """

    draws: int
    box: Callable[[int, int, Sequence[float]], Box]


def make_crop(config: ConfigDict) -> Crop:
    """Returns the crop of a resolved config's `data` section."""
    check_choice("data.crop", config.crop, CROPS)
    if config.crop == "scale":
        low, high = config.scales
        return Crop(3, lambda h, w, u: _scaled(h, w, u, config.image_size, low, high))
    return Crop(
        _ATTEMPTS * _PER_ATTEMPT,
        lambda h, w, u: _random_resized(h, w, u, config.area, config.aspect),
    )


def draw(seed: int, purpose: int, step: int, batch_size: int, draws: int) -> np.ndarray:
    """Returns uniform draws for a replicate's batch, float64 (batch_size, draws).

    Args:
      seed: the replicate's seed.
      purpose: order.TRAIN or order.STATISTICS.
      step: 0 for the first step.
      batch_size: pictures per step.
      draws: per picture; see Crop.draws.
    """
    return stream(purpose, seed, step).random((batch_size, draws))


def source_of(length: int, resized: int, start: int, size: int) -> tuple[int, int]:
    """Maps a span of pixels on a resized side back to the original side.

    Args:
      length: of the original side, in pixels.
      resized: length of the side after resizing.
      start: first pixel of the span.
      size: pixels in the span.

    Returns:
      (first pixel, number of pixels, at least 1) on the original side.
    """
    first = min(length - 1, round(start * length / resized))
    last = round((start + size) * length / resized)
    return first, max(1, last - first)


def _scaled(height: int, width: int, u: Sequence[float], size: int, low: int, high: int) -> Box:
    """Section 3.4: the short side is resized to a length in [low, high], then `size` is cropped.

    Returns the crop's box in the original picture, so that only the box needs decoding.
    """
    scale = min(height, width) / (low + int(u[0] * (high - low + 1)))
    sides = []
    for length, uniform in ((height, u[1]), (width, u[2])):
        resized = max(size, round(length / scale))
        sides.append(source_of(length, resized, int(uniform * (resized - size + 1)), size))
    (top, box_height), (left, box_width) = sides
    return Box(top, left, box_height, box_width)


def _random_resized(
    height: int,
    width: int,
    u: Sequence[float],
    area: tuple[float, float],
    aspect: tuple[float, float],
) -> Box:
    """A box of random area, aspect and position (Szegedy et al. 2015).

    If no attempt fits, the largest central box of an allowed aspect.
    """
    low, high = math.log(aspect[0]), math.log(aspect[1])
    for i in range(0, _ATTEMPTS * _PER_ATTEMPT, _PER_ATTEMPT):
        pixels = height * width * (area[0] + u[i] * (area[1] - area[0]))
        ratio = math.exp(low + u[i + 1] * (high - low))
        box_width, box_height = round(math.sqrt(pixels * ratio)), round(math.sqrt(pixels / ratio))
        if 0 < box_width <= width and 0 < box_height <= height:
            return Box(
                int(u[i + 2] * (height - box_height + 1)),
                int(u[i + 3] * (width - box_width + 1)),
                box_height,
                box_width,
            )
    box_height = min(height, max(1, round(width / aspect[0])))
    box_width = min(width, max(1, round(height * aspect[1])))
    return Box((height - box_height) // 2, (width - box_width) // 2, box_height, box_width)
