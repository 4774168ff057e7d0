"""Cells as processes of this machine."""

import contextlib
import dataclasses
import datetime
import importlib.util
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

from experiments.cli import huge_pages
from experiments.launchers.interface import Job
from resnet_jax.parallel import clusters
from resnet_jax.parallel.cores import usable_cores
from resnet_jax.runs import storage

_GPU_MEMORY = 0.75  # the fraction of a GPU's memory that JAX preallocates by default
_VISIBLE = ("JAX_CUDA_VISIBLE_DEVICES", "JAX_ROCM_VISIBLE_DEVICES")
_PRINT_DEVICES = "import jax; print(jax.default_backend(), jax.device_count())"


@dataclasses.dataclass(frozen=True)
class Machine:
    """The machine that cells run on.

    Attributes:
      platform: "cpu", "gpu" or "tpu"; for a scheduler's machines, its name.
      devices: the number of devices of this machine.
    """

    platform: str
    devices: int = 1


def machine() -> Machine:
    """Returns the platform and devices that a cell's process will find on this machine.

    A separate process queries JAX, because a process that does so holds the devices, and memory
    that the cells need, until it ends.
    """
    platforms = os.environ.get("JAX_PLATFORMS", "").lower()
    if platforms == "cpu":
        return Machine("cpu")
    may_have_tpu = importlib.util.find_spec("libtpu") and platforms in ("", "tpu", "tpu,cpu")
    if may_have_tpu and (chips := clusters.tpu_chips(pathlib.Path("/dev"))):
        return Machine("tpu", chips)
    answer = subprocess.run(
        [sys.executable, "-c", _PRINT_DEVICES],
        capture_output=True, encoding="utf-8", errors="replace",
    )  # fmt: skip
    if answer.returncode:
        return Machine("cpu")  # if JAX finds no device, each cell reports it in its log
    platform, devices = answer.stdout.split()[-2:]
    return Machine(platform, int(devices))


def share_of(number: int, at_once: int, among: list[int]) -> list[int]:
    """Returns the cores or GPUs of share `number` of `at_once`: neighbours, at least one."""
    if at_once > len(among):
        return [among[number % len(among)]]
    start, end = (n * len(among) // at_once for n in (number, number + 1))
    return among[start:end]


@contextlib.contextmanager
def placed(machine: Machine, share: int, at_once: int) -> Iterator[dict[str, str]]:
    """A context in which to start one of `at_once` processes; yields its environment.

    On GPUs the environment sets the visible GPUs, and the fraction of memory if processes share a
    GPU and the user has not set one. On TPUs each of several processes has one chip.

    On CPU the context narrows this process's affinity to a share of the cores, which the child
    inherits. XLA starts one thread per core of its process, so cells on the same cores would slow
    each other down. The number of threads affects the last digits of float32 sums, so a run repeats
    bit by bit only on the same number of cores. Setting the affinity in the child instead would
    take a preexec_fn, which may deadlock with JAX's threads.
    """
    environment = dict(os.environ)
    if machine.platform == "gpu" and at_once > 1:
        for name in _VISIBLE:
            visible = environment.get(name, "all")
            if visible == "all":
                visible = ",".join(map(str, range(machine.devices)))
            gpus = [int(gpu) for gpu in visible.split(",")]
            environment[name] = ",".join(map(str, share_of(share, at_once, gpus)))
        per_gpu = -(-at_once // machine.devices)
        if per_gpu > 1:
            environment.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", f"{_GPU_MEMORY / per_gpu:.3f}")
    if machine.platform == "tpu" and at_once > 1:
        environment |= clusters.one_chip(share)
    if machine.platform == "cpu":
        environment = huge_pages.environment(environment)  # no cell needs to restart itself
    if machine.platform != "cpu" or not hasattr(os, "sched_setaffinity"):
        yield environment
        return
    before = usable_cores()
    os.sched_setaffinity(0, share_of(share, at_once, before))
    try:
        yield environment
    finally:
        os.sched_setaffinity(0, before)


class Local:
    """Runs jobs as child processes, each on its share of the cores or GPUs."""

    def __init__(self, machine: Machine, at_once: int):
        """Prepares for `at_once` jobs at a time."""
        self._machine, self._at_once = machine, at_once
        self._free = list(range(at_once))  # unused shares
        self._children: dict[str, _Child] = {}

    def start(self, job: Job) -> None:
        """Starts a job; raises OSError if it cannot."""
        share = self._free[0]
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        with self._open_log(job.log) as log:
            log.write(f"--- {now} {shlex.join(job.command)}\n".encode())
            log.flush()
            process = self._spawn(job, log, share)
        self._free.remove(share)
        self._children[job.name] = _Child(process, share, job.log, pathlib.Path(log.name))

    def _spawn(self, job: Job, log: IO[bytes], share: int) -> subprocess.Popen[bytes]:
        with placed(self._machine, share, self._at_once) as environment:
            return subprocess.Popen(
                job.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                # Ctrl-C signals a terminal's whole process group. Cells must get only the signal
                # of stop(): a second one would kill them while they save.
                start_new_session=True,
            )

    def ended(self) -> dict[str, int]:
        """Returns {job: exit code} of the jobs that ended since the last call."""
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
        """Opens a log for appending; a bucket's log is a local file until its job has ended."""
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
