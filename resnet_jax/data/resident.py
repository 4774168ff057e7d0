"""Small data sets, kept as uint8 on every device; a batch is a gather inside the step."""

import dataclasses
import math
from collections.abc import Generator, Iterable

import jax
import numpy as np
from jax.sharding import PartitionSpec as P

from resnet_jax.data.order import batch_indices
from resnet_jax.data.splits import EvalBatch
from resnet_jax.data.views import Views
from resnet_jax.parallel import mesh as meshes
from resnet_jax.parallel.processes import put


@dataclasses.dataclass(frozen=True)
class ResidentSplit:
    """One split, replicated on every device.

    Attributes:
      pixels: uint8 (N, H * W * C). In a TPU's memory the last two axes are padded to 32 x 128, so
        that images would take four times as much, and each program would copy them.
      labels: int32 (N,).
      image_shape: (H, W, C).
      mesh: the devices.
    """

    pixels: jax.Array
    labels: jax.Array
    image_shape: tuple[int, ...]
    mesh: jax.sharding.Mesh

    @classmethod
    def place(
        cls, images: np.ndarray, labels: np.ndarray, mesh: jax.sharding.Mesh
    ) -> "ResidentSplit":
        """Puts a split on every device of `mesh`: images uint8 (N, H, W, C), labels int32 (N,)."""
        pixels = images.reshape(len(images), math.prod(images.shape[1:]))  # -1 needs an image
        placed_pixels, placed_labels = put((pixels, labels), meshes.everywhere(mesh))
        return cls(placed_pixels, placed_labels, images.shape[1:], mesh)

    @property
    def arrays(self) -> tuple[jax.Array, jax.Array]:
        """See Split.arrays."""
        return self.pixels, self.labels

    def __len__(self) -> int:
        """Examples in the split."""
        return self.pixels.shape[0]

    def select(
        self, arrays: tuple[jax.Array, jax.Array], batch: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """See Split.select; a batch holds example numbers."""
        pixels, labels = arrays
        images = pixels[batch].reshape(*batch.shape, *self.image_shape)
        selected = images, labels[batch]
        return meshes.constrain(selected, P(None, meshes.BATCH_AXES), self.mesh)

    def batches(
        self,
        seeds: np.ndarray,
        spans: Iterable[range],
        batch_size: int,
        parts: int,
        purpose: int,
    ) -> Generator[tuple[range, jax.Array], None, None]:
        """See Split.batches; a batch is example numbers, int32 (R, steps, parts, B / parts)."""
        for span in spans:
            indices = [
                [batch_indices(int(seed), step, batch_size, len(self)) for step in span]
                for seed in seeds
            ]
            indices_RSAB = np.reshape(indices, (len(seeds), len(span), parts, -1))
            yield span, put(indices_RSAB, meshes.split_batches(self.mesh))

    def views(self, views: Views, batch_size: int) -> Generator[EvalBatch, None, None]:
        """See Split.views; the only view is the image itself."""
        devices = meshes.batch_devices(self.mesh)
        batch_size = -(-batch_size // devices) * devices
        # A separate program, so that the network compiles once for splits of all sizes.
        everywhere, split = meshes.everywhere(self.mesh), meshes.split_batch(self.mesh)
        gather = jax.jit(
            lambda pixels, labels, indices_B: (
                pixels[indices_B].reshape(-1, 1, *self.image_shape),
                labels[indices_B],
            ),
            in_shardings=(everywhere, everywhere, split),
            out_shardings=split,
        )
        for start in range(0, len(self), batch_size):
            indices = np.arange(start, start + batch_size)
            mask = indices < len(self)
            indices_B, mask_B = put((np.where(mask, indices, 0), mask), split)
            images, labels = gather(self.pixels, self.labels, indices_B)
            yield EvalBatch((images,), labels, mask_B)
