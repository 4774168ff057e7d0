"""Being asked to stop.

With several processes a signal may reach only one of them, and all must stop after the same step.
JAX's preemption service sees to that: it takes SIGTERM, tells the others, and names the question
to answer with yes.
"""

import os
import signal
import time
import types
from typing import Any, Self

from jax.experimental import multihost_utils

from resnet_jax.parallel.processes import is_distributed

_SAME_REQUEST_SECONDS = 1.0


class Requests:
    """Counts requests to stop while it is entered: SIGTERM, Ctrl-C, and a hang-up (SIGHUP).

    A signal that follows the first at once is the same request by another path: schedulers signal
    every process of a job, a sweep passes its own signal on to its cells, and both the kernel and
    the shell report a hang-up. A hang-up never counts as a second request, since no user sends it;
    one that was ignored when the program started (nohup) stays ignored.
    """

    def __init__(self) -> None:
        self.received = ""  # the first signal's name, once there was one
        self.count = 0
        self._at = 0.0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        for number, handler in self._handlers().items():
            if number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN:
                continue
            self._before[number] = signal.signal(number, handler)
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    def _handlers(self) -> dict[int, Any]:
        return dict.fromkeys((signal.SIGTERM, signal.SIGINT, signal.SIGHUP), self._note)

    def _note(self, number: int, frame: types.FrameType | None) -> None:
        now = time.monotonic()
        if not self.received:
            self.received, self._at, self.count = signal.Signals(number).name, now, 1
        elif number != signal.SIGHUP and now - self._at > _SAME_REQUEST_SECONDS:
            self.count += 1
            self._again(number)

    def _again(self, number: int) -> None:
        """Takes note of a further request."""

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


class StopRequest(Requests):
    """Turns a signal into a flag that the loop reads between steps.

    A second request does what the signal always does: whoever presses Ctrl-C twice means it.
    """

    def __init__(self) -> None:
        super().__init__()
        self._asked = 0

    def _handlers(self) -> dict[int, Any]:
        if is_distributed():
            # SIGTERM is JAX's if there are processes to agree with; the others are turned into it.
            return dict.fromkeys((signal.SIGINT, signal.SIGHUP), _as_sigterm)
        return super()._handlers()

    def reached(self) -> bool:
        """Whether to stop here; every process must ask equally often."""
        # Not the steps taken: JAX names the one after the last that it was asked about, which
        # must not lie between two steps that are handed over together.
        self._asked += 1
        if is_distributed() and multihost_utils.reached_preemption_sync_point(self._asked):
            self.received = self.received or "SIGTERM"
        return bool(self.received)

    def _again(self, number: int) -> None:
        self._restore()
        os.kill(os.getpid(), number)


def _as_sigterm(number: int, frame: types.FrameType | None) -> None:
    os.kill(os.getpid(), signal.SIGTERM)
