"""Being asked to stop."""

import os
import signal
import time
import types
from typing import Any

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
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopRequest":
        for number in (signal.SIGTERM, signal.SIGINT):
            self._before[number] = signal.signal(number, self._note)
        return self

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
