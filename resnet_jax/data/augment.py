"""Normalisation and augmentation on the device, inside the step (section 4.2)."""

import dataclasses

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np


class Normalization(flax.struct.PyTreeNode):
    """What is taken off pixels and what they are divided by, float32, broadcast to (B, H, W, C)."""

    mean: jax.Array | np.ndarray
    std: jax.Array | np.ndarray

    def __call__(self, images_BHWC: jax.Array) -> jax.Array:
        """Maps uint8 images to float32."""
        return (images_BHWC.astype(jnp.float32) - self.mean) / self.std


def fit_normalization(images: np.ndarray, mean: str, std: bool) -> Normalization:
    """Measures the training split.

    Args:
      images: uint8 (N, H, W, C); the training split without validation.
      mean: "pixel" (one mean for each pixel and channel, as the paper), "channel" or "none".
      std: whether to divide by each channel's standard deviation.
    """
    height, width, channels = images.shape[1:]
    # In pieces of exact integers: a float64 copy of CIFAR-10 would take 1.2 GB.
    total = images.sum(axis=0, dtype=np.int64)
    pixel_mean = total / len(images)
    channel_mean = pixel_mean.mean(axis=(0, 1))
    squares = sum(np.square(part, dtype=np.uint32).sum((0, 1, 2)) for part in _pieces(images))
    variance = squares / (len(images) * height * width) - channel_mean**2
    means = {"pixel": pixel_mean, "channel": channel_mean, "none": np.zeros(channels)}
    # A channel that never varies carries nothing; dividing by its zero would make NaNs.
    deviation = np.where(variance > 0, np.sqrt(np.maximum(variance, 0)), 1.0)
    return Normalization(
        mean=np.array(means[mean], np.float32, ndmin=4),
        std=np.array(deviation if std else np.ones(channels), np.float32, ndmin=4),
    )


def _pieces(images: np.ndarray) -> list[np.ndarray]:
    return np.array_split(images, max(1, len(images) // 1000))


class Draws(flax.struct.PyTreeNode):
    """What a batch's augmentation is, a row an image."""

    top_left_B2: jax.Array  # int32; of the crop, in the padded image
    flipped_B: jax.Array  # bool


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """Random crops and flips.

    Attributes:
      pad: zero pixels added to each side before a crop of the old size; 0 for no crops. Images are
        normalised first, so the padding is the mean image's colour.
      flip: whether half of the images are mirrored.
    """

    pad: int
    flip: bool

    def draw(self, key: jax.Array, batch: int) -> Draws:
        """Draws crops and flips for a batch; one's depend on `key` and its row."""
        crop_key, flip_key = jax.random.split(key)
        return Draws(
            top_left_B2=jax.random.randint(crop_key, (batch, 2), 0, 2 * self.pad + 1),
            flipped_B=jax.random.bernoulli(flip_key, 0.5, (batch,)),
        )

    def __call__(self, draws: Draws, images_BHWC: jax.Array) -> jax.Array:
        """Crops and flips normalised images."""
        _, height, width, _ = images_BHWC.shape
        if self.pad:
            p = self.pad
            padded = jnp.pad(images_BHWC, ((0, 0), (p, p), (p, p), (0, 0)))
            images_BHWC = jax.vmap(_crop, in_axes=(0, 0, None))(
                padded, draws.top_left_B2, (height, width)
            )
        if self.flip:
            flipped_B111 = draws.flipped_B[:, None, None, None]
            images_BHWC = jnp.where(flipped_B111, images_BHWC[:, :, ::-1], images_BHWC)
        return images_BHWC


def _crop(image_HWC: jax.Array, top_left: jax.Array, size: tuple[int, int]) -> jax.Array:
    start = (top_left[0], top_left[1], 0)
    return jax.lax.dynamic_slice(image_HWC, start, (*size, image_HWC.shape[-1]))
