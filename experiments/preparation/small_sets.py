"""Reads the small sets' archives, in the formats of their publishers, into records.

Every array is checked against its published shape before it is used.
"""

import math
import pathlib
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from experiments.preparation import archives, png
from experiments.preparation.writer import Split, in_memory, record
from resnet_jax.errors import UserError
from resnet_jax.parallel.cores import usable_cores
from resnet_jax.runs.progress import Bars

Paths = Mapping[str, pathlib.Path]  # an archive's published file name -> the file
Names = dict[str, list[str]]  # a label's feature -> names of its classes
Contents = tuple[list[Split], Names]

_CIFAR = (32, 32, 3)
_MNIST = (28, 28, 1)
_SVHN_SIZES = {"train": 73257, "test": 26032, "extra": 531131}  # published
_CIFAR_BATCH = 10_000  # images per file of CIFAR-10
_MOST_NAMES = 1 << 16  # bytes of a file of class names
_IDX_UINT8 = 0x08


def cifar10(paths: Paths) -> Contents:
    """Reads cifar-10-binary.tar.gz: six batches of records of 1 label and 3,072 pixels."""
    batches = [f"data_batch_{n}.bin" for n in range(1, 6)]
    splits = {"train": dict.fromkeys(batches, _CIFAR_BATCH), "test": {"test_batch.bin": 10_000}}
    return _cifar(
        paths["cifar-10-binary.tar.gz"],
        "cifar-10-batches-bin",
        splits,
        {"label": ("batches.meta.txt", 10)},
    )


def cifar100(paths: Paths) -> Contents:
    """Reads cifar-100-binary.tar.gz: records of a coarse label, a fine one and 3,072 pixels."""
    splits = {"train": {"train.bin": 50_000}, "test": {"test.bin": 10_000}}
    return _cifar(
        paths["cifar-100-binary.tar.gz"],
        "cifar-100-binary",
        splits,
        {"coarse_label": ("coarse_label_names.txt", 20), "label": ("fine_label_names.txt", 100)},
    )


def mnist(paths: Paths) -> Contents:
    """Reads the four idx files of MNIST or Fashion-MNIST."""
    splits = []
    for split, prefix, count in (("train", "train", 60_000), ("test", "t10k", 10_000)):
        images = _idx(paths[f"{prefix}-images-idx3-ubyte.gz"], count, _MNIST[:2])
        path = paths[f"{prefix}-labels-idx1-ubyte.gz"]
        labels = _idx(path, count, ())
        if len(labels) != len(images):
            raise UserError(f"{path} has {len(labels)} labels for {len(images)} images.")
        splits.append(_split(split, images[..., None], {"label": (labels, 10)}, path))
    return splits, {}


def svhn_cropped(paths: Paths) -> Contents:
    """Reads the MATLAB files of SVHN: X uint8 (32, 32, 3, N) and y (N, 1), where 10 is digit 0."""
    splits = []
    for split, count in _SVHN_SIZES.items():
        path = paths[f"{split}_32x32.mat"]
        images, labels = _mat(path, count)
        ids = [f"{split}_{number:06d}" for number in range(len(images))]
        splits.append(_split(split, images, {"label": (labels % 10, 10)}, path, ids))
    return splits, {}


READERS: dict[str, Callable[[Paths], Contents]] = {
    "cifar10": cifar10,
    "cifar100": cifar100,
    "mnist": mnist,
    "fashion_mnist": mnist,
    "svhn_cropped": svhn_cropped,
}


def _cifar(
    path: pathlib.Path,
    folder: str,
    splits: Mapping[str, Mapping[str, int]],
    labels: Mapping[str, tuple[str, int]],
) -> Contents:
    """Reads either CIFAR.

    Args:
      path: the archive.
      folder: of its members.
      splits: the files of each split, with the number of their records.
      labels: in their order in a record, with the file of their names and the number of classes.
    """
    width = len(labels) + math.prod(_CIFAR)
    sizes = {f: n * width for files in splits.values() for f, n in files.items()}
    sizes |= {file: _MOST_NAMES for file, _ in labels.values()}
    found = archives.read_tar_gz(path, {f"{folder}/{file}": s for file, s in sizes.items()})
    contents = []
    for split, files in splits.items():
        stored = b"".join(found[f"{folder}/{file}"] for file in files)
        if len(stored) % width or not stored:
            raise UserError(f"{path}: {split} has {len(stored):,} bytes, not whole records.")
        table = np.frombuffer(stored, np.uint8).reshape(-1, width)
        height, side, channels = _CIFAR
        images = table[:, len(labels) :].reshape(-1, channels, height, side).transpose(0, 2, 3, 1)
        columns = {
            label: (table[:, column], classes)
            for column, (label, (_, classes)) in enumerate(labels.items())
        }
        ids = [f"{split}_{number:05d}" for number in range(len(table))]
        contents.append(_split(split, images, columns, path, ids))
    names: Names = {}
    for label, (file, classes) in labels.items():
        text = found[f"{folder}/{file}"].decode(errors="replace")
        names[label] = [name for name in text.split("\n") if name]
        if not len(set(names[label])) == len(names[label]) == classes:
            raise UserError(
                f"{path}: {file} has {len(names[label])} names, {len(set(names[label]))} different "
                f"ones, for {classes} classes."
            )
    return contents, names


def _idx(path: pathlib.Path, most: int, shape: Sequence[int]) -> np.ndarray:
    """Returns a gzipped idx file's uint8 array, of at most `most` items of one shape."""
    header = 4 + 4 * (1 + len(shape))
    content = archives.read_gzip(path, header + most * math.prod(shape))
    expected = struct.pack(">4B", 0, 0, _IDX_UINT8, 1 + len(shape))
    count = (len(content) - header) // math.prod(shape)
    expected += struct.pack(f">{1 + len(shape)}I", max(count, 0), *shape)
    if (
        count < 1
        or content[:header] != expected
        or len(content) != header + count * math.prod(shape)
    ):
        raise UserError(f"{path} is not a whole idx file of arrays of shape {tuple(shape)}.")
    return np.frombuffer(content, np.uint8, offset=header).reshape(count, *shape)


def _mat(path: pathlib.Path, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns images (N, 32, 32, 3) and labels (N,) of one file of SVHN."""
    import scipy.io  # imported here: it is slow

    try:
        shapes = {name: (shape, kind) for name, shape, kind in scipy.io.whosmat(path)}
        image_shape, image_kind = shapes.get("X", ((), ""))
        label_shape, _ = shapes.get("y", ((), ""))
        count = image_shape[-1] if len(image_shape) == len(_CIFAR) + 1 else 0
        if (image_shape, label_shape) != ((*_CIFAR, count), (count, 1)) or not 0 < count <= most:
            raise UserError(f"{path} has other arrays than X (32, 32, 3, N) and y (N, 1).")
        if image_kind != "uint8":
            raise UserError(f"{path} has X of {image_kind}; allowed is uint8.")
        arrays = scipy.io.loadmat(path, variable_names=["X", "y"])
    except UserError:
        raise
    except Exception as e:  # SciPy raises many types for a damaged file
        reason = (str(e) or type(e).__name__).split("\n")[0].rstrip(".")
        raise UserError(f"{path} is damaged, cut short or no MATLAB file ({reason}).") from e
    labels = arrays["y"][:, 0]
    if not np.isin(labels, np.arange(1, 11)).all():
        raise UserError(f"{path} has labels outside 1 to 10.")
    return np.moveaxis(arrays["X"], -1, 0), labels.astype(np.int64)


def _split(
    name: str,
    images: np.ndarray,
    labels: Mapping[str, tuple[np.ndarray, int]],
    path: pathlib.Path,
    ids: Iterable[str] = (),
) -> Split:
    """Encodes images, uint8 (N, H, W, C), with labels of (values, number of classes)."""
    for label, (values, classes) in labels.items():
        if values.max() >= classes:
            raise UserError(
                f"{path}: a {label} of {name} is {values.max()}; allowed is up to {classes - 1}."
            )
    columns: dict[str, list[int] | list[str]] = {
        label: values.tolist() for label, (values, _) in labels.items()
    }
    if ids := list(ids):
        columns["id"] = ids

    def encode(number: int) -> bytes:
        features = {feature: column[number] for feature, column in columns.items()}
        return record({"image": png.encode(images[number]), **features})

    records = []
    with ThreadPoolExecutor(len(usable_cores())) as pool, Bars() as bars:
        task = bars.add_task(f"encoding {name}", total=len(images), figures="")
        for stored in pool.map(encode, range(len(images))):
            records.append(stored)
            bars.advance(task, 1)
            bars.draw()
    return in_memory(name, [str(number) for number in range(len(records))], records)
