"""Groups of comparable cells, which share data and recipe."""

import dataclasses
import json
from collections.abc import Collection, Iterable, Sequence

from experiments.report import cells, paper, replicates
from experiments.report.cells import CellResult
from experiments.report.tuned import NOTHING_TUNED, Tuned
from resnet_jax import settings
from resnet_jax.runs import identity, reader
from resnet_jax.runs.records import Data
from resnet_jax.settings import Flat

WARM_UP_VALUES = ("schedule.warmup_rate", "schedule.warmup_error")
VARIANT = "variant"  # the setting that names a combination of settings
PRETRAINED = "init.from"
NAMED_SETTINGS = 3  # a label names this many differing settings and counts the others


@dataclasses.dataclass(frozen=True)
class Group:
    """Cells that differ only in depth, shortcut and seed, and in settings tuned for each."""

    label: str
    settings: Flat  # those that differ from other groups on the same data
    note: str  # a warning about the data, shown beside its numbers
    cells: tuple[CellResult, ...]
    tuned: tuple[str, ...] = ()  # the tuned settings, by dotted key

    @property
    def data(self) -> str:
        """The data set's name."""
        return self.cells[0].config["data"]["name"]

    @property
    def family(self) -> str:
        """The networks' family, ``cifar`` or ``imagenet``."""
        return self.cells[0].config["model"]["family"]

    @property
    def has_batch_norm(self) -> bool:
        """Whether the networks have BatchNorm."""
        return self.cells[0].config["model"]["norm"] == "batch"

    @property
    def depths(self) -> list[int]:
        """The sorted depths of the group."""
        return sorted({cell.depth for cell in self.cells})

    @property
    def letters(self) -> set[str]:
        """The shortcuts of the residual nets."""
        return {cell.shortcut for cell in self.cells if not cell.plain}

    @property
    def warmed_up(self) -> list[str]:
        """The names of cells that were warmed up as in the paper, if other cells were not."""
        names = [cell.name for cell in self.cells if _has_papers_warm_up(cell.runs[0])]
        return names if len(names) < len(self.cells) else []

    @property
    def facts(self) -> Data:
        """Facts about the data, from the first run that recorded them."""
        none: Data = {}
        recorded = (run.environment.get("data") for cell in self.cells for run in cell.runs)
        return next((facts for facts in recorded if facts), none)


def comparable(runs: Iterable[reader.Run], tuned: Tuned = NOTHING_TUNED) -> list[Group]:
    """Sorts runs into groups and pools runs that differ only in their seeds.

    Args:
      runs: of any studies.
      tuned: the settings that pilots tuned. Networks of one study are compared although they
        differ in these: each is at its best value.

    Raises:
      UserError: a config lacks a setting that the report needs.
    """
    # A run may be given twice: by itself and in its study.
    members = list({run.path.resolve(): run for run in runs}.values())
    for run in members:
        replicates.of_run(run)
    by_recipe = _partition(members, [recipe(run, tuned) for run in members])
    parts: list[list[reader.Run]] = []
    for part in by_recipe:
        for same_data in _partition(part, _data(part)):
            parts += _by_warm_up(same_data)
    recipes = [
        recipe(p[0], tuned) | _warm_up(p) | {"data.note": _note(p) or "", VARIANT: _variants(p)}
        for p in parts
    ]
    return [
        Group(
            label=label,
            settings=differing,
            note=_note(part) or "",
            cells=tuple(sorted(map(cells.pool, _by_network(part, tuned)), key=cells.order)),
            tuned=tuple(sorted(_tuned_keys(part[0], tuned))),
        )
        for part, (label, differing) in zip(parts, _labels(recipes), strict=True)
    ]


def kind_name(shortcut: str, letters: Collection[str]) -> str:
    """Returns a legend's name for a kind of net, with its shortcut if there are several letters."""
    if shortcut == "none":
        return "plain"
    return f"residual, shortcut {shortcut}" if len(letters) > 1 else "residual"


def _tuned_keys(run: reader.Run, tuned: Tuned) -> frozenset[str]:
    return tuned.get(str(run.path.parent), frozenset())


def recipe(run: reader.Run, tuned: Tuned = NOTHING_TUNED) -> Flat:
    """Returns the settings that comparable runs share, without tuned ones and the paper's warm-up.

    Args:
      run: the run.
      tuned: the tuned settings by study.
    """
    shared = identity.recipe(run.config) | dict.fromkeys(_tuned_keys(run, tuned), "tuned")
    if shared[PRETRAINED]:
        shared[PRETRAINED] = "trained weights"  # each network has its own
    return shared | {"schedule.warmup": "none"} if _has_papers_warm_up(run) else shared


def _has_papers_warm_up(run: reader.Run) -> bool:
    """Whether a run is of the only net that the paper warms up, and is warmed up in that way."""
    flat = settings.flatten(run.config)
    papers = paper.published_recipe("cifar")
    return (
        flat["model.family"] == "cifar"
        and flat["model.depth"] in paper.WARM_UPS
        and flat["model.shortcut"] != "none"
        and flat.get("schedule.warmup") == "until_error"
        and all(flat.get(key) == papers[key] for key in WARM_UP_VALUES)
    )


def _warm_up(part: Sequence[reader.Run]) -> Flat:
    """Returns the warm-up of a group, disregarding the paper's exception."""
    usual = next((run for run in part if not _has_papers_warm_up(run)), part[0])
    return {"schedule.warmup": settings.flatten(usual.config).get("schedule.warmup")}


def _network(run: reader.Run) -> Flat:
    model = run.config["model"]
    return {"depth": model["depth"], "shortcut": model["shortcut"]}


def _by_network(part: Sequence[reader.Run], tuned: Tuned) -> list[list[reader.Run]]:
    # Two studies may have tuned the same network differently, or started it from other weights.
    values = [
        {
            key: settings.flatten(run.config).get(key)
            for key in (*_tuned_keys(run, tuned), PRETRAINED)
        }
        for run in part
    ]
    return _partition(part, [_network(r) | v for r, v in zip(part, values, strict=True)])


def _by_warm_up(part: list[reader.Run]) -> list[list[reader.Run]]:
    """Separates warmed-up nets if a residual net of the same depth was not warmed up.

    The runs then compare training with and without warm-up.
    """
    warmed_up = [_has_papers_warm_up(run) for run in part]
    residual = {
        (run.config["model"]["depth"], warm)
        for run, warm in zip(part, warmed_up, strict=True)
        if run.config["model"]["shortcut"] != "none"
    }
    if any((depth, False) in residual for depth, warm in residual if warm):
        return _partition(part, [{"warmed up": warm} for warm in warmed_up])
    return [part]


def _variants(part: Sequence[reader.Run]) -> str:
    """Returns the names of the runs' variants, as in ``base, residual``."""
    names = {run.config[VARIANT]: 0 for run in part}
    return ", ".join(filter(None, names))


def _note(part: Sequence[reader.Run]) -> str | None:
    known = (run.environment.get("data", {}).get("note") for run in part)
    return next((note for note in known if note is not None), None)


def _data(part: Sequence[reader.Run]) -> list[Flat]:
    """Returns the data that each run recorded beside their name: their note and, of own sets, more.

    A run that never loaded its data gets the first known values.
    """
    facts = [dict(run.environment.get("data", {})) for run in part]
    # Names of published sets say what they hold.
    keys = ["note"] + ["content"] * (part[0].config["data"]["name"] in settings.OWN_DATA)
    first = {key: next((each[key] for each in facts if key in each), None) for key in keys}
    return [{key: each.get(key, first[key]) for key in keys} for each in facts]


def _partition(members: Sequence[reader.Run], keys: Sequence[Flat]) -> list[list[reader.Run]]:
    parts: dict[str, list[reader.Run]] = {}
    for run, key in zip(members, keys, strict=True):
        parts.setdefault(json.dumps(key, sort_keys=True), []).append(run)
    return list(parts.values())


def _named(key: str, value: object) -> str:
    if key == "data.note":
        return f"note: {str(value).partition(':')[0]}" if value else "no note"
    return f"{key.removeprefix('data.')}={value}"


def _labels(recipes: Sequence[Flat]) -> list[tuple[str, Flat]]:
    """Returns each group's label, and the settings that differ from groups on the same data."""
    labels: list[tuple[str, Flat]] = []
    for recipe in recipes:
        data = recipe["data.name"]
        same_data = [other for other in recipes if other["data.name"] == data]
        keys = sorted({key for other in same_data for key in recipe.keys() | other.keys()})
        differing = {
            key: recipe.get(key)
            for key in keys
            if len({json.dumps(other.get(key)) for other in same_data}) > 1
        }
        # The note stands beside every number, so a label names it only if nothing else differs.
        shown = [key for key in differing if key != "data.note"] or list(differing)
        if differing.get(VARIANT):  # its name says enough
            shown = [VARIANT]
        named = [_named(key, differing[key]) for key in shown[:NAMED_SETTINGS]]
        more = len(shown) - len(named)
        label = ", ".join([data, *named]) + (f" and {more} more" if more else "")
        repeated = sum(label == other for other, _ in labels)
        labels.append((f"{label} ({repeated + 1})" if repeated else label, differing))
    return labels
