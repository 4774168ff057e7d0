"""A run's checkpoints, the newest few, on a disk or in a bucket.

Process 0 writes each checkpoint with Orbax, in a thread, and adds an inventory of its files, which
is checked before Orbax reads them. On a disk, a checkpoint gets its name when it is whole. A bucket
knows no renaming, and Orbax does not write to s3://. There process 0 writes a checkpoint into a
scratch folder on its own disk (TMPDIR says where) and uploads it, the inventory last; a checkpoint
without it counts as incomplete. To restore from a bucket, each process downloads all of it.
"""

import contextlib
import functools
import pathlib
import shutil
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Self

import jax
import orbax.checkpoint as ocp
from absl import logging
from upath import UPath

from resnet_jax.errors import RunError
from resnet_jax.parallel.processes import fetch, from_primary, is_primary, of_all
from resnet_jax.runs import inventory, storage
from resnet_jax.state import S, TrainState, Variables

_HALF = ".orbax-checkpoint-tmp"  # the end of the name of one that is not yet whole
_CLEARING_SECONDS = 2.0


class OtherStateError(RunError):
    """A checkpoint is whole, and of a state that this version of the code does not make."""

    def __init__(self, step: int, folder: object, array: str):
        """Names the checkpoint, and an array that only it has, or only the run."""
        super().__init__(
            f"Checkpoint {step} in {folder} is whole, but another version of resnet_jax wrote it: "
            f"{array} differs. Go on with that version, whose commit is in environment.json, or "
            "start over in an empty folder."
        )


class Checkpoints:
    """A run's checkpoints, one folder per step: state and best, or variables; and an inventory.

    Every process of a run opens them and calls every method at the same step.
    """

    def __init__(self, folder: storage.Path, keep: int):
        """Opens `folder`, making it if it is new; the `keep` newest checkpoints stay.

        Raises:
          RunError: it cannot be made or read.
        """
        self._folder, self._keep = folder, keep
        self._writer = ThreadPoolExecutor(1, "checkpoint")
        self._writing: Future[None] | None = None
        if storage.is_bucket(folder):
            self._bucket: UPath | None = folder
            self._local = pathlib.Path(tempfile.mkdtemp(prefix="resnet_jax-"))
        else:
            self._bucket, self._local = None, folder.absolute()  # as Orbax demands
            from_primary(self._make_folder)
        here = jax.process_index()
        # Each process reads alone, and process 0 writes alone, so Orbax need not have them meet.
        alone = ocp.options.MultiprocessingOptions(
            primary_host=here, active_processes={here}, barrier_sync_key_prefix=f"{here}"
        )
        items = ocp.CompositeOptions(multiprocessing_options=alone)
        self._orbax = ocp.Checkpointer(
            ocp.CompositeCheckpointHandler(composite_options=items), multiprocessing_options=alone
        )

    def __enter__(self) -> Self:
        """Returns itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        """Lets a write under way end if there was an error; nothing half-written stays."""
        if kind is not None and issubclass(kind, Exception):  # a second Ctrl-C does not wait
            with contextlib.suppress(Exception):  # the error that is on its way, or one like it
                self.close()

    def save(self, step: int, saved: TrainState | Variables) -> None:
        """Begins to write a checkpoint; `saved` may be donated when this returns.

        Args:
          step: steps taken.
          saved: a state, or the variables that were tested; with a leading axis of replicates.

        Raises:
          RunError: this one or the one before could not be written (a full disk, say).
        """
        self.wait()
        # On a CPU these are the devices' own arrays, which JAX then does not donate.
        items = _items(fetch(saved))
        from_primary(functools.partial(self._begin, step, items))

    def wait(self) -> None:
        """Waits until all that was saved is in place; raises RunError if it could not be."""
        from_primary(self._written)

    def restore(self, like: S) -> S | None:
        """Returns the content of the newest whole checkpoint, or None if there is no checkpoint.

        A damaged one is reported and moved aside, since the run will come by its step again.

        Args:
          like: of the same shapes and shardings, arrays or ShapeDtypeStructs.

        Raises:
          RunError: there are checkpoints, and every one of them is damaged, or the newest was
            written by another version of the code (OtherStateError).
        """
        steps = self.steps()
        for step in reversed(steps):
            with self._on_disk(step) as checkpoint:
                restored = self._restore(step, checkpoint, like)
            if restored is not None:
                return restored
            from_primary(functools.partial(self._set_aside, step))
        if steps:
            raise RunError(
                f"None of the checkpoints {steps} in {self._folder} can be read; they were renamed "
                "damaged-*; start over in an empty folder."
            )
        return None

    def steps(self) -> list[int]:
        """Returns the steps in place, oldest first."""
        return from_primary(self._whole)

    def close(self) -> None:
        """Waits for a write under way, and lets go; raises RunError if it failed."""
        try:
            self._written()
        finally:
            self._writer.shutdown()
            self._orbax.close()
            if self._bucket:
                shutil.rmtree(self._local, ignore_errors=True)

    # -------------------------------------------------------------------------------- writing

    def _make_folder(self) -> None:
        try:
            self._local.mkdir(parents=True, exist_ok=True)
            self._remove_halves()
        except OSError as e:
            raise self._unwritable(storage.reason(e)) from e

    def _begin(self, step: int, items: dict[str, Any]) -> None:
        if step in self._whole():
            return  # stopped again before another step: it is there already
        needed = sum(array.nbytes for array in jax.tree.leaves(items))
        free = shutil.disk_usage(self._local).free
        if free < needed:  # no half a checkpoint is begun
            raise self._unwritable(
                f"it needs about {needed / 1e6:.1f} MB and {free / 1e6:.1f} MB are free."
            )
        self._writing = self._writer.submit(self._write, step, items)

    def _written(self) -> None:
        """Waits for the write under way; raises RunError if it failed."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def _write(self, step: int, items: dict[str, Any]) -> None:
        half = self._local / f"{step}{_HALF}"
        try:
            arguments = {name: ocp.args.StandardSave(tree) for name, tree in items.items()}
            self._orbax.save(half, args=ocp.args.Composite(**arguments))
            listing = inventory.make(half)
            if self._bucket:
                self._upload(half, self._bucket / str(step), listing)
                shutil.rmtree(half)
            else:
                (half / inventory.NAME).write_bytes(listing)
                half.rename(self._local / str(step))
            for old in self._whole()[: -self._keep]:
                self._remove(old)
        except Exception as e:
            _clear(self._local)
            reason = storage.reason(e) if isinstance(e, OSError) else str(e)
            raise self._unwritable(" ".join(reason.split())[:300]) from e

    def _unwritable(self, reason: str) -> RunError:
        return RunError(f"A checkpoint could not be written to {self._folder}: {reason}")

    def _upload(self, here: pathlib.Path, there: UPath, listing: bytes) -> None:
        self._remove_halves()
        files = [path for path in here.rglob("*") if path.is_file()]
        names = [path.relative_to(here).as_posix() for path in files]
        with storage.reaching(there):
            there.fs.put([str(path) for path in files], [(there / name).path for name in names])
        storage.write_bytes(there / inventory.NAME, listing)

    def _remove_halves(self) -> None:
        """Removes what a killed launch had begun to write; in a bucket, only before a write."""
        if self._bucket is None:
            for half in self._local.glob(f"*{_HALF}"):
                shutil.rmtree(half)
            return
        begun = {name.split("/")[0] for name in storage.files(self._bucket)}
        for step in {int(name) for name in begun if name.isdigit()} - set(self._whole()):
            self._remove(step)

    def _remove(self, step: int) -> None:
        checkpoint = self._folder / str(step)
        with storage.reaching(checkpoint):
            # From here on it is incomplete, however far its removal comes.
            (checkpoint / inventory.NAME).unlink(missing_ok=True)
        storage.remove(checkpoint)

    # -------------------------------------------------------------------------------- reading

    def _whole(self) -> list[int]:
        with self._reading(self._folder):
            if self._bucket:
                files = [name.split("/") for name in storage.files(self._bucket, depth=2)]
                names = [name for name, *inside in files if inside == [inventory.NAME]]
            else:
                names = [path.name for path in self._local.iterdir()]
        return sorted(int(name) for name in names if name.isdigit())

    @contextlib.contextmanager
    def _on_disk(self, step: int) -> Iterator[pathlib.Path]:
        """Yields a checkpoint's folder on a disk; one in a bucket is downloaded for a while."""
        here = self._local / str(step)
        if self._bucket is None:
            yield here
            return
        there = self._bucket / str(step)
        with self._reading(there):
            names = storage.files(there)
            for name in names:
                (here / name).parent.mkdir(parents=True, exist_ok=True)
            there.fs.get(
                [(there / name).path for name in names], [str(here / name) for name in names]
            )
        yield here
        shutil.rmtree(here, ignore_errors=True)

    def _restore(self, step: int, checkpoint: pathlib.Path, like: S) -> S | None:
        """Returns a checkpoint's content, None if any process finds it damaged."""
        restored, damage = None, ""
        if self._bucket or is_primary():  # on a disk that all see, one checks for all
            damage = inventory.damage(checkpoint)
        if not any(of_all(damage)):
            self._refuse_other(step, checkpoint, like)
            try:
                restored = self._read(checkpoint, like)
            except Exception as e:
                damage = str(e).strip().split("\n")[0][:300]
        damages = [found for found in of_all(damage) if found]
        if damages:
            logging.error(
                "CHECKPOINT %d IS DAMAGED and is left out (%s); trying the one before.",
                step, damages[0],
            )  # fmt: skip
            return None
        return restored

    def _read(self, checkpoint: pathlib.Path, like: S) -> S:
        shapes = {
            name: jax.tree.map(ocp.utils.to_shape_dtype_struct, tree)
            for name, tree in _items(like).items()
        }
        arguments = {name: ocp.args.StandardRestore(tree) for name, tree in shapes.items()}
        restored = self._orbax.restore(checkpoint, args=ocp.args.Composite(**arguments))
        if not isinstance(like, TrainState):
            return restored["variables"]
        return restored["state"].replace(best=restored["best"])

    def _refuse_other(self, step: int, checkpoint: pathlib.Path, like: S) -> None:
        """Raises OtherStateError if a checkpoint that is whole has other arrays than `like`."""
        for item, tree in _items(like).items():
            try:
                there = _shapes(ocp.StandardCheckpointHandler().metadata(checkpoint / item).tree)
            except Exception as e:
                # Orbax's own files about the checkpoint, which the inventory leaves out.
                logging.warning("What checkpoint %d holds cannot be listed: %s.", step, e)
                return
            here = _shapes(tree)
            for name in sorted(there.keys() | here.keys()):
                if there.get(name) != here.get(name):
                    raise OtherStateError(step, self._folder, f"{item}/{name}")

    def _set_aside(self, step: int) -> None:
        logging.error("It stays as damaged-%d in %s.", step, self._folder)
        storage.move(self._folder / str(step), f"damaged-{step}")

    @contextlib.contextmanager
    def _reading(self, path: storage.Path) -> Iterator[None]:
        try:
            with storage.reaching(path):
                yield
        except OSError as e:
            raise RunError(f"{path} cannot be read: {storage.reason(e)}.") from e


def _clear(folder: pathlib.Path) -> None:
    """Removes half a checkpoint; threads of Orbax may go on for a moment and make it anew."""
    give_up = time.monotonic() + _CLEARING_SECONDS
    while time.monotonic() < give_up:
        for half in folder.glob(f"*{_HALF}"):
            shutil.rmtree(half, ignore_errors=True)
        time.sleep(0.05)


def _items(saved: TrainState | Variables) -> dict[str, Any]:
    if not isinstance(saved, TrainState):
        return {"variables": saved}
    # "best" is an item of its own, so that one who wants its weights need not know the optimiser.
    return {"state": saved.replace(best=None), "best": saved.best}


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    return {
        name: tuple(array.shape) for name, array in ocp.tree.to_flat_dict(tree, sep="/").items()
    }
