"""Reads a folder with one folder of pictures per class."""

import hashlib
import itertools
import pathlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple

from experiments.preparation import archives, writer
from experiments.preparation.writer import Split, record
from resnet_jax.data import jpeg
from resnet_jax.data.pictures import SUFFIXES
from resnet_jax.errors import UserError, listing
from resnet_jax.parallel.cores import usable_cores
from resnet_jax.runs import storage
from resnet_jax.runs.progress import Bars

if TYPE_CHECKING:
    import tensorflow_datasets as tfds

NAME = "image_folder"
VERSION = "1.0.0"
_TEST = ("test", "val", "validation")  # names of a folder with pictures that are for the test
_SHOWN = 5  # names in an error


class _Picture(NamedTuple):
    name: str  # CLASS/FILE
    label: int
    path: pathlib.Path


def prepare(folder: pathlib.Path, target: pathlib.Path, test_share: float, seed: int) -> None:
    """Writes the pictures as a data set, after decoding each of them once.

    If the folder has the folders train and test (or val, or validation), these are the splits.
    Otherwise a share of each class is drawn for the test: which pictures depends only on their
    names and on the seed.

    Args:
      folder: holds a folder per class, or such folders for each split.
      target: the folder of its version, which is written.
      test_share: of each class, above 0 and below 1.
      seed: the seed of the draw.

    Raises:
      UserError: a picture cannot be decoded, or the folder does not have this form.
    """
    with archives.reading(folder):
        train, test, classes = _find(folder, test_share, seed)
    _decode(train + test)
    with archives.reading(folder):
        about = [
            [(p.name, p.label, p.path.stat().st_size, p.path.stat().st_mtime_ns) for p in split]
            for split in (train, test)
        ]
        splits = [_split("train", train), _split("test", test)]
    made_from = hashlib.sha256(repr((classes, about)).encode()).hexdigest()
    writer.write(_info(target, classes), target, splits, made_from=made_from, note="")


def _find(
    folder: pathlib.Path, test_share: float, seed: int
) -> tuple[list[_Picture], list[_Picture], list[str]]:
    """Returns the pictures of the training split and of the test split, and the classes."""
    if given := _given_splits(folder):
        classes = _classes(folder / given[0])
        if (others := _classes(folder / given[1])) != classes:
            differing = sorted(set(classes) ^ set(others))
            raise UserError(
                f"{folder / given[1]} has other classes than {folder / given[0]}: "
                f"{listing(differing[:_SHOWN], 'and')}."
            )
        train, test = (_pictures(folder / split, classes) for split in given)
    else:
        classes = _classes(folder)
        train, test = _draw(_pictures(folder, classes), test_share, seed)
    if not (train and test):
        raise UserError(f"{folder} leaves no picture for {'test' if train else 'training'}.")
    return train, test, classes


def _info(folder: pathlib.Path, classes: Sequence[str]) -> "tfds.core.DatasetInfo":
    """Returns TFDS's description of a data set of pictures of these classes."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core import dataset_info

    return tfds.core.DatasetInfo(
        builder=dataset_info.DatasetIdentity(
            name=NAME,
            version=tfds.core.Version(VERSION),
            data_dir=str(folder),
            module_name=__name__,
        ),
        description="Pictures from a folder with one folder per class.",
        features=tfds.features.FeaturesDict(
            {
                "file_name": tfds.features.Text(),
                "image": tfds.features.Image(),
                "label": tfds.features.ClassLabel(names=list(classes)),
            }
        ),
        supervised_keys=("image", "label"),
    )


def _given_splits(folder: pathlib.Path) -> tuple[str, str] | None:
    names = {path.name for path in _folders(folder)}
    tests = [name for name in _TEST if name in names]
    if not ("train" in names and tests and names <= {"train", *_TEST}):
        return None
    if not _folders(folder / "train"):
        return None  # a class may be called train
    if len(tests) > 1:
        raise UserError(f"{folder} has {listing(tests, 'and')}; allowed is one of them.")
    return "train", tests[0]


def _folders(folder: pathlib.Path) -> list[pathlib.Path]:
    return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def _classes(folder: pathlib.Path) -> list[str]:
    classes = [path.name for path in _folders(folder)]
    if len(classes) < 2:
        raise UserError(
            f"{folder} has {len(classes)} folders; allowed are at least two, one per class."
        )
    return classes


def _pictures(folder: pathlib.Path, classes: Sequence[str]) -> list[_Picture]:
    pictures = []
    for label, name in enumerate(classes):
        files = sorted(p for p in (folder / name).rglob("*") if p.suffix.lower() in SUFFIXES)
        if not files:
            raise UserError(
                f"{folder / name} has no picture; allowed are files that end with "
                f"{listing(SUFFIXES)}."
            )
        for path in files:
            pictures.append(_Picture(path.relative_to(folder).as_posix(), label, path))
    return pictures


def _draw(
    pictures: Sequence[_Picture], share: float, seed: int
) -> tuple[list[_Picture], list[_Picture]]:
    """Splits each class, whose pictures are neighbours; returns (train, test)."""
    train, test = [], []
    for _, group in itertools.groupby(pictures, key=lambda picture: picture.label):
        members = sorted(group, key=lambda p: hashlib.sha256(f"{seed}:{p.name}".encode()).digest())
        count = min(max(1, round(share * len(members))), len(members) - 1)
        test += members[:count]
        train += members[count:]
    return train, test


def _decode(pictures: Sequence[_Picture]) -> None:
    """Raises UserError, which names the pictures that cannot be decoded."""

    def problem(picture: _Picture) -> str:
        try:
            jpeg.decode(picture.path.read_bytes())
        except (jpeg.UnreadableError, OSError) as e:
            reason = storage.reason(e) if isinstance(e, OSError) else str(e)
            return f"{picture.name} ({reason})"
        return ""

    problems = []
    with ThreadPoolExecutor(len(usable_cores())) as pool, Bars() as bars:
        task = bars.add_task("pictures", total=len(pictures), figures="")
        for found in pool.map(problem, pictures):
            problems += [found] if found else []
            bars.advance(task, 1)
            bars.draw()
    if problems:
        more = f" and {len(problems) - _SHOWN:,} more" if len(problems) > _SHOWN else ""
        raise UserError(
            f"{len(problems):,} pictures cannot be decoded; repair or remove them: "
            f"{', '.join(problems[:_SHOWN])}{more}."
        )


def _split(name: str, pictures: Sequence[_Picture]) -> Split:
    def stored(number: int) -> bytes:
        picture = pictures[number]
        return _record(picture, picture.path.read_bytes())

    sizes = [len(_record(p, bytes(p.path.stat().st_size))) for p in pictures]
    return Split(name, [picture.name for picture in pictures], sizes, stored)


def _record(picture: _Picture, encoded: bytes) -> bytes:
    return record({"file_name": picture.name, "image": encoded, "label": picture.label})
