"""The data sets and what is known of each before it is read. Data only.

To add a TFDS set, add a line to KNOWN; nothing else names a data set.
"""

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Facts:
    """What is known of a data set before it is read.

    Attributes:
      image_shape: (H, W, C); of what the network usually sees where pictures differ in size.
      num_classes: labels run from 0 to num_classes - 1.
      train: examples in the training split, validation included.
      test: examples in the test split.
      mirrored_keeps_class: whether a horizontal flip leaves the class as it is.
      resident: whether the whole set fits on a device; what does not is streamed.
      test_split: what TFDS calls the split that errors are reported on.
      channels: mean and standard deviation of each channel, where they are not measured.
    """

    image_shape: tuple[int, int, int]
    num_classes: int
    train: int
    test: int
    mirrored_keeps_class: bool
    resident: bool = True
    test_split: str = "test"
    channels: tuple[tuple[float, ...], tuple[float, ...]] = ((), ())


# Sizes as published; sizes of what lies on this machine are read from its metadata.
KNOWN = {
    "digits": Facts((8, 8, 1), 10, 1437, 360, mirrored_keeps_class=False),
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
        # Of the training split; the numbers that everybody uses, in [0, 255].
        channels=((123.675, 116.28, 103.53), (58.395, 57.12, 57.375)),
    ),
}


def image_shape(config: Any) -> tuple[int, int, int]:
    """Returns the (H, W, C) that the network sees, of a resolved config's `data` section."""
    return config.image_size, config.image_size, KNOWN[config.name].image_shape[2]


def splits_of(name: str) -> tuple[str, str]:
    """Returns what TFDS calls the splits that are trained and tested on."""
    return "train", KNOWN[name].test_split
