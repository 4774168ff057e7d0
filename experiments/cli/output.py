"""Standard output streams whose failures never stop a program.

A terminal may be closed (EIO), the reader of a pipe may end early (EPIPE), the disk under a log
file may be full (ENOSPC), or a stream may be closed before the program starts (``2>&-``). A stream
is silent after its first failure and the program continues; run folders hold everything that
matters.
"""

import contextlib
import errno
import os
import sys
from typing import Any, TextIO, cast


class Display:
    """A text stream that is silent after a failure and can print any character.

    Attributes:
      error: the first failure, or None.
    """

    def __init__(self, stream: TextIO):
        """Wraps `stream`."""
        self._stream = stream
        self._is_terminal = stream.isatty()
        self.error: Exception | None = None
        if hasattr(stream, "reconfigure"):  # an ASCII terminal shows ± as \xb1
            stream.reconfigure(errors="backslashreplace")

    def __getattr__(self, name: str) -> Any:
        """Returns any other attribute of the stream."""
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Writes, unless the stream has failed."""
        if self.error is None:
            try:
                self._stream.write(text)
            except UnicodeError:
                raise
            except (OSError, ValueError) as e:  # ValueError: a library has closed it
                self._lose(e)
        return len(text)

    def flush(self) -> None:
        """Flushes, unless the stream has failed."""
        if self.error is None:
            try:
                self._stream.flush()
            except (OSError, ValueError) as e:
                self._lose(e)

    def isatty(self) -> bool:
        """Whether the stream is a terminal that still works."""
        return self._is_terminal and self.error is None

    def missed(self) -> OSError | None:
        """Returns the error that lost text, or None.

        Text for a closed pipe or terminal does not count as lost: nobody reads it.
        """
        unread = errno.EPIPE, *([errno.EIO] if self._is_terminal else [])
        error = self.error
        return error if isinstance(error, OSError) and error.errno not in unread else None

    def _lose(self, error: Exception) -> None:
        self.error = error
        # Python's buffer, and XLA's writes to the file descriptor, would fail again.
        with contextlib.suppress(OSError, ValueError):
            _connect_to_null(self._stream.fileno())


def install() -> None:
    """Replaces stdout and stderr by Displays; opens streams that were closed at the start."""
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:  # its file descriptor was closed when Python started
            # This takes the lowest free descriptor, which is the stream's. Otherwise the next file
            # opened would get it, and with it XLA's messages to stderr.
            mode = "r" if name == "stdin" else "w"
            null = open(os.devnull, mode, encoding="utf-8")  # noqa: SIM115 - open to the end
            setattr(sys, name, null)
    for name in ("stdout", "stderr"):
        if not isinstance(getattr(sys, name), Display):
            setattr(sys, name, cast("TextIO", Display(getattr(sys, name))))


def _connect_to_null(number: int) -> None:
    null = os.open(os.devnull, os.O_RDWR)
    if null != number:
        os.dup2(null, number)
        os.close(null)
