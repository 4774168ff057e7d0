"""Being asked to stop.

With several processes a signal may reach only one of them, and all must stop after the same step.
JAX's preemption service sees to that: it takes SIGTERM, tells the others, and names the question
to answer with yes.
"""

import os
import signal
import time
import types
from typing import Any

from jax.experimental import multihost_utils

from resnet_jax.distributed import is_distributed

_SAME_REQUEST_SECONDS = 1.0


class StopRequest:
    """Turns SIGTERM and Ctrl-C into a flag that the loop reads between steps.

    A second one does what it always does: whoever presses Ctrl-C twice means it. But one that
    follows at once is the same request on another way: schedulers signal a job's every process,
    and a sweep hands its own signal on to its cells.
    """

    def __init__(self) -> None:
        self.received = ""  # the signal's name, once there was one
        self._at = 0.0
        self._asked = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopRequest":
        # SIGTERM is JAX's where there are processes to agree with; Ctrl-C is turned into it.
        handlers = {signal.SIGTERM: self._note, signal.SIGINT: self._note}
        if is_distributed():
            handlers = {signal.SIGINT: _as_sigterm}
        for number, handler in handlers.items():
            self._before[number] = signal.signal(number, handler)
        return self

    def reached(self) -> bool:
        """Whether to stop here; every process must ask equally often."""
        # Not the steps taken: JAX names the one after the last that it was asked about, which
        # must not lie between two steps that are handed over together.
        self._asked += 1
        if is_distributed() and multihost_utils.reached_preemption_sync_point(self._asked):
            self.received = self.received or "SIGTERM"
        return bool(self.received)

    def __exit__(self, *_: object) -> None:
        self._restore()

    def _note(self, number: int, frame: types.FrameType | None) -> None:
        now = time.monotonic()
        if not self.received:
            self.received, self._at = signal.Signals(number).name, now
        elif now - self._at > _SAME_REQUEST_SECONDS:
            self._restore()
            os.kill(os.getpid(), number)

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


def _as_sigterm(number: int, frame: types.FrameType | None) -> None:
    os.kill(os.getpid(), signal.SIGTERM)
