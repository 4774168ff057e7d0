"""What the pilot runs of tuned studies found; experiments/study/tuning.py chose by them."""

import dataclasses
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence

from experiments.report import cells
from experiments.report.cells import CellResult
from experiments.report.replicates import DIVERGED_ERROR, Replicate
from resnet_jax import settings
from resnet_jax.allowed import check_choice
from resnet_jax.runs import identity, reader, records, storage

Tuned = Mapping[str, frozenset[str]]  # a study's folder -> the settings that its pilots tuned
NOTHING_TUNED: Tuned = {}
# The measures that choose a best value, the one with the lowest; each with that of a diverged seed.
MEASURES: Mapping[str, tuple[Callable[[Replicate], float | None], float]] = {
    "training_error": (Replicate.train_error, DIVERGED_ERROR),
    "training_loss": (Replicate.train_loss, math.inf),
    "validation_error": (Replicate.validation_error, DIVERGED_ERROR),
}


@dataclasses.dataclass(frozen=True)
class Trial:
    """One network with one candidate, trained with the seeds of the pilots.

    Attributes:
      network: the name of the study's cell, ``plain-56`` or ``plain-56-momentum=0.5``.
      values: of the tuned settings, by dotted key.
      cell: the pilot.
      is_chosen: whether the network's own seeds were trained with these values.
    """

    network: str
    values: settings.Flat
    cell: CellResult
    is_chosen: bool


@dataclasses.dataclass(frozen=True)
class TunedStudy:
    """The pilots of one study.

    Attributes:
      study: its folder.
      keys: the tuned settings.
      by: the measure that is lowest at the chosen candidate, as study.tune.by has it.
      trials: by network, then by value.
    """

    study: str
    keys: tuple[str, ...]
    by: str
    trials: tuple[Trial, ...]


def score(seeds: Sequence[Replicate], by: str) -> float:
    """Returns the mean of a measure over seeds, infinite without any.

    Args:
      seeds: of one network with one value.
      by: one of MEASURES.
    """
    measure, worst = MEASURES[by]
    values = [None if seed.diverged_at is not None else measure(seed) for seed in seeds]
    known = [worst if value is None else value for value in values]
    return sum(known) / len(known) if known else math.inf


def find(runs: Iterable[reader.Run]) -> list[TunedStudy]:
    """Reads the pilots of every tuned study that `runs` belong to.

    Raises:
      UserError: a pilot's file is malformed.
    """
    by_study: dict[storage.Path, list[reader.Run]] = {}
    for run in runs:
        by_study.setdefault(run.path.parent, []).append(run)
    return [
        _of_study(study, own, reader.find([study / reader.PILOTS]))
        for study, own in by_study.items()
        if storage.is_dir(study / reader.PILOTS)
    ]


def by_study(tunings: Iterable[TunedStudy]) -> Tuned:
    """Returns the tuned settings of each study."""
    return {tuning.study: frozenset(tuning.keys) for tuning in tunings}


def show_values(values: settings.Flat) -> str:
    """Returns ``rate=0.1`` or ``rate=0.1, weight_decay=0.001``."""
    return ", ".join(f"{key.split('.')[-1]}={settings.show(v)}" for key, v in values.items())


def _of_study(
    study: storage.Path, own: Sequence[reader.Run], pilots: Sequence[reader.Run]
) -> TunedStudy:
    file = study / reader.PILOTS / reader.TUNING
    tuning = records.read(file, records.Tuning)
    keys = sorted(tuning.get("over", {}))
    trained = {_all_but_seeds(run) for run in own}
    trials = []
    for pilot in pilots:
        values = _values(pilot, keys)
        cell, is_chosen = cells.pool([pilot]), _all_but_seeds(pilot) in trained
        trials.append(Trial(_network(pilot.name, values), values, cell, is_chosen))
    trials.sort(
        key=lambda trial: (
            cells.order(trial.cell), trial.network, *map(_sortable, trial.values.values())
        )
    )  # fmt: skip
    by = tuning.get("by", "training_loss")
    check_choice(f"{file} is malformed: by", by, MEASURES)
    return TunedStudy(str(study), tuple(keys), by, tuple(trials))


def _values(run: reader.Run, keys: Sequence[str]) -> settings.Flat:
    flat = settings.flatten(run.config)
    return {key: flat.get(key) for key in keys}


def _network(pilot: str, values: settings.Flat) -> str:
    """Returns a pilot's name without its candidate: ``plain-56`` for ``plain-56-rate=0.1``."""
    name = pilot
    for key, value in values.items():
        for label in (key, key.split(".")[-1]):
            name = name.replace(f"-{label}={settings.show(value)}", "")
    return name


def _all_but_seeds(run: reader.Run) -> str:
    """Returns what a cell has in common with the pilot that it was chosen by."""
    model, recipe = run.config["model"], identity.recipe(run.config)
    return json.dumps([model["depth"], model["shortcut"], recipe], sort_keys=True)


def _sortable(value: object) -> tuple[int, float, str]:
    return (0, float(value), "") if isinstance(value, (int, float)) else (1, 0.0, str(value))
