"""The run folder: all output of a run, and all that reports read.

    config.json        the resolved config; a hash of it is the run's identity
    environment.json   command, commit, versions, devices, network and data of every launch; for a
                       run that was made longer, the last row of each earlier end
    normalization.json the mean and the deviation of pixels that its images are normalised with
    metrics.jsonl      one JSON object per logged step, in order
    checkpoints/       Orbax; the last one is written before the test
    tested/            Orbax: the variables that the test error belongs to
    tensorboard/       the metrics as TensorBoard events
    profile/           a trace of some steps, if config.profile asks for one
    status.json        queued | running | preempted | completed | diverged | failed

Errors are in percent, lengths in steps, and timings are named ``time/...``. A metric is a number,
or a list with one number per replicate if there are several; ``null`` is a value that is not
finite.

This file reads run folders and writer.py writes them; records.py declares the fields of their JSON
files. None imports JAX or the trainer, so that reports start fast.
"""

import dataclasses
import os
import socket
from collections.abc import Iterable, Sequence

from resnet_jax.errors import UserError
from resnet_jax.runs import identity, lock, records, storage
from resnet_jax.runs.records import Environment, Row, Status

PILOTS = "pilots"  # the folder in a study with the runs that chose each cell's best values
TUNING = "tuning.json"  # in PILOTS: the study's part `tune`, and further candidates of cells
NORMALIZATION = "normalization.json"
STATUSES = ("queued", "running", "preempted", "completed", "diverged", "failed")
ENDED = ("completed", "diverged")  # statuses of a run that has nothing left to do
# The names of the validation error with BatchNorm's population statistics, taken once after
# training (the paper), and with its moving averages.
POPULATION, MOVING_AVERAGES = "validation/error_population", "validation/error"


@dataclasses.dataclass(frozen=True)
class Run:
    """A run folder as read from disk; parts that do not exist (yet) are empty."""

    path: storage.Path
    config: storage.Json
    environment: Environment
    metrics: list[Row]
    status: Status

    @property
    def name(self) -> str:
        """The folder's name, which in a study is the cell's name (``plain-56``)."""
        return self.path.name


def read(path: str | os.PathLike[str] | storage.Path) -> Run:
    """Reads one run folder.

    Raises:
      UserError: `path` has no config.json, or a file in it is malformed.
    """
    path = storage.locate(path)
    config = identity.read(path)
    if not config:
        raise UserError(f"{path} is not a run folder: it has no config.json.")
    return Run(
        path=path,
        config=config,
        environment=records.read_environment(path),
        metrics=records.read_metrics(path),
        status=records.read_status(path),
    )


def refuse_missing(run: Run, missing: Sequence[str]) -> None:
    """Raises UserError with the settings that a run's config lacks, if there are any."""
    if missing:
        raise UserError(
            f"{run.path / 'config.json'} lacks {', '.join(missing)}; another version wrote it."
        )


def find(paths: Iterable[str | os.PathLike[str] | storage.Path]) -> list[Run]:
    """Reads every run in `paths`, each a run folder or a study (a folder of run folders).

    Raises:
      UserError: a path does not exist or holds no run.
    """
    runs = []
    for path in map(storage.locate, paths):
        if not storage.is_dir(path):
            raise UserError(f"{path} is not a folder; give a run folder or a folder of runs.")
        names = configs(path)
        if "config.json" in names:
            runs.append(read(path))
            continue
        folders = [path / name.split("/")[0] for name in names]
        if not folders:
            raise UserError(
                f"{path} holds no run: neither it nor a folder in it has a config.json."
            )
        runs.extend(map(read, folders))
    return runs


def configs(path: storage.Path) -> list[str]:
    """Returns the names of each config.json in a folder and in its subfolders.

    They are sorted by folder: ``scale=0/config.json`` comes before ``scale=0.1/config.json``.
    """
    try:
        if storage.is_bucket(path):
            names = storage.files(path, depth=2)
        else:
            files = (*path.glob("config.json"), *path.glob("*/config.json"))
            names = [p.relative_to(path).as_posix() for p in files]
    except OSError as e:
        raise UserError(f"{path} cannot be read: {storage.reason(e)}.") from e
    parts = sorted(name.split("/") for name in names)
    return ["/".join(own) for own in parts if own[-1] == "config.json"]


def validation_metric(metrics: Sequence[Row]) -> str:
    """Returns the name of the validation error to show.

    It is POPULATION if the last row with a validation error has it, else MOVING_AVERAGES.
    """
    validated = (row for row in reversed(metrics) if row.keys() & {POPULATION, MOVING_AVERAGES})
    return POPULATION if POPULATION in next(validated, {}) else MOVING_AVERAGES


def final_test_error(run: Run, seed: int) -> float | None:
    """Returns a seed's test error in percent; None before the test, or if it is not finite."""
    return _of_test(run, "test/error", seed)


def tested_step(run: Run, seed: int) -> int | None:
    """Returns the step of the best weights that a seed was tested with; None if not recorded."""
    step = _of_test(run, "test/step", seed)
    return None if step is None else int(step)


def _of_test(run: Run, metric: str, seed: int) -> float | None:
    tested = [row for row in run.metrics if metric in row]
    return values(run, tested[-1], metric)[seed - run.config["seed"]] if tested else None


def values(run: Run, row: Row, metric: str) -> list[float | None]:
    """Returns a row's values of a metric, one per seed; None stands for one that is not finite.

    Raises:
      UserError: there are more or fewer values than seeds.
    """
    found = row[metric] if isinstance(row[metric], list) else [row[metric]]
    if len(found) != run.config["replicates"]:
        raise UserError(
            f"{run.path / 'metrics.jsonl'} holds {len(found)} values per row, but config.json has "
            f"{run.config['replicates']} replicates."
        )
    return found


def has_moving_averages(run: Run) -> bool:
    """Whether the validation error to show was measured with BatchNorm's moving averages."""
    is_plain = validation_metric(run.metrics) == MOVING_AVERAGES
    return is_plain and run.config["model"]["norm"] == "batch"


def is_alive(path: storage.Path, status: Status) -> bool:
    """Whether the process that wrote a run folder's ``running`` status may still exist.

    This asks the folder's lock, since another process may have the same number by now. On a disk, a
    process on another host cannot be checked and counts as alive.
    """
    if status.get("status") != "running":
        return False
    is_here = status["host"] == socket.gethostname()
    if not is_here and not storage.is_bucket(path):
        return True
    is_held = lock.is_held(path)
    if is_held is False or not is_here:
        return is_held is not False
    if is_held and not storage.is_bucket(path):
        return True
    try:  # a lease outlives its process, and the lock may be unreadable: check the number
        os.kill(status["pid"], 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def shown_status(run: Run) -> str:
    """Returns a run's status, or "interrupted" if it is "running" but its process is gone."""
    status = run.status.get("status", "queued")
    if status == "running" and not is_alive(run.path, run.status):
        return "interrupted"
    return status


def describe_status(status: Status) -> str:
    """Returns ``diverged at step 57 of 240: the loss was ...``."""
    text = f"{status['status']} at step {status['step']} of {status['steps']}"
    if status.get("diverged"):
        each = ", ".join(f"{r} at step {step}" for r, step in status["diverged"].items())
        text += f" (diverged replicates: {each})"
    return f"{text}: {status['reason']}" if status["reason"] else text
