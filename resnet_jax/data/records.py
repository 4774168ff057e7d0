"""The encoded pictures of a split, by number, as TFDS prepared them in array_record form."""

import pathlib
import threading
from typing import Any, NamedTuple

from absl import logging

from resnet_jax.errors import RunError, UserError

_TOLERATED = 100  # damaged pictures, whatever their share


class Record(NamedTuple):
    """One picture of a split."""

    image: bytes  # encoded
    label: int
    name: str  # its file's; empty where that was not kept


def data_source(builder: Any, split: str) -> Any:
    """Returns a split of a TFDS builder for random access.

    Raises:
      UserError: it is not in array_record form.
    """
    try:
        return builder.as_data_source(split=split)
    except NotImplementedError as e:
        raise UserError(
            f"{builder.data_path} is not in array_record form; prepare it with "
            "file_format='array_record'."
        ) from e


class Records:
    """Random access to a split; threads may share it."""

    def __init__(self, builder: Any, split: str):
        """Opens a split of a TFDS builder.

        Raises:
          UserError: it is not in array_record form.
        """
        from tensorflow_datasets.proto import tf_example_pb2  # here: not all sets pay for it

        self._parse = tf_example_pb2.Example.FromString
        # Past TFDS's own decoding of features, which takes longer than reading the record.
        self._examples = data_source(builder, split).data_source
        self.split = split
        self._path = pathlib.Path(builder.data_path)
        self._damaged: set[int] = set()  # the numbers of pictures that cannot be decoded
        self._read = 0
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """Pictures in the split."""
        return len(self._examples)

    def __getitem__(self, number: int) -> Record:
        """Reads one record; raises RunError where its file is damaged there."""
        try:
            example = self._parse(self._examples[number])
        except Exception as e:  # the reader's and protobuf's have no common base
            raise RunError(f"{self._path}: record {number} of {self.split}: {e}") from e
        with self._lock:
            self._read += 1
        feature = example.features.feature
        names = feature["file_name"].bytes_list.value
        return Record(
            feature["image"].bytes_list.value[0],
            feature["label"].int64_list.value[0],
            names[0].decode() if names else "",
        )

    @property
    def read(self) -> int:
        """How many records were read so far."""
        return self._read

    def note_damaged(self, number: int, name: str, reason: str) -> None:
        """Says once that a picture cannot be decoded.

        Raises:
          RunError: so many cannot that the set must have been prepared wrongly.
        """
        with self._lock:
            if number in self._damaged:
                return
            self._damaged.add(number)
            count = len(self._damaged)
        logging.warning(
            "%s: %s of %s cannot be decoded (%s); a grey picture stands in for it.",
            self._path, name or f"record {number}", self.split, reason,
        )  # fmt: skip
        if count > max(_TOLERATED, self._read / 100):
            raise RunError(
                f"{count} of the {self._read} pictures of {self.split} in {self._path} that were "
                f"read cannot be decoded; the last is {name or number}: {reason}"
            )
