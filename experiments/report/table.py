"""The rows of a report's tables, as Markdown, the page and the terminal show them."""

import dataclasses
from collections.abc import Callable, Sequence

from experiments.report.axes.answers import Estimate
from experiments.report.cells import CellResult, Measure
from experiments.report.claims import Judgement
from experiments.report.claims.comparisons import Comparison
from experiments.report.claims.registry import NOT_TESTED
from experiments.report.groups import Group
from experiments.report.paper import published, withheld
from experiments.report.replicates import Replicate, has_long_rows
from experiments.report.statistics import DASH
from experiments.report.tuned import TunedStudy, show_values
from resnet_jax.runs import reader
from resnet_jax.runs.progress import show_time

CHOSEN = "chosen"
NAMED = "The study's config named these claims before it had any run."
OBSERVED = (
    "The study's config did not name these claims before its runs. A claim chosen after its result "
    "was seen is confirmed more often than its intervals say"
)
COMPARISON_HEADINGS = ("network", "minus", "difference", "result", "p", "seeds")


@dataclasses.dataclass(frozen=True)
class Column:
    """A column of the tables for people."""

    metric: str  # the name in summary.json and in the page's data-metric attributes
    heading: str
    show: Callable[[CellResult], str]
    is_number: bool = False


def show_status(cell: CellResult) -> str:
    """Returns the status, with the step of an unfinished cell and the diverged replicates."""
    text = cell.status
    if cell.status not in reader.ENDED:
        text += f" at step {cell.step:,} of {cell.steps:,}"
    if cell.diverged:
        text += f"; {len(cell.diverged)} of {len(cell.replicates)} diverged"
    return text


def show_n(cell: CellResult) -> str:
    """Returns the number of replicates in the means, as ``3 of 5`` if some diverged."""
    n = str(len(cell.healthy))
    return f"{n} of {len(cell.replicates)}" if cell.diverged else n


def _show_paper(cell: CellResult) -> str:
    number = published(cell.config)
    return f"{number.error:.2f}" if number else DASH


def _show_count(value: int | None) -> str:
    return DASH if value is None else f"{value:,}"


def _error(metric: str, heading: str, measure: Measure) -> Column:
    return Column(metric, heading, lambda cell: str(cell.stat(measure)), is_number=True)


COLUMNS = (
    Column("name", "network", lambda c: c.name),
    Column("parameters", "parameters", lambda c: _show_count(c.parameters), is_number=True),
    Column("mult_adds", "mult-adds", lambda c: _show_count(c.mult_adds), is_number=True),
    _error("train_error", "training error, %", Replicate.train_error),
    _error("validation_error", "validation error, %", Replicate.validation_error),
    _error("test_error", "test error, %", Replicate.test_error),
    Column("n", "n", show_n, is_number=True),
    Column("paper_error", "paper, %", _show_paper, is_number=True),
    Column("status", "status", show_status),
    Column("device_seconds", "device time", lambda c: show_time(c.device_seconds)),
)


def trial_headings(tuning: TunedStudy) -> tuple[list[str], list[bool]]:
    """Returns the headings of trial_rows(), and which columns hold numbers."""
    measured = ["training loss", "training error, %"]
    measured += ["validation error, %"] * (tuning.by == "validation_error")
    headings = ["network", "candidate", *measured, "n", ""]
    return headings, [heading in (*measured, "n") for heading in headings]


def trial_rows(tuning: TunedStudy) -> list[list[str]]:
    """Returns a table of a study's pilots; CHOSEN marks the chosen candidates."""
    rows = []
    for trial in tuning.trials:
        loss = trial.cell.stat(Replicate.train_loss).mean
        errors = [trial.cell.stat(Replicate.train_error)]
        if tuning.by == "validation_error":
            errors.append(trial.cell.stat(Replicate.validation_error))
        measured = [DASH if loss is None else f"{loss:.4g}", *map(str, errors)]
        row = [trial.network, show_values(trial.values), *measured, show_n(trial.cell)]
        rows.append([*row, CHOSEN if trial.is_chosen else ""])
    return rows


def trial_note(tuning: TunedStudy) -> str:
    """Returns what the pilots are and how they choose."""
    return (
        f"Pilot runs: each network takes the candidate with the lowest "
        f"{tuning.by.replace('_', ' ')}; the training loss decides between equal ones. Its own "
        "seeds were trained there, and the seeds of the pilots are in no other number of the study."
    )


def footnotes(group: Group) -> list[str]:
    """Returns the notes below a group's numbers, without full stops."""
    notes = [group.note.rstrip(".")] if group.note else []
    if group.tuned:
        best = [f"{cell.name} {show_values(cell.values_of(group.tuned))}" for cell in group.cells]
        notes.append(f"each network is at its best candidate: {'; '.join(best)}")
    if group.warmed_up:
        names, were = ", ".join(group.warmed_up), "was" if len(group.warmed_up) == 1 else "were"
        notes.append(
            f"{names} {were} warmed up at a rate of 0.01 until the training error fell below 80 %, "
            "as in the paper (section 4.2); the others were not"
        )
    for cell in group.cells:
        diverged = [f"seed {r.seed} at step {r.diverged_at:,}" for r in cell.diverged]
        if diverged:
            words = "diverged; in no mean, counted as 100 % by claims"
            notes.append(f"{cell.name}: {', '.join(diverged)} {words}")
        notes += [f"{cell.name}: {note}" for note in cell.notes]
        number = published(cell.config)
        if number and number.remark:
            notes.append(f"{cell.name}: the paper's number is {number.remark}")
    blurred = [c.name for c in group.cells if any(map(has_long_rows, c.runs))]
    if blurred:
        words = (
            "training error is the mean over the last log.every steps, more than an epoch or a "
            "quarter of the run"
        )
        notes.append(f"{words}: {', '.join(blurred)}")
    by_moving_averages = [
        cell.name
        for cell in group.cells
        if cell.values(Replicate.validation_error)
        and any(reader.has_moving_averages(r.run) for r in cell.healthy)
    ]
    if by_moving_averages:
        words = "validation error with BatchNorm's moving averages, not its population statistics"
        notes.append(f"{words}: {', '.join(by_moving_averages)}")
    sources: dict[str, list[str]] = {}
    for cell in group.cells:
        if number := published(cell.config):
            words = f"paper, {number.split} error, He et al. 2015, {number.source}"
            sources.setdefault(words, []).append(cell.name)
        elif reason := withheld(cell.config):
            words = f"the paper's number is left out, because of {reason}"
            sources.setdefault(words, []).append(cell.name)
        for words in {w: 0 for run in cell.runs for w in run.environment.get("without_effect", [])}:
            sources.setdefault(words, []).append(cell.name)
    notes += [f"{words}: {', '.join(names)}" for words, names in sources.items()]
    return notes


@dataclasses.dataclass(frozen=True)
class ClaimSection:
    """Judgements of claims that were named at the same stage of their study."""

    heading: str
    note: str
    judgements: tuple[Judgement, ...]


def claim_sections(judgements: Sequence[Judgement]) -> list[ClaimSection]:
    """Separates the claims named before the runs from later observations; no section is empty.

    A claim that is not tested in a group is left out unless it was named and no group tests it.
    """
    tested = {one.id for one in judgements if one.verdict != NOT_TESTED}
    judgements = [
        one
        for one in judgements
        if one.verdict != NOT_TESTED or (one.naming.at and one.id not in tested)
    ]
    named = tuple(one for one in judgements if one.naming.before_runs)
    later = tuple(one for one in judgements if not one.naming.before_runs)
    added = {f"claim {one.id} {one.naming}" for one in later if one.naming.at}
    after = f" ({', '.join(sorted(added))})" if added else ""
    sections = (
        ClaimSection("Claims named before the runs", NAMED, named),
        ClaimSection("Later observations", f"{OBSERVED}{after}.", later),
    )
    return [section for section in sections if section.judgements]


def show_difference(compared: Judgement | Comparison | Estimate | None, unit: str = "") -> str:
    """Returns ``+1.25 [+0.90, +1.60]``: the difference with its 95 % interval."""
    if compared is None or compared.difference is None:
        return DASH
    ci95 = compared.ci95
    interval = ", no interval" if ci95 is None else " [{:+.2f}, {:+.2f}]".format(*ci95)
    return f"{compared.difference:+.2f}{unit}{interval}"


def show_p(p: float | None) -> str:
    """Returns a p-value with three decimals."""
    return DASH if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"


def comparison_row(comparison: Comparison) -> list[str]:
    """Returns the cells of a comparison's row, under COMPARISON_HEADINGS."""
    seeds = "{} and {}".format(*comparison.seeds) + (", paired" if comparison.paired else "")
    return [
        comparison.network,
        comparison.baseline,
        show_difference(comparison),
        comparison.outcome,
        show_p(comparison.p),
        seeds,
    ]
