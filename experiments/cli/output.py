"""Where programs print. What happens to it never stops the work.

A terminal is closed (EIO), the reader of a pipe ends early (EPIPE), the disk under a log file is
full (ENOSPC), or a stream was closed before the program started (``2>&-``). From its first failure
on, a stream is quiet and the work continues; run folders have everything that matters.
"""

import contextlib
import errno
import os
import sys
from typing import Any, TextIO, cast


class Display:
    """A text stream that goes quiet when it fails, and that can print any character.

    Attributes:
      error: its first failure, None before.
    """

    def __init__(self, stream: TextIO):
        """Takes the place of `stream`."""
        self._stream = stream
        self._is_terminal = stream.isatty()
        self.error: Exception | None = None
        if hasattr(stream, "reconfigure"):  # an ASCII terminal shows ± as \xb1
            stream.reconfigure(errors="backslashreplace")

    def __getattr__(self, name: str) -> Any:
        """Returns whatever else the stream has."""
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Writes, as long as the stream works."""
        if self.error is None:
            try:
                self._stream.write(text)
            except UnicodeError:
                raise
            except (OSError, ValueError) as e:  # ValueError: a library has closed it
                self._lose(e)
        return len(text)

    def flush(self) -> None:
        """Flushes, as long as the stream works."""
        if self.error is None:
            try:
                self._stream.flush()
            except (OSError, ValueError) as e:
                self._lose(e)

    def isatty(self) -> bool:
        """Whether somebody may be watching."""
        return self._is_terminal and self.error is None

    def missed(self) -> OSError | None:
        """Returns why text is lost that somebody may still want; None if nothing is.

        Nobody wants it if the reader of a pipe has ended or the terminal was closed.
        """
        gone = errno.EPIPE, *([errno.EIO] if self._is_terminal else [])
        error = self.error
        return error if isinstance(error, OSError) and error.errno not in gone else None

    def _lose(self, error: Exception) -> None:
        self.error = error
        # Python's own buffer, and what XLA writes to the file descriptor, would fail again.
        with contextlib.suppress(OSError, ValueError):
            _nowhere(self._stream.fileno())


def install() -> None:
    """Puts a Display in place of stdout and stderr; opens what was closed at the start."""
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:  # its file descriptor was closed when Python started
            # This takes the lowest free descriptor, the stream's own. Else the next file that is
            # opened would get it, and what XLA writes to stderr.
            mode = "r" if name == "stdin" else "w"
            null = open(os.devnull, mode, encoding="utf-8")  # noqa: SIM115 - open to the end
            setattr(sys, name, null)
    for name in ("stdout", "stderr"):
        if not isinstance(getattr(sys, name), Display):
            setattr(sys, name, cast("TextIO", Display(getattr(sys, name))))


def _nowhere(number: int) -> None:
    """Connects a file descriptor with /dev/null."""
    null = os.open(os.devnull, os.O_RDWR)
    if null != number:
        os.dup2(null, number)
        os.close(null)
