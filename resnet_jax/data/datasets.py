"""A run's data set: training, validation and test splits, and their normalisation."""

import dataclasses
import hashlib
from typing import TYPE_CHECKING

import jax
import numpy as np
from ml_collections import ConfigDict

from resnet_jax.data import sets, sources
from resnet_jax.data.augment import Normalization, fit_normalization
from resnet_jax.data.crops import make_crop
from resnet_jax.data.order import SPLIT, STREAMS, stream
from resnet_jax.data.resident import ResidentSplit
from resnet_jax.data.splits import Split
from resnet_jax.errors import RunError, UserError
from resnet_jax.runs.records import Data

if TYPE_CHECKING:
    from resnet_jax.data.streaming import StreamedSplit, Workers


@dataclasses.dataclass(frozen=True)
class DataSet:
    """The data of a run; call close() when done."""

    train: Split
    validation: Split
    test: Split
    normalization: Normalization
    version: str  # TFDS's; empty for digits
    content: str  # digest of a resident set, or of a streamed set's file sizes and some records
    note: str  # a caveat for readers of its errors, or empty
    workers: "Workers | None" = None

    def facts(self, config: ConfigDict) -> Data:
        """Returns what must be equal in all processes and when a run resumes."""
        return {
            "name": config.data.name,
            "version": self.version,
            "train": len(self.train),
            "validation": len(self.validation),
            "test": len(self.test),
            "classes": config.model.num_classes,
            "image_shape": list(sets.image_shape(config.data)),
            "note": self.note,
            "content": self.content,
            "streams": STREAMS,
        }

    def close(self) -> None:
        """Stops the worker threads, if any."""
        if self.workers is not None:
            self.workers.close()


def split_indices(examples: int, validation: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Splits example numbers at random into (train, validation), both in increasing order."""
    order = stream(SPLIT, seed).permutation(examples)
    return np.sort(order[validation:]), np.sort(order[:validation])


def open_set(config: ConfigDict, mesh: jax.sharding.Mesh) -> DataSet:
    """Opens the data set of a resolved config's `data` section for the devices of `mesh`.

    Raises:
      UserError: the data set is missing or broken.
    """
    try:
        if sets.DATA_SETS[config.name].resident:
            return _resident(config, mesh)
        return _streamed(config, mesh)
    except RunError as e:  # a broken record, but before training
        raise UserError(str(e)) from e


def _source(config: ConfigDict) -> sources.Source:
    source = sources.read_set(config.name, config.dir).of_classes(config.classes)
    if len(source.train_labels) <= config.validation or not len(source.test_labels):
        raise UserError(
            f"data.classes={tuple(config.classes)} leaves {len(source.train_labels)} training and "
            f"{len(source.test_labels)} test examples; data.validation={config.validation} has to "
            "be less, and no test is possible without any."
        )
    return source


def _resident(config: ConfigDict, mesh: jax.sharding.Mesh) -> DataSet:
    source = _source(config)
    images, labels = source.train_images, source.train_labels
    train, held_out = split_indices(len(images), config.validation, config.split_seed)
    return DataSet(
        train=ResidentSplit.place(images[train], labels[train], mesh),
        validation=ResidentSplit.place(images[held_out], labels[held_out], mesh),
        test=ResidentSplit.place(source.test_images, source.test_labels, mesh),
        normalization=_with_given(
            config, fit_normalization(images[train], config.mean, config.std)
        ),
        version=source.version,
        content=_content(source),
        note=source.note,
    )


def _streamed(config: ConfigDict, mesh: jax.sharding.Mesh) -> DataSet:
    from resnet_jax.data.streaming import StreamedSplit, Workers  # here: resident sets need none

    train, test, note = sources.open_records(config.name, config.dir)
    content = _digest(train.fingerprint(), test.fingerprint())
    members, held_out = split_indices(len(train), config.validation, config.split_seed)
    workers = Workers(config.workers)
    crop = make_crop(config)

    def split(records: sources.Records, members: np.ndarray) -> "StreamedSplit":
        return StreamedSplit(
            records, members, config.image_size, crop, config.resample, workers, mesh
        )

    return DataSet(
        train=split(train, members),
        validation=split(train, held_out),
        test=split(test, np.arange(len(test))),
        normalization=_with_given(config, _customary(config)),
        version=train.version,
        content=content,
        note=note,
        workers=workers,
    )


def normalization(config: ConfigDict) -> tuple[Normalization, str]:
    """Returns the normalisation of a resolved config's `data`, and the set's DataSet.content.

    The set is not read, and the content is empty, if nothing is measured: for a streamed set, or if
    the config gives all numbers.

    Raises:
      UserError: the data set is missing.
      RunError: the data set is broken.
    """
    is_given = {"pixel": False, "channel": bool(config.channel_mean), "none": True}[config.mean]
    is_given &= bool(config.channel_std) or not config.std
    if is_given or not sets.DATA_SETS[config.name].resident:
        return _with_given(config, _customary(config)), ""
    source = _source(config)
    train, _ = split_indices(len(source.train_images), config.validation, config.split_seed)
    fitted = fit_normalization(source.train_images[train], config.mean, config.std)
    return _with_given(config, fitted), _content(source)


def streamed_content(config: ConfigDict) -> str:
    """Returns the DataSet.content of a streamed set, of a resolved config's `data`.

    Raises:
      UserError: the data set is missing or broken.
    """
    train, test, _ = sources.open_records(config.name, config.dir)
    return _digest(train.fingerprint(), test.fingerprint())


def _customary(config: ConfigDict) -> Normalization:
    """Returns the customary normalisation of a streamed set; no numbers for a resident one."""
    facts = sets.DATA_SETS[config.name]
    mean, std = facts.channels
    channels = facts.image_shape[-1]
    return Normalization(
        mean=np.array(mean if config.mean == "channel" else (0,) * channels, np.float32, ndmin=4),
        std=np.array(std if config.std else (1,) * channels, np.float32, ndmin=4),
    )


def _with_given(config: ConfigDict, normalization: Normalization) -> Normalization:
    """Replaces the mean and the deviation that a config gives."""
    mean, std = normalization.mean, normalization.std
    if config.mean == "channel" and config.channel_mean:
        mean = np.array(config.channel_mean, np.float32, ndmin=4)
    if config.std and config.channel_std:
        std = np.array(config.channel_std, np.float32, ndmin=4)
    return Normalization(mean=mean, std=std)


def _content(source: sources.Source) -> str:
    return _digest(source.train_images, source.train_labels, source.test_images, source.test_labels)


def _digest(*parts: np.ndarray | bytes) -> str:
    """Returns 16 hex digits of the parts' SHA-256."""
    digest = hashlib.sha256()  # 0.2 s for CIFAR-10
    for part in parts:
        digest.update(np.ascontiguousarray(part).data if isinstance(part, np.ndarray) else part)
    return digest.hexdigest()[:16]
