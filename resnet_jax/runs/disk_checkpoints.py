"""Checkpoints on a disk: Orbax, asynchronous; a damaged one is never trusted.

Orbax writes into a temporary folder and renames it, so a kill in the middle of a save leaves no
checkpoint of that step. What it does not notice is a changed byte: a flipped bit in a parameter
restores silently, and one that it does notice it meets half way, with reads under way. So each
checkpoint holds the size and the CRC-32 of every file in it, which are looked at before Orbax is.
"""

import contextlib
import functools
import json
import pathlib
import shutil
import time
import zlib
from collections.abc import Callable, Iterable
from typing import Any

import jax
import orbax.checkpoint as ocp
from absl import logging

from resnet_jax.errors import RunError
from resnet_jax.parallel.processes import from_primary, is_primary
from resnet_jax.state import S, TrainState, Variables

# The file in a checkpoint that says what the others are: path -> [bytes, CRC-32].
INVENTORY = "inventory.json"
_HALF = ".orbax-checkpoint-tmp"  # the end of the name of one not yet whole
_QUIET = 1.0  # seconds without a write, after one has failed, that show that none is under way
_PATIENCE = 10.0  # seconds to wait for that
_CHUNK = 1 << 24  # bytes read at a time


class OtherStateError(RunError):
    """A checkpoint is whole, and of a state that this version of the code does not make."""

    def __init__(self, step: int, folder: object, array: str):
        """Names the checkpoint, and an array that only it has, or only the run."""
        super().__init__(
            f"Checkpoint {step} in {folder} is whole, but another version of resnet_jax wrote it: "
            f"{array} differs. Go on with that version, whose commit is in environment.json, or "
            "start over in an empty folder."
        )
        self.step, self.array = step, array


class _Manager(ocp.CheckpointManager):
    """Orbax's manager that leaves it to `signals` to ask whether the run is to stop."""

    def reached_preemption(self, step: int) -> bool:
        """Returns False, and does not ask JAX.

        Orbax asks when a save ends, in a thread of its own and for the step of that checkpoint. JAX
        takes the step of the last question to be where the run is: it then named a step that had
        already passed, which the run never reached, and SIGTERM was lost.
        """
        return False


class DiskCheckpoints:
    """A run's checkpoints in a folder that all of its processes see; see Checkpoints."""

    def __init__(self, folder: pathlib.Path, keep: int, alone: bool = False):
        """Opens `folder`, making it where it is new; the `keep` newest checkpoints stay.

        `alone` says that it is this process's own, and that nobody is to be asked or waited for.
        """
        self._folder = folder
        self._is_primary = alone or is_primary()
        self._from_primary: Callable[..., Any] = _call if alone else from_primary
        here = jax.process_index()
        if alone:
            folder.mkdir(exist_ok=True)  # then Orbax does not, for some of the processes
        self._manager = _Manager(
            folder,
            options=ocp.CheckpointManagerOptions(
                multiprocessing_options=ocp.options.MultiprocessingOptions(
                    primary_host=here, active_processes={here}, barrier_sync_key_prefix=f"{here}"
                )
                if alone
                else ocp.options.MultiprocessingOptions(),
                create=not alone,
                max_to_keep=keep,
                cleanup_tmp_directories=True,
                # Called when all is written and the folder still has its temporary name.
                async_options=ocp.AsyncOptions(post_finalization_callback=self._take_inventory),
            ),
        )

    def __enter__(self) -> "DiskCheckpoints":
        """Returns itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        """Lets a save under way end, and removes it where it cannot."""
        if kind is None or not issubclass(kind, Exception):
            return  # a second Ctrl-C does not wait; the next launch tidies up
        with contextlib.suppress(Exception):  # the error that is on its way, or one like it
            self._manager.wait_until_finished()
        # When one of Orbax's threads has failed, others go on for a moment, and make the folder
        # anew: it has to stay away.
        began = last_seen = time.monotonic()
        while (now := time.monotonic()) < min(last_seen + _QUIET, began + _PATIENCE):
            for half in self._folder.glob(f"*{_HALF}") if self._is_primary else ():
                shutil.rmtree(half, ignore_errors=True)
                last_seen = now
            time.sleep(0.05)

    def save(self, step: int, saved: TrainState | Variables) -> None:
        """See Checkpoints."""
        if step in self._manager.all_steps():
            return  # stopped again before another step: it is there already
        items = _items(saved)
        self._check_space(items)
        try:
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    **{name: ocp.args.StandardSave(tree) for name, tree in items.items()}
                ),
            )
        except Exception as e:
            raise self._unwritable(e) from e

    def wait(self) -> None:
        """See Checkpoints."""
        try:
            self._manager.wait_until_finished()
        except Exception as e:
            raise self._unwritable(e) from e

    def restore(self, like: S) -> S | None:
        """See Checkpoints."""
        self._manager.reload()
        steps = sorted(self._manager.all_steps(), reverse=True)
        for step in steps:
            damage = self._from_primary(functools.partial(_damage, self._folder / str(step)))
            if not damage:
                self._refuse_other(step, like)
                try:
                    return self._restore(step, like)
                except Exception as e:
                    damage = str(e).strip().split("\n")[0]
            logging.error(
                "CHECKPOINT %d IS DAMAGED and is left out (%s); trying the one before.",
                step,
                damage,
            )
            self._from_primary(functools.partial(self._set_aside, step))
            self._manager.reload()
        if steps:
            raise all_damaged(steps, self._folder)
        return None

    def steps(self) -> list[int]:
        """See Checkpoints."""
        return sorted(self._manager.all_steps())

    def close(self) -> None:
        """See Checkpoints."""
        self._manager.close()

    def _restore(self, step: int, like: S) -> S:
        restored = self._manager.restore(
            step,
            args=ocp.args.Composite(
                **{
                    name: ocp.args.StandardRestore(
                        jax.tree.map(ocp.utils.to_shape_dtype_struct, tree)
                    )
                    for name, tree in _items(like).items()
                }
            ),
        )
        if not isinstance(like, TrainState):
            return restored["variables"]
        return restored["state"].replace(best=restored["best"])

    def _refuse_other(self, step: int, like: TrainState | Variables) -> None:
        """Raises OtherStateError where a checkpoint that is whole has other arrays than `like`."""
        for item, tree in _items(like).items():
            try:
                saved = ocp.StandardCheckpointHandler().metadata(self._folder / str(step) / item)
                there = _shapes(saved.tree)
            except Exception as e:
                # Orbax's own files about the checkpoint, which the inventory leaves out.
                logging.warning("What checkpoint %d holds cannot be listed: %s.", step, e)
                return
            here = _shapes(tree)
            for name in sorted(there.keys() | here.keys()):
                if there.get(name) != here.get(name):
                    raise OtherStateError(step, self._folder, f"{item}/{name}")

    def _check_space(self, items: dict[str, Any]) -> None:
        """Raises RunError where the disk is known to be too small: no half a save is begun."""
        needed = sum(array.nbytes for array in jax.tree.leaves(items))
        free = shutil.disk_usage(self._folder).free
        if free < needed:
            raise RunError(
                f"A checkpoint could not be written to {self._folder}: it needs about "
                f"{needed / 1e6:.1f} MB and {free / 1e6:.1f} MB are free."
            )

    def _take_inventory(self) -> None:
        for half in self._folder.glob(f"*{_HALF}"):
            inventory = {
                str(path.relative_to(half)): [path.stat().st_size, _crc32(path)]
                for path in sorted(half.rglob("*"))
                if path.is_file() and path.parent != half  # Orbax goes on writing its own there
            }
            (half / INVENTORY).write_text(json.dumps(inventory, indent=1), encoding="utf-8")

    def _set_aside(self, step: int) -> None:
        aside = self._folder / f"damaged-{step}"
        if aside.exists():
            shutil.rmtree(aside)
        (self._folder / str(step)).rename(aside)

    def _unwritable(self, error: Exception) -> RunError:
        reason = " ".join(str(error).split())[:300]
        return RunError(f"A checkpoint could not be written to {self._folder}: {reason}")


def all_damaged(steps: Iterable[int], folder: object) -> RunError:
    """Returns what to raise where not one checkpoint of a folder can be read."""
    return RunError(
        f"None of the checkpoints {sorted(steps)} in {folder} can be read; they were renamed "
        "damaged-*; start over in an empty folder."
    )


def _call(f: Callable[[], Any]) -> Any:
    return f()


def _items(saved: TrainState | Variables) -> dict[str, Any]:
    if not isinstance(saved, TrainState):
        return {"variables": saved}
    # "best" is an item of its own, so that one who wants its weights need not know the optimiser.
    return {"state": saved.replace(best=None), "best": saved.best}


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    return {
        name: tuple(array.shape) for name, array in ocp.tree.to_flat_dict(tree, sep="/").items()
    }


def _damage(checkpoint: pathlib.Path) -> str:
    """Returns what is not as it was when the checkpoint was written; empty where all is."""
    try:
        inventory = json.loads((checkpoint / INVENTORY).read_text(encoding="utf-8"))
        for name, (size, crc) in inventory.items():
            path = checkpoint / name
            if not path.is_file():
                return f"{name} is missing"
            if path.stat().st_size != size:
                return f"{name} has {path.stat().st_size} bytes, and had {size}"
            if _crc32(path) != crc:
                return f"{name} has the size that it had and other bytes"
    except (OSError, ValueError) as e:
        return f"{INVENTORY} cannot be read: {e}"
    return ""


def _crc32(path: pathlib.Path) -> int:
    crc = 0
    with path.open("rb") as f:
        while chunk := f.read(_CHUNK):
            crc = zlib.crc32(chunk, crc)
    return crc
