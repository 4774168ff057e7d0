"""From an encoded picture to pixels: decoded where it is needed, resized.

nvImageCodec decodes on the CPU (it is libjpeg-turbo, and can leave out what lies outside a box);
what it cannot read, Pillow is asked to. Both release the GIL, so threads do the work. A picture is
taken as it is stored: EXIF rotations are ignored, as TensorFlow and torchvision do.
"""

import atexit
import functools
import importlib.util
import io
import os
import pathlib
import shutil
import tempfile
import threading
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError

from resnet_jax.data.crops import Box

RESAMPLING = {
    "bilinear": (cv2.INTER_LINEAR, cv2.INTER_LINEAR),
    "bicubic": (cv2.INTER_CUBIC, cv2.INTER_CUBIC),
    # Averages where it shrinks, which alone avoids aliasing; has no meaning where it enlarges.
    "area": (cv2.INTER_AREA, cv2.INTER_LINEAR),
}
_MAGIC = {"JPEG": b"\xff\xd8\xff", "PNG": b"\x89PNG\r\n\x1a\n"}
cv2.setNumThreads(1)  # whoever resizes has as many threads as there are cores already
_START = threading.Lock()
_local = threading.local()


class UnreadableError(Exception):
    """A picture that nothing can decode; says why."""


def size(encoded: bytes) -> tuple[int, int]:
    """Returns a picture's (height, width) from its header; raises UnreadableError."""
    stream = _stream(encoded)
    if stream is not None:
        return stream.height, stream.width
    with _open(encoded) as image:
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
    """Returns what libjpeg finds wrong with a JPEG that it decodes all the same; empty if nothing.

    A bit that fell over in the middle shows so, or not at all. It takes a whole decoding, which
    only experiments.prepare pays for.
    """
    if _stream(encoded) is None or encoding(encoded) != "JPEG":
        return ""
    try:
        simplejpeg.decode_jpeg(encoded, strict=True)
    except ValueError as e:
        return str(e)
    return ""


def decode(encoded: bytes, choose: Callable[[int, int], Box] | None = None) -> np.ndarray:
    """Decodes a picture, or the box of it that `choose(height, width)` names.

    Grey and CMYK pictures become RGB, of 16 bits the upper 8 are kept; other formats than JPEG are
    read, too.

    Returns:
      uint8 (H, W, 3).

    Raises:
      UnreadableError: the picture is cut short or not a picture.
    """
    stream = _stream(encoded)
    if stream is not None:
        wanted = stream
        if choose is not None:
            top, left, height, width = choose(stream.height, stream.width)
            region = _nvimgcodec().Region(top, left, top + height, left + width)
            wanted = stream.get_sub_code_stream(region=region)
        decoder, params = _local.decoder
        decoded = decoder.decode(wanted, params=params)
        if decoded is not None:
            return np.asarray(decoded)
    with _open(encoded) as image:
        try:
            whole = _to_rgb(image)
        except (OSError, SyntaxError, ValueError) as e:
            raise UnreadableError(str(e)) from e
    if choose is None:
        return whole
    box = choose(*whole.shape[:2])
    return whole[box.top : box.top + box.height, box.left : box.left + box.width]


def resize(image: np.ndarray, height: int, width: int, resample: str, into: Any = None) -> Any:
    """Resizes uint8 (H, W, 3) to (height, width, 3), into an array where one is given."""
    shrinking, enlarging = RESAMPLING[resample]
    shrinks = image.shape[0] >= height and image.shape[1] >= width
    return cv2.resize(
        image, (width, height), dst=into, interpolation=shrinking if shrinks else enlarging
    )


def _stream(encoded: bytes) -> Any:
    """Returns nvImageCodec's view of a picture, or None where it cannot even read the header."""
    if not hasattr(_local, "decoder"):
        _local.decoder = _make_decoder()
    try:
        stream = _nvimgcodec().CodeStream(encoded)
        return stream if stream.height else None  # the header is read when it is first asked for
    except RuntimeError:
        return None


def _open(encoded: bytes) -> Image.Image:
    try:
        return Image.open(io.BytesIO(encoded))
    except UnidentifiedImageError:
        raise UnreadableError("it is not a picture in any known format") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as e:
        raise UnreadableError(str(e)) from e


def _to_rgb(image: Image.Image) -> np.ndarray:
    """Returns a picture that Pillow has opened, uint8 (H, W, 3); raises UnreadableError."""
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        # Pillow's convert() would clip at 255. Of 16 bits a colour it keeps the upper byte itself.
        grey = (np.asarray(image) >> 8).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=2)
    if image.mode in ("I", "F"):
        raise UnreadableError("its pixels are numbers of 32 bits, whose range is not known")
    return np.asarray(image.convert("RGB"))


def _make_decoder() -> tuple[Any, Any]:
    """Returns a decoder of this thread's own, which starts no threads, and its parameters."""
    with _START:
        codec = _nvimgcodec()
        decoder = codec.Decoder(
            device_id=codec.NVIMGCODEC_DEVICE_CPU_ONLY,
            max_num_cpu_threads=1,
            backends=[codec.Backend(codec.BackendKind.CPU_ONLY)],
        )
    return decoder, codec.DecodeParams(apply_exif_orientation=False)


@functools.cache
def _nvimgcodec() -> Any:
    # What it fails at, Pillow tries next; what it says meanwhile names no picture.
    os.environ.setdefault("PYNVIMGCODEC_VERBOSITY", "0")
    # Of its extensions only this one: the others complain on stderr that CUDA is absent. It looks
    # for them at each decoder, so the folder stays as long as the process.
    folder = tempfile.mkdtemp(prefix="resnet_jax_")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    spec = importlib.util.find_spec("nvidia.nvimgcodec")
    for package in (spec.submodule_search_locations or []) if spec else []:
        for library in pathlib.Path(package).glob("extensions/*jpeg_turbo_ext*"):
            (pathlib.Path(folder) / library.name).symlink_to(library)
    os.environ["NVIMGCODEC_EXTENSIONS_PATH"] = folder
    from nvidia import nvimgcodec  # here: it reads these variables once

    return nvimgcodec
