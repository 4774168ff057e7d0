"""The ledger of a study, read from its run folders: each cell's status, progress and errors."""

import contextlib
import pathlib
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from experiments.cli import tables
from experiments.report import replicates
from experiments.report.replicates import Replicate
from experiments.study import cell_folders
from resnet_jax.errors import UserError
from resnet_jax.runs import reader, storage
from resnet_jax.runs.progress import show_error, show_time

# The same errors as in the report.
_ERRORS = {
    "training": Replicate.train_error,
    "validation": Replicate.validation_error,
    "test": Replicate.test_error,
}
_DASH = "-"
_MARK = "*"


def status_table(
    runs: Iterable[reader.Run],
    expected: Sequence[str] = (),
    jobs: Mapping[str, str] | None = None,
) -> tables.Parts:
    """Returns the table of `runs`, with notes.

    Args:
      runs: the cells that have a folder.
      expected: names of cells to list even if they have no folder.
      jobs: the scheduler's state of each cell, shown in an extra column.
    """
    by_name = {run.name: run for run in runs}
    rows = [["cell", "status", "step", *(f"{e} %" for e in _ERRORS), "device time", "remarks"]]
    for name in [*expected, *(n for n in by_name if n not in expected)]:
        rows.append(_row(by_name[name]) if name in by_name else [name, "not started"])
    if jobs:
        rows[0].insert(2, "job")
        for row in rows[1:]:
            row.insert(2, jobs.get(row[0], _DASH))
    notes = [
        "",
        "Errors are the report's; training errors are means at the end (docs/statistics.md).",
        "Several replicates are shown as a mean, which leaves out diverged ones.",
    ]
    if any(cell.endswith(_MARK) for row in rows for cell in row):
        notes.append(f"{_MARK} BatchNorm used its moving averages, not population statistics.")
    return [tables.aligned(rows), *notes]


def show_errors(run: reader.Run) -> str:
    """Returns ``training error 1.00 %, ...`` with the table's numbers, or an empty text."""
    values, problem = _errors(run)
    return problem or ", ".join(
        show_error(split, values[split], run.config["replicates"], _is_marked(run, split))
        for split in values
        if values[split]
    )


def show_step(status: Mapping[str, object]) -> str:
    """Returns ``120/240``."""
    return f"{status.get('step', 0)}/{status.get('steps', '?')}"


def _row(run: reader.Run) -> list[str]:
    errors, problem = _errors(run)
    seconds = run.status.get("device_seconds") or 0.0
    return [
        run.name,
        reader.shown_status(run),
        show_step(run.status),
        *(
            f"{np.mean(values):.2f}{_MARK if _is_marked(run, split) else ''}" if values else _DASH
            for split, values in errors.items()
        ),
        show_time(seconds) if seconds else _DASH,
        "; ".join(filter(None, [remarks(run), problem])),
    ]


def remarks(run: reader.Run) -> str:
    """Returns why a run ended early and where its log is, or an empty text."""
    parts = [run.status["reason"]] if run.status.get("reason") else []
    diverged = run.status.get("diverged") or {}
    if diverged and run.status.get("status") != "diverged":
        parts += [f"replicate {r} diverged at step {step}" for r, step in diverged.items()]
    log = run.path / cell_folders.LOG
    if reader.shown_status(run) in ("failed", "interrupted") and _exists(log):
        parts.append(f"see {_short(log)}")
    return "; ".join(parts)


def _exists(path: storage.Path) -> bool:
    with contextlib.suppress(OSError), storage.reaching(path):
        return path.is_file()
    return False


def _errors(run: reader.Run) -> tuple[dict[str, list[float]], str]:
    """Returns the errors of healthy replicates by split, and the reason if they are unreadable."""
    try:
        healthy = [replicate for replicate in replicates.of_run(run) if replicate.healthy]
        return {
            split: [value for value in map(measure, healthy) if value is not None]
            for split, measure in _ERRORS.items()
        }, ""
    except UserError as e:  # the other runs are still shown
        return {split: [] for split in _ERRORS}, str(e)


def _is_marked(run: reader.Run, split: str) -> bool:
    return split == "validation" and reader.has_moving_averages(run)


def _short(path: storage.Path) -> str:
    """Returns a path relative to the working directory if it is inside."""
    cwd = pathlib.Path.cwd()
    if storage.is_bucket(path) or not path.is_relative_to(cwd):
        return str(path)
    return str(path.relative_to(cwd))
