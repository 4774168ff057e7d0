"""A trained network, from a run folder into a user's own program."""

import dataclasses
import functools
import os
from typing import Any

import jax
import jax.numpy as jnp
from absl import logging
from ml_collections import ConfigDict

from resnet_jax.data import datasets
from resnet_jax.data.augment import Normalization
from resnet_jax.errors import UserError
from resnet_jax.networks import layout, resnet
from resnet_jax.runs import reader, saved_variables, storage
from resnet_jax.state import Variables


@dataclasses.dataclass(frozen=True, eq=False)
class Trained:
    """One seed of a run.

        logits = run.model.apply(run.variables, run.normalization(images), train=False)

    Attributes:
      model: the network, its blocks one after another.
      variables: {"params", "batch_stats"}.
      seed: of the run's seeds, the one that they belong to.
      step: training steps taken.
      is_tested: whether the run's test error belongs to these variables; if not, they are those
        that its newest checkpoint would evaluate.
      config: the run's config.json; its `data.dir` is where the data set lies here.
      data_content: the digest of the data that the run was trained on; empty if it is not known.
    """

    model: resnet.ResNet
    variables: Variables
    seed: int
    step: int
    is_tested: bool
    config: ConfigDict
    data_content: str

    @functools.cached_property
    def normalization(self) -> Normalization:
        """Maps uint8 images (B, H, W, C) to what the network takes.

        It is measured on the training split when it is first asked for. ImageNet's is fixed, so
        that no data are read.

        Raises:
          UserError: the data set is not on this machine (the sentence says how to prepare it), or
            differs from the one that the run was trained on.
        """
        normalization, content = datasets.normalization(self.config.data)
        if content and self.data_content not in ("", content):
            raise UserError(
                f"data.dir={self.config.data.dir!r} holds another {self.config.data.name} than the "
                "run was trained on: its normalization would differ."
            )
        return normalization


def load(
    run: str | os.PathLike[str], seed: int | None = None, *, data_dir: str | None = None
) -> Trained:
    """Loads a network and the variables that its test error belongs to.

    If the run has not been tested (yet), or was trained on since, they are those of its newest
    checkpoint, and a line in the log says so.

    Args:
      run: a run folder, on a disk or in a bucket.
      seed: which of the run's seeds; None: the first.
      data_dir: the TFDS data_dir on this machine; None: where the run found the data. Only
        `Trained.normalization` reads them.

    Raises:
      UserError: it is not a run folder, has no such seed, or has no checkpoint that is whole.
    """
    path = storage.locate(run, "The run folder")
    found = reader.read(path)
    config, first, seeds = found.config, found.config["seed"], found.config["replicates"]
    seed = first if seed is None else seed
    if seed not in range(first, first + seeds):
        nearest = min(max(seed, first), first + seeds - 1)
        trained = f"{first} to {first + seeds - 1}" if seeds > 1 else f"{first} alone"
        raise UserError(f"{path} has no seed {seed}, but {trained} (nearest: {nearest}).")
    try:
        model = dataclasses.replace(resnet.from_config(config["model"]), scan=False, remat=())
    except KeyError as e:
        raise UserError(f"{path}/config.json lacks model.{e.args[0]}: another version's.") from e
    saved = saved_variables.newest(path)
    if not saved.is_tested:
        logging.warning("%s: not tested; these are the variables of step %d.", path, saved.step)
    if data_dir is not None:
        config["data"]["dir"] = data_dir
    return Trained(
        model=model,
        variables=_of_one_seed(saved.variables, seed - first),
        seed=seed,
        step=saved.step,
        is_tested=saved.is_tested,
        config=ConfigDict(config).lock(),
        data_content=found.environment.get("data", {}).get("content", ""),
    )


def _of_one_seed(variables: Variables, replicate: int) -> Variables:
    """Takes one replicate out of what a checkpoint has, and its blocks apart."""
    alone: Any = jax.tree.map(lambda array: jnp.asarray(array[replicate]), variables)
    return {name: layout.by_block(collection) for name, collection in alone.items()}
