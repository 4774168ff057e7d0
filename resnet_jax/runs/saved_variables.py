"""Reads the variables that a run has saved, without changing its folder."""

import pathlib
import tempfile
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging

from resnet_jax.errors import UserError
from resnet_jax.runs import inventory, storage
from resnet_jax.state import Variables

_COLLECTIONS = ("params", "batch_stats")


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
    places = [
        (step, folder)
        for folder in ("checkpoints", "tested")
        if storage.is_dir(run / folder)
        for step in inventory.complete_steps(run / folder)
    ]
    for step, folder in sorted(places, key=lambda place: (place[0], place[1] == "tested"))[::-1]:
        variables = _read(run / folder / str(step))
        if variables is not None:
            return Saved(variables, step, folder == "tested")
    what = "no intact checkpoint" if places else "no checkpoint yet"
    raise UserError(f"{run} holds {what}.")


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
    restored: dict[str, Any] = ocp.PyTreeCheckpointer().restore(
        item,
        args=ocp.args.PyTreeRestore(item=tree, restore_args=as_numpy, partial_restore=True),
    )
    restored = restored.get("ema", restored)
    return {name: restored[name] for name in _COLLECTIONS}
