"""A run's checkpoints, the newest few, wherever its folder lies."""

from typing import Any, Protocol, Self

from resnet_jax.runs import storage
from resnet_jax.runs.bucket_checkpoints import BucketCheckpoints
from resnet_jax.runs.disk_checkpoints import DiskCheckpoints
from resnet_jax.state import S, TrainState, Variables


class Checkpoints(Protocol):
    """A run's checkpoints, one folder per step: state and best, or variables; and an inventory.

    Every process of a run opens them and calls every method at the same step.
    """

    def __enter__(self) -> Self:
        """Returns itself; on leaving because of an error, nothing half-written stays."""

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        """Lets a save under way end, and removes it where it cannot."""

    def save(self, step: int, saved: TrainState | Variables) -> None:
        """Begins to write a checkpoint; `saved` may be donated when this returns.

        Args:
          step: steps taken.
          saved: a state, or the variables that were tested; with a leading axis of replicates.

        Raises:
          RunError: this one or the one before could not be written (a full disk, say).
        """

    def wait(self) -> None:
        """Waits until all that was saved is in place; raises RunError where it could not be."""

    def restore(self, like: S) -> S | None:
        """Returns what the newest whole checkpoint holds, or None if there is no checkpoint at all.

        A damaged one is reported and moved aside, since the run will come by its step again.

        Args:
          like: of the same shapes and shardings, arrays or ShapeDtypeStructs.

        Raises:
          RunError: there are checkpoints, and every one of them is damaged, or the newest was
            written by another version of the code (OtherStateError).
        """

    def steps(self) -> list[int]:
        """Returns the steps in place, oldest first."""

    def close(self) -> None:
        """Waits for writes under way, and lets go."""


def open_checkpoints(folder: storage.Path, keep: int) -> Checkpoints:
    """Opens `folder`, making it where it is new; the `keep` newest checkpoints stay."""
    if storage.is_bucket(folder):
        return BucketCheckpoints(folder, keep)
    return DiskCheckpoints(folder, keep)
