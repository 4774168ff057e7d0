"""Runs jobs, so many at a time, until all have ended or somebody says stop."""

import time
from collections.abc import Sequence
from typing import Protocol

from experiments.launchers.interface import Job, Launcher
from resnet_jax.parallel.signals import Requests

_POLL_SECONDS = 0.2


class Observer(Protocol):
    """Whoever wants to know how it goes."""

    def started(self, name: str) -> None:
        """A job runs."""

    def ended(self, name: str, code: int, stopped: bool) -> None:
        """A job has ended with an exit code; `stopped` says whether it had been asked to."""

    def not_started(self, name: str, reason: str) -> None:
        """A job could not be started."""

    def stopping(self, signal_name: str) -> None:
        """A signal came, and the jobs that run were asked to end."""

    def tick(self) -> None:
        """Some time has passed."""


def run(jobs: Sequence[Job], at_once: int, launcher: Launcher, observer: Observer) -> int:
    """Runs `jobs` in their order, `at_once` at a time.

    The first request to stop is handed on to the running jobs, which are waited for; no other job
    starts. The second kills them.

    Returns:
      How many requests came.
    """
    waiting = list(jobs)
    running: set[str] = set()
    heard = 0
    with Requests() as requests:
        try:
            while running or (waiting and not heard):
                while waiting and len(running) < at_once and not requests.count:
                    job = waiting.pop(0)
                    try:
                        launcher.start(job)
                    except OSError as e:
                        observer.not_started(job.name, f"it could not be started: {e}")
                    else:
                        running.add(job.name)
                        observer.started(job.name)
                while heard < min(2, requests.count):
                    if heard:
                        launcher.kill()
                    else:
                        observer.stopping(requests.received)
                        launcher.stop()
                    heard += 1
                for name, code in launcher.ended().items():
                    running.remove(name)
                    observer.ended(name, code, stopped=heard > 0)
                observer.tick()
                if running:
                    time.sleep(_POLL_SECONDS)
        except BaseException:
            launcher.kill()
            raise
    return requests.count
