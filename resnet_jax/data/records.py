"""Reads data sets in TFDS's array_record form, and checks every file, record and label.

Resident sets, streamed sets and experiments.shrink all read through this module. A fault found
before a run raises UserError, one found while reading records RunError. Both name the file, the
record and the reason.
"""

import bisect
import contextlib
import errno
import functools
import hashlib
import pathlib
import re
import resource
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
from absl import logging

from resnet_jax.errors import RunError, UserError, is_missing_package, listing
from resnet_jax.runs import storage

if TYPE_CHECKING:
    import tensorflow_datasets as tfds
    from array_record.python.array_record_module import ArrayRecordReader

_ADVICE = "copy or prepare the set again"
_TOLERATED = 100  # damaged pictures that never stop a run, even of a small set
_OPENERS = 16  # threads that check the files at the start
_OPEN_FILES = 1 << 16  # more than any set has
_SAMPLED = 64  # records per split in the fingerprint


class Record(NamedTuple):
    """One picture of a split."""

    image: bytes  # encoded
    label: int
    name: str  # original file name, or empty


class Pictures(Protocol):
    """Numbered pictures: records of a prepared split, or files of a user."""

    def __getitem__(self, number: int) -> Record:
        """Reads one picture; raises RunError."""

    def note_damaged(self, number: int, name: str, reason: str) -> None:
        """Is called if a picture cannot be decoded; raises RunError to stop."""


class Shard(NamedTuple):
    """One file of a split, with records `first` to `first + length - 1`."""

    path: pathlib.Path
    first: int
    length: int


def read_info(folder: pathlib.Path) -> "tfds.core.DatasetInfo":
    """Returns TFDS's DatasetInfo of a prepared set: version and splits.

    Raises:
      UserError: dataset_info.json or features.json is missing or truncated, or the set is not in
        array_record form.
    """
    import tensorflow_datasets as tfds  # imported here: it takes half a second

    content, _ = (_read_object(folder / f) for f in ("dataset_info.json", "features.json"))
    if "array_record" not in (
        content.get("fileFormat"),
        *content.get("alternativeFileFormats", ()),
    ):
        raise UserError(
            f"{folder} is not in array_record form; prepare it with file_format='array_record'."
        )
    try:
        return tfds.builder_from_directory(folder, file_format="array_record").info
    except Exception as e:  # of protobuf, TFDS or Python: they share no base class
        if is_missing_package(e):  # the data set is not at fault
            raise
        raise UserError(f"{folder} cannot be read by TFDS ({_first_line(e)}); {_ADVICE}.") from e


def examples(info: "tfds.core.DatasetInfo", split: str) -> int:
    """Returns the number of records in a split; raises UserError if it is missing or empty."""
    available = [name for name, split_info in info.splits.items() if split_info.num_examples]
    if split not in available:
        raise UserError(
            f"{info.data_dir} holds no records of the split {split!r}, only of "
            f"{listing(available) if available else 'none'}; {_ADVICE}."
        )
    return info.splits[split].num_examples


class Records:
    """Thread-safe random access to a split's records."""

    def __init__(self, folder: pathlib.Path, split: str, num_classes: int):
        """Checks every file of a split.

        Args:
          folder: holds TFDS's dataset_info.json.
          split: TFDS's name of the split.
          num_classes: labels must be from 0 to num_classes - 1.

        Raises:
          UserError: the split is missing, or one of its files is missing or truncated.
        """
        from tensorflow_datasets.proto import tf_example_pb2  # imported here: it is slow

        self._parse = tf_example_pb2.Example.FromString
        info = read_info(folder)
        examples(info, split)
        self.split, self.version = split, str(info.version)
        self.shards: list[Shard] = []
        self._length = 0
        for file in info.splits[split].file_instructions:
            self.shards.append(
                Shard(pathlib.Path(file.filename), self._length, file.examples_in_shard)
            )
            self._length += file.examples_in_shard
        self._firsts = [shard.first for shard in self.shards]
        self._num_classes = num_classes
        # An evicted file is closed once no thread reads from it. Two splits may use half of the
        # limit on open files.
        self._reader = functools.lru_cache(max(1, _raise_file_limit() // 4))(_open_shard)
        with ThreadPoolExecutor(_OPENERS) as pool:
            list(pool.map(_check_shard, self.shards))
        self._folder = folder
        self._damaged: set[int] = set()  # numbers of records whose picture cannot be decoded
        self._read = 0
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """Records in the split."""
        return self._length

    def __getitem__(self, number: int) -> Record:
        """Reads and checks one record; raises RunError."""
        return self.parse(number, self.stored(number))

    def stored(self, number: int) -> bytes:
        """Returns a record's bytes, a serialised tf.train.Example; raises RunError."""
        shard = self._shard(number)
        try:
            return self._reader(shard.path).read([number - shard.first])[0]
        except Exception as e:  # array_record raises any exception of its file system
            raise self.error(number, f"it cannot be read ({_first_line(e)})") from e

    def parse(self, number: int, stored: bytes) -> Record:
        """Parses a stored record; raises RunError unless it has one image and a valid label."""
        try:
            feature = self._parse(stored).features.feature
        except Exception as e:  # protobuf's implementations have different DecodeErrors
            raise self.error(number, f"it is not a tf.train.Example ({_first_line(e)})") from e
        images, labels = feature["image"].bytes_list.value, feature["label"].int64_list.value
        if len(images) != 1 or len(labels) != 1:
            raise self.error(number, f"it has {len(images)} images and {len(labels)} labels")
        if not 0 <= labels[0] < self._num_classes:
            raise self.error(
                number, f"its label is {labels[0]}; allowed is from 0 to {self._num_classes - 1}"
            )
        names = feature["file_name"].bytes_list.value
        with self._lock:
            self._read += 1
        # The name is for display only, so bytes that are not UTF-8 are escaped.
        name = names[0].decode(errors="backslashreplace") if names else ""
        return Record(images[0], labels[0], name)

    @property
    def read(self) -> int:
        """Number of records read so far."""
        return self._read

    def fingerprint(self) -> bytes:
        """Returns a digest of all files' names and sizes and of some evenly spaced records."""
        digest = hashlib.sha256()
        for path, _, length in self.shards:
            digest.update(f"{path.name} {path.stat().st_size} {length}\n".encode())
        for number in np.linspace(0, len(self) - 1, min(_SAMPLED, len(self)), dtype=int):
            digest.update(self.stored(int(number)))
        return digest.digest()

    def note_damaged(self, number: int, name: str, reason: str) -> None:
        """Warns, once per picture, that it cannot be decoded.

        Raises:
          RunError: so many pictures are damaged that the set must have been prepared wrongly.
        """
        with self._lock:
            if number in self._damaged:
                return
            self._damaged.add(number)
            damaged = len(self._damaged)
        logging.warning(
            "%s: %s of %s cannot be decoded (%s); a grey picture replaces it.",
            self._folder, name or f"record {number}", self.split, reason,
        )  # fmt: skip
        if damaged > max(_TOLERATED, self._read / 100):
            raise RunError(
                f"{damaged} of the {self._read} pictures of {self.split} read from {self._folder} "
                f"cannot be decoded; the last is {name or number}: {reason}"
            )

    def error(self, number: int, reason: str) -> RunError:
        """Returns an error that names a record by its file and its split."""
        shard = self._shard(number)
        return RunError(
            f"{shard.path}: record {number - shard.first} of the file (record {number} of "
            f"{self.split}): {reason}; {_ADVICE}."
        )

    def _shard(self, number: int) -> Shard:
        if not 0 <= number < len(self):
            raise IndexError(f"record {number} of {len(self)}")
        return self.shards[bisect.bisect_right(self._firsts, number) - 1]


def _read_object(path: pathlib.Path) -> storage.Json:
    try:
        content = storage.read_json(path)
    except UserError as e:
        raise UserError(f"{e} {_ADVICE.capitalize()}.") from e
    if not content:
        raise UserError(f"{path} is missing or empty; {_ADVICE}.")
    return content


def _check_shard(shard: Shard) -> None:
    try:
        length = _open_shard(shard.path).num_records()
    except OSError as e:
        raise UserError(f"{shard.path} cannot be read: {storage.reason(e)}; {_ADVICE}.") from e
    if length != shard.length:  # a truncated file silently counts 0 records
        raise UserError(
            f"{shard.path} holds {length} records, but dataset_info.json says {shard.length}: it "
            f"was cut short or belongs to another copy; {_ADVICE}."
        )


def _open_shard(path: pathlib.Path) -> "ArrayRecordReader":
    """Returns a reader of a file's records, which closes the file when it is collected."""
    from array_record.python.array_record_module import ArrayRecordReader

    with open(path, "rb"):
        pass  # raises OSError; ArrayRecordReader treats an unreadable file as empty
    options = "readahead_buffer_size:0"  # for random access, as in array_record's own data source
    return ArrayRecordReader(str(path), options, file_reader_buffer_size=1 << 15)


def write_shard(path: pathlib.Path, records: Iterable[bytes], options: str) -> None:
    """Writes an array_record file, which has its name once it is complete.

    Args:
      path: of the file.
      records: serialised tf.train.Examples.
      options: array_record's, such as ``group_size:1``.

    Raises:
      OSError: the disk is full or cannot be written.
    """
    from array_record.python.array_record_module import ArrayRecordWriter

    unfinished = path.with_name(f".{path.name}.tmp")
    writer = ArrayRecordWriter(str(unfinished), options)
    try:
        for record in records:
            with _its_errors():
                writer.write(record)
    finally:
        with _its_errors():
            writer.close()
    unfinished.replace(path)


@contextlib.contextmanager
def _its_errors() -> Iterator[None]:
    """Turns array_record's ``write() failed: REASON; writing FILE; ...`` into OSError."""
    try:
        yield
    except RuntimeError as e:
        reason = re.sub(r"^\w+\(\) failed: |;.*", "", _first_line(e))
        raise OSError(errno.EIO, reason) from e


def _raise_file_limit() -> int:
    """Raises this process's limit on open files as far as the system allows; returns it.

    TFDS stores ImageNet in 1,088 files, and many systems allow 1,024 by default.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return _OPEN_FILES
    limit = _OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, _OPEN_FILES)
    if soft < limit:
        with contextlib.suppress(OSError, ValueError):  # macOS has a lower limit of its own
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
            soft = limit
    return soft


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).split("\n")[0].rstrip(".")
