"""Checkpoints in a bucket: written here by Orbax, then sent there.

Orbax renames a folder to say that it is whole, which a bucket cannot do. So process 0 writes each
checkpoint into a scratch folder on its own disk (TMPDIR says where) and uploads the files; the
inventory goes last, and a checkpoint without one is none. Processes need no disk in common: to go
on, each fetches the whole checkpoint and takes its part.
"""

import contextlib
import functools
import pathlib
import shutil
import tempfile
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from absl import logging
from upath import UPath

from resnet_jax.errors import RunError
from resnet_jax.parallel.processes import fetch, from_primary, is_primary, of_all
from resnet_jax.runs import storage
from resnet_jax.runs.disk_checkpoints import (
    INVENTORY,
    DiskCheckpoints,
    OtherStateError,
    all_damaged,
)
from resnet_jax.state import S, TrainState, Variables


class BucketCheckpoints:
    """A run's checkpoints in a bucket; see Checkpoints."""

    def __init__(self, folder: UPath, keep: int):
        """Opens `folder`; the `keep` newest checkpoints stay."""
        self._folder, self._keep = folder, keep
        self._scratch = pathlib.Path(tempfile.mkdtemp(prefix="resnet_jax-"))
        self._local = DiskCheckpoints(self._scratch, keep=1, alone=True)
        self._uploader = ThreadPoolExecutor(1, "upload")
        self._upload: Future[None] | None = None

    def __enter__(self) -> "BucketCheckpoints":
        """Returns itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: Any) -> None:
        """Lets an upload under way end."""
        if kind is None or not issubclass(kind, Exception):
            return  # a second Ctrl-C does not wait
        with contextlib.suppress(Exception):  # the error that is on its way, or one like it
            self._uploaded()
        self._local.__exit__(kind, *error)
        shutil.rmtree(self._scratch, ignore_errors=True)

    def save(self, step: int, saved: TrainState | Variables) -> None:
        """See Checkpoints."""
        from_primary(self._uploaded)
        host = fetch(saved)
        if not is_primary() or step in self._whole():
            return
        # On a CPU this is the device's own memory: JAX then does not donate it to the next step.
        self._local.save(step, host)
        self._upload = self._uploader.submit(self._send, step)

    def wait(self) -> None:
        """See Checkpoints."""
        from_primary(self._uploaded)

    def restore(self, like: S) -> S | None:
        """See Checkpoints."""
        steps = sorted(self.steps(), reverse=True)
        for step in steps:
            state = self._restore(step, like)
            if state is not None:
                return state
            from_primary(functools.partial(self._set_aside, step))
        if steps:
            raise all_damaged(steps, self._folder)
        return None

    def steps(self) -> list[int]:
        """See Checkpoints."""
        return from_primary(self._whole)

    def close(self) -> None:
        """See Checkpoints."""
        try:
            self._uploaded()
        finally:
            self._uploader.shutdown()
            self._local.close()
            shutil.rmtree(self._scratch, ignore_errors=True)

    def _restore(self, step: int, like: S) -> S | None:
        """Returns a checkpoint's state, None where any process finds it damaged."""
        there, here = self._folder / str(step), self._scratch / str(step)
        with self._reading(there):
            names = storage.files(there)
            for name in names:
                (here / name).parent.mkdir(parents=True, exist_ok=True)
            there.fs.get(
                [(there / name).path for name in names], [str(here / name) for name in names]
            )
        state = None
        try:
            state = self._local.restore(like)
        except OtherStateError as e:
            raise OtherStateError(step, self._folder, e.array) from e
        except RunError:
            pass  # it has said what is damaged
        shutil.rmtree(here, ignore_errors=True)
        return None if "damaged" in of_all("damaged" if state is None else "") else state

    def _send(self, step: int) -> None:
        """Uploads a checkpoint when it is whole here, and removes those that are too old."""
        self._local.wait()
        here, there = self._scratch / str(step), self._folder / str(step)
        names = [path.relative_to(here).as_posix() for path in here.rglob("*") if path.is_file()]
        names.remove(INVENTORY)
        try:
            self._remove_halves()
            with storage.reaching(there):
                there.fs.put(
                    [str(here / name) for name in names], [(there / name).path for name in names]
                )
            storage.write_bytes(there / INVENTORY, (here / INVENTORY).read_bytes())
            for old in self._whole()[: -self._keep]:
                self._remove(self._folder / str(old))
        except OSError as e:
            raise RunError(
                f"A checkpoint could not be written to {self._folder}: {storage.reason(e)}"
            ) from e

    def _uploaded(self) -> None:
        """Waits for the upload under way; raises RunError where it failed."""
        upload, self._upload = self._upload, None
        if upload is not None:
            upload.result()

    def _whole(self) -> list[int]:
        """Returns the steps of the checkpoints that were uploaded to the end, oldest first."""
        with self._reading(self._folder):
            names = [name.split("/") for name in storage.files(self._folder, depth=2)]
        return sorted(int(n[0]) for n in names if n[0].isdigit() and n[1:] == [INVENTORY])

    def _remove_halves(self) -> None:
        """Removes what a killed launch had begun to upload; only a launch that uploads may."""
        with self._reading(self._folder):
            there = {name.split("/")[0] for name in storage.files(self._folder)}
        for step in {int(name) for name in there if name.isdigit()} - set(self._whole()):
            self._remove(self._folder / str(step))

    def _remove(self, checkpoint: UPath) -> None:
        with storage.reaching(checkpoint):
            # From here on it is none, however far removing it comes.
            (checkpoint / INVENTORY).unlink(missing_ok=True)
            with contextlib.suppress(FileNotFoundError):  # nothing else was there
                checkpoint.fs.rm(checkpoint.path, recursive=True)

    def _set_aside(self, step: int) -> None:
        checkpoint, aside = self._folder / str(step), self._folder / f"damaged-{step}"
        logging.error("It stays as %s.", aside)
        for name in storage.files(checkpoint):
            storage.write_bytes(aside / name, storage.read_bytes(checkpoint / name) or b"")
        self._remove(checkpoint)

    @contextlib.contextmanager
    def _reading(self, path: UPath) -> Any:
        try:
            with storage.reaching(path):
                yield
        except OSError as e:
            raise RunError(f"{path} cannot be read: {storage.reason(e)}.") from e
