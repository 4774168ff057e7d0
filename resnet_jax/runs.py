"""The run folder: everything that a run leaves behind, and all that a report reads.

    config.json        the resolved config; its hash is the run's identity
    environment.json   command, commit, versions, devices, network and data facts; every launch
    metrics.jsonl      one object a logged step, append-only, never two lines for one step
    checkpoints/       Orbax
    tensorboard/       the same scalars
    status.json        queued | running | preempted | completed | diverged | failed

Errors are in percent, lengths in steps, whatever is a timing is named ``time/...``. A run of
several replicates (seeds) writes a list with one value a replicate where a run of one writes a
number; ``null`` stands for a value that is not finite.

This module imports neither JAX nor the trainer, so that reports and ledgers stay quick.
"""

import contextlib
import dataclasses
import datetime
import fcntl
import hashlib
import json
import math
import os
import pathlib
import socket
from collections.abc import Iterable, Mapping
from typing import IO, Any

from resnet_jax.errors import UserError

STATUSES = ("queued", "running", "preempted", "completed", "diverged", "failed")
ENDED = ("completed", "diverged")  # nothing is left to do
# What changes no result: a run may go on where its data lies elsewhere, and on other devices.
NOT_IDENTITY = frozenset({"data.dir", "accumulate", "mesh.replicates", "mesh.fsdp"})


# ---------------------------------------------------------------------------- reading


@dataclasses.dataclass(frozen=True)
class Run:
    """A run folder as read from disk; parts that do not exist (yet) are empty."""

    path: pathlib.Path
    config: dict[str, Any]
    environment: dict[str, Any]
    metrics: list[dict[str, Any]]
    status: dict[str, Any]

    @property
    def name(self) -> str:
        """The folder's name, which in a study says what the cell is (``plain-56``)."""
        return self.path.name


def read(path: str | os.PathLike[str]) -> Run:
    """Reads one run folder.

    Raises:
      UserError: `path` holds no config.json, or a file in it is not what a run writes.
    """
    path = pathlib.Path(path)
    if not (path / "config.json").is_file():
        raise UserError(f"{path} is not a run folder: it holds no config.json.")
    return Run(
        path=path,
        config=_read_json(path / "config.json"),
        environment=_read_json(path / "environment.json"),
        metrics=read_metrics(path / "metrics.jsonl"),
        status=_read_json(path / "status.json"),
    )


def find(paths: Iterable[str | os.PathLike[str]]) -> list[Run]:
    """Reads every run in `paths`, each a run folder or a study (a folder of run folders).

    Raises:
      UserError: a path does not exist or holds no run.
    """
    found = []
    for path in map(pathlib.Path, paths):
        if not path.is_dir():
            raise UserError(f"{path} is not a folder; give a run folder or a folder of runs.")
        if (path / "config.json").is_file():
            found.append(read(path))
            continue
        inside = sorted(p.parent for p in path.glob("*/config.json"))
        if not inside:
            raise UserError(
                f"{path} holds no run: neither it nor a folder in it has a config.json."
            )
        found.extend(map(read, inside))
    return found


def read_metrics(path: pathlib.Path) -> list[dict[str, Any]]:
    """Returns the whole lines of a metrics.jsonl; a last line cut short by a kill is left out."""
    if not path.is_file():
        return []
    lines = path.read_bytes().split(b"\n")
    rows = []
    for number, line in enumerate(
        lines[:-1], start=1
    ):  # after the last newline: nothing, or half a line
        try:
            rows.append(json.loads(line))
        except ValueError as e:
            raise UserError(f"{path} line {number} is not JSON ({e}).") from e
    return rows


def is_alive(status: Mapping[str, Any]) -> bool:
    """Whether the process that wrote a ``running`` status may still be there.

    A process on another host cannot be asked and counts as alive.
    """
    if status.get("status") != "running":
        return False
    if status["host"] != socket.gethostname():
        return True
    try:
        os.kill(status["pid"], 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def shown_status(run: Run) -> str:
    """Returns a run's status, or "interrupted" where it says running but its process is gone."""
    status = run.status.get("status", "queued")
    if status == "running" and not is_alive(run.status):
        return "interrupted"
    return status


def describe_status(status: Mapping[str, Any]) -> str:
    """Returns ``diverged at step 57 of 240: the loss was ...``."""
    text = f"{status['status']} at step {status['step']} of {status['steps']}"
    if status.get("diverged"):
        each = ", ".join(f"{r} at step {step}" for r, step in status["diverged"].items())
        text += f" (diverged replicates: {each})"
    return f"{text}: {status['reason']}" if status["reason"] else text


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns ``{"model.depth": 56, ...}`` for a nested config."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = list(value) if isinstance(value, tuple) else value
    return flat


def identity(config: Mapping[str, Any]) -> str:
    """Returns the run's identity: 12 hex digits over all settings that can change a result."""
    settings = {k: v for k, v in flatten(config).items() if k not in NOT_IDENTITY}
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]


def _read_json(path: pathlib.Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        return json.loads(path.read_text())
    except ValueError as e:
        raise UserError(f"{path} is not JSON ({e}).") from e


def refuse_other(path: str | os.PathLike[str], config: Mapping[str, Any]) -> None:
    """Raises UserError, with the differing keys, where `path` is another config's run folder."""
    there = _read_json(pathlib.Path(path) / "config.json")
    if not there or identity(there) == identity(config):
        return
    old, new = flatten(there), json.loads(json.dumps(flatten(config)))
    absent = object()
    differing = [
        f"{key} ({old.get(key, 'absent')} there, {new.get(key, 'absent')} here)"
        for key in sorted((old.keys() | new.keys()) - NOT_IDENTITY)
        if old.get(key, absent) != new.get(key, absent)
    ]
    raise UserError(
        f"{path} belongs to another config, which differs in {', '.join(differing)}; "
        "give another --workdir or the same settings."
    )


# ---------------------------------------------------------------------------- writing


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
            refuse_other(self.path, config)
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
        return _read_json(self.path / "status.json")

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
        if status not in STATUSES:
            raise ValueError(f"status {status!r} is not one of {STATUSES}")
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
        there = _read_json(self.path / "environment.json")
        if there:
            there["resumed"] = [*there.get("resumed", []), dict(facts)]
        write_json(self.path / "environment.json", there or facts)

    def rewind(self, step: int) -> None:
        """Drops every metrics line after `step` (and half a line left by a kill), then appends."""
        path = self.path / "metrics.jsonl"
        kept = [row for row in read_metrics(path) if row["step"] <= step]
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
