"""A user's picture files, prepared for a network as evaluation prepares its data set."""

import contextlib
import os
import pathlib
from collections.abc import Iterator, Sequence

import jax
import numpy as np
from absl import logging
from ml_collections import ConfigDict

from resnet_jax.data import jpeg
from resnet_jax.data.crops import make_crop
from resnet_jax.data.records import Record
from resnet_jax.data.sets import DATA_SETS, image_shape
from resnet_jax.data.streaming import StreamedSplit, Workers
from resnet_jax.data.views import Fitted, Views, make_views
from resnet_jax.errors import UserError, listing
from resnet_jax.runs import storage

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")


def find(names: Sequence[str]) -> list[pathlib.Path]:
    """Returns the named files, and all pictures below the named folders, sorted in each folder.

    A folder's pictures are the files whose names end with one of SUFFIXES; names that start with a
    dot are left out.

    Raises:
      UserError: a name is no file or folder, or a folder has no picture.
    """
    paths: list[pathlib.Path] = []
    for name in names:
        path = storage.on_disk(name, "IMAGE")
        if path.is_dir():
            below = [
                found for found in path.rglob("*")
                if found.suffix.lower() in SUFFIXES and found.is_file()
                and not any(part.startswith(".") for part in found.relative_to(path).parts)
            ]  # fmt: skip
            if not below:
                raise UserError(
                    f"{path} has no picture; allowed are files that end with {listing(SUFFIXES)}."
                )
            paths += sorted(below)
        elif path.is_file():
            paths.append(path)
        else:
            raise UserError(f"{path} does not exist; allowed are pictures and folders of pictures.")
    return paths


class Files:
    """Picture files as records, for StreamedSplit; a picture's label is its number.

    Attributes:
      paths: the files.
      names: of the files, for display: bytes that are not UTF-8 are escaped.
      headers: {number: header} of the pictures read so far.
      unreadable: {number: reason} of those that cannot be read; a grey picture replaces them.
    """

    def __init__(self, paths: Sequence[pathlib.Path]):
        """Reads nothing yet."""
        self.paths = paths
        self.names = [os.fsencode(path).decode(errors="backslashreplace") for path in paths]
        self.headers: dict[int, jpeg.Header] = {}
        self.unreadable: dict[int, str] = {}

    def __len__(self) -> int:
        """Number of files."""
        return len(self.paths)

    def __getitem__(self, number: int) -> Record:
        """Reads a file; if it cannot be read, its content is empty and the reason is noted."""
        path, content = self.paths[number], b""
        try:
            content = path.read_bytes()
        except OSError as e:
            self.unreadable[number] = storage.reason(e)
        with contextlib.suppress(jpeg.UnreadableError):  # decoding will tell
            self.headers[number] = jpeg.header(content)
        return Record(content, number, self.names[number])

    def note_damaged(self, number: int, name: str, reason: str) -> None:
        """Warns that a picture cannot be read."""
        self.unreadable.setdefault(number, reason)
        logging.warning("%s is left out: %s.", name, self.unreadable[number])

    def notes(self, number: int, data: ConfigDict) -> list[str]:
        """Returns what was changed or ignored in a picture, beside evaluation's usual resizing.

        Args:
          number: of a picture that was read. Nothing is known if Pillow cannot read its header.
          data: a resolved config's section.
        """
        if number not in self.headers:
            return []
        header = self.headers[number]
        height, width, channels = image_shape(data)
        notes = []
        if DATA_SETS[data.name].resident and (header.height, header.width) != (height, width):
            notes.append(f"resized from {header.width} x {header.height} pixels")
        if header.is_grey and channels == 3:
            notes.append("grey, taken as RGB")
        if not header.is_grey and channels == 1:
            notes.append("colours became grey")
        if header.has_transparency:
            notes.append("transparency ignored")
        if header.is_rotated:
            notes.append("EXIF rotation ignored")
        return notes


def views_of(data: ConfigDict, evaluation: ConfigDict) -> Views:
    """Returns the central view of a picture, for a resolved config's `data` and `eval`."""
    facts = DATA_SETS[data.name]
    if not facts.resident:
        return make_views("center", data, evaluation)
    size, _, channels = image_shape(data)
    return Fitted(False, size, size, "area", channels, facts.white)


def preparation(data: ConfigDict, evaluation: ConfigDict) -> str:
    """Returns how pictures are prepared, as a sentence."""
    facts = DATA_SETS[data.name]
    size, _, channels = image_shape(data)
    if not facts.resident:
        return (
            f"As in evaluation, pictures are resized to a short side of {evaluation.short_side} "
            f"pixels ({data.resample}) and cropped to the central {size} x {size}."
        )
    text = (
        f"Pictures of {size} x {size} pixels are taken pixel for pixel; others are resized to a "
        f"short side of {size} pixels, averaging over areas, and cropped at the centre"
    )
    text += "; colours become grey" if channels == 1 else ""
    scaled = f"; pixels from 0 to 255 become 0 to {facts.white}, the range of {data.name}"
    return f"{text}{scaled if facts.white != 255 else ''}."


@contextlib.contextmanager
def opened(files: Files, data: ConfigDict, mesh: jax.sharding.Mesh) -> Iterator[StreamedSplit]:
    """Yields the files as a split for the devices of `mesh`, read by threads."""
    size, _, channels = image_shape(data)
    with contextlib.closing(Workers(data.workers)) as workers:
        yield StreamedSplit(
            files, np.arange(len(files)), size, make_crop(data), data.resample, workers, mesh,
            channels,
        )  # fmt: skip
