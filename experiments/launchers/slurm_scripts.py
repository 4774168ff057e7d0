"""Scripts for sbatch."""

import dataclasses
import os
import shlex
from collections.abc import Mapping, Sequence

from experiments.cli import command_line
from experiments.launchers.interface import FOLLOW_UP, Job
from resnet_jax.runs import storage

_NOTICE_SECONDS = 120  # before the time limit; Slurm may be half a minute late
_ARRAY = """\
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
_FOLLOW_UP = """\
#!/bin/bash
{directives}

cd {folder} || exit 1
exec {command}
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


def array(folder: storage.Path, options: SlurmOptions, jobs: Sequence[Job]) -> str:
    """Returns the script of an array of `jobs`, which differ only in their folders in `folder`."""
    last = len(jobs) - 1
    at_once = f"%{options.at_once}" if options.at_once else ""
    directives: dict[str, object] = {
        "job-name": folder.name,
        "array": f"0-{last}{at_once}",
        "nodes": options.nodes,
        "ntasks-per-node": options.tasks_per_node,
        "cpus-per-task": options.cpus_per_task,
        "partition": options.partition,
        "account": options.account,
        "time": options.time,
        "gres": options.gres,
        "signal": f"SIGTERM@{_NOTICE_SECONDS}",
    }
    (log,) = {job.log.name for job in jobs}
    return _ARRAY.format(
        directives=_directives(folder, options, directives),
        cells=" ".join(shlex.quote(job.name) for job in jobs),
        workdir=shlex.quote(str(folder)),
        root=shlex.quote(str(command_line.ROOT)),
        log=log,
        command=_in_folder(jobs),
        preempted=command_line.PREEMPTED,
    )


def follow_up(
    folder: storage.Path, options: SlurmOptions, after: Sequence[str], command: Sequence[str]
) -> str:
    """Returns the script of a job that runs `command` in this working directory after other jobs.

    It is one process on one node, without a GPU.

    Args:
      folder: the folder whose cells were submitted.
      options: its partition, account, time limit and extra options are used.
      after: the jobs' numbers.
      command: the program and its arguments.
    """
    directives: dict[str, object] = {
        "job-name": f"{FOLLOW_UP}{folder.name}",
        "array": "0",  # so that it has a task's number, like the cells
        "dependency": f"afterany:{':'.join(after)}",
        "partition": options.partition,
        "account": options.account,
        "time": options.time,
    }
    return _FOLLOW_UP.format(
        directives=_directives(folder, options, directives),
        folder=shlex.quote(os.getcwd()),
        command=shlex.join(command),
    )


def _directives(
    folder: storage.Path, options: SlurmOptions, directives: Mapping[str, object]
) -> str:
    """Returns the lines of sbatch's options, with those of every job."""
    every = {**directives, "output": f"{folder}/slurm/%A_%a.txt", "open-mode": "append"}
    lines = [f"#SBATCH --{key}={shlex.quote(str(value))}" for key, value in every.items() if value]
    return "\n".join([*lines, "#SBATCH --requeue", *(f"#SBATCH {o}" for o in options.sbatch)])


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
