"""A run's checkpoints, the newest few, wherever its folder lies."""

from typing import Any, Protocol, Self

from resnet_jax import storage
from resnet_jax.bucket_checkpoints import BucketCheckpoints
from resnet_jax.disk_checkpoints import DiskCheckpoints
from resnet_jax.state import TrainState


class Checkpoints(Protocol):
    """A run's checkpoints, one folder a step: state, best, inventory, and in the last tested.

    Every process of a run opens them and calls every method at the same step.
    """

    def __enter__(self) -> Self:
        """Returns itself; on leaving because of an error, nothing half-written stays."""

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        """Lets a save under way end, and removes it where it cannot."""

    def save(self, step: int, state: TrainState, tested: Any = None) -> None:
        """Begins to write a checkpoint; `state` may be donated when this returns.

        Args:
          step: steps taken.
          state: with a leading axis of replicates.
          tested: the variables that the test error belongs to, in the last checkpoint of a run.

        Raises:
          RunError: this one or the one before could not be written (a full disk, say).
        """

    def wait(self) -> None:
        """Waits until all that was saved is in place; raises RunError where it could not be."""

    def restore(self, like: TrainState) -> TrainState | None:
        """Returns the newest checkpoint that is whole, or None where there is none at all.

        A damaged one is reported and moved aside, since the run will come by its step again.

        Args:
          like: a state of the same shapes and shardings, arrays or ShapeDtypeStructs.

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
