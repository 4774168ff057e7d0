"""Cells as the tasks of one Slurm array.

Each task runs one `srun` that starts the cell's processes; JAX joins them. Two minutes before the
time limit, and when another job preempts the task, every process gets SIGTERM, saves and exits with
42, and the task requeues itself. A cancelled task does not, since Slurm ends its script first.
Slurm itself requeues tasks of lost nodes.
"""

import dataclasses
import datetime
import getpass
import json
import os
import shlex
import shutil
from collections.abc import Mapping, Sequence

from experiments.cli import command_line
from experiments.launchers.interface import Job, printed
from resnet_jax.data import sources
from resnet_jax.errors import RunError, UserError
from resnet_jax.runs import storage

_NOTICE_SECONDS = 120  # before the time limit; Slurm may be half a minute late
# squeue's states of tasks that have not ended.
ACTIVE_TASKS = (
    "PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "SUSPENDED", "REQUEUED", "STOPPED",
    "REQUEUE_HOLD", "REQUEUE_FED", "RESIZING", "SIGNALING", "STAGE_OUT",
)  # fmt: skip

_SCRIPT = """\
#!/bin/bash
{directives}
CELLS=({cells})
FOLDER={workdir}/${{CELLS[$SLURM_ARRAY_TASK_ID]}}

cd {root} || exit 1
srun --kill-on-bad-exit=1 --output="$FOLDER/{log}" --open-mode=append \\
    {command}
code=$?
# Preempted with everything saved: requeue to resume.
if [ $code -eq {preempted} ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit $code
"""


@dataclasses.dataclass(frozen=True)
class SlurmOptions:
    """The options of sbatch for each cell; empty or 0 means the cluster's default."""

    partition: str = ""
    account: str = ""
    time: str = ""
    gres: str = ""
    nodes: int = 1
    tasks_per_node: int = 1
    cpus_per_task: int = 0
    at_once: int = 0
    sbatch: tuple[str, ...] = ()


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
        options = self._options
        last = len(jobs) - 1
        at_once = f"%{options.at_once}" if options.at_once else ""
        settings = {
            "job-name": self._workdir.name,
            "array": f"0-{last}{at_once}",
            "nodes": options.nodes,
            "ntasks-per-node": options.tasks_per_node,
            "cpus-per-task": options.cpus_per_task,
            "partition": options.partition,
            "account": options.account,
            "time": options.time,
            "gres": options.gres,
            "signal": f"SIGTERM@{_NOTICE_SECONDS}",
            "output": f"{self._workdir}/slurm/%A_%a.txt",
            "open-mode": "append",
        }
        lines = [
            f"#SBATCH --{key}={shlex.quote(str(value))}" for key, value in settings.items() if value
        ]
        lines += ["#SBATCH --requeue", *(f"#SBATCH {extra}" for extra in options.sbatch)]
        (log,) = {job.log.name for job in jobs}
        return _SCRIPT.format(
            directives="\n".join(lines),
            cells=" ".join(shlex.quote(job.name) for job in jobs),
            workdir=shlex.quote(str(self._workdir)),
            root=shlex.quote(str(command_line.ROOT)),
            log=log,
            command=_in_folder(jobs),
            preempted=command_line.PREEMPTED,
        )

    def submit(self, jobs: Sequence[Job]) -> str:
        """Submits the array and returns a message for the user; raises RunError if it fails."""
        folder = self._workdir / "slurm"
        folder.mkdir(parents=True, exist_ok=True)
        now = datetime.datetime.now(datetime.UTC)
        path = folder / f"{now:%Y%m%dT%H%M%S%f}.sh"
        path.write_text(self.script(jobs), encoding="utf-8")
        number = _slurm("sbatch", "--parsable", str(path)).strip().split(";")[0]
        line = {"job": number, "cells": [job.name for job in jobs], "submitted": now.isoformat()}
        with open(folder / "jobs.jsonl", "a", encoding="utf-8") as f:
            f.write(json.dumps(line) + "\n")
        return f"Slurm's job is {number}; its script is {path}."

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
        _slurm("scancel", *(tasks[cell] for cell in cells))

    def _tasks(self) -> dict[str, str]:
        """Returns {cell: JOB_INDEX} of each cell's newest submission."""
        path = self._workdir / "slurm" / "jobs.jsonl"
        tasks: dict[str, str] = {}
        for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
            job = json.loads(line)
            tasks |= {cell: f"{job['job']}_{i}" for i, cell in enumerate(job["cells"])}
        return tasks


def _in_folder(jobs: Sequence[Job]) -> str:
    """Returns the jobs' common shell command, with $FOLDER in place of their folders."""
    commands = set()
    for job in jobs:
        folder = str(job.log.parent)
        quoted = (shlex.quote(word) for word in job.command)
        commands.add(
            " ".join(
                f'"{word.replace(folder, "$FOLDER")}"' if folder in word else safe
                for word, safe in zip(job.command, quoted, strict=True)
            )
        )
    (command,) = commands
    return command


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
