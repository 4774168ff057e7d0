"""One process at a time writes a run folder.

On a disk the system sees to it: a locked file is free again when its process ends, however it
ends. In a bucket, and on a disk that cannot lock files (some of Lustre and NFS), a process holds a
lease: it writes its name into the folder and renews it. A newcomer that finds a name watches it,
and takes over if it is not renewed, so that no two clocks need to agree. A process that finds
another's name in place of its own has been taken for dead, and stops.
"""

import contextlib
import errno
import fcntl
import json
import os
import socket
import threading
import time
import uuid
from typing import IO, Any, Protocol

from absl import logging

from resnet_jax.errors import RunError, UserError
from resnet_jax.runs import storage

NAME = "lock"  # of the file in the run folder
LEASE = "lease"  # of the one that holds a lease on a disk
RENEW_SECONDS = 10.0
LOST_SECONDS = 40.0  # without renewal; a name that old belongs to nobody
# For a reader, who watches for no change but compares the storage's clock with its own.
_STALE_SECONDS = 900.0
# What flock says of another's lock; whoever only asks (is_held) holds one for a moment.
_TAKEN = (errno.EWOULDBLOCK, errno.EACCES)
_TRIES, _PAUSE_SECONDS = 10, 0.05


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
    if storage.is_bucket(folder):
        return Lease(folder, folder / NAME)
    file = open(folder / NAME, "w", encoding="utf-8")  # noqa: SIM115 - held until released
    try:
        if not _locks(file, fcntl.LOCK_EX, _TRIES):
            raise _in_use(folder)
    except OSError as e:
        file.close()
        logging.info(
            "%s: files cannot be locked there (%s); this process holds it by a lease, %s, instead.",
            folder, storage.reason(e), LEASE,
        )  # fmt: skip
        return Lease(folder, folder / LEASE)
    except UserError:
        file.close()
        raise
    return _FileLock(file)


def is_held(folder: storage.Path) -> bool | None:
    """Whether a process holds a run folder, as far as this machine can tell; None if it cannot.

    A process on another machine holds a folder on a disk unseen, if the file system locks files
    per machine.
    """
    if storage.is_bucket(folder):
        return _is_leased(folder / NAME)
    try:
        with open(folder / NAME, encoding="utf-8") as file:
            return not _locks(file, fcntl.LOCK_SH)
    except FileNotFoundError:
        return None
    except OSError:
        return _is_leased(folder / LEASE)


def _locks(file: IO[str], kind: int, tries: int = 1) -> bool:
    """Locks a file unless another process has; raises OSError if files cannot be locked there."""
    for attempt in range(tries):
        if attempt:
            time.sleep(_PAUSE_SECONDS)
        try:
            fcntl.flock(file, kind | fcntl.LOCK_NB)
        except OSError as e:
            if e.errno not in _TAKEN:
                raise
        else:
            return True
    return False


def _is_leased(path: storage.Path) -> bool | None:
    try:
        holder = _holder(storage.read_bytes(path))
        if not holder:
            return False
        renewed = storage.modified(path)
    except FileNotFoundError:
        return False
    except OSError:
        return None
    return time.time() - renewed < _STALE_SECONDS


def _holder(content: bytes | None) -> dict[str, Any]:
    """Returns whose name a lease's file holds; empty if it is not there, or not whole."""
    try:
        return json.loads(content or b"{}")
    except ValueError:
        return {}


def _in_use(folder: storage.Path) -> UserError:
    return UserError(f"Another process is training in {folder}; stop it first.")


class _FileLock:
    def __init__(self, file: IO[str]):
        self._file = file

    def check(self) -> None:
        """Nobody can have taken it."""

    def release(self) -> None:
        self._file.close()


class Lease:
    """A folder that is held for as long as this process renews its name in a file of it."""

    def __init__(self, folder: storage.Path, path: storage.Path):
        """Takes `folder` by the file `path`, after LOST_SECONDS if another's name stands there."""
        self._folder, self._path = folder, path
        self._owner, self._count = uuid.uuid4().hex, 0
        self._ended = threading.Event()
        self._taken_by = ""
        while not self._create():
            if self._is_left():
                self._take_over()
                break
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

    def _create(self) -> bool:
        """Writes the name if none stands there; of processes that start together, one succeeds."""
        try:
            return storage.create_bytes(self._path, self._name())
        except OSError:  # some servers of buckets know no such request
            if storage.read_bytes(self._path) is not None:
                return False
            self._take_over()
            return True

    def _is_left(self) -> bool:
        """Whether the name that stands there is not renewed; False if it has gone.

        Raises:
          UserError: it is renewed.
        """
        found = storage.read_bytes(self._path)
        if found is None:
            return False
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
                return False
            if now != found:
                raise _in_use(self._folder)
        return True

    def _take_over(self) -> None:
        """Writes the name over another's. Of processes that do so together, the last one wins.

        Raises:
          UserError: another process has won.
        """
        self._renew()
        time.sleep(RENEW_SECONDS / 5)
        self._look()
        if self._taken_by:
            raise _in_use(self._folder)

    def _name(self) -> bytes:
        name = {
            "owner": self._owner,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "renewed": self._count,
        }
        return json.dumps(name).encode()

    def _renew(self) -> None:
        self._count += 1
        storage.write_bytes(self._path, self._name())

    def _look(self) -> None:
        """Notes whose name stands in the folder."""
        holder = _holder(storage.read_bytes(self._path))
        if holder and holder["owner"] != self._owner:
            self._taken_by = f"A process on {holder['host']}"

    def _keep(self) -> None:
        while not self._ended.wait(RENEW_SECONDS) and not self._taken_by:
            try:
                self._look()
                if not self._taken_by:
                    self._renew()
            except OSError as e:  # the next time may do
                logging.warning("%s could not be renewed: %s", self._path, storage.reason(e))
