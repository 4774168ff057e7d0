"""Encodes images as PNG, byte for byte as TensorFlow does when TFDS prepares a data set."""

import struct
import zlib

import cv2
import numpy as np

# libpng chooses each row's filter; the level is zlib's default.
_AS_LIBPNG = [
    cv2.IMWRITE_PNG_COMPRESSION, 6,
    cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_FILTERED,
    cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_ALL_FILTERS,
]  # fmt: skip
_LEVEL, _WINDOW, _MEMORY = 6, 15, 9
_HEADER = 33  # bytes before the pixels' chunk: signature and IHDR
_END = 12  # bytes of IEND
_LARGEST = 8192 - 512  # bytes of filtered pixels that surely fit one chunk, as libpng's do


def encode(image: np.ndarray) -> bytes:
    """Encodes one small image.

    OpenCV and TensorFlow both use libpng, so that filters and headers are equal. TensorFlow gives
    zlib more memory, which changes a few matches: the pixels are compressed again.

    Args:
      image: uint8 (H, W, 1) or (H, W, 3), RGB.

    Raises:
      ValueError: the image has so many pixels that libpng would split them.
    """
    if image.nbytes + len(image) > _LARGEST:
        raise ValueError(f"an image of {image.shape} is too large; allowed are {_LARGEST} bytes")
    bgr = image[..., ::-1] if image.shape[2] == 3 else image
    encoded = cv2.imencode(".png", bgr, _AS_LIBPNG)[1].tobytes()
    pixels = encoded[_HEADER + 8 : -_END - 4]
    compressor = zlib.compressobj(_LEVEL, zlib.DEFLATED, _WINDOW, _MEMORY, zlib.Z_FILTERED)
    again = compressor.compress(zlib.decompress(pixels)) + compressor.flush()
    # The first two bytes state the window that libpng found sufficient.
    chunk = b"IDAT" + pixels[:2] + again[2:]
    length = struct.pack(">I", len(chunk) - 4)
    return (
        encoded[:_HEADER] + length + chunk + struct.pack(">I", zlib.crc32(chunk)) + encoded[-_END:]
    )
