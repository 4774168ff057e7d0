"""The networks, recipes and errors of He et al. 2015 (arXiv 1512.03385), to print beside ours.

The presets in configs/cifar10.py and configs/imagenet.py define the paper's networks and recipes.
"""

import dataclasses
import functools

from configs import cifar10, imagenet
from resnet_jax import settings
from resnet_jax.networks.architectures import CIFAR_STUDIED, IMAGENET, architecture
from resnet_jax.runs import identity

# The paper's depths.
STUDIED = {"imagenet": tuple(IMAGENET), "cifar": CIFAR_STUDIED}

PAPER_CONFIGS = {"imagenet": imagenet.get_config, "cifar": cifar10.get_config}
# Settings that the presets leave to the data set.
SETTLED = {
    "imagenet": {"model.num_classes": 1000, "data.image_size": 224, "data.flip": "on"},
    "cifar": {"model.num_classes": 10, "data.image_size": 32, "data.flip": "on"},
}
# With other values of these, a network is not the paper's of the same depth and shortcut.
NETWORK = (
    "model.activation",
    "model.bottleneck_stride",
    "model.num_classes",
    "model.stem",
    "model.width",
    *settings.CURES,
)
# Any value of these is accepted as the paper's, which has several values or does not say. The paper
# uses data.std=False; README.md lists the presets' True as a departure.
FREE = ("model.depth", "model.shortcut", "seed", "replicates", "data.split_seed", "data.std")
# Section 4.2 warms ResNet-110 up and no shallower net, and trains ResNet-1202 "as described above".
WARM_UPS = {110: ("until_error",), 1202: ("until_error", "none")}
NOT_RECORDED = "not recorded"
NAMED = 3  # a sentence names this many departures and counts the others


@dataclasses.dataclass(frozen=True)
class PublishedSize:
    """A network's published size; None if the paper does not give it.

    Attributes:
      parameters: the number of trainable parameters.
      mult_adds: per image, with the paper's two digits.
    """

    parameters: int | None
    mult_adds: float | None


@functools.cache
def published_recipe(family: str) -> settings.Flat:
    """Returns the paper's recipe as flat, resolved settings, without those in `FREE`."""
    papers = identity.deciding(PAPER_CONFIGS[family]().to_dict()) | SETTLED[family]
    return {key: value for key, value in papers.items() if key not in FREE}


def departures(config: settings.Config) -> dict[str, tuple[object, object]]:
    """Returns a run's departures from the paper: setting -> (the run's value, the paper's).

    Args:
      config: a resolved config of a family of STUDIED. A missing setting counts as a departure,
        because an older version of the program may have behaved differently.
    """
    ours, model = settings.flatten(config), config["model"]
    family, depth = model["family"], model["depth"]
    departing = {
        key: (ours.get(key, NOT_RECORDED), value)
        for key, value in published_recipe(family).items()
        if ours.get(key, NOT_RECORDED) != value
    }
    harmless = ["eval.views", "eval.scales"]  # published() has a remark on these
    if architecture(family, depth).block == "basic":
        harmless.append("model.bottleneck_stride")
    if family == "cifar":
        harmless += ["eval.every", "eval.short_side"]  # no effect on results
        warm_ups = WARM_UPS.get(depth, ("none",)) if model["shortcut"] != "none" else ("none",)
        departing.pop("schedule.warmup", None)
        if (warm_up := ours.get("schedule.warmup", NOT_RECORDED)) not in warm_ups:
            departing["schedule.warmup"] = (warm_up, warm_ups[0])
    # A smaller validation split is closer to the paper, which trains on all of ImageNet, and
    # perhaps on all of CIFAR-10 in Table 6.
    held_out = departing.get("data.validation")
    if held_out and held_out[0] != NOT_RECORDED and held_out[0] <= held_out[1]:
        harmless.append("data.validation")
    return {key: values for key, values in departing.items() if key not in harmless}


# Mult-adds: Table 1, which calls them FLOPs. Parameters: the authors' released models, option B.
IMAGENET_PARAMETERS = {
    18: 11_689_512,
    34: 21_797_672,
    50: 25_557_032,
    101: 44_549_160,
    152: 60_192_808,
}
IMAGENET_MULT_ADDS = {18: 1.8e9, 34: 3.6e9, 50: 3.8e9, 101: 7.6e9, 152: 11.3e9}
# Section 4.2 and Table 6 (0.27M to 19.4M, here in full); plain nets have as many as option A's.
CIFAR_PARAMETERS = {
    20: 269_722,
    32: 464_154,
    44: 658_586,
    56: 853_018,
    110: 1_727_962,
    1202: 19_421_274,
}


def published_size(config: settings.Config, image_shape: tuple[int, ...]) -> PublishedSize:
    """Returns the paper's numbers for a config's network, if it is one of the paper's.

    Args:
      config: resolved.
      image_shape: (H, W, C) of the images.
    """
    model = config["model"]
    family, depth, kind = model["family"], model["depth"], model["shortcut"]
    is_papers = family in STUDIED and not departures(config).keys() & set(NETWORK)
    if image_shape[-1] != 3 or not is_papers:
        return PublishedSize(None, None)
    if family == "cifar":
        return PublishedSize(CIFAR_PARAMETERS.get(depth) if kind in ("none", "A") else None, None)
    # Table 1's 18 and 34 layers hold for plain and residual nets, its deeper ones for option B.
    has_mult_adds = kind in (("none", "A", "B") if depth <= 34 else ("B",))
    return PublishedSize(
        IMAGENET_PARAMETERS.get(depth) if kind == "B" else None,
        IMAGENET_MULT_ADDS.get(depth) if has_mult_adds and image_shape[0] == 224 else None,
    )


@dataclasses.dataclass(frozen=True)
class PublishedError:
    """A published top-1 error in percent."""

    error: float
    split: str  # the split of ours to compare it with: test | validation
    source: str
    remark: str = ""


def _cifar(error: float, remark: str = "") -> PublishedError:
    source = "Table 6, whose nets may have been trained on all 50,000 pictures"
    return PublishedError(error, "test", source, remark)


def _imagenet(error: float, table: str) -> PublishedError:
    # The labels of ImageNet's test split are not public, so the paper and this code test on its
    # validation split.
    return PublishedError(error, "test", f"{table}, top-1 on the validation split, 10-crop")


# (shortcut, depth); the paper gives no number for its plain nets on CIFAR-10 (Fig. 6, left).
CIFAR10_ERRORS = {
    ("A", 20): _cifar(8.75),
    ("A", 32): _cifar(7.51),
    ("A", 44): _cifar(7.17),
    ("A", 56): _cifar(6.97),
    ("A", 110): _cifar(6.43, "the best of five runs, which gave 6.61 ± 0.16"),
    ("A", 1202): _cifar(7.93),
}
IMAGENET_ERRORS = {
    ("none", 18): _imagenet(27.94, "Table 2"),
    ("none", 34): _imagenet(28.54, "Table 2"),
    ("A", 18): _imagenet(27.88, "Table 2"),
    ("A", 34): _imagenet(25.03, "Table 2"),
    ("B", 34): _imagenet(24.52, "Table 3"),
    ("C", 34): _imagenet(24.19, "Table 3"),
    ("B", 50): _imagenet(22.85, "Table 3"),
    ("B", 101): _imagenet(21.75, "Table 3"),
    ("B", 152): _imagenet(21.43, "Table 3"),
}
ERRORS = {
    ("cifar10", "cifar"): CIFAR10_ERRORS,
    ("imagenet2012", "imagenet"): IMAGENET_ERRORS,
}


def published(config: settings.Config) -> PublishedError | None:
    """Returns the paper's error on this data set, if network and recipe are the paper's."""
    number = _published_for_depth(config)
    if number is None or departures(config):
        return None
    views = config["eval"]["views"][0]
    names = {"center": "one centre crop", "fully_convolutional": "whole pictures"}
    if config["model"]["family"] == "imagenet" and views in names:
        return dataclasses.replace(number, remark=f"of ten crops, ours of {names[views]}")
    return number


def withheld(config: settings.Config) -> str:
    """Returns why the paper's number for this depth is left out: ``steps=500 (the paper: 64,000)``.

    Empty if it is not left out, or does not exist.
    """
    if _published_for_depth(config) is None:
        return ""
    named = [
        f"{key}={_show(ours)} (the paper: {_show(papers)})"
        for key, (ours, papers) in departures(config).items()
    ]
    more = len(named) - NAMED
    return ", ".join(named[:NAMED]) + (f" and {more} more" if more > 0 else "")


def _show(value: object) -> str:
    is_number = isinstance(value, int) and not isinstance(value, bool)
    return f"{value:,}" if is_number else str(value)


def _published_for_depth(config: settings.Config) -> PublishedError | None:
    model = config["model"]
    errors = ERRORS.get((config["data"]["name"], model["family"]), {})
    return errors.get((model["shortcut"], model["depth"]))
