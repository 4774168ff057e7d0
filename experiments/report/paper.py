"""What He et al. 2015 report (arXiv 1512.03385), to print beside our own numbers."""

import dataclasses
from typing import Any

from experiments.report import paper_networks
from experiments.report.cells import CellResult


@dataclasses.dataclass(frozen=True)
class PublishedError:
    """One published top-1 error in percent, and which split it was measured on."""

    error: float
    split: str  # of ours that it is to be compared with: test | validation
    source: str
    remark: str = ""


def _cifar(error: float, remark: str = "") -> PublishedError:
    source = "Table 6, whose nets may have been trained on all 50,000 pictures"
    return PublishedError(error, "test", source, remark)


def _imagenet(error: float, table: str) -> PublishedError:
    # The labels of ImageNet's own test split are not public: what is tested on is its validation
    # split, here as there.
    return PublishedError(error, "test", f"{table}, top-1 on the validation split, 10-crop")


# (shortcut, depth); the paper gives no number for its plain nets on CIFAR-10 (Fig. 6, left).
CIFAR10 = {
    ("A", 20): _cifar(8.75),
    ("A", 32): _cifar(7.51),
    ("A", 44): _cifar(7.17),
    ("A", 56): _cifar(6.97),
    ("A", 110): _cifar(6.43, "the best of five runs, which gave 6.61 ± 0.16"),
    ("A", 1202): _cifar(7.93),
}
IMAGENET = {
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
RESULTS = {("cifar10", "cifar"): CIFAR10, ("imagenet2012", "imagenet"): IMAGENET}


NAMED = 3  # departures that a sentence names; it counts the rest


def published(cell: CellResult) -> PublishedError | None:
    """Returns the paper's number for this data set, if network and recipe are the paper's."""
    number, config = _of_its_depth(cell), cell.runs[0].config
    if number is None or paper_networks.departures(config):
        return None
    views = config["eval"]["views"][0]
    words = {"center": "one centre crop", "fully_convolutional": "whole pictures"}
    if config["model"]["family"] == "imagenet" and views in words:
        return dataclasses.replace(number, remark=f"of ten crops, ours of {words[views]}")
    return number


def withheld(cell: CellResult) -> str:
    """Returns why the paper's number for a net of this depth is left out, empty if it is not.

    For example ``steps=500 (the paper: 64000)``.
    """
    if _of_its_depth(cell) is None:
        return ""
    departures = paper_networks.departures(cell.runs[0].config)
    named = [
        f"{key}={_show(ours)} (the paper: {_show(papers)})"
        for key, (ours, papers) in departures.items()
    ]
    more = len(named) - NAMED
    return ", ".join(named[:NAMED]) + (f" and {more} more" if more > 0 else "")


def _show(value: Any) -> str:
    is_number = isinstance(value, int) and not isinstance(value, bool)
    return f"{value:,}" if is_number else str(value)


def _of_its_depth(cell: CellResult) -> PublishedError | None:
    config = cell.runs[0].config
    results = RESULTS.get((config["data"]["name"], config["model"]["family"]), {})
    return results.get((cell.shortcut, cell.depth))
