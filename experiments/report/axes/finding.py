"""Finds the axes of a study in the configs of its runs.

The runs are those in one folder: a study, or the pilots of a tuned one. A key is an axis if one
network was trained with several values of it. If keys do not vary independently, as in a study of
cures that each change other settings, their combinations are one axis of names. The setting
`variant` gives such a combination its name.
"""

import collections
import dataclasses
import json
import math
from collections.abc import Iterable, Mapping, Sequence

from experiments.report import cells, groups, tuned
from experiments.report.axes.model import BASE, NAMES, VARIANT, Across, Axis, Line, Value
from experiments.report.cells import CellResult
from experiments.report.tuned import TunedStudy, score
from resnet_jax import settings
from resnet_jax.networks.architectures import SHORTCUTS
from resnet_jax.runs import reader


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
        tuning = pilots.get(study)
        # A loss chooses among rates, but does not rank what a study compares.
        by = "training_error"
        if tuning and tuning.by == "validation_error":
            by = tuning.by
        found += _of_folder(study, own, tuned.by_study(tunings), by)
        if tuning:
            trained = [run for trial in tuning.trials for run in trial.cell.runs]
            same_data = [run for run in trained if run.config["data"]["name"] == data]
            found += _of_folder(study, same_data, {}, tuning.by, own, tuning)
    return found


def _of_folder(
    study: str,
    runs: Sequence[reader.Run],
    ignored: tuned.Tuned,
    by: str,
    own: Sequence[reader.Run] = (),
    tuning: TunedStudy | None = None,
) -> list[Across]:
    recipes = [groups.recipe(run, ignored) for run in runs]
    names = [run.config[VARIANT] for run in runs]
    axes = _axes(_varied(runs, recipes), recipes, names, tuning.keys if tuning else ())
    found = []
    for axis_keys in axes:
        # The grid's own axes are those of its cells.
        if tuning and axis_keys[0] not in tuning.keys:
            continue
        others = [key for keys in axes if keys != axis_keys for key in _shown(keys)]
        values = _values(axis_keys, recipes, names)
        lines = _lines(runs, values, others, own, by, axis_keys)
        axis = Axis(tuple(axis_keys), tuple(sorted(set(values), key=_order)))
        if axis.scale == NAMES:
            axis = dataclasses.replace(axis, values=_ranked(axis.values, lines, by))
        at_best = tuple(sorted(ignored.get(study, ())))
        found.append(Across(study, axis, tuple(lines), by, tuning is not None, at_best))
    return found


def _ranked(values: Sequence[Value], lines: Sequence[Line], by: str) -> tuple[Value, ...]:
    """Returns names by their mean error over networks; those without one come last."""
    measure = "validation_error" if by == "validation_error" else "training_error"

    def error(value: Value) -> float:
        ended = [cell for line in lines if (cell := line.ended(value))]
        scores = [score(cell.replicates, measure) for cell in ended]
        return sum(scores) / len(scores) if scores else math.inf

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


def _axes(
    keys: Sequence[str],
    recipes: Sequence[settings.Flat],
    names: Sequence[str],
    tuned_keys: Sequence[str],
) -> list[list[str]]:
    """Returns the keys of each axis; VARIANT comes first among those that the variants set.

    A tuned setting is an axis of its own, even if --extend gave some cells more candidates.
    """
    if not any(names):
        grid = [key for key in keys if key not in tuned_keys]
        alone = [[key] for key in keys if key in tuned_keys]
        return [*([key] for key in grid), *alone] if _is_product(grid, recipes) else [grid, *alone]
    own: dict[str, set[str]] = {key: set() for key in keys}  # pairs of a name and a value
    for name, recipe in zip(names, recipes, strict=True):
        for key in keys:
            own[key].add(json.dumps([name, recipe.get(key)]))
    named = [key for key in keys if len(own[key]) == len(set(names))]
    rest = [[key] for key in keys if key not in named]
    return [[VARIANT, *named], *rest] if named else rest


def _shown(keys: Sequence[str]) -> Sequence[str]:
    """Returns the settings that name a place on an axis."""
    return [VARIANT] if keys[0] == VARIANT else keys


def _is_product(keys: Sequence[str], recipes: Sequence[settings.Flat]) -> bool:
    points = {tuple(json.dumps(recipe.get(key)) for key in keys) for recipe in recipes}
    return len(points) == math.prod(len(set(column)) for column in zip(*points, strict=True))


def _values(
    keys: Sequence[str], recipes: Sequence[settings.Flat], names: Sequence[str]
) -> list[Value]:
    """Returns each run's value on an axis."""
    if len(keys) == 1:
        return [_value(recipe.get(keys[0])) for recipe in recipes]
    usual = {
        key: collections.Counter(json.dumps(recipe.get(key)) for recipe in recipes).most_common(1)
        for key in keys
    }
    differing = [
        {k: recipe.get(k) for k in keys if json.dumps(recipe.get(k)) != usual[k][0][0]}
        for recipe in recipes
    ]
    shown = [tuned.show_values(own) for own in differing]
    if keys[0] == VARIANT:
        return [Value(n or BASE, note=own) for n, own in zip(names, shown, strict=True)]
    return [Value(own or BASE) for own in shown]


def _value(value: object) -> Value:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return Value(settings.show(value), float(value))
    return Value(settings.show(value))


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
        shortcut = first.config["model"]["shortcut"]
        name, kind = cells.named(first.depth, shortcut), groups.kind_name(shortcut, letters)
        lines.append(Line(name + more, kind + more, others_shown, along, best, at_best))
    return sorted(lines, key=lambda line: (SHORTCUTS.index(line.shortcut), line.depth, line.others))


def _best(along: Mapping[Value, CellResult], by: str) -> Value | None:
    """Returns the value with the lowest measure among those whose runs have ended.

    A second measure separates equal ones, such as several at 0 %.
    """
    ranked = [
        (score(cell.replicates, by), score(cell.replicates, "training_loss"), i, value)
        for i, (value, cell) in enumerate(along.items())
        if cell.status in reader.ENDED
    ]
    return min(ranked)[-1] if ranked else None


def _network(run: reader.Run) -> str:
    return json.dumps([run.config["model"]["depth"], run.config["model"]["shortcut"]])


def _others(run: reader.Run, keys: Sequence[str]) -> str:
    """Returns ``no_norm, momentum=0.5``; a variant's name stands for itself."""
    flat = settings.flatten(run.config)
    names = [flat[VARIANT] or BASE] if VARIANT in keys else []
    shown = tuned.show_values({key: flat.get(key) for key in keys if key != VARIANT})
    return ", ".join([*names, shown] if shown else names)
