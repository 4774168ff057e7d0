"""Takes a run's lines of metrics off the device: to disk, to TensorBoard, to the screen."""

import time
from typing import TYPE_CHECKING, Any

from absl import logging
from ml_collections import ConfigDict

from resnet_jax.errors import is_installed
from resnet_jax.parallel.processes import fetch, is_primary
from resnet_jax.runs.progress import Progress
from resnet_jax.runs.writer import RunFolder
from resnet_jax.state import NEVER

if TYPE_CHECKING:
    from resnet_jax.runs.tensorboard import Board


class Clock:
    """Device-seconds of a run, over all its launches."""

    def __init__(self, before: float, devices: int):
        """Starts now; `before` is what earlier launches used."""
        self._before, self._began = before, time.monotonic()
        self._devices = devices

    def seconds(self) -> float:
        """Returns the wall-clock seconds of this launch times its devices, and those before."""
        return self._before + (time.monotonic() - self._began) * self._devices


def _board(folder: RunFolder, first_step: int) -> "Board | None":
    if not is_installed("tensorboardX"):
        logging.info(
            "No tensorboard/ is written, since tensorboardX is missing: pip install "
            "'resnet_jax[tensorboard]', or log.tensorboard=false; metrics.jsonl has the same."
        )
        return None
    from resnet_jax.runs.tensorboard import Board

    return Board(folder.tensorboard, first_step)


class RunLog:
    """What a run says while it runs."""

    def __init__(self, config: ConfigDict, folder: RunFolder, clock: Clock, start: int):
        """Begins at step `start`, behind which `folder` holds no line."""
        self._config, self._folder, self._clock = config, folder, clock
        self._status_at = 0.0
        self.diverged: dict[str, int] = {}  # replicate -> the first step that was not finite
        images = config.batch_size * config.replicates
        self.progress = Progress(start, config.steps, images, folder.path.name, bar=is_primary())
        self.status("running", start)
        # Last: nothing may fail while its file is open and nobody is there to close it.
        self._board = None
        if config.log.tensorboard and is_primary():
            self._board = _board(folder, start + 1)

    @property
    def all_diverged(self) -> bool:
        """Whether no replicate is left to train."""
        return len(self.diverged) == self._config.replicates

    def write(self, row: dict[str, Any]) -> None:
        """Writes a line of {"step": int, "diverged_at": ..., name: (R,) on the device}.

        Waits for the device; see RunFolder.append(). An empty line writes nothing. A second line of
        one step, that of the test, is merged into the first.
        """
        if not row:
            return
        host = fetch(row)
        self.note_diverged(host.pop("diverged_at"))
        line: dict[str, Any] = {"step": host.pop("step")}
        alone = self._config.replicates == 1
        line |= {k: v.tolist()[0] if alone else v.tolist() for k, v in host.items()}
        rate = self.progress.report(line, {int(r) for r in self.diverged})
        if rate is not None:
            line["time/images_per_second"] = rate
        line["time/device_seconds"] = self._clock.seconds()
        self._folder.append(line)
        if self._board is not None:
            self._board.write(line)
        if time.monotonic() - self._status_at > self._folder.status_seconds:
            self.status("running", line["step"])

    def note_diverged(self, diverged_at_R: Any) -> None:
        """Takes in TrainState.diverged_at."""
        at = fetch(diverged_at_R).tolist()
        self.diverged = {str(r): step for r, step in enumerate(at) if step != NEVER}

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
        """Returns when all that was written is in the run folder.

        Raises:
          OSError: it cannot be written.
          RunError: the folder is another process's by now.
        """
        self._folder.flush()
        if self._board is not None:
            self._board.flush()

    def close(self) -> None:
        """Ends the progress bar and the TensorBoard file; again, it does nothing."""
        self.progress.close()
        board, self._board = self._board, None
        if board is not None:
            board.close()
