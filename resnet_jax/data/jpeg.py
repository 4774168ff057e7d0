"""Decodes encoded pictures, whole or in part, and resizes them.

nvImageCodec decodes on the CPU: it is libjpeg-turbo and can skip the pixels outside a box. Pillow
decodes what nvImageCodec cannot. Both release the GIL, so threads decode in parallel. EXIF
rotations are ignored, as in TensorFlow and torchvision.
"""

import atexit
import contextlib
import functools
import importlib.util
import io
import os
import pathlib
import shutil
import tempfile
import threading
import types
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import cv2
import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError

from resnet_jax.data.crops import Box

if TYPE_CHECKING:
    from nvidia import nvimgcodec

RESAMPLING = {
    "bilinear": (cv2.INTER_LINEAR, cv2.INTER_LINEAR),
    "bicubic": (cv2.INTER_CUBIC, cv2.INTER_CUBIC),
    # Averages when it shrinks, the only method here without aliasing; undefined when it enlarges.
    "area": (cv2.INTER_AREA, cv2.INTER_LINEAR),
}
_GREY_MODES = ("1", "L", "LA", "La", "I", "F")  # Pillow's
_ORIENTATION = 0x0112  # EXIF's tag; 1 for upright
_MAGIC = {"JPEG": b"\xff\xd8\xff", "PNG": b"\x89PNG\r\n\x1a\n"}
cv2.setNumThreads(1)  # callers already run one thread per core
_DECODER_LOCK = threading.Lock()
_local = threading.local()


class UnreadableError(Exception):
    """A picture cannot be decoded; the message says why."""


class Header(NamedTuple):
    """Facts about a picture, of which decode() keeps only the size."""

    height: int
    width: int
    is_grey: bool
    has_transparency: bool
    is_rotated: bool  # or mirrored, by EXIF


def header(encoded: bytes) -> Header:
    """Reads a picture's header; raises UnreadableError."""
    with _open_image(encoded) as image:
        is_grey = image.mode in _GREY_MODES or image.mode.startswith("I;16")
        is_rotated = False
        if image.format != "PNG" or "exif" in image.info:  # otherwise a PNG would be decoded
            with contextlib.suppress(Exception):  # damaged EXIF leaves a picture readable
                is_rotated = image.getexif().get(_ORIENTATION, 1) != 1
        return Header(image.height, image.width, is_grey, image.has_transparency_data, is_rotated)


def size(encoded: bytes) -> tuple[int, int]:
    """Returns a picture's (height, width) from its header; raises UnreadableError."""
    stream = _stream(encoded)
    if stream is not None:
        return stream.height, stream.width
    with _open_image(encoded) as image:
        return image.height, image.width


def encoding(encoded: bytes) -> str:
    """Returns "JPEG", "PNG" or "unknown", from a picture's first bytes."""
    for name, magic in _MAGIC.items():
        if encoded.startswith(magic):
            return name
    return "unknown"


def is_rgb(encoded: bytes) -> bool:
    """Whether a picture is a JPEG of three channels, as most are."""
    stream = _stream(encoded)
    return stream is not None and stream.codec_name == "jpeg" and stream.num_channels == 3


def doubt(encoded: bytes) -> str:
    """Returns libjpeg's warning about a JPEG that decodes nonetheless; empty if there is none.

    Flipped bits in the middle of a file cause such a warning, or none. The check decodes the whole
    picture, so only experiments.shrink makes it.
    """
    if _stream(encoded) is None or encoding(encoded) != "JPEG":
        return ""
    try:
        simplejpeg.decode_jpeg(encoded, strict=True)
    except ValueError as e:
        return str(e)
    return ""


def decode(encoded: bytes, choose: Callable[[int, int], Box] | None = None) -> np.ndarray:
    """Decodes a picture, or only the box that `choose(height, width)` returns.

    Grey and CMYK become RGB; 16-bit pixels keep their upper 8 bits. Any format that Pillow knows is
    read.

    Returns:
      uint8 (H, W, 3).

    Raises:
      UnreadableError: the picture is truncated or in no known format.
    """
    stream = _stream(encoded)
    if stream is not None:
        source = stream
        if choose is not None:
            top, left, height, width = choose(stream.height, stream.width)
            region = _nvimgcodec().Region(top, left, top + height, left + width)
            source = stream.get_sub_code_stream(region=region)
        decoder, params = _local.decoder
        decoded = decoder.decode(source, params=params)
        if decoded is not None:
            return np.asarray(decoded)
    with _open_image(encoded) as image:
        try:
            pixels = _to_rgb(image)
        except (OSError, SyntaxError, ValueError) as e:
            raise UnreadableError(str(e)) from e
    if choose is None:
        return pixels
    box = choose(*pixels.shape[:2])
    return pixels[box.top : box.top + box.height, box.left : box.left + box.width]


def resize(
    image: np.ndarray, height: int, width: int, resample: str, into: np.ndarray | None = None
) -> np.ndarray:
    """Resizes uint8 (H, W, 3) to (height, width, 3), into the array `into` if it is given."""
    shrinking, enlarging = RESAMPLING[resample]
    shrinks = image.shape[0] >= height and image.shape[1] >= width
    return cv2.resize(
        image, (width, height), dst=into, interpolation=shrinking if shrinks else enlarging
    )


def _stream(encoded: bytes) -> "nvimgcodec.CodeStream | None":
    """Returns nvImageCodec's stream of a picture, or None if it cannot read the header."""
    if not hasattr(_local, "decoder"):
        _local.decoder = _make_decoder()
    try:
        stream = _nvimgcodec().CodeStream(encoded)
        return stream if stream.height else None  # .height reads the header
    except RuntimeError:
        return None


def _open_image(encoded: bytes) -> Image.Image:
    try:
        return Image.open(io.BytesIO(encoded))
    except UnidentifiedImageError:
        raise UnreadableError("it is not a picture in any known format") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as e:
        raise UnreadableError(str(e)) from e


def _to_rgb(image: Image.Image) -> np.ndarray:
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        # Pillow's convert() clips 16-bit grey at 255; of 16-bit colours it keeps the upper byte.
        grey = (np.asarray(image) >> 8).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=2)
    if image.mode in ("I", "F"):
        raise UnreadableError("its pixels are numbers of 32 bits, whose range is not known")
    return np.asarray(image.convert("RGB"))


def _make_decoder() -> "tuple[nvimgcodec.Decoder, nvimgcodec.DecodeParams]":
    """Returns a single-threaded decoder for this thread, and its parameters."""
    with _DECODER_LOCK:
        codec = _nvimgcodec()
        decoder = codec.Decoder(
            device_id=codec.NVIMGCODEC_DEVICE_CPU_ONLY,
            max_num_cpu_threads=1,
            backends=[codec.Backend(codec.BackendKind.CPU_ONLY)],
        )
    return decoder, codec.DecodeParams(apply_exif_orientation=False)


@functools.cache
def _nvimgcodec() -> types.ModuleType:
    # Silences errors that name no picture; Pillow tries those pictures next.
    os.environ.setdefault("PYNVIMGCODEC_VERBOSITY", "0")
    # Loads only one of its extensions: the others complain on stderr if CUDA is absent. Every new
    # decoder searches the folder, so it must outlive them all.
    folder = tempfile.mkdtemp(prefix="resnet_jax_")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    spec = importlib.util.find_spec("nvidia.nvimgcodec")
    for package in (spec.submodule_search_locations or []) if spec else []:
        for library in pathlib.Path(package).glob("extensions/*jpeg_turbo_ext*"):
            (pathlib.Path(folder) / library.name).symlink_to(library)
    os.environ["NVIMGCODEC_EXTENSIONS_PATH"] = folder
    from nvidia import nvimgcodec  # imported here because it reads these variables once

    return nvimgcodec
