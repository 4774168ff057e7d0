"""Processes that run a training step at the same time, started by one word on their pipes."""

import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from typing import Any

from ml_collections import ConfigDict


class GroupFailedError(Exception):
    """A process of a group has ended; the text is the last that it said."""


class Group:
    """`processes` of benchmarks.replicates_worker, each training `config`; ended by `with`."""

    def __init__(self, config: ConfigDict, processes: int):
        environment = dict(os.environ)
        # Processes share a GPU with all others that wait for their turn. By default each would
        # take three quarters of its memory; fixed shares would have to be guessed.
        environment.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
        # A program taken from a cache would seem to be compiled in no time.
        environment.pop("JAX_COMPILATION_CACHE_DIR", None)
        content = json.dumps(config.to_dict())
        self._folder = tempfile.TemporaryDirectory()
        self._workers = []
        for number in range(processes):
            with self._log(number).open("w") as log:
                worker = subprocess.Popen(
                    [sys.executable, "-m", "benchmarks.replicates_worker", content],
                    stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True,
                    env=environment,
                )  # fmt: skip
            self._workers.append(worker)

    def wait_until_ready(self) -> dict[str, Any]:
        """Returns {"device", "compile_seconds"}: of the slowest, all compile at the same time.

        Raises:
          GroupFailedError: a process has ended.
        """
        answers = self._answers()
        return max(answers, key=lambda answer: answer["compile_seconds"])

    def run(self, steps: int) -> float:
        """Has all take so many steps, or a few more, together; returns seconds a step.

        Raises:
          GroupFailedError: a process has ended.
        """
        began = time.perf_counter()
        for worker in self._workers:
            assert worker.stdin is not None
            try:
                worker.stdin.write(f"{steps}\n")
                worker.stdin.flush()
            except BrokenPipeError:
                pass  # that it has ended, its answer says
        steps = self._answers()[0]["steps"]
        return (time.perf_counter() - began) / steps

    def _answers(self) -> list[dict[str, Any]]:
        found = []
        for number, worker in enumerate(self._workers):
            assert worker.stdout is not None
            line = worker.stdout.readline()
            if not line:
                self._end()  # the others would slow down whoever is measured next
                said = self._log(number).read_text().strip().splitlines()
                raise GroupFailedError(said[-1] if said else f"exit code {worker.wait()}")
            found.append(json.loads(line))
        return found

    def _log(self, number: int) -> pathlib.Path:
        return pathlib.Path(self._folder.name) / f"{number}.txt"

    def __enter__(self) -> "Group":
        return self

    def __exit__(self, *_: object) -> None:
        self._end()
        self._folder.cleanup()

    def _end(self) -> None:
        for worker in self._workers:
            worker.kill()
        for worker in self._workers:
            worker.wait()
