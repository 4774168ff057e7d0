"""The one reader of what TFDS prepared as array_record: every file, record and label is checked.

Resident sets, streamed sets and experiments.prepare read through it. What is wrong before a run is
a UserError; a file that breaks while it is read is a RunError. Both name file, record and reason.
"""

import bisect
import contextlib
import functools
import hashlib
import pathlib
import resource
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
from absl import logging

from resnet_jax.errors import RunError, UserError, is_missing_package, listing
from resnet_jax.runs import storage

_AGAIN = "copy or prepare the set again"
_TOLERATED = 100  # damaged pictures, whatever their share
_OPENERS = 16  # threads that look into files at the start
_OPEN_FILES = 1 << 16  # as many as any set has; a system may allow fewer
_SAMPLED = 64  # records per split that stand for the content of a streamed set


class Record(NamedTuple):
    """One picture of a split."""

    image: bytes  # encoded
    label: int
    name: str  # its file's; empty if that was not kept


class Shard(NamedTuple):
    """One file of a split, which holds the records from `first` up to `first + length`."""

    path: pathlib.Path
    first: int
    length: int


def read_info(folder: pathlib.Path) -> Any:
    """Returns TFDS's DatasetInfo of a prepared set: version and splits.

    Raises:
      UserError: dataset_info.json or features.json is absent or cut short, or the set is not in
        array_record form.
    """
    import tensorflow_datasets as tfds  # here: half a second that digits need not pay

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
    except Exception as e:  # protobuf's, TFDS's and Python's have no common base
        if is_missing_package(e):  # not the set's fault
            raise
        raise UserError(f"{folder} cannot be read by TFDS ({_line(e)}); {_AGAIN}.") from e


def examples(info: Any, split: str) -> int:
    """Returns how many records a split has; raises UserError if it is absent or empty."""
    there = [name for name, found in info.splits.items() if found.num_examples]
    if split not in there:
        raise UserError(
            f"{info.data_dir} holds no records of the split {split!r}, only of "
            f"{listing(there) if there else 'none'}; {_AGAIN}."
        )
    return info.splits[split].num_examples


class Records:
    """Random access to a split; threads may share it."""

    def __init__(self, folder: pathlib.Path, split: str, num_classes: int):
        """Looks into every file of a split.

        Args:
          folder: with TFDS's dataset_info.json.
          split: as TFDS calls it.
          num_classes: labels must be from 0 to num_classes - 1.

        Raises:
          UserError: the split is absent, or a file of it is absent or cut short.
        """
        from tensorflow_datasets.proto import tf_example_pb2  # here: not all sets pay for it

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
        # A file that falls out of the cache is closed when the last thread has read from it. Two
        # splits fill half of what the system allows.
        self._reader = functools.lru_cache(max(1, _raise_file_limit() // 4))(_open)
        with ThreadPoolExecutor(_OPENERS) as pool:
            list(pool.map(_check_shard, self.shards))
        self._folder = folder
        self._damaged: set[int] = set()  # the numbers of pictures that cannot be decoded
        self._read = 0
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """Pictures in the split."""
        return self._length

    def __getitem__(self, number: int) -> Record:
        """Reads and checks one record; raises RunError."""
        return self.parse(number, self.stored(number))

    def stored(self, number: int) -> bytes:
        """Returns a record as it is stored, a tf.train.Example; raises RunError."""
        shard = self._shard(number)
        try:
            return self._reader(shard.path).read([number - shard.first])[0]
        except Exception as e:  # array_record raises whatever its file system does
            raise self.error(number, f"it cannot be read ({_line(e)})") from e

    def parse(self, number: int, stored: bytes) -> Record:
        """Returns the picture of a stored record; raises RunError if it lacks one, or its label."""
        try:
            feature = self._parse(stored).features.feature
        except Exception as e:  # protobuf's DecodeError is another class in each implementation
            raise self.error(number, f"it is not a tf.train.Example ({_line(e)})") from e
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
        # The name is only shown: bytes that are not UTF-8 are no reason to stop.
        name = names[0].decode(errors="backslashreplace") if names else ""
        return Record(images[0], labels[0], name)

    @property
    def read(self) -> int:
        """How many records were read so far."""
        return self._read

    def fingerprint(self) -> bytes:
        """Returns a digest of all files' names and sizes, and of some records spread over them."""
        digest = hashlib.sha256()
        for path, _, length in self.shards:
            digest.update(f"{path.name} {path.stat().st_size} {length}\n".encode())
        for number in np.linspace(0, len(self) - 1, min(_SAMPLED, len(self)), dtype=int):
            digest.update(self.stored(int(number)))
        return digest.digest()

    def note_damaged(self, number: int, name: str, reason: str) -> None:
        """Says once that a picture cannot be decoded.

        Raises:
          RunError: so many cannot that the set must have been prepared wrongly.
        """
        with self._lock:
            if number in self._damaged:
                return
            self._damaged.add(number)
            damaged = len(self._damaged)
        logging.warning(
            "%s: %s of %s cannot be decoded (%s); a grey picture stands in for it.",
            self._folder, name or f"record {number}", self.split, reason,
        )  # fmt: skip
        if damaged > max(_TOLERATED, self._read / 100):
            raise RunError(
                f"{damaged} of the {self._read} pictures of {self.split} in {self._folder} that "
                f"were read cannot be decoded; the last is {name or number}: {reason}"
            )

    def error(self, number: int, reason: str) -> RunError:
        """Returns the error that names a record, by its file and by its split, and says why."""
        shard = self._shard(number)
        return RunError(
            f"{shard.path}: record {number - shard.first} of the file (record {number} of "
            f"{self.split}): {reason}; {_AGAIN}."
        )

    def _shard(self, number: int) -> Shard:
        if not 0 <= number < len(self):
            raise IndexError(f"record {number} of {len(self)}")
        return self.shards[bisect.bisect_right(self._firsts, number) - 1]


def _read_object(path: pathlib.Path) -> dict[str, Any]:
    try:
        content = storage.read_json(path)
    except UserError as e:
        raise UserError(f"{e} {_AGAIN.capitalize()}.") from e
    if not content or not isinstance(content, dict):
        raise UserError(f"{path} is missing or holds no JSON object; {_AGAIN}.")
    return content


def _check_shard(shard: Shard) -> None:
    """Raises UserError unless a file holds as many records as it should."""
    try:
        length = _open(shard.path).num_records()
    except OSError as e:
        raise UserError(f"{shard.path} cannot be read: {storage.reason(e)}; {_AGAIN}.") from e
    if length != shard.length:  # 0, without a word, for a file that lost its end
        raise UserError(
            f"{shard.path} holds {length} records, but dataset_info.json says {shard.length}: it "
            f"was cut short or belongs to another copy; {_AGAIN}."
        )


def _open(path: pathlib.Path) -> Any:
    """Returns a reader of a file's records; the last reference to it closes the file."""
    from array_record.python.array_record_module import ArrayRecordReader

    with open(path, "rb"):
        pass  # ArrayRecordReader takes a file that it cannot open for an empty one
    options = "readahead_buffer_size:0"  # for random access, as array_record's own data source
    return ArrayRecordReader(str(path), options, file_reader_buffer_size=1 << 15)


def _raise_file_limit() -> int:
    """Raises this process's limit on open files as far as the system allows, and returns it.

    TFDS stores ImageNet in 1,088 files; many systems allow 1,024 unless a program asks for more.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return _OPEN_FILES
    wanted = _OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, _OPEN_FILES)
    if soft < wanted:
        with contextlib.suppress(OSError, ValueError):  # macOS has a further limit of its own
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            soft = wanted
    return soft


def _line(error: Exception) -> str:
    return (str(error) or type(error).__name__).split("\n")[0].rstrip(".")
