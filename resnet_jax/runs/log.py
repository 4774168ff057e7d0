"""Writes a run's rows of metrics to the run folder, to TensorBoard and to the screen."""

import contextlib
import pathlib
import socket
import tempfile
import time
from typing import Any

import jax
from absl import logging
from ml_collections import ConfigDict

from resnet_jax.errors import is_installed
from resnet_jax.parallel.processes import fetch, is_primary
from resnet_jax.runs import storage
from resnet_jax.runs.progress import Progress
from resnet_jax.runs.reader import Row
from resnet_jax.runs.writer import RunFolder
from resnet_jax.state import NEVER


class Clock:
    """Device-seconds of a run, summed over its launches."""

    def __init__(self, earlier: float, devices: int):
        """Starts now; `earlier` is the sum over earlier launches."""
        self._earlier, self._began = earlier, time.monotonic()
        self._devices = devices

    def seconds(self) -> float:
        """Returns the device-seconds so far: wall-clock seconds times devices."""
        return self._earlier + (time.monotonic() - self._began) * self._devices


class RunLog:
    """A run's metrics, status and progress while it trains."""

    def __init__(self, config: ConfigDict, folder: RunFolder, clock: Clock, start: int):
        """Starts at step `start`; `folder` must hold no row of a later step."""
        self._config, self._folder, self._clock = config, folder, clock
        self._status_at = 0.0
        self.diverged: dict[str, int] = {}  # replicate -> first step that was not finite
        images = config.batch_size * config.replicates
        self.progress = Progress(
            start,
            config.steps,
            images,
            folder.path.name,
            bar=is_primary(),
            has_batch_norm=config.model.norm == "batch",
        )
        self.status("running", start)
        # Last, because if anything here failed, nothing would close its file.
        self._board = None
        if config.log.tensorboard and is_primary():
            self._board = _open_board(folder.tensorboard, start + 1)

    @property
    def all_diverged(self) -> bool:
        """Whether every replicate has diverged."""
        return len(self.diverged) == self._config.replicates

    def write(self, row: dict[str, Any]) -> None:
        """Writes a row {"step": int, "diverged_at": ..., name: (R,) on the device}.

        Waits for the device. An empty row writes nothing; a second row of the same step, such as
        that of the test, is merged into the first, see RunFolder.append().
        """
        if not row:
            return
        values = fetch(row)
        self.note_diverged(values.pop("diverged_at"))
        host_row: Row = {"step": values.pop("step")}
        single = self._config.replicates == 1
        host_row |= {k: v.tolist()[0] if single else v.tolist() for k, v in values.items()}
        rate = self.progress.report(host_row, {int(r) for r in self.diverged})
        if rate is not None:
            host_row["time/images_per_second"] = rate
        host_row["time/device_seconds"] = self._clock.seconds()
        self._folder.append(host_row)
        if self._board is not None:
            self._board.write(host_row)
        if time.monotonic() - self._status_at > self._folder.status_seconds:
            self.status("running", host_row["step"])

    def note_diverged(self, diverged_at_R: jax.Array) -> None:
        """Updates `diverged` from TrainState.diverged_at."""
        steps = fetch(diverged_at_R).tolist()
        self.diverged = {str(r): step for r, step in enumerate(steps) if step != NEVER}

    def status(self, status: str, step: int, reason: str = "") -> None:
        """Writes status.json."""
        self._status_at = time.monotonic()
        self._folder.set_status(
            status,
            step=step,
            steps=self._config.steps,
            reason=reason,
            device_seconds=self._clock.seconds(),
            diverged=self.diverged,
        )

    def flush(self) -> None:
        """Waits until every row is in the run folder.

        Raises:
          OSError: it cannot be written.
          RunError: another process has taken the folder over.
        """
        self._folder.flush()
        if self._board is not None:
            self._board.flush()

    def close(self) -> None:
        """Ends the progress bar and the TensorBoard file; a second call does nothing."""
        self.progress.close()
        board, self._board = self._board, None
        if board is not None:
            board.close()


def _open_board(folder: storage.Path, first_step: int) -> "_Board | None":
    if is_installed("tensorboardX"):
        return _Board(folder, first_step)
    logging.info(
        "No tensorboard/ is written, since tensorboardX is missing: pip install "
        "'resnet_jax[tensorboard]', or log.tensorboard=false; metrics.jsonl has the same."
    )
    return None


class _Board:
    """The TensorBoard events file of one launch of a run, written without a thread.

    The thread of tensorboardX's SummaryWriter dies on a full disk, and the trainer would wait for
    it for ever. We use its RecordWriter, which raises in the caller.
    """

    def __init__(self, folder: storage.Path, first_step: int):
        """Opens a new file; TensorBoard then ignores later steps in the files of other launches.

        Args:
          folder: created if needed.
          first_step: the first step of this launch.

        Raises:
          OSError: it cannot be written.
        """
        from tensorboardX import summary
        from tensorboardX.proto import event_pb2
        from tensorboardX.record_writer import RecordWriter

        self._event, self._summary = event_pb2.Event, summary.scalar
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
            self._add(self._event(file_version="brain.Event:2"))
            self._add(self._event(step=first_step, session_log=start))
            self._records.flush()
        except OSError:
            self.close()
            raise

    def write(self, row: Row) -> None:
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
        self._add(self._event(step=step, summary=self._summary(name, value)))

    def _add(self, event: Any) -> None:
        event.wall_time = time.time()
        self._records.write(event.SerializeToString())
