"""What a sweep asks of whatever starts its cells."""

import dataclasses
import pathlib
from typing import Protocol


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
    log: pathlib.Path


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
