"""The ledger of a study, from its run folders alone: who is how far, at what error."""

import contextlib
import math
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tqdm import tqdm

from experiments import cell_folders
from resnet_jax import runs, storage

_ERRORS = {"train/error": "training %", "validation/error": "validation %", "test/error": "test %"}
_DASH = "-"


def table(
    found: Iterable[runs.Run],
    expected: Sequence[str] = (),
    jobs: Mapping[str, str] | None = None,
) -> str:
    """Returns the table of `found`; cells of `expected` that have no folder are listed too.

    `jobs` is what a scheduler says of each cell: a column of its own.
    """
    by_name = {run.name: run for run in found}
    rows = [["cell", "status", "step", *_ERRORS.values(), "device time", "remarks"]]
    for name in [*expected, *(n for n in by_name if n not in expected)]:
        rows.append(_row(by_name[name]) if name in by_name else [name, "not started"])
    if jobs:
        rows[0].insert(2, "job")
        for row in rows[1:]:
            row.insert(2, jobs.get(row[0], _DASH))
    rows += [[], ["Errors are the last ones logged; those of several replicates are their mean."]]
    return aligned(rows)


def aligned(rows: Iterable[Sequence[str]]) -> str:
    """Returns rows as columns of equal width, headings first; a row of one cell is plain text."""
    rows = [list(row) for row in rows]
    columns = max(map(len, rows))
    widths = [
        max((len(row[i]) for row in rows if 1 < len(row) > i), default=0) for i in range(columns)
    ]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def latest(run: runs.Run) -> dict[str, Any]:
    """Returns the last value of every metric of a run."""
    values: dict[str, Any] = {}
    for row in run.metrics:
        values |= row
    return values


def show_step(status: dict[str, Any]) -> str:
    """Returns ``120/240``."""
    return f"{status.get('step', 0)}/{status.get('steps', '?')}"


def _row(run: runs.Run) -> list[str]:
    values = latest(run)
    seconds = run.status.get("device_seconds") or 0.0
    return [
        run.name,
        runs.shown_status(run),
        show_step(run.status),
        *(_mean(values.get(key)) for key in _ERRORS),
        tqdm.format_interval(seconds) if seconds else _DASH,
        remarks(run),
    ]


def remarks(run: runs.Run) -> str:
    """Returns why a run ended as it did, and where its log is; empty where all is well."""
    parts = [run.status["reason"]] if run.status.get("reason") else []
    diverged = run.status.get("diverged") or {}
    if diverged and run.status.get("status") != "diverged":
        parts += [f"replicate {r} diverged at step {step}" for r, step in diverged.items()]
    log = run.path / cell_folders.LOG
    if runs.shown_status(run) in ("failed", "interrupted") and _exists(log):
        parts.append(f"see {_short(log)}")
    return "; ".join(parts)


def _exists(path: storage.Path) -> bool:
    with contextlib.suppress(OSError), storage.reaching(path):
        return path.is_file()
    return False


def _mean(value: Any) -> str:
    if value is None and not isinstance(value, list):
        return _DASH
    values = value if isinstance(value, list) else [value]
    finite = [v for v in values if v is not None and math.isfinite(v)]
    return f"{sum(finite) / len(finite):.2f}" if finite else "not finite"


def _short(path: storage.Path) -> str:
    """Returns a path as the user would type it here."""
    here = pathlib.Path.cwd()
    if storage.is_bucket(path) or not path.is_relative_to(here):
        return str(path)
    return str(path.relative_to(here))
