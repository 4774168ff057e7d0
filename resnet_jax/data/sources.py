"""Where images come from: scikit-learn's digits, and TFDS data prepared as array_record.

To add a TFDS set, add a line to KNOWN; nothing else names a data set.
"""

import dataclasses
import os
import pathlib
from typing import Any

import numpy as np

from resnet_jax.data import jpeg
from resnet_jax.data.order import DIGITS_SPLIT, stream
from resnet_jax.data.records import Records, examples, read_info
from resnet_jax.errors import UserError, check_choice
from resnet_jax.runs import reader, storage


@dataclasses.dataclass(frozen=True)
class Facts:
    """What is known of a data set before it is read.

    Attributes:
      image_shape: (H, W, C); of what the network usually sees where pictures differ in size.
      num_classes: labels run from 0 to num_classes - 1.
      train: examples in the training split, validation included.
      test: examples in the test split.
      mirrored_keeps_class: whether a horizontal flip leaves the class as it is.
      resident: whether the whole set fits on a device; what does not is streamed.
      test_split: what TFDS calls the split that errors are reported on.
      channels: mean and standard deviation of each channel, where they are not measured.
    """

    image_shape: tuple[int, int, int]
    num_classes: int
    train: int
    test: int
    mirrored_keeps_class: bool
    resident: bool = True
    test_split: str = "test"
    channels: tuple[tuple[float, ...], tuple[float, ...]] = ((), ())


# Sizes as published; sizes of what lies on this machine are read from its metadata.
KNOWN = {
    "digits": Facts((8, 8, 1), 10, 1437, 360, mirrored_keeps_class=False),
    "cifar10": Facts((32, 32, 3), 10, 50000, 10000, mirrored_keeps_class=True),
    "cifar100": Facts((32, 32, 3), 100, 50000, 10000, mirrored_keeps_class=True),
    "mnist": Facts((28, 28, 1), 10, 60000, 10000, mirrored_keeps_class=False),
    "fashion_mnist": Facts((28, 28, 1), 10, 60000, 10000, mirrored_keeps_class=True),
    "svhn_cropped": Facts((32, 32, 3), 10, 73257, 26032, mirrored_keeps_class=False),
    "imagenet2012": Facts(
        (224, 224, 3),
        1000,
        1281167,
        50000,
        mirrored_keeps_class=True,
        resident=False,
        # The labels of its test split are not public: all papers report the validation split.
        test_split="validation",
        # Of the training split; the numbers that everybody uses, in [0, 255].
        channels=((123.675, 116.28, 103.53), (58.395, 57.12, 57.375)),
    ),
}
# TFDS stores these losslessly; where a copy holds JPEGs, its errors are not the paper's.
_LOSSLESS = ("cifar10", "cifar100", "mnist", "fashion_mnist", "svhn_cropped")
_DIGITS_TEST = 360
PREPARED = "prepared.json"  # in the folder of a copy that experiments.prepare has made


@dataclasses.dataclass(frozen=True)
class Source:
    """A data set in host memory: images uint8 (N, H, W, C), labels int32 (N,)."""

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    version: str  # TFDS's; empty for digits
    note: str  # what a reader of its errors must know; empty if there is nothing


def facts(name: str, data_dir: str) -> Facts:
    """Returns what is known of a set, its sizes read from `data_dir` if it lies there.

    Raises:
      UserError: there is no such data set, or what lies there is not whole.
    """
    check_choice("data.name", name, KNOWN)
    known = KNOWN[name]
    folder = None if name == "digits" else _folder(name, data_dir)
    if folder is None:
        return known
    info = read_info(folder)
    train, test = (examples(info, split) for split in splits_of(name))
    return dataclasses.replace(known, train=train, test=test)


def image_shape(config: Any) -> tuple[int, int, int]:
    """Returns the (H, W, C) that the network sees, of a resolved config's `data` section."""
    return config.image_size, config.image_size, KNOWN[config.name].image_shape[2]


def require(name: str, data_dir: str) -> None:
    """Raises UserError, with the command that prepares it, unless the data set is there."""
    check_choice("data.name", name, KNOWN)
    if name == "digits" or _folder(name, data_dir):
        return
    root = root_of(data_dir)
    raise UserError(
        f"data.dir={str(root)!r} holds no {name} in TFDS's array_record form; where the network "
        "reaches its source, prepare it with: pip install tensorflow importlib_resources && "
        f"python -c \"import tensorflow_datasets as tfds; tfds.builder('{name}', "
        f"data_dir='{root}', file_format='array_record').download_and_prepare()\"."
    )


def load(name: str, data_dir: str) -> Source:
    """Reads a whole set into host memory; no TensorFlow is imported.

    Raises:
      UserError: the set is absent, is not whole, or is too large to be resident.
      RunError: a record of it is broken, or is none of this set.
    """
    require(name, data_dir)
    if name == "digits":
        return _digits()
    known = KNOWN[name]
    if not known.resident:
        raise UserError(f"data.name={name!r} is too large to be read whole.")
    folder = _required_folder(name, data_dir)
    arrays: dict[str, Any] = {}
    encodings = set()
    for key, split in zip(("train", "test"), splits_of(name), strict=True):
        records = Records(folder, split, known.num_classes)
        images = np.empty((len(records), *known.image_shape), np.uint8)
        labels = np.empty(len(records), np.int32)
        for number in range(len(records)):
            record = records[number]
            labels[number] = record.label
            encodings.add(jpeg.encoding(record.image))
            try:
                images[number] = _pixels(record.image, known.image_shape)
            except jpeg.UnreadableError as e:
                raise records.error(number, f"its picture cannot be used ({e})") from e
        arrays |= {f"{key}_images": images, f"{key}_labels": labels}
    return Source(**arrays, version=records.version, note=_note(name, encodings))


def _pixels(encoded: bytes, shape: tuple[int, int, int]) -> np.ndarray:
    """Decodes an image of a resident set; raises UnreadableError unless it is of `shape`."""
    image = jpeg.decode(encoded)
    if image.shape[:2] != shape[:2]:
        height, width = image.shape[:2]
        raise jpeg.UnreadableError(
            f"it has {height} x {width} pixels; those of the set have {shape[0]} x {shape[1]}"
        )
    if shape[2] == 1 and (image != image[..., :1]).any():
        raise jpeg.UnreadableError("it is in colour; those of the set are grey")
    return image[..., : shape[2]]


def open_records(name: str, data_dir: str) -> tuple[Records, Records, str]:
    """Opens a streamed set's (training, test) records; and what a reader of its errors must know.

    Raises:
      UserError: the set is absent or is not whole.
    """
    folder = _required_folder(name, data_dir)
    classes = KNOWN[name].num_classes
    train, test = (Records(folder, split, classes) for split in splits_of(name))
    return train, test, reader.read_json(folder / PREPARED).get("note", "")


def describe(name: str, data_dir: str) -> tuple[pathlib.Path, dict[str, Any]]:
    """Returns the folder where a set lies, and its dataset_info.json; see require()."""
    folder = _required_folder(name, data_dir)
    return folder, reader.read_json(folder / "dataset_info.json")


def splits_of(name: str) -> tuple[str, str]:
    """Returns what TFDS calls the splits that are trained and tested on."""
    return "train", KNOWN[name].test_split


def root_of(data_dir: str) -> pathlib.Path:
    """Returns the TFDS root: `data_dir`, else TFDS_DATA_DIR, else TFDS's own default."""
    if data_dir:
        return storage.on_disk(data_dir, "data.dir").absolute()
    root = os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    return storage.on_disk(root, "TFDS_DATA_DIR").absolute()


def _folder(name: str, data_dir: str) -> pathlib.Path | None:
    """Returns the folder of the newest version that lies under the root, or None."""
    versions = []
    for info in (root_of(data_dir) / name).glob("*/dataset_info.json"):
        number = info.parent.name.split(".")
        if all(part.isdigit() for part in number):
            versions.append((tuple(map(int, number)), info.parent))
    return max(versions)[1] if versions else None


def _required_folder(name: str, data_dir: str) -> pathlib.Path:
    require(name, data_dir)
    folder = _folder(name, data_dir)
    assert folder is not None  # require() saw it
    return folder


def _note(name: str, encodings: set[str]) -> str:
    """Returns what the encodings of a set's images say about its pixels."""
    if name not in _LOSSLESS or encodings == {"PNG"}:
        return ""
    if "JPEG" in encodings:
        return (
            f"JPEG copies of {name}'s images: errors run above those on the original pixels, "
            "which published numbers are for"
        )
    return (
        f"{name}'s images are neither PNG nor JPEG: whether their pixels are the original ones is "
        "unknown"
    )


def _digits() -> Source:
    from sklearn.datasets import load_digits  # here: a second that other sets need not pay

    digits = load_digits()
    images = digits.images.astype(np.uint8)[..., None]  # 0..16
    labels = digits.target.astype(np.int32)
    # The set comes in the writers' order. A split by writer would be another, harder task; this one
    # is random, and always the same.
    order = stream(DIGITS_SPLIT, 0).permutation(len(images))
    test, train = order[:_DIGITS_TEST], order[_DIGITS_TEST:]
    return Source(images[train], labels[train], images[test], labels[test], version="", note="")
