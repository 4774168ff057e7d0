"""Which cells may be compared: those that share data and recipe."""

import dataclasses
import json
from collections.abc import Iterable, Sequence
from typing import Any

from experiments.report import cells, paper, replicates
from experiments.report.cells import CellResult
from resnet_jax import settings
from resnet_jax.runs import reader

WARM_UP_VALUES = ("schedule.warmup_rate", "schedule.warmup_error")
NAMED_SETTINGS = 3  # a label with more differing settings than this counts the rest

Settings = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Group:
    """Cells that share everything but depth, shortcut and seed."""

    label: str
    settings: Settings  # those in which it differs from groups on the same data
    note: str  # what must stand beside its numbers
    cells: tuple[CellResult, ...]

    @property
    def data(self) -> str:
        """The data set's name."""
        return self.cells[0].config["data"]["name"]

    @property
    def family(self) -> str:
        """The networks' family, ``cifar`` or ``imagenet``."""
        return self.cells[0].config["model"]["family"]

    @property
    def depths(self) -> list[int]:
        """Every depth in the group, in order."""
        return sorted({cell.depth for cell in self.cells})

    @property
    def warmed_up(self) -> list[str]:
        """The cells that were warmed up as in the paper, if others of the group were not."""
        names = [cell.name for cell in self.cells if _has_papers_warm_up(cell.runs[0])]
        return names if len(names) < len(self.cells) else []

    @property
    def facts(self) -> Settings:
        """What the first run that got to load its data wrote about them."""
        found = (run.environment.get("data") for cell in self.cells for run in cell.runs)
        return next((facts for facts in found if facts), {})


def make(found: Iterable[reader.Run]) -> list[Group]:
    """Sorts runs into groups and pools those that differ in nothing but their seeds.

    Raises:
      UserError: a config lacks a setting that the report needs.
    """
    # A run given twice, alone and in its study, is one run.
    members = list({run.path.resolve(): run for run in found}.values())
    for run in members:
        replicates.of_run(run)
    by_recipe = _partition(members, [_recipe(run) for run in members])
    parts: list[list[reader.Run]] = []
    for part in by_recipe:
        for same_data in _partition(part, _notes(part)):
            parts += _by_warm_up(same_data)
    recipes = [_recipe(p[0]) | _warm_up(p) | {"data.note": _note(p) or ""} for p in parts]
    return [
        Group(
            label=label,
            settings=differing,
            note=_note(part) or "",
            cells=tuple(sorted(map(cells.pool, _by_network(part)), key=cells.order)),
        )
        for part, (label, differing) in zip(parts, _labels(recipes), strict=True)
    ]


def _recipe(run: reader.Run) -> Settings:
    recipe = settings.recipe(run.config)
    return recipe | {"schedule.warmup": "none"} if _has_papers_warm_up(run) else recipe


def _has_papers_warm_up(run: reader.Run) -> bool:
    """Whether a run is the one that the paper warmed up alone, in the paper's way."""
    flat = settings.flatten(run.config)
    papers = paper.recipe("cifar")
    return (
        flat["model.family"] == "cifar"
        and flat["model.depth"] in paper.WARM_UPS
        and flat["model.shortcut"] != "none"
        and flat.get("schedule.warmup") == "until_error"
        and all(flat.get(key) == papers[key] for key in WARM_UP_VALUES)
    )


def _warm_up(part: Sequence[reader.Run]) -> Settings:
    """Returns the warm-up of a group: that of the cells to which the paper's exception is none."""
    usual = next((run for run in part if not _has_papers_warm_up(run)), part[0])
    return {"schedule.warmup": settings.flatten(usual.config).get("schedule.warmup")}


def _network(run: reader.Run) -> Settings:
    model = run.config["model"]
    return {"depth": model["depth"], "shortcut": model["shortcut"]}


def _by_network(part: Sequence[reader.Run]) -> list[list[reader.Run]]:
    return _partition(part, [_network(run) for run in part])


def _by_warm_up(part: list[reader.Run]) -> list[list[reader.Run]]:
    """Takes the warmed-up nets out if a residual net as deep as one of them was not warmed up.

    Warm-up is then what is compared.
    """
    warmed_up = [_has_papers_warm_up(run) for run in part]
    there = {
        (run.config["model"]["depth"], warm)
        for run, warm in zip(part, warmed_up, strict=True)
        if run.config["model"]["shortcut"] != "none"
    }
    if any((depth, False) in there for depth, warm in there if warm):
        return _partition(part, [{"warmed up": warm} for warm in warmed_up])
    return [part]


def _note(part: Sequence[reader.Run]) -> str | None:
    known = (run.environment.get("data", {}).get("note") for run in part)
    return next((note for note in known if note is not None), None)


def _notes(part: Sequence[reader.Run]) -> list[Settings]:
    """Returns each run's data note; a run that never loaded its data takes the first one known."""
    return [{"note": own if (own := _note([run])) is not None else _note(part)} for run in part]


def _partition(members: Sequence[reader.Run], keys: Sequence[Settings]) -> list[list[reader.Run]]:
    parts: dict[str, list[reader.Run]] = {}
    for run, key in zip(members, keys, strict=True):
        parts.setdefault(json.dumps(key, sort_keys=True), []).append(run)
    return list(parts.values())


def _named(key: str, value: object) -> str:
    if key == "data.note":
        return f"note: {str(value).partition(':')[0]}" if value else "no note"
    return f"{key.removeprefix('data.')}={value}"


def _labels(recipes: Sequence[Settings]) -> list[tuple[str, Settings]]:
    """Returns a label a group, and the settings that tell it from others on the same data."""
    labels: list[tuple[str, Settings]] = []
    for own in recipes:
        data = own["data.name"]
        alike = [other for other in recipes if other["data.name"] == data]
        keys = sorted({k for other in alike for k in own.keys() | other.keys()})
        differing = {
            key: own.get(key) for key in keys if len({json.dumps(o.get(key)) for o in alike}) > 1
        }
        # The note stands beside every number anyway: it is named only where nothing else differs.
        telling = [k for k in differing if k != "data.note"] or list(differing)
        named = [_named(key, differing[key]) for key in telling[:NAMED_SETTINGS]]
        more = len(telling) - len(named)
        label = ", ".join([data, *named]) + (f" and {more} more" if more else "")
        taken = sum(label == other for other, _ in labels)
        labels.append((f"{label} ({taken + 1})" if taken else label, differing))
    return labels
