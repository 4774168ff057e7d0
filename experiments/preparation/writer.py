"""Writes a data set as TFDS would: the same records in the same order, files and metadata.

TFDS sorts a split's records by the MD5 of its name and each record's key, and cuts them into files
by their total size. It leaves the order of a record's features to protobuf, which draws it at
random in each process; here it is alphabetical.
"""

import contextlib
import dataclasses
import hashlib
import itertools
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from absl import logging

from resnet_jax.data import records, sources
from resnet_jax.errors import RunError, UserError
from resnet_jax.parallel.cores import usable_cores
from resnet_jax.runs import storage
from resnet_jax.runs.progress import Bars

if TYPE_CHECKING:
    import tensorflow_datasets as tfds

_UNFINISHED = "unfinished.json"  # says what the files of an unfinished data set are made from


@dataclasses.dataclass(frozen=True)
class Split:
    """The records of one split, in any order.

    Attributes:
      name: TFDS's name of the split.
      keys: one per record, all different; they decide the order on disk.
      sizes: the size of each record in bytes.
      record: returns a record by its number, see `record()`; called from several threads.
    """

    name: str
    keys: Sequence[str]
    sizes: Sequence[int]
    record: Callable[[int], bytes]


def record(features: Mapping[str, bytes | str | int]) -> bytes:
    """Returns a tf.train.Example with one value per feature, as bytes."""
    from tensorflow_datasets.proto import tf_example_pb2

    example = tf_example_pb2.Example()
    for name, value in features.items():
        feature = example.features.feature[name]
        if isinstance(value, int):
            feature.int64_list.value.append(value)
        else:
            feature.bytes_list.value.append(value.encode() if isinstance(value, str) else value)
    return example.SerializeToString(deterministic=True)


def in_memory(name: str, keys: Sequence[str], records: Sequence[bytes]) -> Split:
    """Returns a split whose records are all in memory."""
    return Split(name, keys, [len(stored) for stored in records], records.__getitem__)


def is_begun(folder: pathlib.Path, made_from: str) -> bool:
    """Whether an interrupted write() from the same sources left files in `folder`."""
    return storage.read_json(folder / _UNFINISHED) == {"made_from": made_from}


def write(
    info: "tfds.core.DatasetInfo",
    folder: pathlib.Path,
    splits: Sequence[Split],
    *,
    made_from: str,
    note: str,
) -> None:
    """Writes a data set; resumes what an interrupted call left.

    Args:
      info: version, features and description; receives the splits.
      folder: the folder of its version, such as DIR/cifar10/3.0.2.
      splits: all splits.
      made_from: a digest of everything that the records depend on; files that were made from
        anything else are written again.
      note: a caveat for readers of errors on this data set, or empty; see sources.Source.

    Raises:
      UserError: a record cannot be read again, or has changed.
      RunError: the disk is full or cannot be written.
    """
    with _writing(folder):
        _begin(folder, made_from)
        _write_splits(info, folder, splits)
        if note:
            storage.write_json(folder / sources.PREPARED, {"note": note})
        _write_metadata(info, folder)
        (folder / _UNFINISHED).unlink()


def _begin(folder: pathlib.Path, made_from: str) -> None:
    """Removes what was made from anything else."""
    folder.mkdir(parents=True, exist_ok=True)
    if not is_begun(folder, made_from):
        for path in (*folder.glob("*.array_record-*"), *folder.glob(".*.tmp")):
            path.unlink()
        (folder / sources.PREPARED).unlink(missing_ok=True)
        storage.write_json(folder / _UNFINISHED, {"made_from": made_from})


def _write_splits(
    info: "tfds.core.DatasetInfo", folder: pathlib.Path, splits: Sequence[Split]
) -> None:
    """Writes the files of all splits, and notes them in `info`."""
    from tensorflow_datasets.core import naming
    from tensorflow_datasets.core import splits as tfds_splits

    written = []
    with ThreadPoolExecutor(2 * len(usable_cores())) as pool, Bars() as bars:
        task = bars.add_task("records", total=sum(len(s.keys) for s in splits), figures="")
        for split in splits:
            template = naming.ShardedFileTemplate(
                folder, dataset_name=info.name, split=split.name, filetype_suffix="array_record"
            )
            shards = _shards(split)
            for number, shard in enumerate(shards):
                path = template.sharded_filepath(shard_index=number, num_shards=len(shards))
                _write_shard(pathlib.Path(path), split, shard, pool)
                bars.advance(task, len(shard))
                bars.draw()
                if bars.disable:
                    logging.info("%s: file %d of %d.", split.name, number + 1, len(shards))
            written.append(
                tfds_splits.SplitInfo(
                    name=split.name,
                    shard_lengths=list(map(len, shards)),
                    num_bytes=sum(split.sizes),
                    filename_template=template,
                )
            )
    info.set_file_format("array_record", override=True)
    info.set_splits(tfds_splits.SplitDict(written))


def _write_metadata(info: "tfds.core.DatasetInfo", folder: pathlib.Path) -> None:
    # TFDS's reader needs dataset_info.json: a copy without it counts as absent.
    metadata = folder / "metadata.tmp"
    metadata.mkdir(exist_ok=True)
    info.write_to_directory(metadata)
    for path in sorted(metadata.iterdir(), key=lambda path: path.name == "dataset_info.json"):
        path.replace(folder / path.name)
    metadata.rmdir()


@contextlib.contextmanager
def _writing(folder: pathlib.Path) -> Iterator[None]:
    try:
        yield
    except OSError as e:
        raise RunError(
            f"{folder} cannot be written: {storage.reason(e)}; the same command resumes."
        ) from e


def _shards(split: Split) -> list[list[int]]:
    """Returns the numbers of the records in each file, in the order on disk."""
    from tensorflow_datasets.core.utils import shard_utils

    salted = hashlib.md5(split.name.encode(), usedforsecurity=False)

    def place(number: int) -> bytes:
        digest = salted.copy()
        digest.update(split.keys[number].encode())
        return digest.digest()

    order = sorted(range(len(split.keys)), key=place)
    count = shard_utils.ShardConfig().get_number_shards(sum(split.sizes), len(order))
    ends = shard_utils.get_shard_boundaries(len(order), count)
    return [order[start:end] for start, end in itertools.pairwise([0, *ends])]


def _write_shard(
    path: pathlib.Path, split: Split, numbers: Sequence[int], pool: ThreadPoolExecutor
) -> None:
    """Writes one file, unless it is already complete."""
    if path.is_file():
        return

    def read(number: int) -> bytes:
        name = f"{split.keys[number]} of {split.name}"
        try:
            stored = split.record(number)
        except OSError as e:
            raise UserError(f"{name} cannot be read: {storage.reason(e)}.") from e
        if len(stored) != split.sizes[number]:
            raise UserError(f"{name} has changed since it was first read; start again.")
        return stored

    records.write_shard(path, pool.map(read, numbers), "group_size:1")
