"""Runs jobs, so many at a time, until all have ended or somebody says stop."""

import signal
import time
import types
from collections.abc import Sequence
from typing import Any, Protocol

from experiments.launchers.interface import Job, Launcher

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


class Signals:
    """Counts SIGTERM and Ctrl-C while it is entered."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Signals":
        for number in (signal.SIGTERM, signal.SIGINT):
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: types.FrameType | None) -> None:
        self.names.append(signal.Signals(number).name)


def run(jobs: Sequence[Job], at_once: int, launcher: Launcher, observer: Observer) -> int:
    """Runs `jobs` in their order, `at_once` at a time.

    The first signal asks the running jobs to end and waits for them; no other job starts. The
    second kills them.

    Returns:
      How many signals came.
    """
    waiting = list(jobs)
    running: set[str] = set()
    heard = 0
    with Signals() as signals:
        try:
            while running or (waiting and not heard):
                while waiting and len(running) < at_once and not signals.names:
                    job = waiting.pop(0)
                    try:
                        launcher.start(job)
                    except OSError as e:
                        observer.not_started(job.name, f"it could not be started: {e}")
                    else:
                        running.add(job.name)
                        observer.started(job.name)
                while heard < min(2, len(signals.names)):
                    if heard:
                        launcher.kill()
                    else:
                        observer.stopping(signals.names[0])
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
    return len(signals.names)
