"""TensorBoard events, written as they come.

tensorboardX's SummaryWriter hands them to a thread, which dies on a full disk and leaves the
trainer waiting for it. Its RecordWriter raises where it is called, so that is what writes here.
"""

import contextlib
import pathlib
import socket
import tempfile
import time
from collections.abc import Mapping
from typing import Any

from tensorboardX import summary
from tensorboardX.proto import event_pb2
from tensorboardX.record_writer import RecordWriter

from resnet_jax.runs import storage


class Board:
    """A run's events file; every launch adds one to the folder."""

    def __init__(self, folder: storage.Path, first_step: int):
        """Opens a new file; TensorBoard then forgets what other files hold of later steps.

        Args:
          folder: made where it is new.
          first_step: the first step that this launch takes.

        Raises:
          OSError: it cannot be written.
        """
        name = f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}"
        self._path, self._written_at = folder / name, time.monotonic()
        self._scratch: tempfile.TemporaryDirectory[str] | None = None
        if storage.is_bucket(folder):  # where a file cannot grow
            self._scratch = tempfile.TemporaryDirectory()
            self._here = pathlib.Path(self._scratch.name) / name
        else:
            folder.mkdir(exist_ok=True)
            self._here = folder / name
        self._records = RecordWriter(str(self._here))
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        try:
            self._add(event_pb2.Event(file_version="brain.Event:2"))
            self._add(event_pb2.Event(step=first_step, session_log=start))
            self._records.flush()
        except OSError:
            self.close()
            raise

    def write(self, line: Mapping[str, Any]) -> None:
        """Adds a line of metrics: a scalar a name, or a scalar a replicate.

        Raises:
          OSError: it cannot be written.
        """
        for name, value in line.items():
            if isinstance(value, list):
                for replicate, v in enumerate(value):
                    self._scalar(f"{name}/replicate{replicate}", v, line["step"])
            elif name != "step":
                self._scalar(name, value, line["step"])
        self._records.flush()
        if self._scratch and time.monotonic() - self._written_at > storage.LINES_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Returns when all that was written is in the folder; raises OSError."""
        self._records.flush()
        if self._scratch:
            storage.write_bytes(self._path, self._here.read_bytes())
            self._written_at = time.monotonic()

    def close(self) -> None:
        """Closes the file."""
        with contextlib.suppress(OSError):  # what cannot be written has raised before
            self._records.close()
        if self._scratch:
            self._scratch.cleanup()

    def _scalar(self, name: str, value: float, step: int) -> None:
        self._add(event_pb2.Event(step=step, summary=summary.scalar(name, value)))

    def _add(self, event: Any) -> None:
        event.wall_time = time.time()
        self._records.write(event.SerializeToString())
