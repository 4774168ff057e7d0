"""A user's own images as arrays: the data set "arrays", an .npz file that `data.dir` names.

    np.savez("mine.npz", train_images=..., train_labels=..., test_images=..., test_labels=...)

Images are uint8 (N, H, H, 3), or gray, (N, H, H, 1) or (N, H, H), which get three equal channels.
Labels are whole numbers from 0, one per image.
"""

import dataclasses
import functools
import pathlib
import zipfile

import numpy as np

from resnet_jax.data.sets import Facts
from resnet_jax.errors import UserError, listing
from resnet_jax.runs import storage

_SPLITS = ("train", "test")
_NAMES = tuple(f"{split}_{kind}" for split in _SPLITS for kind in ("images", "labels"))


def facts(known: Facts, file: str) -> Facts:
    """Completes what is known about the set by the sizes of the arrays.

    Raises:
      UserError: see read().
    """
    path = _located(file)
    return _facts(known, path, path.stat().st_mtime_ns)


@functools.lru_cache
def _facts(known: Facts, path: pathlib.Path, _changed: int) -> Facts:
    arrays = read(str(path))
    classes = 1 + int(max(arrays[f"{split}_labels"].max() for split in _SPLITS))
    if classes < 2:
        raise UserError(f"data.dir={str(path)!r} has one class only, 0; allowed are two or more.")
    return dataclasses.replace(
        known,
        image_shape=arrays["train_images"].shape[1:],
        num_classes=classes,
        train=len(arrays["train_labels"]),
        test=len(arrays["test_labels"]),
    )


def read(file: str) -> dict[str, np.ndarray]:
    """Reads the arrays by name: images uint8 (N, H, H, 3), labels int32 (N,).

    Raises:
      UserError: the file is missing or broken, or an array is missing or not as described above.
    """
    path = _located(file)
    try:
        content = np.load(path, allow_pickle=False)
        if not isinstance(content, np.lib.npyio.NpzFile):
            raise ValueError("it is a single array")
        with content:
            arrays = {name: content[name] for name in content.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as e:
        raise UserError(f"data.dir={file!r} is not an .npz file of arrays ({e}).") from e
    if set(arrays) != set(_NAMES):
        held = listing(sorted(arrays) or ["no array"], "and")
        raise UserError(f"data.dir={file!r} holds {held}; a set needs {listing(_NAMES, 'and')}.")
    for split in _SPLITS:
        images, labels = arrays[f"{split}_images"], arrays[f"{split}_labels"]
        arrays[f"{split}_images"] = images = _in_color(images, f"{split}_images in {file}")
        arrays[f"{split}_labels"] = _checked(labels, len(images), f"{split}_labels in {file}")
    if arrays["train_images"].shape[1:] != arrays["test_images"].shape[1:]:
        raise UserError(f"data.dir={file!r}: training and test images differ in size.")
    return arrays


def _located(file: str) -> pathlib.Path:
    path = storage.on_disk(file, "data.dir").absolute() if file else None
    if path is None or not path.is_file():
        raise UserError(
            f"data.dir={file!r} is no file; data.name='arrays' needs an .npz file with "
            f"{listing(_NAMES, 'and')}."
        )
    return path


def _in_color(images: np.ndarray, name: str) -> np.ndarray:
    shape = (*images.shape, 1) if images.ndim == 3 else images.shape
    is_square = len(shape) == 4 and shape[1] == shape[2] and min(shape) > 0
    if images.dtype != np.uint8 or not is_square or shape[3] not in (1, 3):
        raise UserError(
            f"{name} is {images.dtype} {images.shape}; allowed is uint8 (N, H, H, 3), for gray "
            "images (N, H, H, 1) or (N, H, H)."
        )
    return np.ascontiguousarray(np.broadcast_to(images.reshape(shape), (*shape[:3], 3)))


def _checked(labels: np.ndarray, images: int, name: str) -> np.ndarray:
    is_list = labels.shape == (images,) and labels.dtype.kind in "iu"
    if not is_list or labels.min() < 0 or labels.max() >= np.iinfo(np.int32).max:
        raise UserError(
            f"{name} is {labels.dtype} {labels.shape}; allowed are whole numbers from 0, one for "
            f"each of {images} images."
        )
    return labels.astype(np.int32)
