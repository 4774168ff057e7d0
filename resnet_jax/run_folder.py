"""Writing a run folder; runs.py says what is in it."""

import contextlib
import datetime
import fcntl
import json
import math
import os
import pathlib
import socket
from collections.abc import Mapping
from typing import IO, Any

from resnet_jax import runs
from resnet_jax.errors import UserError


class RunFolder:
    """The one writer of a run folder, for as long as its process lives."""

    def __init__(self, path: str | os.PathLike[str], config: Mapping[str, Any]):
        """Opens `path` for a run of the resolved `config`; makes it where it is new.

        Raises:
          UserError: the folder cannot be written, is another config's, or is in use by a process.
        """
        self.path = pathlib.Path(path).absolute()
        self._metrics: IO[bytes] | None = None
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = open(self.path / "lock", "w")  # noqa: SIM115 - held until the process ends
        except OSError as e:
            raise UserError(f"The run folder {self.path} cannot be written: {e.strerror}.") from e
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as e:
            self._lock.close()
            raise UserError(f"Another process is training in {self.path}; stop it first.") from e
        try:
            runs.refuse_other(self.path, config)
            if not (self.path / "config.json").is_file():
                write_json(self.path / "config.json", config)
        except OSError as e:
            self._lock.close()
            raise UserError(f"The run folder {self.path} cannot be written: {e.strerror}.") from e
        except UserError:
            self._lock.close()
            raise

    @property
    def checkpoints(self) -> pathlib.Path:
        """Where Orbax writes."""
        return self.path / "checkpoints"

    @property
    def tensorboard(self) -> pathlib.Path:
        """Where TensorBoard events go."""
        return self.path / "tensorboard"

    def status(self) -> dict[str, Any]:
        """Returns the last status written, empty for a new folder."""
        return runs.read_json(self.path / "status.json")

    def set_status(
        self,
        status: str,
        *,
        step: int,
        steps: int,
        device_seconds: float,
        reason: str = "",
        **more: Any,
    ) -> None:
        """Writes status.json; `device_seconds` is the sum over all launches of this run."""
        if status not in runs.STATUSES:
            raise ValueError(f"status {status!r} is not one of {runs.STATUSES}")
        write_json(
            self.path / "status.json",
            {
                "status": status,
                "step": step,
                "steps": steps,
                "reason": reason,
                "device_seconds": round(device_seconds, 3),
                "updated": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
                "host": socket.gethostname(),
                "pid": os.getpid(),
                **more,
            },
        )

    def record_launch(self, facts: Mapping[str, Any]) -> None:
        """Writes environment.json: the facts of the first launch, later ones under ``resumed``."""
        there = runs.read_json(self.path / "environment.json")
        if there:
            there["resumed"] = [*there.get("resumed", []), dict(facts)]
        write_json(self.path / "environment.json", there or facts)

    def refuse_other_data(self, note: str) -> None:
        """Raises UserError where the run began on another copy of its data than `note` tells of."""
        began = runs.read_json(self.path / "environment.json").get("data", {}).get("note", note)
        if began != note:
            raise UserError(
                f"{self.path} began on {began or 'data as TFDS prepares them'}; "
                f"data.dir leads to {note or 'data as TFDS prepares them'}."
            )

    def rewind(self, step: int) -> None:
        """Drops every metrics line after `step` (and half a line left by a kill), then appends."""
        path = self.path / "metrics.jsonl"
        kept = [row for row in runs.read_metrics(path) if row["step"] <= step]
        write_bytes(path, b"".join(map(_line, kept)))
        self._metrics = open(path, "ab")  # noqa: SIM115 - closed by close()

    def append(self, row: Mapping[str, Any]) -> None:
        """Appends one line of metrics; it has reached the disk when this returns."""
        if self._metrics is None:
            raise ValueError("rewind() opens the metrics; call it first")
        self._metrics.write(_line(row))
        self._metrics.flush()
        os.fsync(self._metrics.fileno())

    def close(self) -> None:
        """Lets go of the folder."""
        if self._metrics is not None:
            with contextlib.suppress(OSError):  # a line that cannot be written has raised before
                self._metrics.close()
        self._lock.close()


class Onlooker(RunFolder):
    """The run folder in a process that does not write it."""

    def __init__(self, path: str | os.PathLike[str]):
        """Touches nothing."""
        self.path = pathlib.Path(path).absolute()

    def set_status(self, *_: Any, **__: Any) -> None:
        """Leaves it to process 0."""

    def record_launch(self, facts: Mapping[str, Any]) -> None:
        """Leaves it to process 0."""

    def rewind(self, step: int) -> None:
        """Leaves it to process 0."""

    def append(self, row: Mapping[str, Any]) -> None:
        """Leaves it to process 0."""

    def close(self) -> None:
        """Has nothing to let go of."""


def jsonable(value: Any) -> Any:
    """Returns numbers and lists of numbers with ``None`` in place of what is not finite."""
    if isinstance(value, (list, tuple)):
        return [jsonable(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def write_json(path: pathlib.Path, content: Mapping[str, Any]) -> None:
    """Writes a JSON file whole or not at all."""
    write_bytes(path, (json.dumps(content, indent=2) + "\n").encode())


def write_bytes(path: pathlib.Path, content: bytes) -> None:
    """Writes a file whole or not at all: a reader sees the old content or the new, never half."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with open(temporary, "wb") as f:
            f.write(content)
            f.flush()
            os.fsync(f.fileno())
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def _line(row: Mapping[str, Any]) -> bytes:
    return (json.dumps({k: jsonable(v) for k, v in row.items()}, allow_nan=False) + "\n").encode()
