"""Ensures that only one process at a time writes a run folder.

On a disk it is a file lock: the system frees it when its process ends, for whatever reason. In a
bucket, and on a disk that cannot lock files (some Lustre and NFS), it is a lease: a file with the
owner's name, which the owner renews. Another process that finds a lease watches it, and takes over
if it is not renewed for a while, so that clocks need not agree. An owner that finds another name in
its lease was presumed dead, and stops.
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
from typing import IO, Protocol

from absl import logging

from resnet_jax.errors import RunError, UserError
from resnet_jax.runs import storage

LOCK = "lock"  # the lock file, or in a bucket the lease, in the run folder
LEASE = "lease"  # the lease in a run folder on a disk
RENEW_SECONDS = 10.0
LOST_SECONDS = 40.0  # a lease that is not renewed for so long has no owner
# is_held() does not watch a lease but compares its age by two clocks, so it allows for more.
_STALE_SECONDS = 900.0
# errno of flock on a locked file. is_held() locks the file for a moment, so take() tries again.
_TAKEN = (errno.EWOULDBLOCK, errno.EACCES)
_TRIES, _PAUSE_SECONDS = 10, 0.05


class Lock(Protocol):
    """A run folder held by this process."""

    def check(self) -> None:
        """Raises RunError if another process holds the folder now."""

    def release(self) -> None:
        """Frees the folder."""


def take(folder: storage.Path) -> Lock:
    """Takes an existing run folder.

    Raises:
      UserError: another process holds it.
      OSError: it cannot be written.
    """
    if storage.is_bucket(folder):
        return Lease(folder, folder / LOCK)
    file = open(folder / LOCK, "w", encoding="utf-8")  # noqa: SIM115 - held until released
    try:
        if not _try_lock(file, fcntl.LOCK_EX, _TRIES):
            raise _in_use(folder)
    except OSError as e:
        file.close()
        logging.info(
            "%s: files cannot be locked there (%s); using a lease, the file %s, instead.",
            folder, storage.reason(e), LEASE,
        )  # fmt: skip
        return Lease(folder, folder / LEASE)
    except UserError:
        file.close()
        raise
    return _FileLock(file)


def is_held(folder: storage.Path) -> bool | None:
    """Whether a process holds a run folder; None if that cannot be determined.

    If a disk's file locks are per machine, processes on other machines go unnoticed.
    """
    if storage.is_bucket(folder):
        return _is_leased(folder / LOCK)
    try:
        with open(folder / LOCK, encoding="utf-8") as file:
            return not _try_lock(file, fcntl.LOCK_SH)
    except FileNotFoundError:
        return None
    except OSError:
        return _is_leased(folder / LEASE)


def _try_lock(file: IO[str], kind: int, tries: int = 1) -> bool:
    """Returns whether it locked the file; raises OSError if the disk cannot lock files."""
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


def _holder(content: bytes | None) -> storage.Json:
    """Returns the owner in a lease's content; empty if the file is missing or incomplete."""
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
        """A file lock cannot be lost."""

    def release(self) -> None:
        self._file.close()


class Lease:
    """A lease on a run folder, which a thread renews until release()."""

    def __init__(self, folder: storage.Path, path: storage.Path):
        """Takes the lease `path` on `folder`; waits LOST_SECONDS if the lease has another owner."""
        self._folder, self._path = folder, path
        self._owner, self._count = uuid.uuid4().hex, 0
        self._released = threading.Event()
        self._taken_by = ""
        while not self._create():
            if self._is_abandoned():
                self._take_over()
                break
        self._thread = threading.Thread(target=self._keep_renewing, daemon=True, name="lease")
        self._thread.start()

    def check(self) -> None:
        """Raises RunError if another process holds the folder now."""
        if self._taken_by:
            raise RunError(
                f"{self._taken_by} took {self._folder} over, because this process had not renewed "
                f"its lease for {LOST_SECONDS:.0f} s."
            )

    def release(self) -> None:
        """Removes the lease, unless another process has taken it over."""
        self._released.set()
        self._thread.join()
        with contextlib.suppress(OSError), storage.reaching(self._path):
            self._check_owner()
            if not self._taken_by:
                self._path.unlink(missing_ok=True)

    def _create(self) -> bool:
        """Creates the lease if there is none; of processes that start together, one succeeds."""
        try:
            return storage.create_bytes(self._path, self._content())
        except OSError:  # some bucket servers cannot create a file only if it is absent
            if storage.read_bytes(self._path) is not None:
                return False
            self._take_over()
            return True

    def _is_abandoned(self) -> bool:
        """Whether the existing lease stays without renewal; False if it is removed.

        Raises:
          UserError: it is renewed.
        """
        before = storage.read_bytes(self._path)
        if before is None:
            return False
        logging.info(
            "%s is in use, or its last process was killed: waiting up to %.0f s to see which.",
            self._folder,
            LOST_SECONDS,
        )
        deadline = time.monotonic() + LOST_SECONDS
        while time.monotonic() < deadline:
            time.sleep(RENEW_SECONDS / 10)
            now = storage.read_bytes(self._path)
            if now is None:
                return False
            if now != before:
                raise _in_use(self._folder)
        return True

    def _take_over(self) -> None:
        """Overwrites the lease. Of processes that do so at the same time, the last one wins.

        Raises:
          UserError: another process has won.
        """
        self._renew()
        time.sleep(RENEW_SECONDS / 5)
        self._check_owner()
        if self._taken_by:
            raise _in_use(self._folder)

    def _content(self) -> bytes:
        content = {
            "owner": self._owner,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "renewed": self._count,
        }
        return json.dumps(content).encode()

    def _renew(self) -> None:
        self._count += 1
        storage.write_bytes(self._path, self._content())

    def _check_owner(self) -> None:
        holder = _holder(storage.read_bytes(self._path))
        if holder and holder["owner"] != self._owner:
            self._taken_by = f"A process on {holder['host']}"

    def _keep_renewing(self) -> None:
        while not self._released.wait(RENEW_SECONDS) and not self._taken_by:
            try:
                self._check_owner()
                if not self._taken_by:
                    self._renew()
            except OSError as e:  # the next renewal may succeed
                logging.warning("%s could not be renewed: %s", self._path, storage.reason(e))
