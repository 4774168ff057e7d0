"""Every kind of picture decodes to Pillow's pixels, whole or a box; broken ones raise errors."""

import io
import subprocess
import sys
import threading

import cv2
import numpy as np
import pytest
from PIL import Image

from resnet_jax.data import jpeg
from resnet_jax.data.crops import Box
from tests.data import pictures

IMAGE = pictures.paint(0, 70, 90)
TURNED = Image.Exif()
TURNED[0x112] = 6  # a rotation by 90 degrees, which is ignored
KINDS = {
    "4:2:0": pictures.encode(IMAGE, subsampling="4:2:0"),
    "4:4:4": pictures.encode(IMAGE, subsampling="4:4:4"),
    "progressive": pictures.encode(IMAGE, progressive=True),
    "grey": pictures.encode(IMAGE, "L"),
    "CMYK": pictures.encode(IMAGE, "CMYK"),
    "turned": pictures.encode(IMAGE, exif=TURNED),
    "PNG": pictures.encode(IMAGE, kind="PNG"),
    "grey PNG": pictures.encode(IMAGE, "L", kind="PNG"),
    "palette GIF": pictures.encode(IMAGE, "P", kind="GIF"),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("box", [None, Box(0, 0, 70, 90), Box(11, 23, 30, 41), Box(69, 89, 1, 1)])
def test_pixels_are_pillows(kind, box):
    wanted = np.asarray(Image.open(io.BytesIO(KINDS[kind])).convert("RGB"))
    sizes = []

    def choose(height, width):
        sizes.append((height, width))
        return box

    result = jpeg.decode(KINDS[kind], choose if box else None)
    if box:
        assert set(sizes) == {(70, 90)}
        wanted = wanted[box.top : box.top + box.height, box.left : box.left + box.width]
    assert result.dtype == np.uint8
    assert result.shape == wanted.shape
    difference = np.abs(result.astype(int) - wanted)
    if box is None or kind != "4:2:0":
        assert difference.max() == 0
    else:  # at a box's edge, chroma is interpolated without the neighbours outside it
        assert difference.mean() < 2
    assert jpeg.size(KINDS[kind]) == (70, 90)


BROKEN = {
    "half": KINDS["4:2:0"][: len(KINDS["4:2:0"]) // 2],
    "header": KINDS["4:2:0"][:30],
    "half a PNG": KINDS["PNG"][:2000],
    "nothing": b"",
    "text": b"no picture at all" * 100,
}


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_pictures_raise_an_error_with_a_reason(kind):
    with pytest.raises(jpeg.UnreadableError, match=r"\w+"):
        jpeg.decode(BROKEN[kind])
    with pytest.raises(jpeg.UnreadableError, match=r"\w+"):
        jpeg.decode(BROKEN[kind], lambda height, width: Box(0, 0, height, width))


def test_doubt_reports_libjpegs_warnings():
    assert {kind: jpeg.doubt(encoded) for kind, encoded in KINDS.items()} == dict.fromkeys(
        KINDS, ""
    )
    middle = len(KINDS["4:4:4"]) // 2
    lacking = KINDS["4:4:4"][:middle] + KINDS["4:4:4"][middle + 100 :]
    assert jpeg.decode(lacking).shape == (70, 90, 3)
    assert "Corrupt JPEG data" in jpeg.doubt(lacking)
    assert "Premature end" in jpeg.doubt(KINDS["4:4:4"][:-2])


DEEP = np.arange(70 * 90, dtype=np.uint32).reshape(70, 90).astype(np.uint16) * 10


def deep(kind, image=DEEP):
    """Encodes an image of more than 8 bits per pixel."""
    written = io.BytesIO()
    Image.fromarray(image).save(written, kind)
    return written.getvalue()


@pytest.mark.parametrize(
    "encoded",
    [deep("PNG"), deep("TIFF"), deep("TIFF", DEEP.astype(">u2")), deep("PPM")],
    ids=["PNG", "TIFF", "big-endian TIFF", "PGM"],
)
def test_16_bit_grey_keeps_its_upper_8_bits_as_colour_does(encoded):
    colour = cv2.imencode(".png", np.stack([DEEP] * 3, axis=-1))[1].tobytes()
    wanted = jpeg.decode(colour)
    assert len(np.unique(wanted)) > 200
    np.testing.assert_array_equal(jpeg.decode(encoded), wanted)
    np.testing.assert_array_equal(wanted[..., 0], DEEP >> 8)


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_32_bit_pixels_are_refused(dtype):
    with pytest.raises(jpeg.UnreadableError, match="range is not known"):
        jpeg.decode(deep("TIFF", DEEP.astype(dtype)))


def test_is_rgb():
    others = {kind for kind, encoded in KINDS.items() if not jpeg.is_rgb(encoded)}
    assert others == {"grey", "CMYK", "PNG", "grey PNG", "palette GIF"}
    assert not jpeg.is_rgb(b"text")


def test_threads_decode_in_parallel():
    wanted = jpeg.decode(KINDS["4:4:4"])
    failed_threads = []

    def work():
        for _ in range(50):
            if not np.array_equal(jpeg.decode(KINDS["4:4:4"]), wanted):
                failed_threads.append(threading.get_ident())

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed_threads


@pytest.mark.parametrize("resample", jpeg.RESAMPLING)
def test_resizing_gives_the_size_and_keeps_a_plain_colour(resample):
    plain = np.full((50, 70, 3), (10, 100, 200), np.uint8)
    for height, width in ((20, 30), (100, 100), (20, 100)):
        result = jpeg.resize(plain, height, width, resample)
        assert result.shape == (height, width, 3)
        assert (result == (10, 100, 200)).all()


def test_area_averages_and_bilinear_does_not():
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3)).astype(np.uint8)
    mean = noise.reshape(10, 4, 10, 4, 3).mean((1, 3))
    assert np.abs(jpeg.resize(noise, 10, 10, "area") - mean).max() <= 0.5
    assert np.abs(jpeg.resize(noise, 10, 10, "bilinear") - mean).max() > 20
    edge = np.repeat(np.array([0, 255], np.uint8), 8)[None, :, None].repeat(8, 0).repeat(3, 2)
    overshoots = jpeg.resize(255 - edge // 2, 16, 32, "bicubic")
    assert overshoots.min() < 128 <= jpeg.resize(255 - edge // 2, 16, 32, "bilinear").min()


def test_decoding_prints_nothing_on_a_machine_without_cuda():
    code = (
        "from resnet_jax.data import jpeg; from tests.data import test_jpeg as t;"
        "import threading;"
        "work = lambda: jpeg.decode(t.KINDS['4:4:4']);"
        "thread = threading.Thread(target=work); thread.start(); thread.join(); work()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
