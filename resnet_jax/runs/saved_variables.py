"""The variables that a run has saved, read without changing anything in its folder."""

import pathlib
import tempfile
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from upath import UPath

from resnet_jax.errors import UserError
from resnet_jax.runs import inventory, storage
from resnet_jax.state import Variables

_COLLECTIONS = ("params", "batch_stats")


class Saved(NamedTuple):
    """What was read.

    Attributes:
      variables: as checkpoints have them: stacked, with a leading axis of replicates; NumPy arrays.
      step: of the checkpoint.
      is_tested: whether the run's test error belongs to them.
    """

    variables: Variables
    step: int
    is_tested: bool


def newest(run: storage.Path) -> Saved:
    """Reads the tested variables of a run; if it has trained on since, its newest checkpoint.

    Raises:
      UserError: there is no checkpoint, or none of them is whole.
    """
    places = [
        (step, folder) for folder in ("checkpoints", "tested") for step in _steps(run, folder)
    ]
    for step, folder in sorted(places, key=lambda place: (place[0], place[1] == "tested"))[::-1]:
        variables = _read(run / folder / str(step))
        if variables is not None:
            return Saved(variables, step, folder == "tested")
    what = "no checkpoint that is whole" if places else "no checkpoint yet"
    raise UserError(f"{run} holds {what}.")


def _steps(run: storage.Path, folder: str) -> list[int]:
    """Returns the steps of the checkpoints that were written to the end."""
    path = run / folder
    if storage.is_bucket(path):
        files = [name.split("/") for name in storage.files(path, depth=2)]
    else:
        files = [list(p.relative_to(path).parts) for p in path.glob(f"*/{inventory.NAME}")]
    return [int(name[0]) for name in files if name[0].isdigit() and name[1:] == [inventory.NAME]]


def _read(checkpoint: storage.Path) -> Variables | None:
    """Returns a checkpoint's variables, or None, with a line in the log, if it is damaged."""
    with tempfile.TemporaryDirectory(prefix="resnet_jax-") as scratch:
        here = pathlib.Path(scratch) / checkpoint.name
        if storage.is_bucket(checkpoint):
            _download(checkpoint, here)
        else:
            here = checkpoint.absolute()
        if damage := inventory.damage(here):
            logging.error("%s is damaged and is left out: %s.", checkpoint, damage)
            return None
        tested = here / "variables"
        return _evaluated(tested if tested.is_dir() else here / "state")


def _download(there: UPath, here: pathlib.Path) -> None:
    names = storage.files(there)
    for name in names:
        (here / name).parent.mkdir(parents=True, exist_ok=True)
    with storage.reaching(there):
        there.fs.get([(there / name).path for name in names], [str(here / name) for name in names])


def _evaluated(item: pathlib.Path) -> Variables:
    there = ocp.StandardCheckpointHandler().metadata(item).tree
    # What a state evaluates, see TrainState.evaluated.
    names = ("ema",) if there.get("ema") else _COLLECTIONS
    wanted = {name: there[name] for name in names}
    as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), wanted)
    restored: dict[str, Any] = ocp.PyTreeCheckpointer().restore(
        item,
        args=ocp.args.PyTreeRestore(item=wanted, restore_args=as_numpy, partial_restore=True),
    )
    restored = restored.get("ema", restored)
    return {name: restored[name] for name in _COLLECTIONS}
