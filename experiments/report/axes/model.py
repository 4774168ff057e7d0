"""The axes of a study: settings that vary among its runs, beside depth, shortcut and seed.

An axis is found in the configs of the runs in one folder: a study, or the pilots of a tuned one. A
key is an axis if one network was trained with several values of it. If keys do not vary
independently, as in a study of cures that each change other settings, their combinations are one
axis of names.
"""

import collections
import dataclasses
import itertools
import json
import math
from collections.abc import Iterable, Mapping, Sequence

from experiments.report import cells, groups, tuned
from experiments.report.cells import CellResult
from experiments.report.groups import Group
from experiments.report.replicates import DIVERGED_ERROR, Replicate
from experiments.report.tuned import TunedStudy
from resnet_jax import settings
from resnet_jax.networks.architectures import SHORTCUTS
from resnet_jax.runs import reader

LOG, LINEAR, NAMES = "log", "linear", "names"
LOG_RATIO = 3.0  # of the largest value to the smallest, from which a scale is logarithmic
BASE = "base"  # the name of the commonest combination of settings
# The best value is the one with the lowest; a second measure separates equal ones, as at 0 %.
MEASURES = {
    "training_error": (Replicate.train_error, DIVERGED_ERROR),
    "training_loss": (Replicate.train_loss, math.inf),
    "validation_error": (Replicate.validation_error, DIVERGED_ERROR),
}


@dataclasses.dataclass(frozen=True)
class Value:
    """A value on an axis; `number` is None for names."""

    label: str
    number: float | None = None


@dataclasses.dataclass(frozen=True)
class Axis:
    """One axis.

    Attributes:
      keys: dotted; several if their combinations are the values.
      values: numbers in ascending order, names by their training error.
    """

    keys: tuple[str, ...]
    values: tuple[Value, ...]

    @property
    def name(self) -> str:
        """The last part of its key, ``rate``; the whole key if that part says nothing."""
        if len(self.keys) > 1:
            return "variant"
        last = self.keys[0].split(".")[-1]
        return self.keys[0] if last == "name" else last

    @property
    def scale(self) -> str:
        """LOG, LINEAR or NAMES."""
        numbers = [value.number for value in self.values if value.number is not None]
        if len(numbers) < len(self.values):
            return NAMES
        return LOG if min(numbers) > 0 and max(numbers) >= LOG_RATIO * min(numbers) else LINEAR

    @property
    def step(self) -> float:
        """The largest ratio of neighbouring values; they are positive."""
        numbers = [value.number or 0.0 for value in self.values]
        return max(high / low for low, high in itertools.pairwise(numbers))


@dataclasses.dataclass(frozen=True)
class Line:
    """One network along an axis.

    Attributes:
      name: ``plain-56``, or ``plain-56, momentum=0.5`` if the study has other axes.
      kind: the name without the depth: ``plain``, ``residual`` or ``residual, shortcut A``.
      others: its values on the study's other axes, as in ``momentum=0.5``.
      cells: by value.
      best: the value with the lowest measure; None if no run has ended.
      at_best: the network at its best value; with fresh seeds in a tuned study.
    """

    name: str
    kind: str
    others: str
    cells: Mapping[Value, CellResult]
    best: Value | None
    at_best: CellResult | None

    @property
    def depth(self) -> int:
        """The network's depth."""
        return next(iter(self.cells.values())).depth

    @property
    def shortcut(self) -> str:
        """The network's shortcut, ``none`` for a plain net."""
        return next(iter(self.cells.values())).shortcut

    @property
    def is_at_the_edge(self) -> bool:
        """Whether the best value is the lowest or highest of at least two numbers."""
        numbers = [value.number for value in self.cells if value.number is not None]
        return len(numbers) > 1 and self.best is not None and (
            self.best.number in (min(numbers), max(numbers))
        )  # fmt: skip

    def ended(self, value: Value) -> CellResult | None:
        """Returns the cell at a value if its runs have ended."""
        cell = self.cells.get(value)
        return cell if cell and cell.status in reader.ENDED else None


@dataclasses.dataclass(frozen=True)
class Across:
    """The networks of one study along one of its axes.

    Attributes:
      study: its folder.
      axis: the axis.
      lines: by shortcut, then by depth.
      by: the measure that is lowest at the best value, one of MEASURES.
      is_tuned: whether the cells are pilots; networks at their best values have fresh seeds.
    """

    study: str
    axis: Axis
    lines: tuple[Line, ...]
    by: str
    is_tuned: bool

    @property
    def kinds(self) -> list[str]:
        """The kinds of nets."""
        return list(dict.fromkeys(line.kind for line in self.lines))

    @property
    def others(self) -> list[str]:
        """The distinct values of the other axes."""
        return list(dict.fromkeys(line.others for line in self.lines))

    @property
    def common(self) -> list[Value]:
        """The values at which every network was trained."""
        return [v for v in self.axis.values if all(v in line.cells for line in self.lines)]


def find(runs: Iterable[reader.Run], tunings: Sequence[TunedStudy]) -> list[Across]:
    """Returns every study along each of its axes; a tuned study along its tuned settings as well.

    Args:
      runs: of any studies.
      tunings: the pilots of those that were tuned.
    """
    by_folder: dict[tuple[str, str], list[reader.Run]] = {}
    for run in {run.path.resolve(): run for run in runs}.values():
        # Other data are another task, not a value of a setting.
        by_folder.setdefault((str(run.path.parent), run.config["data"]["name"]), []).append(run)
    pilots = {tuning.study: tuning for tuning in tunings}
    found = []
    for (study, data), own in by_folder.items():
        found += _of_folder(study, own, tuned.by_study(tunings))
        if tuning := pilots.get(study):
            trained = [run for trial in tuning.trials for run in trial.cell.runs]
            same_data = [run for run in trained if run.config["data"]["name"] == data]
            found += _of_folder(study, same_data, {}, own, tuning)
    return found


def _of_folder(
    study: str,
    runs: Sequence[reader.Run],
    ignored: tuned.Tuned,
    own: Sequence[reader.Run] = (),
    tuning: TunedStudy | None = None,
) -> list[Across]:
    recipes = [groups.recipe(run, ignored) for run in runs]
    keys = _varied(runs, recipes)
    if tuning:  # the grid's own axes are those of its cells
        axes = [[key] for key in tuning.keys if key in keys]
    else:
        axes = [[key] for key in keys] if _is_product(keys, recipes) else [keys]
    found = []
    for axis_keys in axes:
        others = [key for key in keys if key not in axis_keys]
        values = _values(axis_keys, recipes)
        by = tuning.by if tuning else "training_error"
        lines = _lines(runs, values, others, own, by, axis_keys)
        axis = Axis(tuple(axis_keys), tuple(sorted(set(values), key=_order)))
        if axis.scale == NAMES:
            axis = dataclasses.replace(axis, values=_ranked(axis.values, lines))
        found.append(Across(study, axis, tuple(lines), by, tuning is not None))
    return found


def _ranked(values: Sequence[Value], lines: Sequence[Line]) -> tuple[Value, ...]:
    """Returns names by their mean training error over networks; those without one come last."""

    def error(value: Value) -> float:
        ended = [cell for line in lines if (cell := line.ended(value))]
        return sum(_mean(c, "training_error") for c in ended) / len(ended) if ended else math.inf

    return tuple(sorted(values, key=error))


def _varied(runs: Sequence[reader.Run], recipes: Sequence[settings.Flat]) -> list[str]:
    """Returns the keys of which one network has several values."""
    by_network: dict[str, list[settings.Flat]] = {}
    for run, recipe in zip(runs, recipes, strict=True):
        by_network.setdefault(_network(run), []).append(recipe)
    return sorted(
        {
            key
            for own in by_network.values()
            for key in {key for recipe in own for key in recipe}
            if len({json.dumps(recipe.get(key)) for recipe in own}) > 1
        }
    )


def _is_product(keys: Sequence[str], recipes: Sequence[settings.Flat]) -> bool:
    points = {tuple(json.dumps(recipe.get(key)) for key in keys) for recipe in recipes}
    return len(points) == math.prod(len(set(column)) for column in zip(*points, strict=True))


def _values(keys: Sequence[str], recipes: Sequence[settings.Flat]) -> list[Value]:
    """Returns each run's value on an axis."""
    if len(keys) == 1:
        return [_value(recipe.get(keys[0])) for recipe in recipes]
    usual = {
        key: collections.Counter(json.dumps(recipe.get(key)) for recipe in recipes).most_common(1)
        for key in keys
    }
    return [
        Value(
            tuned.show_values(
                {k: recipe.get(k) for k in keys if json.dumps(recipe.get(k)) != usual[k][0][0]}
            )
            or BASE
        )
        for recipe in recipes
    ]


def _value(value: object) -> Value:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return Value(settings.show(value), float(value) if is_number else None)  # type: ignore[arg-type]


def _order(value: Value) -> tuple[bool, float, bool, str]:
    return value.number is None, value.number or 0.0, value.label != BASE, value.label


def _lines(
    runs: Sequence[reader.Run],
    values: Sequence[Value],
    others: Sequence[str],
    own: Sequence[reader.Run],
    by: str,
    keys: Sequence[str],
) -> list[Line]:
    """Returns a line per network and combination of values on the other axes."""
    parts: dict[tuple[str, str], dict[Value, list[reader.Run]]] = {}
    for run, value in zip(runs, values, strict=True):
        part = parts.setdefault((_network(run), _others(run, others)), {})
        part.setdefault(value, []).append(run)
    trained: dict[tuple[str, str], list[reader.Run]] = {}
    for run in own:
        trained.setdefault((_network(run), _others(run, others)), []).append(run)
    letters = {run.config["model"]["shortcut"] for run in runs} - {"none"}
    lines = []
    for place, part in parts.items():
        along = {value: cells.pool(part[value]) for value in sorted(part, key=_order)}
        first = next(iter(along.values()))
        best = _best(along, by)
        at_best = along[best] if best and not own else None
        if place in trained:
            at_best = cells.pool(trained[place])
            best = _value(at_best.values_of(keys)[keys[0]])
        others_shown = place[1]
        more = f", {others_shown}" if others_shown else ""
        kind = groups.kind_name(first.shortcut, letters)
        lines.append(Line(first.name + more, kind + more, others_shown, along, best, at_best))
    return sorted(lines, key=lambda line: (SHORTCUTS.index(line.shortcut), line.depth, line.others))


def _best(along: Mapping[Value, CellResult], by: str) -> Value | None:
    """Returns the value with the lowest measure among those whose runs have ended.

    A diverged seed counts with an error of 100 % and an infinite loss.
    """
    ranked = [
        (_mean(cell, by), _mean(cell, "training_loss"), i, value)
        for i, (value, cell) in enumerate(along.items())
        if cell.status in reader.ENDED
    ]
    return min(ranked)[-1] if ranked else None


def _mean(cell: CellResult, by: str) -> float:
    measure, worst = MEASURES[by]
    measured = [None if r.diverged_at is not None else measure(r) for r in cell.replicates]
    values = [worst if value is None else value for value in measured]
    return sum(values) / len(values) if values else worst


def _network(run: reader.Run) -> str:
    return json.dumps([run.config["model"]["depth"], run.config["model"]["shortcut"]])


def _others(run: reader.Run, keys: Sequence[str]) -> str:
    flat = settings.flatten(run.config)
    return tuned.show_values({key: flat.get(key) for key in keys})


def as_group(label: str, networks: Iterable[CellResult]) -> Group:
    """Returns cells as a group whose claims can be judged."""
    return Group(label, {}, "", tuple(sorted(networks, key=cells.order)))
