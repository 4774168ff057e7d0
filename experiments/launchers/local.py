"""Cells as processes of this machine."""

import contextlib
import dataclasses
import datetime
import os
import pathlib
import shlex
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from typing import IO

from absl import logging

from experiments.launchers.interface import Job
from resnet_jax import storage
from resnet_jax.cores import usable_cores

# JAX's own share of a GPU's memory, taken when a process starts.
_GPU_MEMORY = 0.75
_ASKS_PLATFORM = "import jax; print(jax.default_backend())"


def platform() -> str:
    """Returns what a cell's process will run on: ``cpu``, ``gpu`` or ``tpu``.

    A process of its own asks: whoever asks JAX holds the device until he ends, and would take
    from the cells the memory they need.
    """
    if os.environ.get("JAX_PLATFORMS", "").lower() == "cpu":
        return "cpu"
    answer = subprocess.run(
        [sys.executable, "-c", _ASKS_PLATFORM], capture_output=True, text=True, check=False
    )
    # Where JAX finds no device at all, each cell says so in its log.
    return answer.stdout.strip() or "cpu"


def default_jobs(platform: str, cells: int) -> int:
    """Returns how many cells to run at a time where nobody says.

    On CPU one a core: compilation and small convolutions hardly use a second thread. Elsewhere
    one: a cell takes every device and most of their memory.
    """
    return min(cells, len(usable_cores())) if platform == "cpu" else 1


def share_of(number: int, at_once: int, among: list[int]) -> list[int]:
    """Returns the cores of one of `at_once` shares: neighbours, at least one."""
    start, end = (n * len(among) // at_once for n in (number, number + 1))
    return among[start:end] or [among[number % len(among)]]


@contextlib.contextmanager
def pinned(platform: str, share: int, at_once: int) -> Iterator[None]:
    """Lets processes that are started inside run on one share of the cores, where on CPU.

    XLA makes as many threads as its process may use cores: cells that share all of them would
    fight. How sums are split over threads shows in the last digits of float32, so a run repeats
    bit by bit only on as many cores. A child inherits the affinity; to set it in the child would
    take a preexec_fn, which may deadlock where JAX has threads.
    """
    if platform != "cpu" or not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = usable_cores()
    os.sched_setaffinity(0, share_of(share, at_once, before))
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


class Local:
    """Runs jobs as child processes, on CPU each on its own share of the cores."""

    def __init__(self, platform: str, at_once: int):
        """Prepares for `at_once` jobs at a time on a `platform`."""
        self._platform, self._at_once = platform, at_once
        self._free = list(range(at_once))  # the shares that nobody has
        self._children: dict[str, _Child] = {}

    def start(self, job: Job) -> None:
        """Starts a job; raises OSError where that cannot be done."""
        share = self._free[0]
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        with self._open_log(job.log) as log:
            log.write(f"--- {now} {shlex.join(job.command)}\n".encode())
            log.flush()
            process = self._spawn(job, log, share)
        self._free.remove(share)
        self._children[job.name] = _Child(process, share, job.log, pathlib.Path(log.name))

    def _spawn(self, job: Job, log: IO[bytes], share: int) -> subprocess.Popen[bytes]:
        environment = dict(os.environ)
        if self._platform == "gpu" and self._at_once > 1:
            fraction = f"{_GPU_MEMORY / self._at_once:.3f}"
            environment.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", fraction)
        with pinned(self._platform, share, self._at_once):
            return subprocess.Popen(
                job.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                # Ctrl-C reaches a terminal's whole process group; cells hear of it through
                # stop() alone, since a second signal would kill them while they save.
                start_new_session=True,
            )

    def ended(self) -> dict[str, int]:
        """Returns {job: exit code} of those that ended since it was last asked."""
        codes = {}
        for name, child in list(self._children.items()):
            code = child.process.poll()
            if code is not None:
                codes[name] = code
                self._free.append(child.share)
                self._keep_log(child)
                del self._children[name]
        return codes

    def stop(self) -> None:
        """Sends SIGTERM to every job."""
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """Sends SIGKILL to every job."""
        self._signal(signal.SIGKILL)

    def _signal(self, number: int) -> None:
        for child in self._children.values():
            child.process.send_signal(number)

    def _open_log(self, path: storage.Path) -> IO[bytes]:
        """Opens a log for appending; one that is kept in a bucket grows on this machine."""
        if storage.is_bucket(path):
            return tempfile.NamedTemporaryFile("ab", prefix="resnet_jax-log-", delete=False)
        return open(path, "ab")

    def _keep_log(self, child: "_Child") -> None:
        if not storage.is_bucket(child.log):
            return
        try:
            storage.append_bytes(child.log, child.written_to.read_bytes())
            child.written_to.unlink()
        except OSError as e:
            reason = storage.reason(e)
            logging.error(
                "%s could not be written (%s): see %s.", child.log, reason, child.written_to
            )


@dataclasses.dataclass(frozen=True)
class _Child:
    process: subprocess.Popen[bytes]
    share: int
    log: storage.Path
    written_to: pathlib.Path
