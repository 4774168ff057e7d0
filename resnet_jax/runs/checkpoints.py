"""A run's newest checkpoints, on a disk or in a bucket.

Process 0 writes each checkpoint with Orbax, in a thread, and adds an inventory of its files, which
is checked before Orbax reads them. On a disk, a complete checkpoint is renamed to its final name.
In a bucket nothing can be renamed, and Orbax does not write to s3://. There process 0 writes the
checkpoint into a scratch folder on its own disk (TMPDIR sets it) and uploads it, the inventory
last; a checkpoint without an inventory counts as incomplete. To restore from a bucket, each process
downloads the whole checkpoint.
"""

import contextlib
import errno
import functools
import os
import pathlib
import shutil
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Self

import jax
import orbax.checkpoint as ocp
from absl import logging
from upath import UPath

from resnet_jax.errors import RunError
from resnet_jax.parallel.processes import fetch, from_primary, is_primary, of_all
from resnet_jax.pytree import PyTree
from resnet_jax.runs import inventory, storage
from resnet_jax.state import S, TrainState, Variables

_UNFINISHED = ".orbax-checkpoint-tmp"  # suffix of a checkpoint that is being written
_CLEARING_SECONDS = 2.0


class OtherStateError(RunError):
    """A checkpoint is intact, but its arrays are not those of this version's state."""

    def __init__(self, step: int, folder: object, array: str):
        """Names the checkpoint and an array whose shape differs or that one side lacks."""
        super().__init__(
            f"Checkpoint {step} in {folder} is intact, but another version of resnet_jax wrote it: "
            f"{array} differs; resume with that version, whose commit is in environment.json, or "
            "start over in an empty folder."
        )


class Checkpoints:
    """A run's checkpoints, one folder per step with either state and best, or variables.

    Every process of a run opens them and calls every method at the same step.
    """

    def __init__(self, folder: storage.Path, keep: int):
        """Opens `folder`, creating it if needed; only the `keep` newest checkpoints are kept.

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
            self._bucket, self._local = None, folder.absolute()  # Orbax requires absolute paths
            from_primary(self._make_folder)
        process = jax.process_index()
        # Each process reads by itself, and only process 0 writes, so Orbax needs no barriers.
        single = ocp.options.MultiprocessingOptions(
            primary_host=process, active_processes={process}, barrier_sync_key_prefix=f"{process}"
        )
        # Otherwise a thread makes the directories. If it fails, as on a full disk, the threads that
        # wait for them keep the process alive for five minutes.
        directories_first = ocp.options.AsyncOptions(create_directories_asynchronously=False)
        items = ocp.CompositeOptions(
            multiprocessing_options=single, async_options=directories_first
        )
        self._orbax = ocp.Checkpointer(
            ocp.CompositeCheckpointHandler(composite_options=items), multiprocessing_options=single
        )

    def __enter__(self) -> Self:
        """Returns itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """After an error, waits for a write in progress, so that nothing stays half-written."""
        if kind is not None and issubclass(kind, Exception):  # a second Ctrl-C does not wait
            with contextlib.suppress(Exception):  # the original error is being raised
                self.close()

    def save(self, step: int, saved: TrainState | Variables) -> None:
        """Starts writing a checkpoint; `saved` may be donated when this returns.

        Args:
          step: steps taken.
          saved: a state, or the tested variables, with a leading replicate axis.

        Raises:
          RunError: this or the previous checkpoint could not be written, as on a full disk.
        """
        self.wait()
        # On a CPU these share memory with the device arrays, which JAX then does not donate.
        items = _items(fetch(saved))
        from_primary(functools.partial(self._start_write, step, items))

    def wait(self) -> None:
        """Waits until every save is in place; raises RunError if one failed."""
        from_primary(self._wait_for_write)

    def restore(self, like: S) -> S | None:
        """Returns the content of the newest intact checkpoint, or None if there is no checkpoint.

        A damaged one is logged and renamed, since the run will save that step again.

        Args:
          like: arrays or ShapeDtypeStructs with the same shapes and shardings.

        Raises:
          RunError: every checkpoint is damaged, or another version of the code wrote the newest
            (OtherStateError).
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
                f"None of the checkpoints {steps} in {self._folder} can be read; they are renamed "
                "damaged-*; start over in an empty folder."
            )
        return None

    def steps(self) -> list[int]:
        """Returns the steps that have a complete checkpoint, oldest first."""
        return from_primary(self._complete_steps)

    def close(self) -> None:
        """Waits for a write in progress and frees all resources; raises RunError if it failed."""
        try:
            self._wait_for_write()
        finally:
            self._writer.shutdown()
            self._orbax.close()
            if self._bucket:
                shutil.rmtree(self._local, ignore_errors=True)

    # -------------------------------------------------------------------------------- writing

    def _make_folder(self) -> None:
        try:
            self._local.mkdir(parents=True, exist_ok=True)
            self._remove_unfinished()
        except OSError as e:
            raise self._unwritable(storage.reason(e)) from e

    def _start_write(self, step: int, items: dict[str, PyTree]) -> None:
        if step in self._complete_steps():
            return  # the run was stopped again right after it resumed
        needed = sum(array.nbytes for array in jax.tree.leaves(items))
        free = shutil.disk_usage(self._local).free
        if free < needed:
            raise self._unwritable(
                f"it needs about {needed / 1e6:.1f} MB, but {free / 1e6:.1f} MB are free."
            )
        self._writing = self._writer.submit(self._write, step, items)

    def _wait_for_write(self) -> None:
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def _write(self, step: int, items: dict[str, PyTree]) -> None:
        unfinished = self._local / f"{step}{_UNFINISHED}"
        try:
            arguments = {name: ocp.args.StandardSave(tree) for name, tree in items.items()}
            self._orbax.save(unfinished, args=ocp.args.Composite(**arguments))
            listing = inventory.of_checkpoint(unfinished)
            if self._bucket:
                self._upload(unfinished, self._bucket / str(step), listing)
                shutil.rmtree(unfinished)
            else:
                (unfinished / inventory.INVENTORY_FILE).write_bytes(listing)
                unfinished.rename(self._local / str(step))
            for old in self._complete_steps()[: -self._keep]:
                self._remove(old)
        except Exception as e:
            _clear(self._local)
            raise self._unwritable(_reason(e)) from e

    def _unwritable(self, reason: str) -> RunError:
        return RunError(f"A checkpoint could not be written to {self._folder}: {reason}")

    def _upload(self, local: pathlib.Path, remote: UPath, listing: bytes) -> None:
        self._remove_unfinished()
        files = [path for path in local.rglob("*") if path.is_file()]
        names = [path.relative_to(local).as_posix() for path in files]
        with storage.reaching(remote):
            remote.fs.put([str(path) for path in files], [(remote / name).path for name in names])
        storage.write_bytes(remote / inventory.INVENTORY_FILE, listing)

    def _remove_unfinished(self) -> None:
        """Removes incomplete checkpoints of a killed launch; in a bucket, only before a write."""
        if self._bucket is None:
            for unfinished in self._local.glob(f"*{_UNFINISHED}"):
                shutil.rmtree(unfinished)
            return
        folders = {name.split("/")[0] for name in storage.files(self._bucket)}
        steps = {int(name) for name in folders if name.isdigit()}
        for step in steps - set(self._complete_steps()):
            self._remove(step)

    def _remove(self, step: int) -> None:
        checkpoint = self._folder / str(step)
        with storage.reaching(checkpoint):
            # The inventory goes first, so that a checkpoint half removed counts as incomplete.
            (checkpoint / inventory.INVENTORY_FILE).unlink(missing_ok=True)
        storage.remove(checkpoint)

    # -------------------------------------------------------------------------------- reading

    def _complete_steps(self) -> list[int]:
        with self._reading(self._folder):
            return inventory.complete_steps(self._folder)

    @contextlib.contextmanager
    def _on_disk(self, step: int) -> Iterator[pathlib.Path]:
        """Yields a checkpoint's folder on a disk, downloading a temporary copy from a bucket."""
        local = self._local / str(step)
        if self._bucket is None:
            yield local
            return
        remote = self._bucket / str(step)
        with self._reading(remote):
            storage.download(remote, local)
        try:
            yield local
        finally:
            shutil.rmtree(local, ignore_errors=True)

    def _restore(self, step: int, checkpoint: pathlib.Path, like: S) -> S | None:
        """Returns a checkpoint's content, or None if any process finds it damaged."""
        restored, damage = None, ""
        if self._bucket or is_primary():  # on a shared disk one process checks for all
            damage = inventory.damage(checkpoint)
        if not any(of_all(damage)):
            self._refuse_other(step, checkpoint, like)
            try:
                restored = self._read(checkpoint, like)
            except Exception as e:
                damage = str(e).strip().split("\n")[0][:300]
        damages = [text for text in of_all(damage) if text]
        if damages:
            logging.error(
                "CHECKPOINT %d IS DAMAGED and is skipped (%s); trying the previous one.",
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
        """Raises OtherStateError if an intact checkpoint has other arrays than `like`."""
        for item, tree in _items(like).items():
            try:
                saved = _shapes(ocp.StandardCheckpointHandler().metadata(checkpoint / item).tree)
            except Exception as e:
                # Orbax's metadata is damaged; the inventory does not cover it.
                logging.warning("The arrays of checkpoint %d cannot be listed: %s.", step, e)
                return
            expected = _shapes(tree)
            for name in sorted(saved.keys() | expected.keys()):
                if saved.get(name) != expected.get(name):
                    raise OtherStateError(step, self._folder, f"{item}/{name}")

    def _set_aside(self, step: int) -> None:
        logging.error("It is kept as damaged-%d in %s.", step, self._folder)
        storage.move(self._folder / str(step), f"damaged-{step}")

    @contextlib.contextmanager
    def _reading(self, path: storage.Path) -> Iterator[None]:
        try:
            with storage.reaching(path):
                yield
        except OSError as e:
            raise RunError(f"{path} cannot be read: {storage.reason(e)}.") from e


def _reason(error: Exception) -> str:
    if isinstance(error, OSError):
        return storage.reason(error)
    # TensorStore's messages name several files before the system's reason.
    text = " ".join(str(error).split())
    reasons = map(os.strerror, (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO))
    return next((reason for reason in reasons if reason in text), text[:300])


def _clear(folder: pathlib.Path) -> None:
    """Removes unfinished checkpoints, repeatedly: Orbax's threads may still be writing."""
    deadline = time.monotonic() + _CLEARING_SECONDS
    while time.monotonic() < deadline:
        for unfinished in folder.glob(f"*{_UNFINISHED}"):
            shutil.rmtree(unfinished, ignore_errors=True)
        time.sleep(0.05)


def _items(saved: TrainState | Variables) -> dict[str, PyTree]:
    if not isinstance(saved, TrainState):
        return {"variables": saved}
    # "best" is a separate item, so that its weights can be read without the optimiser's state.
    return {"state": saved.replace(best=None), "best": saved.best}


def _shapes(tree: PyTree) -> dict[str, tuple[int, ...]]:
    return {
        name: tuple(array.shape) for name, array in ocp.tree.to_flat_dict(tree, sep="/").items()
    }
