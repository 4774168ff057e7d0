"""Finds each cell's best values of some settings before the cell is trained.

    study.tune.over        settings with candidate values, each a tuple
    study.tune.by          the measure that chooses, one of report/tuned.MEASURES
    study.tune.seeds       seeds per candidate
    study.tune.first_seed  the first of them

Pilot runs of every candidate come first, in the folder `pilots` of the study. Then each cell is
trained at its best candidate, with its own seeds: none of them took part in the choice, which
would favour lucky seeds (a network's error at its best rate would be too low).
"""

import dataclasses
from collections.abc import Iterable, Mapping

from absl import logging
from ml_collections import ConfigDict

from experiments.report import replicates, tuned
from experiments.study import cell_folders, grid
from experiments.study.candidates import Tuning
from experiments.study.grid import Cell
from resnet_jax import settings
from resnet_jax.allowed import INT32_MAX, Range, check_choice
from resnet_jax.errors import UserError, listing
from resnet_jax.runs import identity, reader, storage

_KEYS = ("over", "by", "seeds", "first_seed")


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A candidate of one cell, as its pilot run ended.

    Attributes:
      values: of the tuned settings, by dotted key.
      score: the mean of the measure over seeds; the lowest is the best.
    """

    values: settings.Flat
    score: float


@dataclasses.dataclass(frozen=True)
class Choice:
    """The best candidate of a cell, among all.

    Attributes:
      best: the best one.
      candidates: all.
      at_the_edge: the settings of which the best value is the lowest or highest candidate, each
        with the next candidate beyond, or None; see Tuning.further.
    """

    best: Candidate
    candidates: tuple[Candidate, ...]
    at_the_edge: Mapping[str, float | None]


def of_study(study: ConfigDict) -> Tuning | None:
    """Returns a study's tuning, or None if it has none.

    Raises:
      UserError: a key or value is not allowed, or a pilot seed is a cell's own seed.
    """
    part = study.get("tune", ConfigDict())
    if not len(part):
        return None
    for key in _KEYS:
        if key not in part:
            raise UserError(f"The study's tune has no {key}; it needs {listing(_KEYS, 'and')}.")
    for key in part:
        check_choice("The key in tune", key, _KEYS)
    over = grid.axes_of(study, "tune.over")
    for key in over:
        if key in settings.flatten(study.grid.to_dict()):
            raise UserError(f"tune.over.{key} is an axis of the grid; tune any other setting.")
        if settings.SETTINGS[key].varied or not settings.SETTINGS[key].changes_results:
            raise UserError(f"tune.over.{key} cannot be tuned; tune.over is for a recipe's values.")
        for name, exception in study.exceptions.items():
            for half in ("when", "set"):
                if key in settings.flatten(exception[half].to_dict()):
                    raise UserError(
                        f"exceptions.{name}.{half}.{key} is tuned (tune.over); leave it out."
                    )
    check_choice("tune.by", part.by, tuned.MEASURES)
    if part.by == "validation_error" and not study.base.data.validation:
        raise UserError("tune.by='validation_error' needs validation examples: data.validation=0.")
    Range(1, 1024, whole=True).check("tune.seeds", part.seeds)
    Range(0, INT32_MAX - 1024, whole=True).check("tune.first_seed", part.first_seed)
    own = range(study.base.seed, study.base.seed + study.base.replicates)
    pilot = range(part.first_seed, part.first_seed + part.seeds)
    if own.start < pilot.stop and pilot.start < own.stop:
        raise UserError(
            f"tune.first_seed={part.first_seed} makes the pilots use seeds of the cells "
            f"({own.start} to {own.stop - 1}), so that lucky seeds would choose their own values; "
            f"allowed is {own.stop} or more."
        )
    return Tuning(over, part.by, part.seeds, part.first_seed)


def pilots(tuning: Tuning, cell: Cell) -> list[Cell]:
    """Returns the pilot runs of a cell, one per candidate, named ``plain-56-rate=0.1``."""
    seeds = {"seed": tuning.first_seed, "replicates": tuning.seeds}
    return [
        cell.changed(
            candidate | seeds, "tune.over", grid.cell_name(cell.config, {**cell.point, **candidate})
        )
        for candidate in tuning.candidates(cell.name)
    ]


def choose(tuning: Tuning, cell: Cell, workdir: storage.Path) -> Choice | None:
    """Chooses a cell's best candidate, or returns None if not all of its pilots have ended.

    A diverged seed counts with an error of 100 % and an infinite loss. If several candidates are
    equally good, as several at 0 %, the one with the lowest training loss is chosen.

    Args:
      tuning: of the study.
      cell: the cell.
      workdir: the study's folder.

    Raises:
      UserError: a pilot's folder is another run's, or its files are malformed.
    """
    ranked: list[tuple[float, float, int, Candidate]] = []
    candidates = tuning.candidates(cell.name)
    for values, pilot in zip(candidates, pilots(tuning, cell), strict=True):
        folder = workdir / reader.PILOTS / pilot.name
        identity.refuse_other(folder, pilot.config.to_dict())
        if not cell_folders.has_ended(folder, pilot):
            return None
        seeds = replicates.of_run(reader.read(folder))
        score, loss = (tuned.score(seeds, by) for by in (tuning.by, "training_loss"))
        ranked.append((score, loss, len(ranked), Candidate(values, score)))
    best = min(ranked)[-1]
    edges = {
        key: tuning.further(cell.name, key, value)
        for key, value in best.values.items()
        if tuning.is_at_the_edge(cell.name, key, value)
    }
    return Choice(best, tuple(candidate for *_, candidate in ranked), edges)


def chosen(tuning: Tuning, cell: Cell, workdir: storage.Path) -> Cell | None:
    """Returns a cell at its best candidate, or None if not all of its pilots have ended."""
    choice = choose(tuning, cell, workdir)
    if choice is None:
        return None
    best, count = choice.best, len(choice.candidates)
    logging.info(
        "%s: %s is the best of %d candidates (%s %.4g).",
        cell.name, tuned.show_values(best.values), count, tuning.by.replace("_", " "), best.score,
    )  # fmt: skip
    for key, further in choice.at_the_edge.items():
        logging.warning(
            "%s: %s=%s is at the edge of its candidates, and a better value may lie beyond; %s.",
            cell.name, key, settings.show(best.values[key]),
            f"add values to tune.over.{key}" if further is None
            else f"--extend tries {settings.show(further)}",
        )  # fmt: skip
    return cell.changed(best.values, "tune.over", cell.name)


def extended(tuning: Tuning, cells: Iterable[Cell], workdir: storage.Path) -> Tuning:
    """Returns the tuning with the next candidates of each cell whose best value is at an edge.

    Nothing is added for a cell with pilots that have not ended.

    Args:
      tuning: of the study.
      cells: those to consider.
      workdir: the study's folder.

    Raises:
      UserError: as in choose().
    """
    for cell in cells:
        choice = choose(tuning, cell, workdir)
        edges = choice.at_the_edge if choice else {}
        further = {key: value for key, value in edges.items() if value is not None}
        if not further:
            continue
        longer = tuning.with_values(cell.name, further)
        try:
            pilots(longer, cell)
        except UserError as e:  # allowed by itself, but not together with the cell's other settings
            logging.warning("%s is not extended: %s", cell.name, e)
        else:
            logging.info("%s: the best candidate is at the edge; the next is %s.",
                         cell.name, tuned.show_values(further))  # fmt: skip
            tuning = longer
    return tuning
