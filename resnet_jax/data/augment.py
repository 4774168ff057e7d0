"""Normalisation and augmentation on the device, inside the step (section 4.2)."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from resnet_jax.allowed import Range, check_choice
from resnet_jax.errors import UserError

MEANS = ("pixel", "channel", "none")


class Normalization(flax.struct.PyTreeNode):
    """Maps pixels to (pixels - mean) / std; both float32, broadcast against (B, H, W, C)."""

    mean: jax.Array | np.ndarray
    std: jax.Array | np.ndarray

    def __call__(self, images_BHWC: jax.Array) -> jax.Array:
        """Returns float32 images."""
        return (images_BHWC.astype(jnp.float32) - self.mean) / self.std

    def to_json(self) -> dict[str, Any]:
        """Returns both as nested lists, which hold each float32 exactly."""
        return {"mean": np.asarray(self.mean).tolist(), "std": np.asarray(self.std).tolist()}

    @classmethod
    def from_json(cls, content: Mapping[str, Any], origin: object) -> "Normalization":
        """Returns what to_json() wrote to the file `origin`; raises UserError for anything else."""
        try:
            mean, std = (np.array(content[key], np.float32) for key in ("mean", "std"))
            is_finite = np.isfinite(mean).all() and np.isfinite(std).all()
            is_sound = mean.ndim == std.ndim == 4 and is_finite and (std > 0).all()
        except (KeyError, TypeError, ValueError):
            is_sound = False
        if not is_sound:
            raise UserError(
                f"{origin} is malformed: it needs a mean and a std, each an array of four axes of "
                "finite numbers, those of std above 0."
            )
        return cls(mean=mean, std=std)


def fit_normalization(images: np.ndarray, mean: str, std: bool) -> Normalization:
    """Measures the training split.

    Args:
      images: uint8 (N, H, W, C); the training split without validation.
      mean: "pixel" (a mean per pixel and channel, as in the paper), "channel" or "none".
      std: whether to divide by each channel's standard deviation.
    """
    check_choice("mean", mean, MEANS)
    height, width, channels = images.shape[1:]
    # Exact integer sums, in pieces: a float64 copy of CIFAR-10 would take 1.2 GB.
    total = images.sum(axis=0, dtype=np.int64)
    pixel_mean = total / len(images)
    channel_mean = pixel_mean.mean(axis=(0, 1))
    squares = sum(np.square(part, dtype=np.uint32).sum((0, 1, 2)) for part in _pieces(images))
    variance = squares / (len(images) * height * width) - channel_mean**2
    means = {"pixel": pixel_mean, "channel": channel_mean, "none": np.zeros(channels)}
    # A constant channel has deviation 0; dividing by it would give NaN.
    deviation = np.where(variance > 0, np.sqrt(np.maximum(variance, 0)), 1.0)
    return Normalization(
        mean=np.array(means[mean], np.float32, ndmin=4),
        std=np.array(deviation if std else np.ones(channels), np.float32, ndmin=4),
    )


def _pieces(images: np.ndarray) -> list[np.ndarray]:
    return np.array_split(images, max(1, len(images) // 1000))


class Draws(flax.struct.PyTreeNode):
    """The random numbers of a batch's augmentation, one row per image."""

    top_left_B2: jax.Array  # int32; of the crop, in the padded image
    flipped_B: jax.Array  # bool
    color_B3: jax.Array  # float32; shift along each principal axis of colour


# Principal axes and variances of ImageNet's RGB pixels in [0, 1], as published by Krizhevsky.
_COLOR_AXES = np.array(
    [[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]],
    np.float32,
)
_COLOR_VARIANCES = np.array([0.2175, 0.0188, 0.0045], np.float32)
_COLOR_STD = 0.1  # of the normal draws


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """Random crops, flips and colours.

    Attributes:
      pad: zeros added on each side before a random crop to the original size; 0 for no crops.
        Images are already normalised, so zero is the mean colour.
      flip: mirror half of the images.
      color: shift each image's colour along the principal axes of ImageNet's colours (Krizhevsky et
        al. 2012, "standard color augmentation" in section 3.4).
      std: see Normalization; scales the colour shift.
    """

    pad: int
    flip: bool
    color: bool = False
    std: jax.Array | np.ndarray | float = 1.0

    def __post_init__(self) -> None:
        """Raises UserError if `pad` is out of range."""
        Range(0, whole=True).check("pad", self.pad)

    def draw(self, key: jax.Array, batch: int) -> Draws:
        """Draws a batch's augmentation; each image's depends only on `key` and its row."""
        crop_key, flip_key = jax.random.split(key)
        color_key = jax.random.fold_in(key, 2)
        return Draws(
            top_left_B2=jax.random.randint(crop_key, (batch, 2), 0, 2 * self.pad + 1),
            flipped_B=jax.random.bernoulli(flip_key, 0.5, (batch,)),
            color_B3=_COLOR_STD * jax.random.normal(color_key, (batch, 3)),
        )

    def __call__(self, draws: Draws, images_BHWC: jax.Array) -> jax.Array:
        """Crops, flips and colours normalised images."""
        _, height, width, _ = images_BHWC.shape
        if self.color:
            # Full float32 on every device; it costs little beside the network.
            axes = (_COLOR_AXES * _COLOR_VARIANCES).T
            shift_B3 = 255 * jnp.matmul(draws.color_B3, axes, precision="highest")
            images_BHWC = images_BHWC + shift_B3[:, None, None, :] / self.std
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
