"""Small sets live on the device whole, as uint8; a batch is a gather inside the step."""

import dataclasses

import jax
import numpy as np
from ml_collections import ConfigDict

from resnet_jax.data import sources
from resnet_jax.data.augment import Normalization, fit_normalization
from resnet_jax.distributed import put
from resnet_jax.mesh import everywhere


@dataclasses.dataclass(frozen=True)
class Split:
    """One split on the devices, whole on each: images uint8 (N, H, W, C), labels int32 (N,)."""

    images: jax.Array
    labels: jax.Array

    def __len__(self) -> int:
        """Examples in the split."""
        return self.images.shape[0]


@dataclasses.dataclass(frozen=True)
class Resident:
    """The three splits, kept apart, and what normalises them."""

    train: Split
    validation: Split
    test: Split
    normalization: Normalization
    note: str


def split_indices(examples: int, validation: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Cuts the training examples into (train, validation), both in increasing order."""
    order = np.random.default_rng(seed).permutation(examples)
    return np.sort(order[validation:]), np.sort(order[:validation])


def load(config: ConfigDict, mesh: jax.sharding.Mesh) -> Resident:
    """Reads the set of a resolved config's `data` section and puts it on every device of `mesh`.

    Raises:
      UserError: the data set is absent.
    """
    source = sources.load(config.name, config.dir)
    train, held_out = split_indices(len(source.train_images), config.validation, config.split_seed)

    def place(images: np.ndarray, labels: np.ndarray) -> Split:
        return Split(*put((images, labels), everywhere(mesh)))

    train_images = source.train_images[train]
    return Resident(
        train=place(train_images, source.train_labels[train]),
        validation=place(source.train_images[held_out], source.train_labels[held_out]),
        test=place(source.test_images, source.test_labels),
        normalization=fit_normalization(train_images, config.mean, config.std),
        note=source.note,
    )
