"""Runs jobs, a given number at a time, until all have ended or a signal stops them."""

import time
from collections.abc import Sequence
from typing import Protocol

from experiments.launchers.interface import Job, Launcher
from resnet_jax.parallel.stopping import Requests

_POLL_SECONDS = 0.2


class Observer(Protocol):
    """Receives the events of run()."""

    def started(self, name: str) -> None:
        """A job has started."""

    def ended(self, name: str, code: int, stopped: bool) -> None:
        """A job has ended with an exit code; `stopped`: after a request to stop."""

    def not_started(self, name: str, reason: str) -> None:
        """A job could not be started."""

    def stopping(self, signal_name: str) -> None:
        """A signal was received, and the running jobs are about to be asked to stop."""

    def tick(self) -> None:
        """Called several times per second."""


def run_jobs(jobs: Sequence[Job], at_once: int, launcher: Launcher, observer: Observer) -> int:
    """Runs `jobs` in order, `at_once` at a time.

    After the first request to stop (a signal) no job starts, and the running jobs are asked to save
    and end. The second request kills them.

    Returns:
      The number of requests.
    """
    waiting = list(jobs)
    running: set[str] = set()
    handled = 0
    with Requests() as requests:
        try:
            while running or (waiting and not handled):
                while waiting and len(running) < at_once and not requests.count:
                    job = waiting.pop(0)
                    try:
                        launcher.start(job)
                    except OSError as e:
                        observer.not_started(job.name, f"it could not be started: {e}")
                    else:
                        running.add(job.name)
                        observer.started(job.name)
                while handled < min(2, requests.count):
                    if handled:
                        launcher.kill()
                    else:
                        observer.stopping(requests.received)
                        launcher.stop()
                    handled += 1
                for name, code in launcher.ended().items():
                    running.remove(name)
                    observer.ended(name, code, stopped=handled > 0)
                observer.tick()
                if running:
                    time.sleep(_POLL_SECONDS)
        except BaseException:
            launcher.kill()
            raise
    return requests.count
