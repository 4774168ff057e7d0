"""One process at a time writes a run folder.

On a disk the system sees to it: a locked file is free again when its process ends, however it
ends. In a bucket nothing can be locked. There a process writes its name into the folder and renews
it; where a name stands already, a newcomer watches it, and takes over when it is not renewed. So no
two clocks need agree. Whoever finds another's name where his own was has been taken for dead, and
stops.
"""

import contextlib
import fcntl
import json
import os
import pathlib
import socket
import threading
import time
import uuid
from typing import IO, Protocol

from absl import logging
from upath import UPath

from resnet_jax import storage
from resnet_jax.errors import RunError, UserError

NAME = "lock"  # of the file in the run folder
RENEW_SECONDS = 10.0
LOST_SECONDS = 40.0  # without renewal; a name that old belongs to nobody


class Lock(Protocol):
    """A run folder held by this process."""

    def check(self) -> None:
        """Raises RunError where another process holds the folder now."""

    def release(self) -> None:
        """Lets go of the folder."""


def take(folder: storage.Path) -> Lock:
    """Takes a run folder that exists.

    Raises:
      UserError: another process has it.
      OSError: it cannot be written.
    """
    return Lease(folder) if storage.is_bucket(folder) else _FileLock(folder)


def _in_use(folder: storage.Path) -> UserError:
    return UserError(f"Another process is training in {folder}; stop it first.")


class _FileLock:
    def __init__(self, folder: pathlib.Path):
        self._file: IO[str] = open(folder / NAME, "w")  # noqa: SIM115 - held until released
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as e:
            self._file.close()
            raise _in_use(folder) from e

    def check(self) -> None:
        """Nobody can have taken it."""

    def release(self) -> None:
        self._file.close()


class Lease:
    """A folder in a bucket, held for as long as this process renews its name in it."""

    def __init__(self, folder: UPath):
        """Takes the folder, after LOST_SECONDS where another's name stands in it."""
        self._folder, self._path = folder, folder / NAME
        self._owner, self._count = uuid.uuid4().hex, 0
        self._ended = threading.Event()
        self._taken_by = ""
        self._wait_for_another()
        self._renew()
        self._thread = threading.Thread(target=self._keep, daemon=True, name="lease")
        self._thread.start()

    def check(self) -> None:
        """Raises RunError where another process holds the folder now."""
        if self._taken_by:
            raise RunError(
                f"{self._taken_by} took {self._folder} over: it had not heard from this process "
                f"for {LOST_SECONDS:.0f} s."
            )

    def release(self) -> None:
        """Takes the name out, unless it is another's by now."""
        self._ended.set()
        self._thread.join()
        with contextlib.suppress(OSError), storage.reaching(self._path):
            self._look()
            if not self._taken_by:
                self._path.unlink(missing_ok=True)

    def _wait_for_another(self) -> None:
        found = storage.read_bytes(self._path)
        if found is None:
            return
        logging.info(
            "%s was left in a hurry, or is in use: waiting up to %.0f s to see which.",
            self._folder,
            LOST_SECONDS,
        )
        give_up = time.monotonic() + LOST_SECONDS
        while time.monotonic() < give_up:
            time.sleep(RENEW_SECONDS / 10)
            now = storage.read_bytes(self._path)
            if now is None:
                return
            if now != found:
                raise _in_use(self._folder)

    def _renew(self) -> None:
        self._count += 1
        name = {
            "owner": self._owner,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "renewed": self._count,
        }
        storage.write_bytes(self._path, json.dumps(name).encode())

    def _look(self) -> None:
        """Notes whose name stands in the folder."""
        content = json.loads(storage.read_bytes(self._path) or b"{}")
        if content and content["owner"] != self._owner:
            self._taken_by = f"A process on {content['host']}"

    def _keep(self) -> None:
        while not self._ended.wait(RENEW_SECONDS) and not self._taken_by:
            try:
                self._look()
                if not self._taken_by:
                    self._renew()
            except OSError as e:  # the next time may do
                logging.warning("%s could not be renewed: %s", self._path, storage.reason(e))
