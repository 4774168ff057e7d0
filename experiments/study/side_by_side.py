"""Times processes that train the same network on images of noise at the same time."""

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
from typing import Any

from ml_collections import ConfigDict


class GroupFailedError(Exception):
    """A process of a group has ended, or is out of time; the text says why."""


class Group:
    """Processes of calibrate.py that wait until they are told to train; ended by `with`.

    All methods raise GroupFailedError.
    """

    def __init__(
        self,
        config: ConfigDict,
        processes: int,
        placed: Callable[[int], AbstractContextManager[dict[str, str]]],
        devices: int | None = None,
        limit: float | None = None,
    ):
        """Starts them.

        Args:
          config: resolved; what each trains.
          processes: how many.
          placed: what each is started inside, by its number; yields its environment.
          devices: how many each may use; None: all that it sees.
          limit: seconds after which all are ended.
        """
        # For what each says: a pipe that nobody reads would hold it up.
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
                # A program taken from a cache would seem to be compiled in no time.
                environment.pop("JAX_COMPILATION_CACHE_DIR", None)
                worker = subprocess.Popen(
                    command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log,
                    encoding="utf-8", env=environment,
                )  # fmt: skip
            self._workers.append(worker)
        self._timer = threading.Timer(limit, self._out_of_time) if limit else None
        if self._timer:
            self._timer.start()

    def wait_until_ready(self) -> dict[str, Any]:
        """Returns what the slowest to compile says: they all compile at the same time."""
        answers = [self._answer(number) for number in range(len(self._workers))]
        return max(answers, key=lambda answer: answer["compile_seconds"])

    def run(self, steps: int, processes: int | None = None) -> float:
        """Has the first `processes` (all) take so many steps, or a few more, at the same time.

        Returns:
          Seconds a step, until the last of them is done.
        """
        workers = self._workers[:processes]
        began = time.perf_counter()
        for worker in workers:
            assert worker.stdin is not None
            try:
                worker.stdin.write(f"{steps}\n")
                worker.stdin.flush()
            except BrokenPipeError:
                pass  # that it has ended, its answer says
        taken = [self._answer(number)["steps"] for number in range(len(workers))]
        return (time.perf_counter() - began) / taken[0]

    def seconds_a_step(self, at_least: float = 1.0) -> float:
        """Returns seconds a step of all, from steps that take `at_least` so many seconds."""
        self.run(1)  # the first allocates
        once = self.run(1)
        return once if once > at_least else self.run(math.ceil(at_least / once))

    def _answer(self, number: int) -> dict[str, Any]:
        worker = self._workers[number]
        assert worker.stdout is not None
        line = worker.stdout.readline()
        if line:
            return dict(json.loads(line))
        self._end()  # the others would slow down whoever is measured next
        if self._is_late:
            raise GroupFailedError(f"it took more than {self._limit:g} s")
        said = self._log(number).read_text(encoding="utf-8").strip().splitlines()
        raise GroupFailedError(said[-1] if said else f"exit code {worker.wait()}")

    def _log(self, number: int) -> pathlib.Path:
        return pathlib.Path(self._folder.name) / f"{number}.txt"

    def _out_of_time(self) -> None:
        self._is_late = True
        for worker in self._workers:
            worker.kill()

    def __enter__(self) -> "Group":
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
