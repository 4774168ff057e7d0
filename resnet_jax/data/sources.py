"""Where images come from: scikit-learn's digits, and TFDS data prepared as array_record.

To add a TFDS set, add a line to KNOWN; nothing else names a data set.
"""

import dataclasses
import json
import os
import pathlib
from typing import Any

import numpy as np

from resnet_jax.data.order import DIGITS_SPLIT, stream
from resnet_jax.data.records import Records, data_source
from resnet_jax.errors import UserError, check_choice


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
    note: str  # what a reader of its errors must know; empty where there is nothing


def facts(name: str, data_dir: str) -> Facts:
    """Returns what is known of a set, its sizes read from `data_dir` where it lies there.

    Raises:
      UserError: no such data set.
    """
    check_choice("data.name", name, KNOWN)
    known = KNOWN[name]
    folder = None if name == "digits" else _folder(name, data_dir)
    if folder is None:
        return known
    splits = _builder(folder).info.splits
    names = {"train": "train", "test": known.test_split}
    sizes = {key: splits[name].num_examples for key, name in names.items() if name in splits}
    return dataclasses.replace(known, **sizes)


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
      UserError: the set is absent, is not in array_record form, or is too large to be resident.
    """
    require(name, data_dir)
    if name == "digits":
        return _digits()
    if not KNOWN[name].resident:
        raise UserError(f"data.name={name!r} is too large to be read whole.")
    builder = _builder(_required_folder(name, data_dir))
    arrays: dict[str, Any] = {}
    for split in ("train", "test"):
        records = data_source(builder, split)
        # Filled in pieces: a list of 60,000 dictionaries would take several times as much.
        images = np.empty((len(records), *KNOWN[name].image_shape), np.uint8)
        labels = np.empty(len(records), np.int32)
        piece = 1000
        for start in range(0, len(records), piece):
            stop = min(start + piece, len(records))
            for i, record in enumerate(records.__getitems__(range(start, stop)), start=start):
                images[i] = record["image"]
                labels[i] = record["label"]
        arrays |= {f"{split}_images": images, f"{split}_labels": labels}
    return Source(**arrays, note=_note(name, builder))


def open_records(name: str, data_dir: str) -> tuple[Records, Records, str]:
    """Opens a streamed set's (training, test) records; and what a reader of its errors must know.

    Raises:
      UserError: the set is absent or is not in array_record form.
    """
    folder = _required_folder(name, data_dir)
    builder = _builder(folder)
    return (
        Records(builder, "train"),
        Records(builder, KNOWN[name].test_split),
        _read_prepared(folder).get("note", ""),
    )


def describe(name: str, data_dir: str) -> tuple[pathlib.Path, dict[str, Any]]:
    """Returns the folder where a set lies, and its dataset_info.json; see require()."""
    folder = _required_folder(name, data_dir)
    return folder, json.loads((folder / "dataset_info.json").read_text(encoding="utf-8"))


def splits_of(name: str) -> tuple[str, str]:
    """Returns what TFDS calls the splits that are trained and tested on."""
    return "train", KNOWN[name].test_split


def shards(folder: pathlib.Path, split: str) -> list[tuple[pathlib.Path, Any]]:
    """Returns each file of a split and what reads its records, encoded, by number."""
    from array_record.python.array_record_data_source import ArrayRecordDataSource

    paths = _builder(folder).info.splits[split].filepaths
    return [(pathlib.Path(path), ArrayRecordDataSource([str(path)])) for path in paths]


def _read_prepared(folder: pathlib.Path) -> dict[str, Any]:
    """Returns what experiments.prepare says of a copy; empty for a set as TFDS made it."""
    path = folder / PREPARED
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def root_of(data_dir: str) -> pathlib.Path:
    """Returns the TFDS root: `data_dir`, else TFDS_DATA_DIR, else TFDS's own default."""
    root = data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    return pathlib.Path(root).expanduser().absolute()


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


def _builder(folder: pathlib.Path) -> Any:
    import tensorflow_datasets as tfds  # here: half a second that digits need not pay

    return tfds.builder_from_directory(folder)


def _note(name: str, builder: Any) -> str:
    encoding = getattr(builder.info.features["image"], "_encoding_format", None)
    if name in _LOSSLESS and encoding == "jpeg":
        return (
            f"JPEG copies of {name}'s images: errors run above those on the original pixels, "
            "which published numbers are for"
        )
    return ""


def _digits() -> Source:
    from sklearn.datasets import load_digits  # here: a second that other sets need not pay

    digits = load_digits()
    images = digits.images.astype(np.uint8)[..., None]  # 0..16
    labels = digits.target.astype(np.int32)
    # The set comes in the writers' order. A split by writer would be another, harder task; this one
    # is random, and always the same.
    order = stream(DIGITS_SPLIT, 0).permutation(len(images))
    test, train = order[:_DIGITS_TEST], order[_DIGITS_TEST:]
    return Source(images[train], labels[train], images[test], labels[test], note="")
