"""Writes a run folder; reader.py documents its content."""

import contextlib
import datetime
import json
import math
import os
import socket
from collections.abc import Mapping, Sequence

from resnet_jax import settings
from resnet_jax.errors import RunError, UserError
from resnet_jax.runs import identity, lock, reader, records, storage
from resnet_jax.runs.identity import refuse_other

_STATUS_SECONDS = 2.0


class RunFolder:
    """A run folder that this process holds and writes."""

    def __init__(self, path: str | os.PathLike[str] | storage.Path, config: settings.Config):
        """Opens `path` for a run of the resolved `config`, creating it if needed.

        Raises:
          UserError: the folder cannot be written, belongs to another config, or is in use.
        """
        self.path = storage.locate(path).absolute()
        self._metrics: storage.Lines | None = None
        self._last_step = -1  # of the metrics
        try:
            # Never in a bucket: it has no folders, and mkdir would create a misspelt bucket.
            if not storage.is_bucket(self.path):
                self.path.mkdir(parents=True, exist_ok=True)
            self._lock = lock.take(self.path)
            try:
                refuse_other(self.path, config)
                self._write_config(config)
            except BaseException:
                self._lock.release()
                raise
        except OSError as e:
            raise UserError(
                f"The run folder {self.path} cannot be written: {storage.reason(e)}."
            ) from e

    @property
    def status_seconds(self) -> float:
        """Seconds between updates of a running run's status."""
        return storage.LINES_SECONDS if storage.is_bucket(self.path) else _STATUS_SECONDS

    @property
    def checkpoints(self) -> storage.Path:
        """The folder of Orbax checkpoints."""
        return self.path / "checkpoints"

    @property
    def tested(self) -> storage.Path:
        """The folder of the Orbax checkpoint of the tested variables."""
        return self.path / "tested"

    @property
    def tensorboard(self) -> storage.Path:
        """The folder of TensorBoard events."""
        return self.path / "tensorboard"

    @property
    def profile(self) -> storage.Path:
        """The folder of a trace."""
        return self.path / "profile"

    def _write_config(self, config: settings.Config) -> None:
        """Writes config.json if it is new or if a resumed run changes settings or is longer."""
        saved = identity.read(self.path)
        if saved and saved["steps"] < config["steps"]:
            self._lengthen(saved, config["steps"])
        elif self.status().get("status") in reader.ENDED:
            return
        if not saved or settings.flatten(saved) != settings.flatten(config):
            storage.write_json(self.path / "config.json", config)

    def status(self) -> records.Status:
        """Returns the last written status, empty for a new folder."""
        return records.read_status(self.path)

    def set_status(
        self,
        status: str,
        *,
        step: int,
        steps: int,
        device_seconds: float,
        reason: str = "",
        **more: object,
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

    def record_launch(self, facts: records.Launch) -> None:
        """Writes environment.json: the facts of the first launch, later ones under ``resumed``."""
        first = records.read_environment(self.path)
        if first:
            first["resumed"] = [*first.get("resumed", []), facts]
        storage.write_json(self.path / "environment.json", first or facts)

    def refuse_other_data(self, facts: Mapping[str, object]) -> None:
        """Raises UserError if the run was started on other data.

        Args:
          facts: see datasets.DataSet.facts; facts that no launch recorded are not compared.
        """
        first = records.read_environment(self.path)
        recorded: storage.Json = {}
        for launch in (first, *first.get("resumed", [])):
            recorded = launch.get("data", {}) | recorded
        if recorded and recorded.get("streams", 1) != facts["streams"]:
            raise UserError(
                f"{self.path} was started by a version of this program that splits and orders the "
                "data differently for the same seed; resume it with that version, whose commit is "
                "in environment.json, or give another --workdir."
            )
        if differing := differences(recorded, facts, "then", "now"):
            raise UserError(
                f"{self.path} was started on other data than those in data.dir: {differing}; give "
                "the original data.dir, or another --workdir."
            )

    def rewind(self, step: int) -> None:
        """Drops the metrics after `step`, and a line cut short by a kill; opens them to append."""
        rows = [row for row in records.read_metrics(self.path) if row["step"] <= step]
        self._write_metrics(rows)

    def append(self, row: records.Row) -> None:
        """Appends a row of metrics, which reaches a disk at once and a bucket later.

        A row of the same step as the last one is merged into it.
        """
        if self._metrics is None:
            raise ValueError("rewind() opens the metrics; call it first")
        self._lock.check()
        if row["step"] == self._last_step:
            self._metrics.flush()
            *earlier, last = records.read_metrics(self.path)
            self._metrics.close()
            self._write_metrics([*earlier, last | row])
        else:
            self._metrics.append(_line(row))
            self._last_step = row["step"]

    def _lengthen(self, config: settings.Config, steps: int) -> None:
        """Changes the files of a run of `config`, except config.json, for a run of more steps.

        Metrics that are logged only at a last step move to environment.json. A kill in between does
        no harm: config.json is written last, so the next launch repeats all of this.
        """
        end = config["steps"]
        rows = records.read_metrics(self.path)
        last = next((row for row in rows if row["step"] == end), None)
        facts = records.read_environment(self.path)
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
            storage.write_bytes(self._metrics_path, b"".join(map(_line, rows)))
        status = self.status()
        if status:
            # A diverged run stays diverged.
            queued = {"status": "queued"} if status["status"] == "completed" else {}
            storage.write_json(self.path / "status.json", status | queued | {"steps": steps})

    @property
    def _metrics_path(self) -> storage.Path:
        return self.path / "metrics.jsonl"

    def _write_metrics(self, rows: Sequence[records.Row]) -> None:
        """Rewrites the metrics and opens them to append."""
        self._metrics = storage.Lines(self._metrics_path, b"".join(map(_line, rows)))
        self._last_step = rows[-1]["step"] if rows else -1

    def flush(self) -> None:
        """Waits until every row is in the folder.

        Raises:
          RunError: another process has taken the folder over.
        """
        self._lock.check()
        if self._metrics is not None:
            self._metrics.flush()

    def close(self) -> None:
        """Frees the folder."""
        metrics, self._metrics = self._metrics, None
        # append() or flush() has raised the same error.
        with contextlib.suppress(OSError, RunError), contextlib.ExitStack() as at_end:
            if metrics is not None:
                at_end.callback(metrics.close)
                self._lock.check()
                metrics.flush()
        self._lock.release()


class Onlooker(RunFolder):
    """The run folder in a process other than process 0, which writes nothing."""

    def __init__(self, path: str | os.PathLike[str] | storage.Path):
        """Takes no lock."""
        self.path = storage.locate(path).absolute()

    def set_status(self, *_: object, **__: object) -> None:
        """Does nothing."""

    def record_launch(self, facts: records.Launch) -> None:
        """Does nothing."""

    def rewind(self, step: int) -> None:
        """Does nothing."""

    def append(self, row: records.Row) -> None:
        """Does nothing."""

    def flush(self) -> None:
        """Does nothing."""

    def close(self) -> None:
        """Does nothing."""


def differences(
    old: Mapping[str, object], new: Mapping[str, object], old_label: str, new_label: str
) -> str:
    """Returns ``train (26 then, 296 now), ...`` for the keys of both whose values differ, or ""."""
    return ", ".join(
        f"{key} ({old[key]!r} {old_label}, {new[key]!r} {new_label})"
        for key in new
        if key in old and old[key] != new[key]
    )


def jsonable(value: object) -> object:
    """Replaces numbers that are not finite by None, in a number or in nested lists."""
    if isinstance(value, (list, tuple)):
        return [jsonable(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _line(row: records.Row) -> bytes:
    return (json.dumps({k: jsonable(v) for k, v in row.items()}, allow_nan=False) + "\n").encode()
