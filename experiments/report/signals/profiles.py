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
Profile = dict[str, float]  # layer -> value, in the order of the forward pass
_LATER = ("logits", "head")  # layers after the last block


def profiles(replicate: Replicate, kind: str) -> dict[int, Profile]:
    """Returns {step: profile} of one seed, without values that are not finite."""
    prefix = f"signals/{kind}/"
    by_step = {}
    for row in replicate.run.metrics:
        layers = [name.removeprefix(prefix) for name in row if name.startswith(prefix)]
        layers.sort(key=order)
        profile = {layer: replicate.value(row, prefix + layer) for layer in layers}
        if finite := {layer: value for layer, value in profile.items() if math.isfinite(value)}:
            by_step[row["step"]] = finite
    return by_step


def order(layer: str) -> tuple[int, tuple[int, ...], str]:
    """A sort key: layers in the order of the forward pass."""
    place = 0 if layer.startswith("stem") else 2 if layer.startswith(_LATER) else 1
    return place, tuple(int(digits) for digits in re.findall(r"\d+", layer)), layer


def main_path(profile: Profile) -> Profile:
    """Returns the values without those of shortcuts and of layers after the last block."""
    return {
        layer: value
        for layer, value in profile.items()
        if "shortcut" not in layer and not layer.startswith(_LATER)
    }


def first_and_last(profile: Profile) -> tuple[float, float] | None:
    """Returns the values of the first and the last convolution, None unless both are positive."""
    values = list(main_path(profile).values())
    ends = (values[0], values[-1]) if len(values) > 1 else (0.0, 0.0)
    return ends if min(ends) > 0 else None


def common_steps(cells: Sequence[CellResult], kind: str) -> list[int]:
    """Returns the steps at which every healthy seed of some cells has signals of a kind."""
    steps = [set(profiles(replicate, kind)) for cell in cells for replicate in cell.healthy]
    return sorted(set.intersection(*steps)) if steps else []


def mean_profile(cell: CellResult, kind: str, step: int) -> Profile:
    """Returns each layer's mean over the healthy seeds at a step; geometric, but for ADDITIVE."""
    own = [profiles(replicate, kind).get(step, {}) for replicate in cell.healthy]
    layers = [layer for layer in (own[0] if own else {}) if all(layer in each for each in own)]
    by_layer = {layer: [each[layer] for each in own] for layer in layers}
    if kind in ADDITIVE:
        return {layer: statistics.mean(values) for layer, values in by_layer.items()}
    return {
        layer: statistics.geometric_mean(values)
        for layer, values in by_layer.items()
        if min(values) > 0
    }
