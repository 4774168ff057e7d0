"""Writes TensorBoard events, without a thread.

The thread of tensorboardX's SummaryWriter dies on a full disk, and the trainer would wait for it
for ever. We use its RecordWriter, which raises in the caller.
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
    """The events file of one launch of a run."""

    def __init__(self, folder: storage.Path, first_step: int):
        """Opens a new file; TensorBoard then ignores later steps in the files of other launches.

        Args:
          folder: created if needed.
          first_step: the first step of this launch.

        Raises:
          OSError: it cannot be written.
        """
        name = f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}"
        self._path, self._written_at = folder / name, time.monotonic()
        self._scratch: tempfile.TemporaryDirectory[str] | None = None
        if storage.is_bucket(folder):  # files in a bucket cannot grow
            self._scratch = tempfile.TemporaryDirectory()
            self._local = pathlib.Path(self._scratch.name) / name
        else:
            folder.mkdir(exist_ok=True)
            self._local = folder / name
        self._records = RecordWriter(str(self._local))
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        try:
            self._add(event_pb2.Event(file_version="brain.Event:2"))
            self._add(event_pb2.Event(step=first_step, session_log=start))
            self._records.flush()
        except OSError:
            self.close()
            raise

    def write(self, row: Mapping[str, Any]) -> None:
        """Adds a row of metrics, with one scalar per name and replicate.

        Raises:
          OSError: it cannot be written.
        """
        for name, value in row.items():
            if isinstance(value, list):
                for replicate, v in enumerate(value):
                    self._scalar(f"{name}/replicate{replicate}", v, row["step"])
            elif name != "step":
                self._scalar(name, value, row["step"])
        self._records.flush()
        if self._scratch and time.monotonic() - self._written_at > storage.LINES_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Waits until every row is in the folder; raises OSError."""
        self._records.flush()
        if self._scratch:
            storage.write_bytes(self._path, self._local.read_bytes())
            self._written_at = time.monotonic()

    def close(self) -> None:
        """Closes the file."""
        with contextlib.suppress(OSError):  # write() or flush() has raised the same error
            self._records.close()
        if self._scratch:
            self._scratch.cleanup()

    def _scalar(self, name: str, value: float, step: int) -> None:
        self._add(event_pb2.Event(step=step, summary=summary.scalar(name, value)))

    def _add(self, event: Any) -> None:
        event.wall_time = time.time()
        self._records.write(event.SerializeToString())
