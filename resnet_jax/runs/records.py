"""The records in a run folder: their fields, and the one place that reads them.

A record that a person or another program has changed is refused by name here, so that no reader
meets a wrong type. Fields may be absent, and further ones are kept: versions differ in them.
"""

import functools
import typing
from types import NoneType, UnionType
from typing import Any, Required, TypedDict, TypeVar

from resnet_jax.errors import UserError, listing
from resnet_jax.runs import storage

_R = TypeVar("_R")
Row = dict[str, Any]  # {"step": int, metric: a number, a list of numbers or None}


class Status(TypedDict, total=False):
    """The content of status.json, empty if there is none."""

    status: Required[str]  # one of reader.STATUSES
    step: Required[int]
    steps: Required[int]
    reason: Required[str]
    device_seconds: float  # over all launches
    updated: str
    host: str
    pid: int
    diverged: dict[str, int]  # replicate -> first step that was not finite


NO_STATUS = typing.cast("Status", {})


class Git(TypedDict, total=False):
    """The commit of the code, or the reason why it is unknown."""

    commit: str | None
    clean: bool | None
    reason: str


class Data(TypedDict, total=False):
    """The facts about a data set, see datasets.DataSet.facts."""

    name: str
    version: str
    train: int
    validation: int
    test: int
    classes: int
    image_shape: list[int]
    note: str
    content: str
    streams: int


class Launch(TypedDict, total=False):
    """The facts about one launch."""

    command: str
    git: Git
    python: str
    packages: dict[str, str]  # name -> version
    platform: str
    flags: dict[str, str]
    devices: list[str]
    execution: dict[str, Any]
    hosts: list[str]
    started: str
    network: dict[str, int]
    data: Data
    without_effect: list[str]
    init: dict[str, Any]  # the origin of the weights before the first step, if not drawn
    converted: dict[str, Any]  # of a network that others trained: its file and conventions
    step: int


class Environment(Launch, total=False):
    """The content of environment.json, the facts about the first launch; empty if there is none."""

    resumed: list[Launch]
    earlier_ends: list[Row]


class Tuning(TypedDict, total=False):
    """The content of a study's pilots/tuning.json: its part `tune`, and further candidates."""

    over: dict[str, list[Any]]
    by: str
    seeds: int
    first_seed: int
    extended: dict[str, dict[str, list[Any]]]  # cell -> setting -> values


def read(path: storage.Path, kind: type[_R]) -> _R:
    """Returns a JSON file, empty if it does not exist.

    Args:
      path: of the file.
      kind: a TypedDict.

    Raises:
      UserError: it cannot be read, or a field has another type.
    """
    record = storage.read_json(path)
    if record and (found := _mismatch(record, kind, "")):
        raise UserError(f"{path} is malformed: {found}.")
    return typing.cast("_R", record)


def read_status(folder: storage.Path) -> Status:
    """Returns a run folder's status.json; raises UserError if it is malformed."""
    return read(folder / "status.json", Status)


def read_environment(folder: storage.Path) -> Environment:
    """Returns a run folder's environment.json; raises UserError if it is malformed."""
    return read(folder / "environment.json", Environment)


def read_metrics(folder: storage.Path) -> list[Row]:
    """Returns the rows of metrics.jsonl, without a last line that was cut short by a kill.

    Raises:
      UserError: it is malformed, or its steps do not increase.
    """
    path = folder / "metrics.jsonl"
    *lines, _ = (storage.read_or_none(path) or b"").split(b"\n")  # the rest is empty or half a line
    rows: list[Row] = []
    for number, line in enumerate(lines, start=1):
        try:
            row = storage.parse_json(line)
        except ValueError as e:
            raise UserError(f"{path} line {number} is not JSON ({e}).") from e
        if not _is_row(row):
            raise UserError(
                f"{path} line {number} is not a row of metrics: it needs a step, and a number or "
                "null for each metric and seed."
            )
        if rows and row["step"] <= rows[-1]["step"]:
            raise UserError(
                f"{path} line {number} has step {row['step']} after step {rows[-1]['step']}; the "
                "steps of rows must increase."
            )
        rows.append(row)
    return rows


_NUMBER_OR_NULL = (int, float, NoneType)  # exact types: True is no number


def _is_row(row: object) -> bool:
    if not isinstance(row, dict) or type(row.get("step")) is not int:
        return False
    values = (v if type(v) is list else (v,) for v in row.values())
    return all(type(number) in _NUMBER_OR_NULL for value in values for number in value)


_NAMES = {int: "a whole number", float: "a number", str: "a string", bool: "true or false",
          NoneType: "null", dict: "an object", list: "a list"}  # fmt: skip


def _mismatch(value: Any, kind: Any, name: str) -> str:
    """Returns ``step='x' is not a whole number`` for a part with another type, or nothing.

    Args:
      value: of JSON.
      kind: its declared type.
      name: the key of the value in the record; empty for the record itself.
    """
    if kind is Any:
        return ""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    kinds = arguments if origin is UnionType else (kind,)
    classes = [dict if typing.is_typeddict(k) else typing.get_origin(k) or k for k in kinds]
    exact = [*classes, int] if float in classes else classes
    if type(value) not in exact:
        return f"{name}={value!r} is not {listing(_NAMES[c] for c in classes)}"
    parts: dict[str, tuple[Any, Any]] = {}  # key -> (value, kind)
    if typing.is_typeddict(kind):
        known = _fields(kind)
        if absent := sorted(kind.__required_keys__ - value.keys()):
            return f"it lacks {listing(absent, 'and')}"
        parts = {f"{name}.{key}": (v, known[key]) for key, v in value.items() if key in known}
    elif origin is dict:
        parts = {f"{name}.{key}": (v, arguments[1]) for key, v in value.items()}
    elif origin is list:
        parts = {f"{name}[{i}]": (v, arguments[0]) for i, v in enumerate(value)}
    found = (_mismatch(*part, key.removeprefix(".")) for key, part in parts.items())
    return next(filter(None, found), "")


@functools.cache
def _fields(kind: Any) -> dict[str, Any]:
    return typing.get_type_hints(kind)
