"""A run's own training step on images of noise, and what the programs beside it are given."""

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
from resnet_jax.programs import Programs, build
from resnet_jax.resolve import resolve

STEPS = 10**9  # more than any benchmark takes


@dataclasses.dataclass(frozen=True)
class Program:
    """One of those that take turns.

    Attributes:
      run: takes `at_once` training steps so many times, waits until they are done and returns the
        last loss.
      at_once: training steps that it takes as one.
      ahead: times that it may have prepared while another had its turn.
    """

    run: Callable[[int], float]
    at_once: int = 1
    ahead: int = 1


@dataclasses.dataclass(frozen=True)
class Work:
    """What all of them train on.

    Attributes:
      config: resolved.
      images: uint8 (N, H, W, C) of noise; CIFAR-10's whole training split, or one batch.
      labels: int32 (N,).
      normalization: of these images.
    """

    config: ConfigDict
    images: np.ndarray
    labels: np.ndarray
    normalization: Normalization

    def normalised_batch(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns float32 images (B, H, W, C), normalised, and int32 labels (B,) of one batch."""
        batch_size = self.config.batch_size
        images = self.normalization(jnp.asarray(self.images[:batch_size]))
        return np.asarray(images), self.labels[:batch_size]


class Training:
    """A run's training, of all its seeds, on one device.

    CIFAR-10 is on the device whole; each step gathers, crops and flips another batch of it. Of
    ImageNet one batch is there, as if just streamed, and is flipped.

    Attributes:
      at_once: training steps that are one call of the run's program.
      state: after the last step; None until start() is called.
    """

    def __init__(self, work: Work):
        """Prepares the training of some work; nothing is compiled yet."""
        config = work.config
        execution = decide(config, jax.devices()[:1])
        mesh = execution.mesh
        self._seeds = config.seed + np.arange(config.replicates, dtype=np.int32)
        self._seeds_R = put(self._seeds, meshes.by_replicate(mesh))
        self.at_once = execution.steps_per_dispatch
        self._arrays: Any = ()
        if sets.KNOWN[config.data.name].resident:
            split = ResidentSplit.place(work.images, work.labels, mesh)
            self._arrays, select = split.arrays, split.select
            self._batches = lambda spans: split.batches(
                self._seeds, spans, config.batch_size, 1, TRAIN
            )
        else:
            one = (work.images[None, None, None], work.labels[None, None, None])
            batch = put(one, meshes.split_batches(mesh))
            self._batches = lambda spans: ((span, batch) for span in spans)

            def select(arrays: Any, batch: Any) -> tuple[jax.Array, jax.Array]:
                return batch

        self._programs = build(config, execution, work.normalization, select)
        self.state: Any = None

    def start(self) -> None:
        """Goes to the start: the first state, and the first batch."""
        self.state = self._programs.start(self._seeds)
        self._to_come = self._batches(spans(range(self.at_once * STEPS), self.at_once))

    def run(self, times: int) -> Mapping[str, jax.Array]:
        """Takes `at_once` steps so many times, waits until they are done; returns the metrics."""
        for _ in range(times):
            _, batch = next(self._to_come)
            self.state, metrics = self._programs.train_steps(
                self.state, self._seeds_R, self._arrays, batch
            )
        jax.block_until_ready(self.state)
        return metrics


def config(family: str, depth: int, **changes: Any) -> ConfigDict:
    """Returns the resolved config of a family's recipe (configs/).

    Args:
      family: "imagenet" or "cifar".
      depth: of the network.
      **changes: `shortcut`, `bottleneck_stride`, `dtype`, `precision`, `bn_group`, `scan` and
        `remat` of the model, `batch_size`, `replicates`, `deterministic` and `image_size`; None:
        as the recipe has it. If the recipe's groups of BatchNorm do not divide the batch, the whole
        batch is one. The default of `deterministic` is False, as in the programs beside ours; from
        0.11 on, JAX cannot compile deterministic programs for a GPU that is not here.

    Raises:
      UserError: there is no such depth, or a change is not allowed.
    """
    config = imagenet.get_config("paper") if family == "imagenet" else cifar10.get_config()
    config.model.depth = depth
    config.data.color = False  # of it the programs beside ours have none
    given = {key: value for key, value in changes.items() if value is not None}
    config.deterministic = False
    of_run = dict.fromkeys(("batch_size", "replicates", "deterministic"), config)
    places = of_run | {"image_size": config.data}
    for key, value in given.items():
        places.get(key, config.model)[key] = value
    if "bn_group" not in given and config.batch_size % config.model.bn_group:
        config.model.bn_group = 0
    # No test is made: its views shall not limit the size of training images.
    config.eval.short_side = max(config.eval.short_side, config.data.image_size)
    return resolve(config)


def make_work(config: ConfigDict) -> Work:
    """Draws the noise of a resolved config."""
    known = sets.KNOWN[config.data.name]
    count = known.train - config.data.validation if known.resident else config.batch_size
    random = np.random.default_rng(config.seed)
    shape = (count, *sets.image_shape(config.data))
    images = random.integers(0, 256, shape, dtype=np.uint8)
    labels = random.integers(0, config.model.num_classes, count, dtype=np.int32)
    normalization = fit_normalization(images, config.data.mean, config.data.std)
    return Work(config, images, labels, normalization)


def shapes(config: ConfigDict, device: jax.Device) -> tuple[Programs, tuple[Any, ...]]:
    """Returns a run's programs, and the shapes of what train_steps takes beside the state's.

    To be compiled and not run: the device need not be here, see target.py. Images are gathered from
    one batch of them.

    Args:
      config: resolved.
      device: to compile for.
    """
    execution = decide(config, [device])
    mesh = execution.mesh
    shape = sets.image_shape(config.data)
    of_mean = shape if config.data.mean == "pixel" else (1, 1, shape[-1])
    mean, std = np.zeros((1, *of_mean), np.float32), np.ones((1, 1, 1, shape[-1]), np.float32)

    def of(shape: tuple[int, ...], dtype: Any, sharding: jax.sharding.Sharding) -> Any:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    everywhere = meshes.everywhere(mesh)
    images = of((config.batch_size, *shape), jnp.uint8, everywhere)
    split = ResidentSplit(images, of((config.batch_size,), jnp.int32, everywhere), mesh)
    at_once = execution.steps_per_dispatch
    part = config.batch_size // config.accumulate
    batches = of(
        (config.replicates, at_once, config.accumulate, part), jnp.int32, meshes.split_batches(mesh)
    )
    seeds = of((config.replicates,), jnp.int32, meshes.by_replicate(mesh))
    programs = build(config, execution, Normalization(mean, std), split.select)
    return programs, (seeds, split.arrays, batches)


def make(work: Work) -> Program:
    """Returns a run's training step, in a run's loop; see Training."""
    training = Training(work)
    training.start()

    def run(times: int) -> float:
        return float(training.run(times)["train/loss"][0])

    return Program(run, at_once=training.at_once)
