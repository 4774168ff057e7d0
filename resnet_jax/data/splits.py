"""What the loop asks of a split, whether it lives on the devices or is streamed to them."""

from collections.abc import Generator, Iterable
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

from resnet_jax.data.views import Views


class EvalBatch(NamedTuple):
    """Some pictures to evaluate, on the devices.

    Attributes:
      groups: uint8 (B, V, h, w, C) for each shape that the views of a picture have.
      labels: int32 (B,).
      mask: bool (B,); False for what only fills the batch up.
    """

    groups: tuple[jax.Array, ...]
    labels: jax.Array
    mask: jax.Array


class Split(Protocol):
    """One split of a data set."""

    @property
    def arrays(self) -> Any:
        """What lies on every device, whole, and goes into a step beside each batch."""

    def __len__(self) -> int:
        """Examples in the split."""

    def select(self, arrays: Any, batch: Any) -> tuple[jax.Array, jax.Array]:
        """Returns images uint8 (parts, B, H, W, C) and labels int32 (parts, B) of a batch.

        In a compiled step, where `batch` has lost the axes of replicates and steps.
        """

    def batches(
        self,
        seeds: np.ndarray,
        spans: Iterable[range],
        batch_size: int,
        parts: int,
        purpose: int,
    ) -> Generator[tuple[range, Any], None, None]:
        """Yields each span with its batches: (R, steps, parts, B / parts, ...) on the devices.

        Args:
          seeds: of the replicates, each with its own order and crops.
          spans: consecutive steps, those together that are handed over together (order.spans).
          batch_size: examples a step and replicate.
          parts: that the batch is computed in, one after another.
          purpose: order.TRAIN or order.POPULATION.
        """

    def views(self, views: Views, batch_size: int) -> Generator[EvalBatch, None, None]:
        """Yields every example exactly once.

        Args:
          views: what is seen of each picture.
          batch_size: images per batch, rounded up to a multiple of the devices that share it; of a
            streamed set as many training crops as a batch's views may hold pixels, see
            views.pictures_per_batch.
        """
