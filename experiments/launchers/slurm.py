"""Cells as the tasks of one Slurm array.

Each task runs one `srun` with as many processes as asked; JAX joins them. Two minutes before its
time is up, or when it is to make way for another job, every process gets SIGTERM, saves and exits
with 42, and the task goes back into the queue. A cancelled task does not: Slurm ends its script
before that line. A lost node's task is requeued by Slurm itself.
"""

import dataclasses
import datetime
import getpass
import json
import os
import pathlib
import shlex
import shutil
from collections.abc import Mapping, Sequence

from experiments.cli import command_line
from experiments.launchers.interface import Job, printed
from resnet_jax.data import sources
from resnet_jax.errors import RunError, UserError
from resnet_jax.runs import storage

_NOTICE_SECONDS = 120  # before the end; Slurm may be half a minute late
_ROOT = pathlib.Path(__file__).parents[2]
# What squeue calls a task that has not ended.
ACTIVE = ("PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "SUSPENDED", "REQUEUED", "STOPPED",
          "REQUEUE_HOLD", "REQUEUE_FED", "RESIZING", "SIGNALING", "STAGE_OUT")  # fmt: skip

_SCRIPT = """\
#!/bin/bash
{directives}
CELLS=({cells})
FOLDER={workdir}/${{CELLS[$SLURM_ARRAY_TASK_ID]}}

cd {root} || exit 1
srun --kill-on-bad-exit=1 --output="$FOLDER/{log}" --open-mode=append \\
    {command}
code=$?
# Stopped with everything saved: it goes on when there is room again.
if [ $code -eq {preempted} ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit $code
"""


@dataclasses.dataclass(frozen=True)
class Options:
    """What is asked of Slurm for each cell; empty or 0 leaves it to the cluster's defaults."""

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

    def __init__(self, workdir: storage.Path, options: Options):
        """Touches nothing.

        Args:
          workdir: the study's folder, seen by all nodes.
          options: for every cell.

        Raises:
          UserError: the folder is in a bucket.
        """
        if storage.is_bucket(workdir):
            raise UserError(
                f"--workdir={workdir} is in a bucket; for --launcher=slurm give a folder that "
                "all nodes see, since Slurm itself writes logs there."
            )
        self._workdir, self._options = workdir.absolute(), options

    def require_data(self, name: str, data_dir: str) -> None:
        """Raises UserError where this machine, whose disks the nodes share, has no such set."""
        sources.require(name, data_dir)

    def script(self, jobs: Sequence[Job]) -> str:
        """Returns what sbatch is given: one array for all `jobs`, which differ in their folder."""
        options = self._options
        last = len(jobs) - 1
        at_once = f"%{options.at_once}" if options.at_once else ""
        asked = {
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
            f"#SBATCH --{key}={shlex.quote(str(value))}" for key, value in asked.items() if value
        ]
        lines += ["#SBATCH --requeue", *(f"#SBATCH {extra}" for extra in options.sbatch)]
        (log,) = {job.log.name for job in jobs}
        return _SCRIPT.format(
            directives="\n".join(lines),
            cells=" ".join(shlex.quote(job.name) for job in jobs),
            workdir=shlex.quote(str(self._workdir)),
            root=shlex.quote(str(_ROOT)),
            log=log,
            command=_in_folder(jobs),
            preempted=command_line.PREEMPTED,
        )

    def submit(self, jobs: Sequence[Job]) -> str:
        """Hands the array to Slurm and returns what to tell the user; RunError where it fails."""
        folder = self._workdir / "slurm"
        folder.mkdir(parents=True, exist_ok=True)
        now = datetime.datetime.now(datetime.UTC)
        path = folder / f"{now:%Y%m%dT%H%M%S%f}.sh"
        path.write_text(self.script(jobs), encoding="utf-8")
        number = _slurm("sbatch", "--parsable", str(path)).strip().split(";")[0]
        line = {"job": number, "cells": [job.name for job in jobs], "submitted": now.isoformat()}
        with open(folder / "jobs.jsonl", "a", encoding="utf-8") as f:
            f.write(json.dumps(line) + "\n")
        return f"Slurm has them as job {number}; its script is {path}."

    def states(self) -> dict[str, str]:
        """Returns the newest task of each cell and how it is, as ``12_3 RUNNING on node7``."""
        tasks = self._tasks()
        wanted = set(tasks.values())
        found = _from_squeue(wanted)
        found |= _from_sacct(wanted - found.keys())
        # Slurm forgets a job some minutes after its end, where it keeps no accounts.
        return {cell: f"{task} {found.get(task, 'UNKNOWN')}" for cell, task in tasks.items()}

    def active(self) -> list[str]:
        """Returns the cells that Slurm runs, or will run."""
        return [cell for cell, state in self.states().items() if state.split()[1] in ACTIVE]

    def cancel(self, cells: Sequence[str]) -> None:
        """Takes cells' tasks out of the queue; those that run get SIGTERM first, and save."""
        tasks = self._tasks()
        _slurm("scancel", *(tasks[cell] for cell in cells))

    def _tasks(self) -> dict[str, str]:
        """Returns {cell: job_index}, of the newest submission of each."""
        path = self._workdir / "slurm" / "jobs.jsonl"
        tasks: dict[str, str] = {}
        for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
            job = json.loads(line)
            tasks |= {cell: f"{job['job']}_{i}" for i, cell in enumerate(job["cells"])}
        return tasks


def _in_folder(jobs: Sequence[Job]) -> str:
    """Returns the jobs' common command in shell, their folders replaced by $FOLDER."""
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


def _from_squeue(wanted: set[str]) -> dict[str, str]:
    """Returns {task: state} of those that Slurm has not forgotten."""
    printed = _slurm(
        "squeue", "--noheader", "--array", "--states=all", f"--user={getpass.getuser()}",
        "--format=%F_%K|%T|%r|%N",
    )  # fmt: skip
    found = {}
    for line in printed.splitlines():
        task, state, reason, nodes = line.strip().split("|")
        if task in wanted:
            why = f" ({reason})" if state == "PENDING" and reason != "None" else ""
            found[task] = f"{state}{f' on {nodes}' if nodes else ''}{why}"
    return found


def _from_sacct(wanted: set[str]) -> dict[str, str]:
    """Returns {task: state} from Slurm's accounts; nothing where it keeps none."""
    if not wanted or shutil.which("sacct") is None:
        return {}
    jobs = ",".join(sorted({task.split("_")[0] for task in wanted}))
    try:
        said = _slurm(
            "sacct", "--allocations", "--noheader", "--parsable2", f"--jobs={jobs}",
            "--format=JobID,State,NodeList",
        )  # fmt: skip
    except RunError:
        return {}
    found = {}
    for line in said.splitlines():
        task, state, nodes = line.split("|")
        if task in wanted:
            where = f" on {nodes}" if nodes and nodes != "None assigned" else ""
            found[task] = f"{state.split()[0]}{where}"
    return found


def _slurm(*command: str) -> str:
    return printed(
        command,
        "--launcher=slurm needs a machine from which Slurm's jobs are submitted "
        "(tests.launchers.try_slurm makes one to try).",
        environment=_environment(os.environ),
    )


def _environment(of_this: Mapping[str, str]) -> dict[str, str]:
    """Returns this environment without what a job that submits others would hand on to them."""
    return {
        key: value
        for key, value in of_this.items()
        if not key.startswith(("SLURM_", "SBATCH_")) or key == "SLURM_CONF"
    }
