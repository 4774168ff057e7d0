"""Cells as the tasks of one Slurm array.

Each task runs one `srun` that starts the cell's processes; JAX joins them. Two minutes before the
time limit, and when another job preempts the task, every process gets SIGTERM, saves and exits with
42, and the task requeues itself. A cancelled task does not, since Slurm ends its script first.
Slurm itself requeues tasks of lost nodes.

A tuned study has two stages. A job that waits for the jobs of the first one runs the command of the
sweep again, which then submits the second.
"""

import datetime
import getpass
import json
import os
import pathlib
import shutil
from collections.abc import Collection, Mapping, Sequence

from experiments.launchers import slurm_scripts
from experiments.launchers.interface import FOLLOW_UP, Job, printed
from experiments.launchers.slurm_scripts import SlurmOptions
from resnet_jax.data import sources
from resnet_jax.errors import RunError, UserError
from resnet_jax.runs import storage

# squeue's states of tasks that have not ended.
ACTIVE_TASKS = (
    "PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "SUSPENDED", "REQUEUED", "STOPPED",
    "REQUEUE_HOLD", "REQUEUE_FED", "RESIZING", "SIGNALING", "STAGE_OUT",
)  # fmt: skip


class Slurm:
    """The jobs of one study."""

    name = "slurm"

    def __init__(self, workdir: storage.Path, options: SlurmOptions):
        """Checks the folder.

        Args:
          workdir: the study's folder, which all nodes share.
          options: sbatch's options for every cell.

        Raises:
          UserError: the folder is in a bucket.
        """
        if storage.is_bucket(workdir):
            raise UserError(
                f"--workdir={workdir} is in a bucket; for --launcher=slurm give a folder that "
                "all nodes share, since Slurm writes logs there."
            )
        self._workdir, self._options = workdir.absolute(), options

    def require_data(self, name: str, data_dir: str) -> None:
        """Raises UserError if this machine, whose disks the nodes share, lacks the data set."""
        sources.require(name, data_dir)

    def script(self, jobs: Sequence[Job]) -> str:
        """Returns the script for sbatch: an array of `jobs`, which differ only in their folders."""
        return slurm_scripts.array(self._workdir, self._options, jobs)

    def submit(self, jobs: Sequence[Job]) -> str:
        """Submits the array and returns a message for the user; raises RunError if it fails."""
        number, path = self._sbatch(_now(), self.script(jobs), [job.name for job in jobs])
        return f"Slurm's job is {number}; its script is {path}."

    def submit_after(self, cells: Collection[str], command: Sequence[str]) -> str:
        """Submits a job that runs `command` when the jobs of `cells` have ended.

        It waits for earlier ones of its kind as well: if two ran at the same time, both would
        submit the same cells.

        Returns:
          The job's number; empty if no job of `cells` runs or will run.

        Raises:
          RunError: sbatch failed.
        """
        states = {name: state.split()[:2] for name, state in self.states().items()}
        jobs = {name: task.split("_")[0] for name, (task, state) in states.items()
                if state in ACTIVE_TASKS}  # fmt: skip
        awaited = {jobs[cell] for cell in cells if cell in jobs}
        for line in self._submissions():
            (first, *_) = line["cells"]
            is_pending = first in jobs and states[first][1] == "PENDING"
            if is_pending and awaited <= set(line.get("after", ())):
                return line["job"]
        if not awaited:
            return ""
        after = sorted({jobs[name] for name in jobs if name.startswith(FOLLOW_UP)} | awaited)
        now = _now()
        script = slurm_scripts.follow_up(self._workdir, self._options, after, command)
        return self._sbatch(now, script, [f"{FOLLOW_UP}{now}"], after=after)[0]

    def _sbatch(
        self, now: str, script: str, cells: Sequence[str], **facts: object
    ) -> tuple[str, pathlib.Path]:
        """Submits a script and records its cells; returns the job's number and the script's path.

        Args:
          now: names the script's file.
          script: its content.
          cells: the names of its tasks.
          **facts: also recorded.
        """
        folder = self._workdir / "slurm"
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{now}.sh"
        path.write_text(script, encoding="utf-8")
        number = _slurm("sbatch", "--parsable", str(path)).strip().split(";")[0]
        line = {"job": number, "cells": list(cells), "submitted": now, **facts}
        with open(folder / "jobs.jsonl", "a", encoding="utf-8") as f:
            f.write(json.dumps(line) + "\n")
        return number, path

    def states(self) -> dict[str, str]:
        """Returns the newest task of each cell and its state, as in ``12_3 RUNNING on node7``."""
        tasks = self._tasks()
        numbers = set(tasks.values())
        states = _from_squeue(numbers)
        states |= _from_sacct(numbers - states.keys())
        # Without accounting Slurm forgets a job some minutes after its end.
        return {cell: f"{task} {states.get(task, 'UNKNOWN')}" for cell, task in tasks.items()}

    def active(self) -> list[str]:
        """Returns the cells whose tasks run or will run."""
        return [cell for cell, state in self.states().items() if state.split()[1] in ACTIVE_TASKS]

    def cancel(self, cells: Sequence[str]) -> None:
        """Cancels cells' tasks; running ones get SIGTERM first and save."""
        tasks = self._tasks()
        # Otherwise a follow-up might start when the jobs that it waits for are cancelled.
        follow_ups_first = sorted(cells, key=lambda cell: not cell.startswith(FOLLOW_UP))
        _slurm("scancel", *(tasks[cell] for cell in follow_ups_first))

    def _tasks(self) -> dict[str, str]:
        """Returns {cell: JOB_INDEX} of each cell's newest submission."""
        tasks: dict[str, str] = {}
        for line in self._submissions():
            tasks |= {cell: f"{line['job']}_{i}" for i, cell in enumerate(line["cells"])}
        return tasks

    def _submissions(self) -> list[storage.Json]:
        """Returns the records of all submitted jobs, the oldest first."""
        path = self._workdir / "slurm" / "jobs.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        return [json.loads(line) for line in lines]


def _now() -> str:
    return f"{datetime.datetime.now(datetime.UTC):%Y%m%dT%H%M%S%f}"


def _from_squeue(tasks: set[str]) -> dict[str, str]:
    """Returns {task: state} of the tasks that squeue lists."""
    output = _slurm(
        "squeue", "--noheader", "--array", "--states=all", f"--user={getpass.getuser()}",
        "--format=%F_%K|%T|%r|%N",
    )  # fmt: skip
    states = {}
    for line in output.splitlines():
        task, state, reason, nodes = line.strip().split("|")
        if task in tasks:
            why = f" ({reason})" if state == "PENDING" and reason != "None" else ""
            states[task] = f"{state}{f' on {nodes}' if nodes else ''}{why}"
    return states


def _from_sacct(tasks: set[str]) -> dict[str, str]:
    """Returns {task: state} from Slurm's accounting; empty if there is none."""
    if not tasks or shutil.which("sacct") is None:
        return {}
    jobs = ",".join(sorted({task.split("_")[0] for task in tasks}))
    try:
        output = _slurm(
            "sacct", "--allocations", "--noheader", "--parsable2", f"--jobs={jobs}",
            "--format=JobID,State,NodeList",
        )  # fmt: skip
    except RunError:
        return {}
    states = {}
    for line in output.splitlines():
        task, state, nodes = line.split("|")
        if task in tasks:
            where = f" on {nodes}" if nodes and nodes != "None assigned" else ""
            states[task] = f"{state.split()[0]}{where}"
    return states


def _slurm(*command: str) -> str:
    return printed(
        command,
        "--launcher=slurm needs a machine that can submit Slurm jobs (for a trial, "
        "tests.launchers.try_slurm starts a cluster on this machine).",
        environment=_environment(os.environ),
    )


def _environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Returns `environment` without the variables of a job, which jobs it submits would inherit."""
    return {
        key: value
        for key, value in environment.items()
        if not key.startswith(("SLURM_", "SBATCH_")) or key == "SLURM_CONF"
    }
