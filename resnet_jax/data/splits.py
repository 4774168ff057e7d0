"""The interface of a data split, resident on the devices or streamed to them."""

from collections.abc import Generator, Iterable
from typing import NamedTuple, Protocol

import jax
import numpy as np

from resnet_jax.data.views import Views
from resnet_jax.pytree import PyTree


class EvalBatch(NamedTuple):
    """A batch to evaluate, on the devices.

    Attributes:
      groups: uint8 (B, V, h, w, C), one array per shape of view; V views of each image.
      labels: int32 (B,).
      mask: bool (B,); False for padding.
    """

    groups: tuple[jax.Array, ...]
    labels: jax.Array
    mask: jax.Array


class Split(Protocol):
    """One split of a data set."""

    @property
    def arrays(self) -> PyTree:
        """Arrays replicated on every device that each step takes beside its batch."""

    def __len__(self) -> int:
        """Examples in the split."""

    def select(self, arrays: PyTree, batch: PyTree) -> tuple[jax.Array, jax.Array]:
        """Returns a batch's images uint8 (parts, B, H, W, C) and labels int32 (parts, B).

        Called inside the compiled step, where `batch` has no axes of replicates and steps.
        """

    def batches(
        self,
        seeds: np.ndarray,
        spans: Iterable[range],
        batch_size: int,
        parts: int,
        purpose: int,
    ) -> Generator[tuple[range, PyTree], None, None]:
        """Yields each span with its batches: (R, steps, parts, B / parts, ...) on the devices.

        Args:
          seeds: of the replicates, each with its own order and crops.
          spans: consecutive steps, grouped by order.spans.
          batch_size: examples per step and replicate.
          parts: parts of a batch, computed one after another (config.accumulate).
          purpose: order.TRAIN or order.STATISTICS.
        """

    def views(self, views: Views, batch_size: int) -> Generator[EvalBatch, None, None]:
        """Yields every example exactly once.

        Args:
          views: the views of each image.
          batch_size: images per batch, rounded up to a multiple of the devices that share it. For a
            streamed set, a limit on pixels, in training crops: see views.pictures_per_batch.
        """
