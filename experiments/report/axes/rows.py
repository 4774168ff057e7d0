"""The tables along an axis, as Markdown, the page and the terminal show them."""

import dataclasses
from collections.abc import Sequence

from experiments.report.axes import answers, cures, ranking
from experiments.report.axes.answers import BestByDepth, Gap, Verdicts
from experiments.report.axes.cures import Cure
from experiments.report.axes.model import NAMES, VARIANT, Across, Error, Line
from experiments.report.axes.ranking import Ranking
from experiments.report.cells import CellResult
from experiments.report.claims import Judgement
from experiments.report.claims.registry import POINTS
from experiments.report.statistics import DASH
from experiments.report.table import show_difference, show_n, show_p
from experiments.report.tuned import show_values
from resnet_jax.runs import reader

FRESH = (
    "The points along the axis are pilot runs, whose seeds are in no other number. The numbers at "
    "the best values come from fresh seeds, trained after the choice."
)
SAME_SEEDS = (
    "The seeds shown at a network's best value are those that chose it. This favours lucky seeds: "
    "errors at the best values are too low, and the verdicts there are less certain than their "
    "intervals say. A tuned study (docs/tuning.md) uses fresh seeds."
)
VARIANTS = "All variants are shown, so none was selected by its result."
GAPS = (
    "The interaction is the gap at a common value minus the gap at the best values: the part of "
    "the gap that is due to the common value. Each interval is at 95 %, without a correction for "
    "their number."
)
EDGE = "at the edge"  # a better value may lie beyond
EXPONENT = (
    "The best value is fitted by factor x depth^exponent, with least squares on logarithms. The "
    "95 % interval is never narrower than the spacing of the values allows (docs/statistics.md)."
)


@dataclasses.dataclass(frozen=True)
class Field:
    """A cell of a table."""

    text: str
    is_best: bool = False
    note: str = ""  # small, below the text
    is_verdict: bool = False


@dataclasses.dataclass(frozen=True)
class Table:
    """A table with its title; `is_number` is per column."""

    title: str
    headings: tuple[str, ...]
    rows: tuple[tuple[Field, ...], ...]
    is_number: tuple[bool, ...]
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Section:
    """A study along one axis: every number, verdict and table."""

    across: Across
    gaps: list[Gap]
    fits: list[BestByDepth]
    verdicts: list[Verdicts]
    rankings: list[Ranking]  # only for an axis of names
    cures: list[Cure]
    margin: float

    @property
    def title(self) -> str:
        """The axis with its ends, as in ``Along schedule.rate, from 0.005 to 0.1``."""
        axis = self.across.axis
        keys = VARIANT if axis.keys[0] == VARIANT else ", ".join(axis.keys)
        if axis.scale == NAMES:
            return f"Along {keys}: {len(axis.values)} values"
        return f"Along {keys}, from {axis.values[0].label} to {axis.values[-1].label}"

    @property
    def origin(self) -> str:
        """How the best values were chosen, and what that means for the numbers there."""
        if self.across.is_variants:
            return VARIANTS
        return FRESH if self.across.is_tuned else SAME_SEEDS

    @property
    def tables(self) -> list[Table]:
        """Every table that has a row."""
        across = self.across
        tables = [_ranking_table(across, each) for each in self.rankings]
        if len(tables) != 1:
            tables.insert(0, errors(across))
        tables.append(_verdict_table(across, self.verdicts))
        by_kind = [[gap for gap in self.gaps if gap.kind == kind] for kind in across.kinds]
        gap_tables = [_gap_table(across, own) for own in by_kind if own]
        tables += gap_tables[:-1]
        tables += [dataclasses.replace(table, note=GAPS) for table in gap_tables[-1:]]
        tables += [_fit_table(across, self.fits), _cure_table(across, self.cures, self.margin)]
        return [table for table in tables if table.rows]


def section(across: Across, margin: float) -> Section:
    """Returns the section of a report on one axis of a study.

    Args:
      across: the study along the axis.
      margin: claim 2's margin, in percentage points.
    """
    # Of a recipe's setting, such as the rate, neither small nor large values cure.
    is_dose = across.axis.keys[0].startswith("model.")
    return Section(
        across,
        answers.gaps(across),
        answers.best_by_depth(across),
        answers.verdicts(across, margin),
        ranking.rankings(across),
        cures.smallest(across, margin) if is_dose else [],
        margin,
    )


def errors(across: Across) -> Table:
    """Returns the error of each network with each value, with the best one marked."""
    name, is_tuned = across.axis.name, across.is_tuned
    headings = ["network", *(value.label for value in across.axis.values), f"best {name}"]
    headings += ["at the best, fresh seeds"] if is_tuned else []
    rows = []
    for line in across.lines:
        fields = [Field(line.name)]
        for value in across.axis.values:
            cell = line.cells.get(value)
            fields.append(_error(cell, across.error, is_best=value == line.best))
        edge = EDGE if line.is_at_the_edge else ""
        fields.append(Field(line.best.label if line.best else DASH, note=edge))
        rows.append((*fields, _error(line.at_best, across.error)) if is_tuned else tuple(fields))
    chosen = across.by.replace("_", " ")
    error = across.error.name.capitalize()
    note = f"{error} in %. Bold: the best {name} of each network, by {chosen}."
    return Table(
        f"{error} by network and {name}",
        tuple(headings),
        tuple(rows),
        (False, *[True] * (len(headings) - 1)),
        note,
    )


def _ranking_table(across: Across, ranked: Ranking) -> Table:
    rows = [
        (
            Field(rank.value.label, is_best=rank is ranked.ranks[0], note=rank.value.note),
            Field(
                str(rank.cell.stat(across.error.measure)),
                note=show_values(rank.cell.values_of(across.tuned)),
            ),
            Field(show_n(rank.cell)),
            Field(show_difference(rank.minus)),
            Field(show_p(rank.p)),
        )
        for rank in ranked.ranks
    ]
    minus = f"minus {ranked.reference.label}, points"
    headings = (across.axis.name, f"{across.error.name}, %", "n", minus, "p")
    note = "Intervals hold together, and p-values are corrected likewise (Holm)."
    is_number = (False, True, True, True, True)
    return Table(f"{ranked.networks}: ranked", headings, tuple(rows), is_number, note)


def _error(cell: CellResult | None, error: Error, is_best: bool = False) -> Field:
    if cell is None:
        return Field(DASH)
    if cell.status not in reader.ENDED:
        return Field(DASH, note=cell.status)
    note = f"{len(cell.diverged)} of {len(cell.replicates)} diverged" if cell.diverged else ""
    return Field(str(cell.stat(error.measure)), is_best, note)


def _gap_table(across: Across, gaps: Sequence[Gap]) -> Table:
    """Returns the gaps of one kind of net."""
    headings = ("networks", "gap, points", "interaction, points", "seeds")
    rows = [
        (
            Field(answers.condition(across, gap.at), is_best=gap.at is None),
            Field(show_difference(gap.gap)),
            Field(show_difference(gap.interaction)),
            Field("{} and {}".format(*gap.seeds)),
        )
        for gap in gaps
    ]
    title = f"Gap in {across.error.name}: {gaps[0].deep} minus {gaps[0].shallow}"
    return Table(title, headings, tuple(rows), (False, True, True, True))


def _fit_table(across: Across, fits: Sequence[BestByDepth]) -> Table:
    headings = ("nets", "best value by depth", "exponent", "95 % interval")
    rows = []
    for fit in fits:
        best = ", ".join(f"{line.depth}: {_best(line)}" for line in fit.lines)
        if fit.law:
            shown = [f"{fit.law.exponent:+.2f}", "{:+.2f} to {:+.2f}".format(*fit.law.interval)]
            rows.append((Field(fit.kind), Field(best), *map(Field, shown)))
        else:
            lack = answers.lacks_depths(fit)
            rows.append((Field(fit.kind), Field(best, note=lack), Field(DASH), Field(DASH)))
    number = (False, False, True, True)
    return Table(f"Best {across.axis.name} against depth", headings, tuple(rows), number, EXPONENT)


def _best(line: Line) -> str:
    label = line.best.label if line.best else DASH
    return f"{label} ({EDGE})" if line.is_at_the_edge else label


def _cure_table(across: Across, found: Sequence[Cure], margin: float) -> Table:
    name = across.axis.name
    headings = (
        "network",
        "compared with",
        f"smallest {name} that cures",
        "certainly above",
        "at most",
    )
    rows = [
        (
            Field(cure.line.name),
            Field(cure.baseline.name),
            *(
                Field(value.label if value else DASH)
                for value in (cure.value, cure.above, cure.at_most)
            ),
        )
        for cure in found
    ]
    note = (
        f"From this {name} on, the {across.error.name} is above that of the shallowest net with "
        f"the same {name} by no more than {margin:g} points: by the means, and by intervals at "
        "95 %, which are tested from the largest value down."
    )
    number = (False, False, True, True, True)
    return Table(f"Smallest {name} that cures", headings, tuple(rows), number, note)


def _verdict_table(across: Across, rows: Sequence[Verdicts]) -> Table:
    tested = {one.id: one for row in rows for one in row.judgements}
    headings = [f"({id}) {tested[id].statement}" for id in sorted(tested)]
    fields = []
    for row in rows:
        by_id = {one.id: one for one in row.judgements}
        shown = [_verdict(by_id.get(id)) for id in sorted(tested)]
        name = answers.condition(across, row.at, row.others)
        fields.append((Field(name, is_best=row.at is None), *shown))
    return Table(
        "Verdicts: each network at its best value, and all at one value",
        ("networks", *headings),
        tuple(fields),
        (False,) * (1 + len(headings)),
        f"Differences in {POINTS} unless said otherwise, with 95 % intervals.",
    )


def _verdict(judgement: Judgement | None) -> Field:
    if judgement is None:
        return Field(DASH)
    unit = judgement.claim.unit
    shown = show_difference(judgement, "" if unit == POINTS else f" {unit}")
    return Field(judgement.verdict, note=shown, is_verdict=True)
