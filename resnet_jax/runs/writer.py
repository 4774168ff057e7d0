"""Writing a run folder; reader.py says what is in it."""

import contextlib
import datetime
import json
import math
import os
import socket
from collections.abc import Mapping, Sequence
from typing import Any

from resnet_jax import settings
from resnet_jax.errors import RunError, UserError
from resnet_jax.runs import lock, reader, storage
from resnet_jax.runs.identity import refuse_other

_STATUS_SECONDS = 2.0


class RunFolder:
    """The one writer of a run folder, for as long as its process lives."""

    def __init__(self, path: str | os.PathLike[str] | storage.Path, config: Mapping[str, Any]):
        """Opens `path` for a run of the resolved `config`; makes it where it is new.

        Raises:
          UserError: the folder cannot be written, is another config's, or is in use by a process.
        """
        self.path = storage.locate(path).absolute()
        self._metrics: storage.Lines | None = None
        self._last_step = -1  # of the metrics
        try:
            # In a bucket nothing needs to be made; to try would make a bucket of a typing error.
            if not storage.is_bucket(self.path):
                self.path.mkdir(parents=True, exist_ok=True)
            self._lock = lock.take(self.path)
            try:
                refuse_other(self.path, config)
                self._keep(config)
            except BaseException:
                self._lock.release()
                raise
        except OSError as e:
            raise UserError(
                f"The run folder {self.path} cannot be written: {storage.reason(e)}."
            ) from e

    @property
    def status_seconds(self) -> float:
        """How far apart to write the status of a run that goes well."""
        return storage.LINES_SECONDS if storage.is_bucket(self.path) else _STATUS_SECONDS

    @property
    def checkpoints(self) -> storage.Path:
        """Where Orbax writes."""
        return self.path / "checkpoints"

    @property
    def tested(self) -> storage.Path:
        """Where Orbax writes the variables that the test error belongs to."""
        return self.path / "tested"

    @property
    def tensorboard(self) -> storage.Path:
        """Where TensorBoard events go."""
        return self.path / "tensorboard"

    @property
    def profile(self) -> storage.Path:
        """Where a trace goes."""
        return self.path / "profile"

    def _keep(self, config: Mapping[str, Any]) -> None:
        """Writes config.json, also where a resumed run changes settings that change no result."""
        there = storage.read_json(self.path / "config.json")
        if there and there["steps"] < config["steps"]:
            self._lengthen(there, config["steps"])
        elif self.status().get("status") in reader.ENDED:
            return
        if not there or settings.flatten(there) != settings.flatten(config):
            storage.write_json(self.path / "config.json", config)

    def status(self) -> dict[str, Any]:
        """Returns the last status written, empty for a new folder."""
        return storage.read_json(self.path / "status.json")

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
        if status not in reader.STATUSES:
            raise ValueError(f"status {status!r} is not one of {reader.STATUSES}")
        self._lock.check()
        storage.write_json(
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
        there = storage.read_json(self.path / "environment.json")
        if there:
            there["resumed"] = [*there.get("resumed", []), dict(facts)]
        storage.write_json(self.path / "environment.json", there or facts)

    def refuse_other_data(self, facts: Mapping[str, Any]) -> None:
        """Raises UserError if the run began on other data than those that `facts` describe.

        Args:
          facts: see environment.data_facts; those that no launch recorded are not compared.
        """
        there = storage.read_json(self.path / "environment.json")
        began: dict[str, Any] = {}
        for launch in (there, *there.get("resumed", [])):
            began = launch.get("data", {}) | began
        if began and began.get("streams", 1) != facts["streams"]:
            raise UserError(
                f"{self.path} began with a version of this program that splits and orders the data "
                "differently for the same seed; resume it with that version, whose commit is in "
                "environment.json, or give another --workdir."
            )
        if differing := differences(began, facts, "then", "now"):
            raise UserError(
                f"{self.path} began on other data than data.dir leads to: {differing}; give the "
                "data.dir that it began on, or another --workdir."
            )

    def rewind(self, step: int) -> None:
        """Drops every metrics line after `step` (and half a line left by a kill), then appends."""
        kept = [row for row in reader.read_metrics(self._lines) if row["step"] <= step]
        self._write_lines(kept)

    def append(self, row: Mapping[str, Any]) -> None:
        """Appends one line of metrics; it has reached the disk, if not the bucket.

        A row of the same step as the last line is merged into that line.
        """
        if self._metrics is None:
            raise ValueError("rewind() opens the metrics; call it first")
        self._lock.check()
        if row["step"] == self._last_step:
            self._metrics.flush()
            *before, last = reader.read_metrics(self._lines)
            self._metrics.close()
            self._write_lines([*before, last | dict(row)])
        else:
            self._metrics.append(_line(row))
            self._last_step = row["step"]

    def _lengthen(self, config: dict[str, Any], steps: int) -> None:
        """Turns all but the config.json of a run of `config` into that of a run of more steps.

        What only a last step logs leaves the metrics, and stays in environment.json. A kill on the
        way does no harm: config.json changes last, so that the next launch does all of it again.
        """
        end = config["steps"]
        rows = reader.read_metrics(self._lines)
        last = next((row for row in rows if row["step"] == end), None)
        facts = storage.read_json(self.path / "environment.json")
        ends = facts.get("earlier_ends", [])
        if last and end not in [row["step"] for row in ends]:
            storage.write_json(
                self.path / "environment.json", facts | {"earlier_ends": [*ends, last]}
            )
        if last:
            kinds = {"train": config["log"]["every"], "validation": config["eval"]["every"]}
            due = tuple(f"{kind}/" for kind, every in kinds.items() if end % every == 0)
            last_due = {k: v for k, v in last.items() if k.startswith(due)}
            last_due = {k: v for k, v in last_due.items() if not k.endswith("_population")}
            others = {k: v for k, v in last.items() if k == "step" or k.startswith("time/")}
            rows = [row for row in rows if row["step"] != end]
            rows += [others | last_due] if last_due else []
            storage.write_bytes(self._lines, b"".join(map(_line, rows)))
        status = self.status()
        if status:
            # What has diverged, stays so.
            again = {"status": "queued"} if status["status"] == "completed" else {}
            storage.write_json(self.path / "status.json", status | again | {"steps": steps})

    @property
    def _lines(self) -> storage.Path:
        return self.path / "metrics.jsonl"

    def _write_lines(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Writes the metrics anew and opens them for more."""
        self._metrics = storage.Lines(self._lines, b"".join(map(_line, rows)))
        self._last_step = rows[-1]["step"] if rows else -1

    def flush(self) -> None:
        """Returns when every line is in the folder.

        Raises:
          RunError: the folder is another process's by now.
        """
        self._lock.check()
        if self._metrics is not None:
            self._metrics.flush()

    def close(self) -> None:
        """Lets go of the folder."""
        metrics, self._metrics = self._metrics, None
        # A line that cannot be written has raised before.
        with contextlib.suppress(OSError, RunError), contextlib.ExitStack() as at_end:
            if metrics is not None:
                at_end.callback(metrics.close)
                self._lock.check()
                metrics.flush()
        self._lock.release()


class Onlooker(RunFolder):
    """The run folder in a process that does not write it."""

    def __init__(self, path: str | os.PathLike[str] | storage.Path):
        """Touches nothing."""
        self.path = storage.locate(path).absolute()

    def set_status(self, *_: Any, **__: Any) -> None:
        """Leaves it to process 0."""

    def record_launch(self, facts: Mapping[str, Any]) -> None:
        """Leaves it to process 0."""

    def rewind(self, step: int) -> None:
        """Leaves it to process 0."""

    def append(self, row: Mapping[str, Any]) -> None:
        """Leaves it to process 0."""

    def flush(self) -> None:
        """Leaves it to process 0."""

    def close(self) -> None:
        """Has nothing to let go of."""


def differences(old: Mapping[str, Any], new: Mapping[str, Any], of_old: str, of_new: str) -> str:
    """Returns ``train (26 then, 296 now), ...`` for the facts of both that differ; else nothing."""
    return ", ".join(
        f"{key} ({old[key]!r} {of_old}, {new[key]!r} {of_new})"
        for key in new
        if key in old and old[key] != new[key]
    )


def jsonable(value: Any) -> Any:
    """Returns numbers and lists of numbers with ``None`` in place of what is not finite."""
    if isinstance(value, (list, tuple)):
        return [jsonable(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _line(row: Mapping[str, Any]) -> bytes:
    return (json.dumps({k: jsonable(v) for k, v in row.items()}, allow_nan=False) + "\n").encode()
