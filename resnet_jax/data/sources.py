"""Finds and loads data sets: scikit-learn's digits, and TFDS sets prepared as array_record."""

import dataclasses
import os
import pathlib
from collections.abc import Sequence

import numpy as np
from ml_collections import ConfigDict

from resnet_jax.allowed import check_choice
from resnet_jax.data import arrays
from resnet_jax.data.order import DIGITS_SPLIT, stream
from resnet_jax.data.records import Records, examples, read_info
from resnet_jax.data.sets import DATA_SETS, Facts, splits_of
from resnet_jax.errors import EXTRAS, UserError, require_packages
from resnet_jax.runs import storage
from resnet_jax.runs.storage import read_json

# TFDS stores these losslessly; errors on a JPEG copy are not comparable with the paper's.
_LOSSLESS = ("cifar10", "cifar100", "mnist", "fashion_mnist", "svhn_cropped")
_DIGITS_TEST = 360
_WITHOUT_FOLDER = ("digits", "arrays")
# In the folder of a copy that differs from the published data set, with a note about it; written by
# experiments.prepare and experiments.shrink.
PREPARED = "prepared.json"


@dataclasses.dataclass(frozen=True)
class Source:
    """A data set in host memory: images uint8 (N, H, W, C), labels int32 (N,)."""

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    version: str  # TFDS's; empty for other sets
    note: str  # a caveat for readers of its errors, or empty

    def of_classes(self, classes: Sequence[int]) -> "Source":
        """Returns the examples with these labels, renumbered from 0; all of them for ()."""
        if not classes:
            return self
        numbers = np.full(1 + max(*classes, self.train_labels.max()), -1, np.int32)
        numbers[list(classes)] = np.arange(len(classes))
        train, test = numbers[self.train_labels], numbers[self.test_labels]
        return dataclasses.replace(
            self,
            train_images=self.train_images[train >= 0],
            train_labels=train[train >= 0],
            test_images=self.test_images[test >= 0],
            test_labels=test[test >= 0],
        )


def facts(name: str, data_dir: str) -> Facts:
    """Returns a set's facts, with the sizes of the copy under `data_dir`, if there is one.

    Raises:
      UserError: the name is unknown, or the copy is broken; or there is none, and only it knows.
    """
    check_choice("data.name", name, DATA_SETS)
    known = DATA_SETS[name]
    if name == "arrays":
        return arrays.facts(known, data_dir)
    folder = None if name == "digits" else _folder(name, data_dir)
    if folder is None:
        if not known.num_classes:
            require(name, data_dir)
        return known
    _require_packages(name)
    info = read_info(folder)
    train, test = (examples(info, split) for split in splits_of(name))
    classes = known.num_classes or info.features["label"].num_classes
    return dataclasses.replace(known, train=train, test=test, num_classes=classes)


def class_names(data: ConfigDict, logits: int) -> list[str]:
    """Returns the name of the class of each logit, or its label in the set if names are unknown.

    Args:
      data: the `data` section of a resolved config.
      logits: how many the network has; "unused" is the name of those without a class.
    """
    file = _names_file(data)
    names = file.read_text(encoding="utf-8").splitlines() if file else []
    labels = tuple(data.classes) or range(len(names) or logits)
    known = [names[label] if label < len(names) else str(label) for label in labels][:logits]
    return known + ["unused"] * (logits - len(known))


def has_names(data: ConfigDict) -> bool:
    """Whether the copy of a set on this machine has the names of its classes."""
    return _names_file(data) is not None


def _names_file(data: ConfigDict) -> pathlib.Path | None:
    folder = None if data.name in _WITHOUT_FOLDER else _folder(data.name, data.dir)
    file = folder / "label.labels.txt" if folder else None  # TFDS's
    return file if file and file.is_file() else None


def require(name: str, data_dir: str) -> None:
    """Raises UserError unless the data set and the packages that read it are present.

    The message has the command that prepares the set or installs the packages.
    """
    if name == "arrays":
        arrays.facts(DATA_SETS[name], data_dir)
    elif name != "digits":
        _required_folder(name, data_dir)


def _require_packages(name: str) -> None:
    require_packages(EXTRAS["tfds"] + EXTRAS["jpeg"], f"data.name={name!r}")


def read_set(name: str, data_dir: str) -> Source:
    """Reads a whole set into host memory, without TensorFlow.

    Raises:
      UserError: the set is missing, broken or too large to be resident.
      RunError: a record is broken or does not fit the set.
    """
    if name == "digits":
        return _digits()
    if name == "arrays":
        return Source(**arrays.read(data_dir), version="", note="")
    folder = _required_folder(name, data_dir)
    known = DATA_SETS[name]
    if not known.resident:
        raise UserError(f"data.name={name!r} is too large to load into memory.")
    from resnet_jax.data import jpeg  # imported here: digits need no decoder

    parts: dict[str, np.ndarray] = {}
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
                raise records.error(number, f"its image cannot be used ({e})") from e
        parts |= {f"{key}_images": images, f"{key}_labels": labels}
    note = _prepared_note(folder) or _note(name, encodings)
    return Source(**parts, version=records.version, note=note)


def _pixels(encoded: bytes, shape: tuple[int, int, int]) -> np.ndarray:
    """Decodes an image of a resident set; raises UnreadableError unless it has `shape`."""
    from resnet_jax.data import jpeg  # imported here: digits need no decoder

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
    """Returns a streamed set's training records, test records and note (see Source).

    Raises:
      UserError: the set is missing or broken.
    """
    folder = _required_folder(name, data_dir)
    classes = facts(name, data_dir).num_classes
    train, test = (Records(folder, split, classes) for split in splits_of(name))
    return train, test, _prepared_note(folder)


def _prepared_note(folder: pathlib.Path) -> str:
    return read_json(folder / PREPARED).get("note", "")


def folder_and_info(name: str, data_dir: str) -> tuple[pathlib.Path, storage.Json]:
    """Returns a set's folder and its dataset_info.json; raises as require()."""
    folder = _required_folder(name, data_dir)
    return folder, read_json(folder / "dataset_info.json")


def root_of(data_dir: str) -> pathlib.Path:
    """Returns the TFDS root: `data_dir`, else TFDS_DATA_DIR, else TFDS's own default."""
    if data_dir:
        return storage.on_disk(data_dir, "data.dir").absolute()
    root = os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    return storage.on_disk(root, "TFDS_DATA_DIR").absolute()


def _folder(name: str, data_dir: str) -> pathlib.Path | None:
    """Returns the folder of the newest version under the root, or None."""
    versions = []
    for info in (root_of(data_dir) / name).glob("*/dataset_info.json"):
        number = info.parent.name.split(".")
        if all(part.isdigit() for part in number):
            versions.append((tuple(map(int, number)), info.parent))
    return max(versions)[1] if versions else None


def _required_folder(name: str, data_dir: str) -> pathlib.Path:
    """Returns the folder of a TFDS set; raises as require()."""
    check_choice("data.name", name, DATA_SETS)
    _require_packages(name)
    if folder := _folder(name, data_dir):
        return folder
    root = root_of(data_dir)
    given = " --from=FOLDER" if name in ("image_folder", "imagenet2012") else ""
    raise UserError(
        f"data.dir={str(root)!r} holds no {name} in TFDS's array_record form; prepare it with: "
        f"python -m experiments.prepare {name} --out={root}{given}."
    )


def _note(name: str, encodings: set[str]) -> str:
    # Runs record this text and compare it when they are resumed: do not reword it.
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
    from sklearn.datasets import load_digits  # imported here: it takes a second

    digits = load_digits()
    images = digits.images.astype(np.uint8)[..., None]  # 0..16
    labels = digits.target.astype(np.int32)
    # The set is ordered by writer. A split by writer would be a harder task; this one is random and
    # always the same.
    order = stream(DIGITS_SPLIT, 0).permutation(len(images))
    test, train = order[:_DIGITS_TEST], order[_DIGITS_TEST:]
    return Source(images[train], labels[train], images[test], labels[test], version="", note="")
