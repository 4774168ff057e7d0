"""The interfaces of launchers, which start a sweep's cells."""

import dataclasses
import shlex
import subprocess
from collections.abc import Collection, Mapping, Sequence
from typing import Protocol

from experiments.cli import command_line
from resnet_jax.errors import RunError, UserError
from resnet_jax.runs import storage

FOLLOW_UP = "sweep-"  # the first part of the name of a job that runs the sweep again


@dataclasses.dataclass(frozen=True)
class Job:
    """One cell's process.

    Attributes:
      name: the cell's name.
      command: the program and its arguments.
      log: the file to which its output is appended.
    """

    name: str
    command: tuple[str, ...]
    log: storage.Path


def in_a_checkout(job: Job) -> str:
    """Returns a job's shell command in a copy of this checkout that has its own .venv."""
    words = [".venv/bin/python", *job.command[1:]]
    return shlex.join(word.replace(f"{command_line.ROOT}/", "") for word in words)


class Launcher(Protocol):
    """Starts jobs and reports when they end."""

    def start(self, job: Job) -> None:
        """Starts a job; raises OSError if it cannot."""

    def ended(self) -> dict[str, int]:
        """Returns {job: exit code} of the jobs that ended since the last call.

        As in `subprocess`, a negative code is the signal that ended the job.
        """

    def stop(self) -> None:
        """Asks every job to save and end."""

    def kill(self) -> None:
        """Kills every job."""


class Queue(Protocol):
    """A scheduler that queues jobs and runs them independently of the sweep's process."""

    @property
    def name(self) -> str:
        """The value of --launcher."""

    def require_data(self, name: str, data_dir: str) -> None:
        """Raises UserError if jobs would not find a data set; see sources.require()."""

    def script(self, jobs: Sequence[Job]) -> str:
        """Returns the script that would be submitted."""

    def submit(self, jobs: Sequence[Job]) -> str:
        """Submits jobs and returns a message for the user; raises RunError if it fails."""

    def submit_after(self, cells: Collection[str], command: Sequence[str]) -> str:
        """Submits a job that runs `command` when the jobs of `cells` have ended.

        The job's name begins with FOLLOW_UP. No second one is submitted for the same jobs.

        Returns:
          The job's number; empty if no job of `cells` runs or will run, or if the scheduler's jobs
          cannot wait for others.

        Raises:
          RunError: it cannot be submitted.
        """

    def states(self) -> dict[str, str]:
        """Returns the scheduler's state of each cell ever submitted: its job, state and place."""

    def active(self) -> list[str]:
        """Returns the cells whose jobs run or will run."""

    def cancel(self, cells: Sequence[str]) -> None:
        """Cancels cells' jobs; running ones are asked to save first."""


def printed(
    command: Sequence[str],
    absent: str,
    words: int = 1,
    environment: Mapping[str, str] | None = None,
) -> str:
    """Runs a scheduler's command and returns its output.

    Args:
      command: the program and its arguments.
      absent: the advice if there is no such program.
      words: how many words of the command name it in an error.
      environment: the command's; None: this process's.

    Raises:
      UserError: there is no such program.
      RunError: the command failed.
    """
    program = command[0]
    try:
        result = subprocess.run(
            command, capture_output=True, env=environment, encoding="utf-8", errors="replace"
        )
    except FileNotFoundError:
        raise UserError(f"{program} cannot be found: {absent}") from None
    if result.returncode:
        lines = (result.stderr.strip() or result.stdout.strip()).splitlines() or ["no output"]
        last = lines[-1].removeprefix(f"{program}: error: ")
        raise RunError(f"{' '.join(command[:words])} failed: {last}")
    return result.stdout
