"""A study's config: a base config, a grid over its settings, and exceptions for some cells.

    study.base        a complete config of a run; --config.base.KEY=VALUE changes every cell
    study.grid        the axes: settings of the base, each with a tuple of values
    study.exceptions  NAME: {"when": settings that a cell must have, "set": settings it then gets}
    study.tune        optional: settings whose best value is found for each cell first: tuning.py
    study.claims      optional: ids of the claims that it will judge: named_claims.py

A tuple in "when" means any of its values. An exception overrides the base, never an axis.
The setting `variant` names a combination of settings: a grid over its names, with an exception for
each, has a cell per combination (configs/rescues_digits.py).
"""

import dataclasses
import fnmatch
import itertools
import re
from collections.abc import Iterable, Sequence

from ml_collections import ConfigDict

from experiments.cli import command_line
from resnet_jax import settings
from resnet_jax.errors import UserError, listing, nearest, nearest_key
from resnet_jax.resolve import resolve
from resnet_jax.runs import identity

KEYS = ("base", "grid", "exceptions")
CLAIMS = "claims"
_OPTIONAL = ("tune", CLAIMS)
_NAMED = ("model.depth", "model.shortcut")  # the first part of a cell's name
_UNSAFE = re.compile(r"[^A-Za-z0-9._=+-]")  # characters not used in folder names


@dataclasses.dataclass(frozen=True)
class Cell:
    """One run of a study.

    Attributes:
      name: its folder's name: ``plain-56``, ``resnet-56-A``, ``plain-20-rate=0.1``.
      config: resolved.
      exceptions: names of the exceptions that apply to it.
      point: its value on each axis, by dotted key.
      unresolved: its config before it was resolved.
    """

    name: str
    config: ConfigDict
    exceptions: tuple[str, ...]
    point: settings.Flat
    unresolved: ConfigDict

    def changed(self, changes: settings.Flat, where: str, name: str) -> "Cell":
        """Returns a cell named `name` with other values of some settings, by dotted key.

        Raises:
          UserError: a value is not allowed; `where` is its place in the study.
        """
        config = _changed(self.unresolved, changes, where)
        return _cell(name, config, self.exceptions, self.point)


def cells(study: ConfigDict) -> list[Cell]:
    """Returns every cell of a study, with axes in alphabetical order (ConfigDict's order).

    Raises:
      UserError: the config is not a study, a key or value in it is not allowed, two cells would
        have the same name, or a cell's settings contradict each other.
    """
    check_parts(study)
    axes = axes_of(study, "grid")
    exceptions = _exceptions(study, axes)
    grid_cells: list[Cell] = []
    for values in itertools.product(*axes.values()):
        point = dict(zip(axes, values, strict=True))
        config = _changed(study.base, point, "grid")
        matched = [name for name, (when, _) in exceptions.items() if _matches(config, when)]
        for name in matched:
            config = _changed(config, exceptions[name][1], f"exceptions.{name}.set")
        name = cell_name(config, point)
        if name in [cell.name for cell in grid_cells]:
            raise UserError(
                f"Two cells of the grid are named {name}; list each value of an axis only once."
            )
        grid_cells.append(_cell(name, config, tuple(matched), point))
    if "variant" in axes:
        _refuse_twins(grid_cells)
    return grid_cells


def matching(cells: Sequence[Cell], pattern: str) -> list[Cell]:
    """Returns the cells whose names match; raises UserError if there is none."""
    chosen = [cell for cell in cells if fnmatch.fnmatchcase(cell.name, pattern)]
    if not chosen:
        names = [cell.name for cell in cells]
        raise UserError(
            f"--only={pattern} matches no cell; the cells are {listing(names)}"
            f"{nearest(pattern, names)}."
        )
    return chosen


def part_of(cells: Sequence[Cell], part: str) -> list[Cell]:
    """Returns every N-th cell from the I-th, for a part ``I/N``.

    Raises:
      UserError: the part is not of this form, or has no cell.
    """
    index, slash, count = part.partition("/")
    if not (slash and index.isdecimal() and count.isdecimal() and int(index) < int(count)):
        raise UserError(f"--part={part} is not allowed; it is I/N with I from 0 to N - 1.")
    if not (chosen := cells[int(index) :: int(count)]):
        raise UserError(f"--part={part} has no cell: there are {len(cells)}.")
    return list(chosen)


def _refuse_twins(cells: Iterable[Cell]) -> None:
    """Raises UserError if two cells differ in nothing but their variant's name."""
    names: dict[str, str] = {}
    for cell in cells:
        twin = names.setdefault(identity.of(cell.config.to_dict()), cell.name)
        if twin != cell.name:
            raise UserError(
                f"{cell.name} and {twin} have the same settings; an exception must set what a "
                "variant stands for."
            )


def _cell(name: str, config: ConfigDict, exceptions: tuple[str, ...], point: settings.Flat) -> Cell:
    try:
        return Cell(name, resolve(config), exceptions, point, config)
    except UserError as e:
        raise UserError(f"Cell {name}: {e}") from e


def cell_name(config: settings.Config, axes: settings.Flat) -> str:
    """Returns ``plain-56`` or ``resnet-56-A``, with ``-rate=0.1`` for each further axis.

    Args:
      config: the cell's config.
      axes: the cell's value on each axis, by dotted key.
    """
    depth, shortcut = config["model"]["depth"], config["model"]["shortcut"]
    name = f"plain-{depth}" if shortcut == "none" else f"resnet-{depth}-{shortcut}"
    further = {key: value for key, value in axes.items() if key not in _NAMED}
    last_parts = [key.split(".")[-1] for key in further]
    for key, value in further.items():
        last = key.split(".")[-1]
        # Both optimizer.name and schedule.name end in "name": then the full key is used.
        label = last if last_parts.count(last) == 1 else key
        name += f"-{label}={_UNSAFE.sub('_', settings.show(value))}"
    return name


def check_parts(study: ConfigDict) -> None:
    """Raises UserError unless a config has exactly the parts of a study."""
    missing = [key for key in KEYS if key not in study]
    if len(missing) == len(KEYS):
        raise UserError(
            "--config is not a study: it has no base, grid and exceptions. Train the config of a "
            f"single run with {command_line.spelled('train')}."
        )
    if missing:
        raise UserError(f"The study has no {', '.join(missing)}; it may be an empty ConfigDict().")
    parts = (*KEYS, *_OPTIONAL)
    for key in study:
        if key not in parts:
            raise UserError(
                f"{key} is not a part of a study; allowed are "
                f"{', '.join(parts)}{nearest(key, parts)}."
            )
        if key != CLAIMS and not isinstance(study[key], ConfigDict):
            raise UserError(f"The study's {key} is {study[key]!r}; it must be a ConfigDict.")


def axes_of(study: ConfigDict, part: str) -> settings.Flat:
    """Returns the values of each setting in a part of a study, by dotted key.

    Raises:
      UserError: a key is not a setting, or its values are not a tuple of at least one.
    """
    axes = settings.flatten(settings.get(study, part).to_dict())
    for key, values in axes.items():
        _check_key(study.base, key, part)
        if not isinstance(values, list):
            raise UserError(
                f"{part}.{key}={values!r} is not a tuple of values, as in ({values!r},)."
            )
        if not values:
            raise UserError(f"{part}.{key} lists no values, so the study has no cells.")
    return axes


def _exceptions(
    study: ConfigDict, axes: settings.Flat
) -> dict[str, tuple[settings.Flat, settings.Flat]]:
    """Returns {name: (conditions, changes)}, both by dotted key."""
    exceptions = {}
    for name, exception in study.exceptions.items():
        where = f"exceptions.{name}"
        if not isinstance(exception, ConfigDict) or set(exception) != {"when", "set"}:
            raise UserError(f'{where} is not of the form {{"when": ..., "set": ...}}.')
        conditions, changes = (
            settings.flatten(exception[part].to_dict()) for part in ("when", "set")
        )
        for part, values in (("when", conditions), ("set", changes)):
            for key in values:
                _check_key(study.base, key, f"{where}.{part}")
        for key, value in conditions.items():
            for alternative in _alternatives(study.base, key, value):
                # With a value that no cell can have, the exception would silently never apply.
                _changed(study.base, {key: alternative}, f"{where}.when")
                settings.SETTINGS[key].allowed.check(f"{where}.when.{key}", alternative)
        for key in changes:
            if key in axes:
                raise UserError(
                    f"{where}.set.{key} is an axis of the grid; an exception may set any other "
                    "setting."
                )
        exceptions[name] = (conditions, changes)
    return exceptions


def _alternatives(base: ConfigDict, key: str, value: object) -> list[object]:
    if isinstance(settings.get(base, key), tuple) or not isinstance(value, list):
        return [value]
    return value


def _matches(config: ConfigDict, conditions: settings.Flat) -> bool:
    def matches(key: str, value: object) -> bool:
        setting = settings.get(config, key)
        setting = list(setting) if isinstance(setting, tuple) else setting
        return setting in _alternatives(config, key, value)

    return all(matches(key, value) for key, value in conditions.items())


def _check_key(base: ConfigDict, key: str, where: str) -> None:
    known = settings.flatten(base.to_dict())
    if key not in known:
        raise UserError(not_a_setting(f"{where}.{key}", key, known))


def not_a_setting(name: str, key: str, known: Iterable[str]) -> str:
    """Returns the error message for an unknown key, which the user wrote as `name`."""
    return f"{name} is not a setting{nearest_key(key, known)}; configs/base.py lists all."


def _changed(base: ConfigDict, changes: settings.Flat, where: str) -> ConfigDict:
    """Returns a copy of `base` with dotted keys set; raises UserError for a wrong type."""
    config = base.copy_and_resolve_references()
    for key, value in changes.items():
        settings.assign(config, key, value, f"{where}.{key}")
    return config
