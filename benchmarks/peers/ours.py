"""A run's own training step on random images, and the work that all programs share."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from configs import cifar10, imagenet
from resnet_jax.data import sets
from resnet_jax.data.augment import Normalization, fit_normalization
from resnet_jax.data.order import TRAIN, spans
from resnet_jax.data.resident import ResidentSplit
from resnet_jax.execution import decide
from resnet_jax.parallel import mesh as meshes
from resnet_jax.parallel.processes import put
from resnet_jax.programs import build
from resnet_jax.pytree import PyTree
from resnet_jax.resolve import resolve

STEPS = 10**9  # more than any benchmark takes


@dataclasses.dataclass(frozen=True)
class Program:
    """A program that takes turns with others.

    Attributes:
      run: makes a number of dispatches, waits until they are done and returns the last loss.
      at_once: training steps per dispatch.
      ahead: dispatches whose data it may have prefetched during another program's turn.
    """

    run: Callable[[int], float]
    at_once: int = 1
    ahead: int = 1


@dataclasses.dataclass(frozen=True)
class Work:
    """The training task that all programs share.

    Attributes:
      config: resolved.
      images: random uint8 (N, H, W, C), as many as CIFAR-10's training split, or one batch.
      labels: int32 (N,).
      normalization: fitted to these images.
    """

    config: ConfigDict
    images: np.ndarray
    labels: np.ndarray
    normalization: Normalization

    def normalised_batch(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns one batch: normalised float32 images (B, H, W, C) and int32 labels (B,)."""
        batch_size = self.config.batch_size
        images = self.normalization(jnp.asarray(self.images[:batch_size]))
        return np.asarray(images), self.labels[:batch_size]


class Training:
    """A run's training of all its seeds on one device.

    For CIFAR the whole split is on the device, and each step gathers, crops and flips another
    batch. For ImageNet one batch is on the device, as if just streamed, and each step flips it.

    Attributes:
      at_once: training steps per dispatch.
      state: after the last step; None before start().
    """

    def __init__(self, work: Work):
        """Prepares the training; nothing is compiled yet."""
        config = work.config
        execution = decide(config, jax.devices()[:1])
        mesh = execution.mesh
        self._seeds = config.seed + np.arange(config.replicates, dtype=np.int32)
        self._seeds_R = put(self._seeds, meshes.by_replicate(mesh))
        self.at_once = execution.steps_per_dispatch
        self._arrays: PyTree = ()
        if sets.DATA_SETS[config.data.name].resident:
            split = ResidentSplit.place(work.images, work.labels, mesh)
            self._arrays, select = split.arrays, split.select
            self._batches = lambda spans: split.batches(
                self._seeds, spans, config.batch_size, 1, TRAIN
            )
        else:
            one = (work.images[None, None, None], work.labels[None, None, None])
            batch = put(one, meshes.split_batches(mesh))
            self._batches = lambda spans: ((span, batch) for span in spans)

            def select(arrays: PyTree, batch: PyTree) -> tuple[jax.Array, jax.Array]:
                return batch

        self._programs = build(config, execution, work.normalization, select)
        self.state: Any = None

    def start(self) -> None:
        """Resets to the initial state and the first batch."""
        self.state = self._programs.start(self._seeds)
        self._iterator = self._batches(spans(range(self.at_once * STEPS), self.at_once))

    def run(self, dispatches: int) -> Mapping[str, jax.Array]:
        """Makes `dispatches` dispatches, waits until they are done; returns the last metrics."""
        for _ in range(dispatches):
            _, batch = next(self._iterator)
            self.state, metrics = self._programs.train_steps(
                self.state, self._seeds_R, self._programs.numbers, self._arrays, batch
            )
        jax.block_until_ready(self.state)
        return metrics


def config(family: str, depth: int, **changes: Any) -> ConfigDict:
    """Returns the resolved config of a family's recipe (configs/).

    Args:
      family: "imagenet" or "cifar".
      depth: the network's depth.
      **changes: `shortcut`, `bottleneck_stride`, `dtype`, `precision`, `bn_group`, `scan` and
        `remat` of the model, `batch_size`, `replicates`, `deterministic` and `image_size`; None
        keeps the recipe's value. If the recipe's BatchNorm groups do not divide the batch, the
        whole batch is one group. `deterministic` is False by default, as in the peers; from 0.11
        on, JAX cannot compile deterministic programs for an absent GPU.

    Raises:
      UserError: there is no such depth, or a change is not allowed.
    """
    config = imagenet.get_config("paper") if family == "imagenet" else cifar10.get_config()
    config.model.depth = depth
    config.data.color = False  # the peers have no colour augmentation
    config.deterministic = False
    changes = {key: value for key, value in changes.items() if value is not None}
    sections = dict.fromkeys(("batch_size", "replicates", "deterministic"), config)
    sections |= {"image_size": config.data}
    for key, value in changes.items():
        sections.get(key, config.model)[key] = value
    if "bn_group" not in changes and config.batch_size % config.model.bn_group:
        config.model.bn_group = 0
    # There is no test, so its views must not limit the size of training images.
    config.eval.short_side = max(config.eval.short_side, config.data.image_size)
    return resolve(config)


def make_work(config: ConfigDict) -> Work:
    """Draws random images and labels for a resolved config."""
    facts = sets.DATA_SETS[config.data.name]
    count = facts.train - config.data.validation if facts.resident else config.batch_size
    random = np.random.default_rng(config.seed)
    shape = (count, *sets.image_shape(config.data))
    images = random.integers(0, 256, shape, dtype=np.uint8)
    labels = random.integers(0, config.model.num_classes, count, dtype=np.int32)
    normalization = fit_normalization(images, config.data.mean, config.data.std)
    return Work(config, images, labels, normalization)


def make(work: Work) -> Program:
    """Returns the program of a run's training step; see Training."""
    training = Training(work)
    training.start()

    def run(dispatches: int) -> float:
        return float(training.run(dispatches)["train/loss"][0])

    return Program(run, at_once=training.at_once)
