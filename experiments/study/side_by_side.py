"""Times several processes that train the same network on random images at the same time."""

import json
import math
import pathlib
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TypedDict

from ml_collections import ConfigDict


class Answer(TypedDict, total=False):
    """An answer of calibrate.py: when it is ready, and after each request the steps taken."""

    start_seconds: float
    compile_seconds: float
    device: str
    devices: int
    steps: int


class TimingFailedError(Exception):
    """One of the processes has ended or timed out; the message is the reason."""


class TimedProcesses:
    """A context of calibrate.py processes that train on request.

    All methods raise TimingFailedError.
    """

    def __init__(
        self,
        config: ConfigDict,
        processes: int,
        placed: Callable[[int], AbstractContextManager[dict[str, str]]],
        devices: int | None = None,
        limit: float | None = None,
    ):
        """Starts the processes.

        Args:
          config: resolved; the run that each trains.
          processes: the number of processes.
          placed: returns the context to start process number i in; it yields its environment.
          devices: devices per process; None: all that it sees.
          limit: seconds after which all are killed.
        """
        # For the processes' stderr: an unread pipe would fill up and block them.
        self._folder = tempfile.TemporaryDirectory(prefix="resnet_jax-")
        self._workers = []
        self._limit, self._is_late = limit, False
        command = [
            sys.executable,
            "-m",
            "experiments.study.calibrate",
            json.dumps(config.to_dict()),
        ]
        command += [f"--devices={devices}"] if devices else []
        for number in range(processes):
            with (
                placed(number) as environment,
                self._log(number).open("w", encoding="utf-8") as log,
            ):
                # The cache would hide the time to compile.
                environment.pop("JAX_COMPILATION_CACHE_DIR", None)
                worker = subprocess.Popen(
                    command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log,
                    encoding="utf-8", env=environment,
                )  # fmt: skip
            self._workers.append(worker)
        self._timer = threading.Timer(limit, self._out_of_time) if limit else None
        if self._timer:
            self._timer.start()

    def wait_until_ready(self) -> Answer:
        """Returns the answer of the process that took longest to compile."""
        answers = [self._answer(number) for number in range(len(self._workers))]
        return max(answers, key=lambda answer: answer["compile_seconds"])

    def run(self, steps: int, processes: int | None = None) -> float:
        """Lets the first `processes` (None: all) take `steps` steps at the same time.

        Each rounds the number up to whole dispatches.

        Returns:
          Seconds per step, until the last process is done.
        """
        workers = self._workers[:processes]
        began = time.perf_counter()
        for worker in workers:
            assert worker.stdin is not None
            try:
                worker.stdin.write(f"{steps}\n")
                worker.stdin.flush()
            except BrokenPipeError:
                pass  # _answer() reports that it has ended
        steps_taken = [self._answer(number)["steps"] for number in range(len(workers))]
        return (time.perf_counter() - began) / steps_taken[0]

    def seconds_per_step(self, at_least: float = 1.0) -> float:
        """Returns seconds per step of all processes, timed over `at_least` seconds."""
        self.run(1)  # the first run allocates
        seconds = self.run(1)
        return seconds if seconds > at_least else self.run(math.ceil(at_least / seconds))

    def _answer(self, number: int) -> Answer:
        worker = self._workers[number]
        assert worker.stdout is not None
        line = worker.stdout.readline()
        if line:
            return json.loads(line)
        self._end()  # the others would slow down the next measurement
        if self._is_late:
            raise TimingFailedError(f"it took more than {self._limit:g} s")
        errors = self._log(number).read_text(encoding="utf-8").strip().splitlines()
        raise TimingFailedError(errors[-1] if errors else f"exit code {worker.wait()}")

    def _log(self, number: int) -> pathlib.Path:
        return pathlib.Path(self._folder.name) / f"{number}.txt"

    def _out_of_time(self) -> None:
        self._is_late = True
        for worker in self._workers:
            worker.kill()

    def __enter__(self) -> "TimedProcesses":
        return self

    def __exit__(self, *_: object) -> None:
        if self._timer:
            self._timer.cancel()
        self._end()
        self._folder.cleanup()

    def _end(self) -> None:
        for worker in self._workers:
            worker.kill()
        for worker in self._workers:
            worker.communicate()  # closes its pipes
