"""What the pilot runs of tuned studies found; experiments/study/tuning.py chose by them."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

from experiments.report import cells
from experiments.report.cells import CellResult
from resnet_jax import settings
from resnet_jax.runs import reader, storage

Tuned = Mapping[str, frozenset[str]]  # a study's folder -> the settings that its pilots tuned
NOTHING_TUNED: Tuned = {}


@dataclasses.dataclass(frozen=True)
class Trial:
    """One network with one candidate, trained with the seeds of the pilots.

    Attributes:
      values: of the tuned settings, by dotted key.
      cell: the pilot.
      is_chosen: whether the network's own seeds were trained with these values.
    """

    values: settings.Flat
    cell: CellResult
    is_chosen: bool


@dataclasses.dataclass(frozen=True)
class Tuning:
    """The pilots of one study.

    Attributes:
      study: its folder.
      keys: the tuned settings.
      trials: by network, then by value.
    """

    study: str
    keys: tuple[str, ...]
    trials: tuple[Trial, ...]

    @property
    def networks(self) -> dict[str, list[Trial]]:
        """The trials of each network."""
        networks: dict[str, list[Trial]] = {}
        for trial in self.trials:
            networks.setdefault(trial.cell.name, []).append(trial)
        return networks


def find(runs: Iterable[reader.Run]) -> list[Tuning]:
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


def by_study(tunings: Iterable[Tuning]) -> Tuned:
    """Returns the tuned settings of each study."""
    return {tuning.study: frozenset(tuning.keys) for tuning in tunings}


def show_values(values: settings.Flat) -> str:
    """Returns ``rate=0.1`` or ``rate=0.1, weight_decay=0.001``."""
    shown = ((key.split(".")[-1], value) for key, value in values.items())
    return ", ".join(f"{k}={v:.12g}" if isinstance(v, float) else f"{k}={v}" for k, v in shown)


def _of_study(
    study: storage.Path, own: Sequence[reader.Run], pilots: Sequence[reader.Run]
) -> Tuning:
    by_network: dict[tuple[object, ...], list[settings.Flat]] = {}
    flats = [settings.flatten(pilot.config) for pilot in pilots]
    for flat in flats:
        by_network.setdefault(_network(flat), []).append(flat)
    keys = sorted(
        key
        for key, setting in settings.SETTINGS.items()
        if setting.changes_results and not setting.varied
        if any(len({str(f.get(key)) for f in same}) > 1 for same in by_network.values())
    )
    finals = [settings.flatten(run.config) for run in own]
    trials = [
        Trial(
            {key: flat.get(key) for key in keys},
            cells.pool([pilot]),
            any(
                _network(final) == _network(flat)
                and all(final.get(key) == flat.get(key) for key in keys)
                for final in finals
            ),
        )
        for pilot, flat in zip(pilots, flats, strict=True)
    ]
    trials.sort(key=lambda trial: (cells.order(trial.cell), *map(_sortable, trial.values.values())))
    return Tuning(str(study), tuple(keys), tuple(trials))


def _network(flat: settings.Flat) -> tuple[object, ...]:
    return flat.get("model.depth"), flat.get("model.shortcut")


def _sortable(value: object) -> tuple[int, float, str]:
    return (0, float(value), "") if isinstance(value, (int, float)) else (1, 0.0, str(value))
