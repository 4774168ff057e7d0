"""Requests to stop, by signals.

A signal may reach only one of several processes, but all must stop after the same step. JAX's
preemption service ensures that: it handles SIGTERM, informs the other processes, and chooses the
call of `reached` at which all stop.
"""

import os
import signal
import time
import types
from collections.abc import Callable
from typing import Self

from jax.experimental import multihost_utils

from resnet_jax.parallel.processes import is_distributed

_Handler = Callable[[int, types.FrameType | None], None]
_SAME_REQUEST_SECONDS = 1.0


class Requests:
    """Counts requests to stop while it is entered: SIGTERM, Ctrl-C (SIGINT) and SIGHUP.

    A signal within a second of the first is the same request by another path: schedulers signal
    every process of a job, a sweep forwards its own signal to its cells, and both the kernel and
    the shell send SIGHUP. SIGHUP never counts as a second request, since no user sends it. If it
    was ignored when the program started (nohup), it stays ignored.
    """

    def __init__(self) -> None:
        self.received = ""  # name of the first signal
        self.count = 0
        self._first_time = 0.0
        self._previous: dict[int, _Handler | int | None] = {}

    def __enter__(self) -> Self:
        for number, handler in self._handlers().items():
            if number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN:
                continue
            self._previous[number] = signal.signal(number, handler)
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    def _handlers(self) -> dict[int, _Handler]:
        return dict.fromkeys((signal.SIGTERM, signal.SIGINT, signal.SIGHUP), self._note)

    def _note(self, number: int, frame: types.FrameType | None) -> None:
        now = time.monotonic()
        if not self.received:
            self.received, self._first_time, self.count = signal.Signals(number).name, now, 1
        elif number != signal.SIGHUP and now - self._first_time > _SAME_REQUEST_SECONDS:
            self.count += 1
            self._on_repeat(number)

    def _on_repeat(self, number: int) -> None:
        """Handles a second or later request; nothing by default."""

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)


class StopRequest(Requests):
    """Turns a signal into a flag that the loop reads between steps.

    A second request (Ctrl-C pressed twice) has the signal's usual effect.
    """

    def __init__(self) -> None:
        super().__init__()
        self._calls = 0

    def _handlers(self) -> dict[int, _Handler]:
        if is_distributed():
            # JAX handles SIGTERM here; turn the other signals into it.
            return dict.fromkeys((signal.SIGINT, signal.SIGHUP), _as_sigterm)
        return super()._handlers()

    def reached(self) -> bool:
        """Whether to stop here; every process must call it equally often."""
        # Counts calls, not steps: JAX stops at the number after the last one it saw, and that
        # step might lie inside a group of steps that are dispatched together.
        self._calls += 1
        if is_distributed() and multihost_utils.reached_preemption_sync_point(self._calls):
            self.received = self.received or "SIGTERM"
        return bool(self.received)

    def _on_repeat(self, number: int) -> None:
        self._restore()
        os.kill(os.getpid(), number)


def _as_sigterm(number: int, frame: types.FrameType | None) -> None:
    os.kill(os.getpid(), signal.SIGTERM)
