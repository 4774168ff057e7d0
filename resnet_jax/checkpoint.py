"""Checkpoints: Orbax, asynchronous, the newest few; a damaged one is never trusted.

Orbax writes into a temporary folder and renames it, so a kill in the middle of a save leaves no
checkpoint of that step. What it does not notice is a changed byte: a flipped bit in a parameter
restores silently. So each checkpoint holds a checksum of every array.
"""

import pathlib
import shutil
import zlib
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging

from resnet_jax.errors import RunError
from resnet_jax.state import TrainState


class Checkpoints:
    """A run's checkpoints, one folder a step: state, best, checksums, and in the last tested."""

    def __init__(self, folder: pathlib.Path, keep: int):
        """Opens `folder`, making it where it is new; the `keep` newest checkpoints stay."""
        self._folder = folder
        self._manager = ocp.CheckpointManager(
            folder,
            options=ocp.CheckpointManagerOptions(max_to_keep=keep, cleanup_tmp_directories=True),
        )

    def save(self, step: int, state: TrainState, tested: Any = None) -> None:
        """Begins to write a checkpoint; `state` may be donated when this returns.

        Args:
          step: steps taken.
          state: with a leading axis of replicates.
          tested: the variables that the test error belongs to, in the last checkpoint of a run.

        Raises:
          RunError: this one or the one before could not be written (a full disk, say).
        """
        if step in self._manager.all_steps():
            return  # stopped again before another step: it is there already
        items = _items(state)
        if tested is not None:
            items["tested"] = tested
        try:
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    **{name: ocp.args.StandardSave(tree) for name, tree in items.items()},
                    checksums=ocp.args.JsonSave(_checksums(items)),
                ),
            )
        except Exception as e:
            raise self._unwritable(e) from e

    def wait(self) -> None:
        """Waits until all that was saved is on disk; raises RunError where it could not be."""
        try:
            self._manager.wait_until_finished()
        except Exception as e:
            raise self._unwritable(e) from e

    def restore(self, like: TrainState) -> TrainState | None:
        """Returns the newest checkpoint that is whole, or None where there is none at all.

        A damaged one is reported and moved aside, since the run will come by its step again.

        Args:
          like: a state of the same shapes and shardings, arrays or ShapeDtypeStructs.

        Raises:
          RunError: there are checkpoints, and every one of them is damaged.
        """
        steps = sorted(self._manager.all_steps(), reverse=True)
        for step in steps:
            try:
                return self._restore(step, like)
            except Exception as e:
                reason = str(e).strip().split("\n")[0]
                logging.error(
                    "CHECKPOINT %d IS DAMAGED and is left out (%s: %s); trying the one before.",
                    step,
                    type(e).__name__,
                    reason,
                )
                self._set_aside(step)
        if steps:
            raise RunError(
                f"None of the checkpoints {sorted(steps)} in {self._folder} can be read; they were "
                "renamed damaged-*; start over in an empty folder."
            )
        return None

    def steps(self) -> list[int]:
        """Returns the steps on disk, oldest first."""
        return sorted(self._manager.all_steps())

    def close(self) -> None:
        """Waits for writes under way, and lets go."""
        self._manager.close()

    def _restore(self, step: int, like: TrainState) -> TrainState:
        items = _items(like)
        abstract = {
            name: jax.tree.map(ocp.utils.to_shape_dtype_struct, t) for name, t in items.items()
        }
        restored = self._manager.restore(
            step,
            args=ocp.args.Composite(
                **{name: ocp.args.StandardRestore(tree) for name, tree in abstract.items()},
                checksums=ocp.args.JsonRestore(),
            ),
        )
        saved = restored["checksums"]
        found = _checksums({name: restored[name] for name in items})
        differing = [path for path, value in found.items() if saved.get(path) != value]
        if differing:
            raise ValueError(
                f"the checksums of {len(differing)} arrays differ, first {differing[0]}"
            )
        return restored["state"].replace(best=restored["best"])

    def _set_aside(self, step: int) -> None:
        aside = self._folder / f"damaged-{step}"
        if aside.exists():
            shutil.rmtree(aside)
        (self._folder / str(step)).rename(aside)
        self._manager.reload()

    def _unwritable(self, error: Exception) -> RunError:
        # Nothing half-written stays, and a full disk has room again for the status.
        for half in self._folder.glob("*.orbax-checkpoint-tmp"):
            shutil.rmtree(half, ignore_errors=True)
        reason = " ".join(str(error).split())[:300]
        return RunError(f"A checkpoint could not be written to {self._folder}: {reason}")


def _items(state: TrainState) -> dict[str, Any]:
    # "best" is an item of its own, so that one who wants its weights need not know the optimiser.
    return {"state": state.replace(best=None), "best": state.best}


def _checksums(items: dict[str, Any]) -> dict[str, int]:
    arrays = jax.tree_util.tree_leaves_with_path(items)
    return {
        jax.tree_util.keystr(path): zlib.crc32(np.ascontiguousarray(jax.device_get(array)).data)
        for path, array in arrays
    }
