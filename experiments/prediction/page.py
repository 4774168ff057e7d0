"""Predictions as one HTML file that makes no network requests."""

import base64
import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np

_SMALL = 64  # pixels; below, thumbnails are lossless and drawn without smoothing
_OPACITY = 0.7  # of the heat where the map is 1


class Guess(NamedTuple):
    """One of the likeliest classes of a picture."""

    number: int
    name: str
    probability: float


@dataclasses.dataclass(frozen=True)
class Picture:
    """A picture and its predictions.

    Attributes:
      file: its name.
      notes: what was changed or ignored when it was read.
      guesses: the likeliest classes first.
      thumbnail, overlay: data URIs of what the network saw, without and with Grad-CAM; empty if
        there is none.
      side: of the thumbnail, in pixels.
    """

    file: str
    notes: Sequence[str]
    guesses: Sequence[Guess]
    thumbnail: str = ""
    overlay: str = ""
    side: int = 0

    @property
    def is_small(self) -> bool:
        """Whether the thumbnail is drawn without smoothing."""
        return self.side < _SMALL


def thumbnails(image: np.ndarray, white: int, heat: np.ndarray | None) -> dict[str, Any]:
    """Returns thumbnail, overlay and side of a Picture.

    Args:
      image: uint8 (H, W, C), as the network takes it before normalisation.
      white: the largest pixel.
      heat: (h, w) in [0, 1], see analysis.grad_cam; None: no overlay.
    """
    height, width, channels = image.shape
    image = (image.astype(np.float32) * (255 / white)).repeat(3 // channels, axis=2)
    shown = {"thumbnail": _uri(image), "side": width}
    if heat is None:
        return shown
    heat = cv2.resize(heat, (width, height), interpolation=cv2.INTER_LINEAR)
    levels = np.rint(255 * heat).astype(np.uint8)
    coloured = np.asarray(cv2.applyColorMap(levels, cv2.COLORMAP_INFERNO))[..., ::-1]
    share = _OPACITY * heat[..., None]
    return shown | {"overlay": _uri((1 - share) * image + share * coloured)}


def _uri(image: np.ndarray) -> str:
    """Returns an image as a data URI."""
    is_small = image.shape[1] < _SMALL
    kind, options = ("png", []) if is_small else ("jpeg", [cv2.IMWRITE_JPEG_QUALITY, 85])
    pixels = np.rint(image).astype(np.uint8)[..., ::-1]  # OpenCV's order is BGR
    _, encoded = cv2.imencode(f".{kind}", pixels, options)
    return f"data:image/{kind};base64,{base64.b64encode(encoded.tobytes()).decode()}"


def render(
    about: Mapping[str, Any], found: Sequence[Picture], unreadable: Mapping[str, str]
) -> str:
    """Returns the page as text."""
    from experiments.cli.templates import templates  # imported here: only a page needs jinja2

    folder = templates(pathlib.Path(__file__).parent / "templates")
    return folder.get_template("predictions.html").render(
        about=about, pictures=found, unreadable=unreadable
    )
