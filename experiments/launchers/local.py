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
from resnet_jax.parallel.cores import usable_cores
from resnet_jax.runs import storage

# JAX's own share of a GPU's memory, taken when a process starts.
_GPU_MEMORY = 0.75
_VISIBLE = ("JAX_CUDA_VISIBLE_DEVICES", "JAX_ROCM_VISIBLE_DEVICES")
_ASKS = "import jax; print(jax.default_backend(), jax.device_count())"


@dataclasses.dataclass(frozen=True)
class Machine:
    """What cells run on.

    Attributes:
      platform: "cpu", "gpu" or "tpu"; the scheduler's name where it has other machines for them.
      devices: how many there are here.
    """

    platform: str
    devices: int = 1


def machine() -> Machine:
    """Returns what a cell's process will find here.

    A process of its own asks: whoever asks JAX holds the devices until he ends, and would take
    from the cells the memory they need.
    """
    if os.environ.get("JAX_PLATFORMS", "").lower() == "cpu":
        return Machine("cpu")
    answer = subprocess.run(
        [sys.executable, "-c", _ASKS], capture_output=True, encoding="utf-8", errors="replace"
    )
    if answer.returncode:
        return Machine("cpu")  # where JAX finds no device at all, each cell says so in its log
    platform, devices = answer.stdout.split()[-2:]
    return Machine(platform, int(devices))


def share_of(number: int, at_once: int, among: list[int]) -> list[int]:
    """Returns the cores, or GPUs, of one of `at_once` shares: neighbours, at least one."""
    if at_once > len(among):
        return [among[number % len(among)]]
    start, end = (n * len(among) // at_once for n in (number, number + 1))
    return among[start:end]


@contextlib.contextmanager
def placed(on: Machine, share: int, at_once: int) -> Iterator[dict[str, str]]:
    """Yields the environment for a process that is started inside, one of `at_once` side by side.

    On GPUs it says which of them to see, and how much of their memory to take where several
    processes share one. What the user's own environment says of that memory stays.

    On CPU the process gets its share of the cores. XLA makes as many threads as its process may
    use cores: cells that share all of them would fight. How sums are split over threads shows in
    the last digits of float32, so a run repeats bit by bit only on as many cores. A child inherits
    the affinity; to set it in the child would take a preexec_fn, which may deadlock where JAX has
    threads.
    """
    environment = dict(os.environ)
    if on.platform == "gpu" and at_once > 1:
        for name in _VISIBLE:
            given = environment.get(name, "all")
            every = [*range(on.devices)] if given == "all" else [*map(int, given.split(","))]
            environment[name] = ",".join(map(str, share_of(share, at_once, every)))
        on_one = -(-at_once // on.devices)
        if on_one > 1:
            environment.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", f"{_GPU_MEMORY / on_one:.3f}")
    if on.platform != "cpu" or not hasattr(os, "sched_setaffinity"):
        yield environment
        return
    before = usable_cores()
    os.sched_setaffinity(0, share_of(share, at_once, before))
    try:
        yield environment
    finally:
        os.sched_setaffinity(0, before)


class Local:
    """Runs jobs as child processes, each on its own share of the cores or GPUs."""

    def __init__(self, on: Machine, at_once: int):
        """Prepares for `at_once` jobs at a time."""
        self._on, self._at_once = on, at_once
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
        with placed(self._on, share, self._at_once) as environment:
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
