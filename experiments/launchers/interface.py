"""What a sweep asks of whatever starts its cells."""

import dataclasses
import subprocess
from collections.abc import Mapping, Sequence
from typing import Protocol

from resnet_jax.errors import RunError, UserError
from resnet_jax.runs import storage


@dataclasses.dataclass(frozen=True)
class Job:
    """One cell's process.

    Attributes:
      name: the cell's.
      command: what to run.
      log: file that its output is appended to.
    """

    name: str
    command: tuple[str, ...]
    log: storage.Path


class Launcher(Protocol):
    """Starts jobs and says when they end. It knows nothing of what they do."""

    def start(self, job: Job) -> None:
        """Starts a job; raises OSError where that cannot be done."""

    def ended(self) -> dict[str, int]:
        """Returns {job: exit code} of those that ended since it was last asked.

        As in `subprocess`, a code below 0 is the number of the signal that ended the job.
        """

    def stop(self) -> None:
        """Asks every job to save and end."""

    def kill(self) -> None:
        """Ends every job at once."""


class Queue(Protocol):
    """A scheduler that takes jobs and runs them when it can, whether or not a sweep lives."""

    @property
    def name(self) -> str:
        """As on the command line."""

    def require_data(self, name: str, data_dir: str) -> None:
        """Raises UserError where jobs would not find a data set; see sources.require()."""

    def script(self, jobs: Sequence[Job]) -> str:
        """Returns what would be submitted, for people."""

    def submit(self, jobs: Sequence[Job]) -> str:
        """Hands jobs over and returns what to tell the user; RunError where that fails."""

    def states(self) -> dict[str, str]:
        """Returns what the scheduler says of each job that it was ever given."""

    def active(self) -> list[str]:
        """Returns the jobs that it runs or will run."""

    def cancel(self, names: Sequence[str]) -> None:
        """Takes jobs out; those that run are asked to save first."""


def printed(
    command: Sequence[str],
    absent: str,
    words: int = 1,
    environment: Mapping[str, str] | None = None,
) -> str:
    """Returns what a scheduler's command prints.

    Raises:
      UserError: there is no such program; `absent` says what to do about it.
      RunError: it failed; the first `words` of the command name it.
    """
    program = command[0]
    try:
        done = subprocess.run(
            command, capture_output=True, env=environment, encoding="utf-8", errors="replace"
        )
    except FileNotFoundError:
        raise UserError(f"{program} cannot be found: {absent}") from None
    if done.returncode:
        lines = (done.stderr.strip() or done.stdout.strip()).splitlines() or ["it said nothing"]
        last = lines[-1].removeprefix(f"{program}: error: ")
        raise RunError(f"{' '.join(command[:words])} failed: {last}")
    return done.stdout
