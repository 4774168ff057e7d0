"""The known data sets. To add one from TFDS, add an entry to DATA_SETS."""

import dataclasses

from ml_collections import ConfigDict


@dataclasses.dataclass(frozen=True)
class Facts:
    """Facts about a data set that are known without reading it.

    Attributes:
      image_shape: (H, W, C); the usual input size if pictures differ in size.
      num_classes: labels run from 0 to num_classes - 1; 0 if only the prepared copy knows.
      train: examples in the training split, including validation.
      test: examples in the test split.
      mirrored_keeps_class: whether a horizontal flip preserves the class.
      resident: whether the set fits on a device; otherwise it is streamed.
      test_split: TFDS's name of the split on which errors are reported.
      channels: mean and standard deviation per channel; empty if they are measured.
      white: the largest pixel.
    """

    image_shape: tuple[int, int, int]
    num_classes: int
    train: int
    test: int
    mirrored_keeps_class: bool
    resident: bool = True
    test_split: str = "test"
    channels: tuple[tuple[float, ...], tuple[float, ...]] = ((), ())
    white: int = 255


# Of ImageNet's training split; the customary numbers, in [0, 255].
_IMAGENET_CHANNELS = ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))

# Published sizes; a prepared copy's metadata take precedence.
DATA_SETS = {
    "digits": Facts((8, 8, 1), 10, 1437, 360, mirrored_keeps_class=False, white=16),
    "cifar10": Facts((32, 32, 3), 10, 50000, 10000, mirrored_keeps_class=True),
    "cifar100": Facts((32, 32, 3), 100, 50000, 10000, mirrored_keeps_class=True),
    "mnist": Facts((28, 28, 1), 10, 60000, 10000, mirrored_keeps_class=False),
    "fashion_mnist": Facts((28, 28, 1), 10, 60000, 10000, mirrored_keeps_class=True),
    "svhn_cropped": Facts((32, 32, 3), 10, 73257, 26032, mirrored_keeps_class=False),
    "imagenet2012": Facts(
        (224, 224, 3),
        1000,
        1281167,
        50000,
        mirrored_keeps_class=True,
        resident=False,
        # The labels of its test split are not public: all papers report the validation split.
        test_split="validation",
        channels=_IMAGENET_CHANNELS,
    ),
    # A user's own images, see arrays.py; the file has the rest. Gray ones get three channels.
    "arrays": Facts((0, 0, 3), 0, 0, 0, mirrored_keeps_class=False),
    # A user's own pictures, see experiments.prepare.
    "image_folder": Facts(
        (224, 224, 3),
        0,
        0,
        0,
        mirrored_keeps_class=True,
        resident=False,
        channels=_IMAGENET_CHANNELS,
    ),
}


def image_shape(config: ConfigDict) -> tuple[int, int, int]:
    """Returns the network's input shape (H, W, C), for a resolved config's `data` section."""
    return config.image_size, config.image_size, DATA_SETS[config.name].image_shape[2]


def splits_of(name: str) -> tuple[str, str]:
    """Returns TFDS's names of the (training, test) splits."""
    return "train", DATA_SETS[name].test_split
