"""Loads a trained network from a run folder, without changing the folder."""

import dataclasses
import functools
import os
import pathlib
import tempfile
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from ml_collections import ConfigDict

from resnet_jax import settings
from resnet_jax.data import datasets, sources
from resnet_jax.data.augment import Normalization
from resnet_jax.errors import UserError
from resnet_jax.networks import builders, layout
from resnet_jax.networks.resnet import ResNet
from resnet_jax.runs import inventory, reader, storage
from resnet_jax.settings import OWN_DATA
from resnet_jax.state import Variables

_COLLECTIONS = ("params", "batch_stats")


@dataclasses.dataclass(frozen=True, eq=False)
class Trained:
    """One seed of a run.

        logits = run.model.apply(run.variables, run.normalization(images), train=False)

    Attributes:
      model: the network, with unrolled blocks.
      variables: {"params", "batch_stats"}.
      seed: the seed they were trained with.
      step: training steps after which the network had these variables.
      is_tested: whether the run's test error belongs to these variables; if not, they come from
        its newest checkpoint.
      config: the run's config.json, with `data.dir` for this machine.
      data_content: the digest of the run's training data; empty if unknown.
      saved_normalization: of the run folder; None in one of an older version.
    """

    model: ResNet
    variables: Variables
    seed: int
    step: int
    is_tested: bool
    config: ConfigDict
    data_content: str
    saved_normalization: Normalization | None

    @functools.cached_property
    def normalization(self) -> Normalization:
        """Maps uint8 images (B, H, W, C) to the network's input.

        For a run folder of an older version it is measured on the training split at its first use,
        unless it is fixed, as ImageNet's.

        Raises:
          UserError: it is measured, and the data set is not on this machine, or differs from the
            run's.
        """
        if self.saved_normalization is not None:
            return self.saved_normalization
        normalization, content = datasets.normalization(self.config.data)
        self.check_data(content)
        return normalization

    @functools.cached_property
    def class_names(self) -> list[str]:
        """The name of the class of each logit; see data.sources.class_names.

        Raises:
          UserError: a user's own set has names, and is not the one that the run was trained on.
        """
        data = self.config.data
        if data.name in OWN_DATA and sources.has_names(data):
            self.check_data(datasets.streamed_content(data))
        return sources.class_names(data, self.config.model.num_classes)

    def check_finite(self) -> None:
        """Raises UserError if a weight or a statistic is not finite."""
        if not all(np.isfinite(array).all() for array in jax.tree.leaves(self.variables)):
            raise UserError(f"seed {self.seed} has diverged: its weights are not finite.")

    def check_data(self, content: str) -> None:
        """Raises UserError if a set's DataSet.content is known, and is not that of the run's."""
        if content and not self.is_of(content):
            raise UserError(
                f"data.dir={self.config.data.dir!r} does not hold the {self.config.data.name} that "
                "the run was trained on."
            )

    def is_of(self, content: str) -> bool:
        """Whether the run was trained on the set with this DataSet.content, as far as is known."""
        return self.data_content in ("", content)


def load(
    run: str | os.PathLike[str], seed: int | None = None, *, data_dir: str | None = None
) -> Trained:
    """Loads a network and the variables that its test error belongs to.

    If the run has not been tested, or has trained on since, the variables come from its newest
    checkpoint, and a warning is logged.

    Args:
      run: a run folder, on a disk or in a bucket.
      seed: one of the run's seeds; None: the first.
      data_dir: the TFDS data_dir on this machine, for the run's data set; None: the run's.

    Raises:
      UserError: it is not a run folder, has no such seed, or has no intact checkpoint.
    """
    path = storage.locate(run, "The run folder")
    saved_run = reader.read(path)
    config = saved_run.config
    flat = settings.flatten(config)
    of_model = [key for key in settings.SETTINGS if key.startswith("model.") and key not in flat]
    reader.refuse_missing(saved_run, settings.missing(flat) or of_model)
    first, seeds = config["seed"], config["replicates"]
    seed = first if seed is None else seed
    if not isinstance(seed, (int, np.integer)):
        raise UserError(f"seed={seed!r} is not a whole number.")
    if seed not in range(first, first + seeds):
        nearest = min(max(seed, first), first + seeds - 1)
        allowed = f"{first} to {first + seeds - 1}" if seeds > 1 else f"only {first}"
        raise UserError(f"seed={seed} is not in {path}; allowed is {allowed} (nearest: {nearest}).")
    model = dataclasses.replace(builders.from_config(config["model"]), scan=False, remat=())
    saved = newest(path)
    file = path / reader.NORMALIZATION
    normalization = storage.read_json(file)
    best_step = reader.tested_step(saved_run, seed) if saved.is_tested else None
    if not saved.is_tested:
        logging.warning("%s: not tested; these are the variables of step %d.", path, saved.step)
    if data_dir is not None:
        config["data"]["dir"] = data_dir
    return Trained(
        model=model,
        variables=_of_one_seed(saved.variables, seed - first),
        seed=seed,
        step=saved.step if best_step is None else best_step,
        is_tested=saved.is_tested,
        config=ConfigDict(config).lock(),
        data_content=saved_run.environment.get("data", {}).get("content", ""),
        saved_normalization=Normalization.from_json(normalization, file) if normalization else None,
    )


class Saved(NamedTuple):
    """Variables from a checkpoint.

    Attributes:
      variables: stacked, with a leading axis of replicates, as in checkpoints; NumPy arrays.
      step: of the checkpoint.
      is_tested: whether the run's test error belongs to them.
    """

    variables: Variables
    step: int
    is_tested: bool


def newest(run: storage.Path) -> Saved:
    """Reads a run's tested variables or, if it has trained on since, its newest checkpoint.

    Raises:
      UserError: there is no checkpoint, or all are damaged.
    """
    places = _places(run)
    for step, folder in sorted(places, key=lambda place: (place[0], place[1] == "tested"))[::-1]:
        variables = _read(run / folder / str(step))
        if variables is not None:
            return Saved(variables, step, folder == "tested")
    raise UserError(f"{run} holds no {'intact checkpoint' if places else 'checkpoint'}.")


def has_variables(run: storage.Path) -> bool:
    """Whether a run folder has a checkpoint, or tested variables."""
    return bool(_places(run))


def _places(run: storage.Path) -> list[tuple[int, str]]:
    return [
        (step, folder)
        for folder in ("checkpoints", "tested")
        if storage.is_dir(run / folder)
        for step in inventory.complete_steps(run / folder)
    ]


def _read(checkpoint: storage.Path) -> Variables | None:
    """Returns a checkpoint's variables; logs a damaged checkpoint and returns None."""
    with tempfile.TemporaryDirectory(prefix="resnet_jax-") as scratch:
        local = pathlib.Path(scratch) / checkpoint.name
        if storage.is_bucket(checkpoint):
            storage.download(checkpoint, local)
        else:
            local = checkpoint.absolute()
        if damage := inventory.damage(local):
            logging.error("%s is damaged and is skipped: %s.", checkpoint, damage)
            return None
        tested = local / "variables"
        return _evaluated(tested if tested.is_dir() else local / "state")


def _evaluated(item: pathlib.Path) -> Variables:
    metadata = ocp.StandardCheckpointHandler().metadata(item).tree
    # As TrainState.evaluated.
    names = ("ema",) if metadata.get("ema") else _COLLECTIONS
    tree = {name: metadata[name] for name in names}
    as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
    restored: Variables = ocp.PyTreeCheckpointer().restore(
        item,
        args=ocp.args.PyTreeRestore(item=tree, restore_args=as_numpy, partial_restore=True),
    )
    restored = restored.get("ema", restored)
    return {name: restored[name] for name in _COLLECTIONS}


def _of_one_seed(variables: Variables, replicate: int) -> Variables:
    """Returns the variables of one replicate, with unstacked blocks."""
    of_seed: Variables = jax.tree.map(lambda array: jnp.asarray(array[replicate]), variables)
    return {name: layout.by_block(collection) for name, collection in of_seed.items()}
