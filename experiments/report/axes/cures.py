"""The smallest value on an axis that cures a deep network, as in a dose-response study."""

import dataclasses
from collections.abc import Sequence

from experiments.report.axes.model import NAMES, Across, Line, Value
from experiments.report.statistics import ALPHA, Difference


@dataclasses.dataclass(frozen=True)
class Cure:
    """The smallest value from which a network is no worse than the shallowest one.

    A network is cured at a value if its error is above that of the shallowest net with the
    same value by no more than a margin. It must also be cured at every larger value.

    Attributes:
      line: the network.
      baseline: the shallowest net of its kind.
      value: the smallest such value by the mean errors; None if there is none.
      above: the largest value at which the network is not cured for certain; None if there is none.
      at_most: the smallest value from which it is cured for certain; None if there is none.
    """

    line: Line
    baseline: Line
    value: Value | None
    above: Value | None
    at_most: Value | None


def smallest(across: Across, margin: float) -> list[Cure]:
    """Returns the smallest value that cures each network but the shallowest of each kind.

    For certain means by an interval at 95 % for each value. The values are tested in a fixed order,
    from the largest down to the first that is not cured, and such a sequence of tests needs no
    correction for their number.

    Args:
      across: a study along an axis of numbers.
      margin: in percentage points.
    """
    if across.axis.scale == NAMES:
        return []
    cures = []
    for kind in across.kinds:
        baseline, *deeper = [line for line in across.lines if line.kind == kind]
        cures += [_cure(across, line, baseline, margin) for line in deeper]
    return cures


def summary(found: Sequence[Cure]) -> str:
    """Returns ``resnet-32-A: 1 (certainly above 0.7); resnet-56-A: none.``."""

    def shown(cure: Cure) -> str:
        above = f" (certainly above {cure.above.label})" if cure.above else ""
        return f"{cure.line.name}: {cure.value.label if cure.value else 'none'}{above}"

    return f"{'; '.join(map(shown, found))}."


def _cure(across: Across, line: Line, baseline: Line, margin: float) -> Cure:
    rises: list[tuple[Value, float, tuple[float, float] | None]] = []
    for value in across.axis.values:
        pair = line.ended(value), baseline.ended(value)
        if not pair[0] or not pair[1]:
            continue
        samples = [cell.sample(across.error.observe) for cell in pair if cell]
        if all(sample.errors for sample in samples):
            has_interval = all(len(sample.errors) > 1 for sample in samples)
            ci95 = Difference.of(*samples).interval(ALPHA) if has_interval else None
            rises.append((value, samples[0].mean - samples[1].mean, ci95))
    return Cure(
        line,
        baseline,
        _from([(value, rise <= margin) for value, rise, _ in rises]),
        next((v for v, _, ci95 in reversed(rises) if ci95 and ci95[0] > margin), None),
        _from([(value, bool(ci95 and ci95[1] <= margin)) for value, _, ci95 in rises]),
    )


def _from(is_cured: list[tuple[Value, bool]]) -> Value | None:
    """Returns the smallest value from which on all are cured."""
    smallest = None
    for value, cured in reversed(is_cured):
        if not cured:
            break
        smallest = value
    return smallest
