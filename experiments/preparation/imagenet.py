"""Reads ImageNet's two tar files as they are: pictures are found once and read in place."""

import functools
import io
import os
import pathlib
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import simplejpeg
from PIL import Image

from experiments.preparation import archives
from experiments.preparation.writer import Split, record
from resnet_jax.errors import UserError
from resnet_jax.runs.progress import Bars

_LARGEST = 256 << 20  # bytes of one picture; ImageNet's largest has 15 MB
_CLASSES = 1000


class _Picture(NamedTuple):
    name: str
    label: int
    first: int  # its first byte in the archive
    size: int  # bytes


def read(paths: Mapping[str, pathlib.Path]) -> list[Split]:
    """Finds the pictures of both archives, given by their published names."""
    return [_train(paths["ILSVRC2012_img_train.tar"]), _validation(paths["ILSVRC2012_img_val.tar"])]


def _train(path: pathlib.Path) -> Split:
    """Finds the pictures of ILSVRC2012_img_train.tar, which has a tar file per class."""
    synsets = {synset: label for label, synset in enumerate(_lines("labels.txt"))}
    pictures = []
    with Bars() as bars:
        task = bars.add_task("classes", total=_CLASSES, figures="")
        for outer in archives.members(path):
            synset = outer.name.removesuffix(".tar")
            if synset not in synsets:
                raise UserError(f"{path}: {outer.name} is not the tar file of one of its classes.")
            start = outer.offset_data
            for inner in archives.members(path, start, start + outer.size):
                if not inner.name.startswith(f"{synset}_"):
                    raise UserError(f"{path}: {inner.name} does not belong in {outer.name}.")
                pictures.append(
                    _Picture(inner.name, synsets[synset], inner.offset_data, inner.size)
                )
            bars.advance(task, 1)
            bars.draw()
    return _split("train", path, pictures)


def _validation(path: pathlib.Path) -> Split:
    """Finds the pictures of ILSVRC2012_img_val.tar; TFDS has their labels, by number."""
    synsets = {synset: label for label, synset in enumerate(_lines("labels.txt"))}
    labels = {
        f"ILSVRC2012_val_{number:08d}.JPEG": synsets[synset]
        for number, synset in enumerate(_lines("validation_labels.txt"), start=1)
    }
    pictures = []
    for member in archives.members(path):
        if member.name not in labels:
            raise UserError(f"{path}: {member.name} is not a picture of this split.")
        pictures.append(_Picture(member.name, labels[member.name], member.offset_data, member.size))
    return _split("validation", path, pictures)


def _split(name: str, path: pathlib.Path, pictures: list[_Picture]) -> Split:
    names = [picture.name for picture in pictures]
    if not names:
        raise UserError(f"{path} holds no picture.")
    if len(set(names)) < len(names):
        raise UserError(f"{path} holds a picture twice.")
    for picture in pictures:
        if picture.size > _LARGEST:
            raise UserError(f"{path}: {picture.name} has {picture.size:,} bytes.")
    handle = os.open(path, os.O_RDONLY)

    def stored(number: int) -> bytes:
        picture = pictures[number]
        encoded = os.pread(handle, picture.size, picture.first)
        return _record(picture, _as_rgb_jpeg(picture.name, encoded, path))

    # Only the size of a picture matters for that of its record, unless it is converted.
    sizes = [
        len(stored(n) if p.name in _converted() else _record(p, bytes(p.size)))
        for n, p in enumerate(pictures)
    ]
    return Split(name, names, sizes, stored)


def _record(picture: _Picture, encoded: bytes) -> bytes:
    return record({"file_name": picture.name, "image": encoded, "label": picture.label})


def _as_rgb_jpeg(name: str, encoded: bytes, path: pathlib.Path) -> bytes:
    """Converts the few pictures that are CMYK or PNG, as TFDS does: with quality 100."""
    if name not in _converted():
        return encoded
    try:
        with Image.open(io.BytesIO(encoded)) as image:
            is_cmyk, is_adobe = image.mode == "CMYK", "adobe" in image.info
            pixels = np.asarray(image.convert("RGB"))
        if is_cmyk:  # with TensorFlow's fast transform and its formula
            inks = simplejpeg.decode_jpeg(encoded, colorspace="CMYK", fastdct=True).astype(int)
            inks = inks if is_adobe else 255 - inks  # Adobe's JPEGs store the light
            pixels = (inks[..., :3] * inks[..., 3:] // 255).astype(np.uint8)
    except (OSError, SyntaxError, ValueError) as e:
        raise UserError(f"{path}: {name} cannot be decoded ({e}).") from e
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=100, subsampling="4:2:0", dpi=(300, 300))
    return buffer.getvalue()


@functools.cache
def _converted() -> frozenset[str]:
    from tensorflow_datasets.datasets.imagenet2012 import imagenet2012_dataset_builder as builder

    return frozenset([*builder.CMYK_IMAGES, *builder.PNG_IMAGES])


def _lines(file: str) -> list[str]:
    """Returns the lines of a text that TFDS ships."""
    import tensorflow_datasets as tfds

    return tfds.core.tfds_path(f"datasets/imagenet2012/{file}").read_text(encoding="utf-8").split()
