"""The signals inside networks, from the rows of metrics; docs/signals.md says what they are."""

import math
import re
import statistics
from collections.abc import Sequence

from experiments.report.cells import CellResult
from experiments.report.replicates import Replicate

RESPONSES, GRADIENTS, DEAD = "response_std", "gradient_norm", "dead_units"
RATIO, UPDATES = "branch_to_shortcut", "update_to_weight"
ADDITIVE = (RESPONSES, DEAD)  # the others vary by factors
Profile = dict[str, float]  # layer -> value, in the order of the forward pass; NaN: not finite
_SMALLEST = 1e-38  # of positive float32 numbers, about; a gradient of 0 is taken for it
_LATER = ("logits", "head")  # layers after the last block
_BESIDE = ("shortcut", "/se_")  # shortcuts; squeeze and excitation, which sees means only


def profiles(replicate: Replicate, kind: str) -> dict[int, Profile]:
    """Returns {step: profile} of one seed, for steps with a finite value."""
    prefix = f"signals/{kind}/"
    by_step = {}
    for row in replicate.run.metrics:
        layers = [name.removeprefix(prefix) for name in row if name.startswith(prefix)]
        layers.sort(key=order)
        profile = {layer: replicate.value(row, prefix + layer) for layer in layers}
        if any(map(math.isfinite, profile.values())):
            by_step[row["step"]] = profile
    return by_step


def order(layer: str) -> tuple[int, tuple[int, ...], str]:
    """A sort key: layers in the order of the forward pass."""
    place = 0 if layer.startswith("stem") else 2 if layer.startswith(_LATER) else 1
    return place, tuple(int(digits) for digits in re.findall(r"\d+", layer)), layer


def main_path(profile: Profile) -> Profile:
    """Returns the values of stem and branches: without _BESIDE and _LATER."""
    return {
        layer: value
        for layer, value in profile.items()
        if not any(name in layer for name in _BESIDE) and not layer.startswith(_LATER)
    }


def first_and_last(profile: Profile) -> tuple[float, float] | None:
    """Returns the norms of the first and the last convolution; None if their ratio is undefined.

    That is if one is not finite, or if both are 0.
    """
    values = list(main_path(profile).values())
    if len(values) < 2 or not all(map(math.isfinite, (values[0], values[-1]))):
        return None
    first, last = (max(value, _SMALLEST) for value in (values[0], values[-1]))
    return (first, last) if max(first, last) > _SMALLEST else None


def common_steps(cells: Sequence[CellResult], kind: str) -> list[int]:
    """Returns the steps at which every healthy seed of some cells has signals of a kind."""
    steps = [set(profiles(replicate, kind)) for cell in cells for replicate in cell.healthy]
    return sorted(set.intersection(*steps)) if steps else []


def mean_profile(cell: CellResult, kind: str, step: int) -> Profile:
    """Returns each layer's mean over the healthy seeds at a step; geometric, but for ADDITIVE.

    It is NaN if a value is not finite, and a geometric one also if a value is 0.
    """
    own = [profiles(replicate, kind).get(step, {}) for replicate in cell.healthy]
    layers = [layer for layer in (own[0] if own else {}) if all(layer in each for each in own)]
    least = -math.inf if kind in ADDITIVE else 0.0
    mean = statistics.mean if kind in ADDITIVE else statistics.geometric_mean

    def over_seeds(values: Sequence[float]) -> float:
        is_defined = all(math.isfinite(value) and value > least for value in values)
        return mean(values) if is_defined else math.nan

    return {layer: over_seeds([each[layer] for each in own]) for layer in layers}
