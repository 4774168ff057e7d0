"""The numbers of a report: JSON and CSV for programs, Markdown and text for people."""

import csv
import dataclasses
import io
import json
from collections.abc import Callable, Sequence

from experiments.cli import tables
from experiments.report.cells import CellResult, Measure
from experiments.report.claims import COMPARED, NOT_TESTED, Claim, Comparison
from experiments.report.groups import Group
from experiments.report.paper import published, withheld
from experiments.report.replicates import Replicate, longer_than_an_epoch
from experiments.report.statistics import DASH
from experiments.report.tuned import Trial, TunedStudy, show_values
from resnet_jax.runs import reader
from resnet_jax.runs.progress import show_time

CHOSEN = "chosen"
TUNED = (
    "Pilot runs. The seeds of a network itself were trained at the chosen candidate; the seeds of "
    "the pilots are in no other number of the study."
)
COMPARISON_HEADINGS = ("network", "minus", "difference, points", "result", "p", "seeds")


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
CSV_COLUMNS = (
    "group", "name", "depth", "shortcut", "tuned", "parameters", "mult_adds", "n", "diverged",
    "train_error_mean", "train_error_std", "validation_error_mean", "validation_error_std",
    "test_error_mean", "test_error_std", "paper_error", "paper_source", "status", "step", "steps",
    "device_seconds", "data_note", "notes",
)  # fmt: skip


def as_json(
    groups: Sequence[Group], claims: Sequence[Claim], margin: float, tunings: Sequence[TunedStudy]
) -> str:
    """Returns summary.json: every number of a report; null stands for unknown, NaN never occurs."""
    content = {
        "groups": [
            {"label": g.label, "data": g.data, "note": g.note, "settings": g.settings}
            for g in groups
        ],
        "cells": [_cell(cell, group) for group in groups for cell in group.cells],
        "margin": margin,
        "claims": [dataclasses.asdict(c) | {"statement": c.statement} for c in claims],
        "tuning": [
            {"study": tuning.study, "tuned": tuning.keys, "trials": [*map(_trial, tuning.trials)]}
            for tuning in tunings
        ],
    }
    return json.dumps(content, indent=2, allow_nan=False) + "\n"


def as_csv(groups: Sequence[Group]) -> str:
    """Returns one row per cell with plain numbers; missing ones are empty."""
    out = io.StringIO()
    writer = csv.DictWriter(out, CSV_COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for group in groups:
        for cell in group.cells:
            row = _cell(cell, group) | {"data_note": group.note, "notes": "; ".join(cell.notes)}
            for error in ("train_error", "validation_error", "test_error"):
                stat = cell.stat(getattr(Replicate, error))
                row |= {f"{error}_mean": stat.mean, f"{error}_std": stat.std}
            writer.writerow(row)
    return out.getvalue()


def as_markdown(
    groups: Sequence[Group], claims: Sequence[Claim], tunings: Sequence[TunedStudy]
) -> str:
    """Returns a table per group with its notes, then the claims and what the pilots found."""
    lines = []
    for group in groups:
        lines += [f"## {group.label}", ""]
        lines += [_row([column.heading for column in COLUMNS]), _row(["---"] * len(COLUMNS))]
        lines += [_row([column.show(cell) for column in COLUMNS]) for cell in group.cells]
        lines += ["", *(f"{note}.\n" for note in footnotes(group))]
    lines += ["## Claims", "", "| group | claim | verdict | difference, points | detail |"]
    lines.append("| --- | --- | --- | --- | --- |")
    for claim in claims:
        shown = [claim.group, f"({claim.id}) {claim.statement}", claim.verdict]
        shown += [show_difference(claim), claim.detail]
        lines.append(_row(shown))
    lines += ["", COMPARED, "", _row(["group", "claim", *COMPARISON_HEADINGS])]
    lines += [_row(["---"] * (2 + len(COMPARISON_HEADINGS)))]
    for claim in claims:
        for comparison in claim.comparisons:
            lines.append(_row([claim.group, f"({claim.id})", *comparison_row(comparison)]))
    lines += ["", NOT_TESTED, ""]
    for tuning in tunings:
        headings, *rows = trial_rows(tuning)
        lines += [f"## Tuning: {tuning.study}", "", _row(headings), _row(["---"] * len(headings))]
        lines += [*map(_row, rows), "", TUNED, ""]
    return "\n".join(lines)


def as_text(
    groups: Sequence[Group], claims: Sequence[Claim], tunings: Sequence[TunedStudy]
) -> tables.Parts:
    """Returns the report for a terminal: a short table per group, and the verdicts."""
    metrics = ("name", "train_error", "validation_error", "test_error", "n", "status")
    columns = [column for column in COLUMNS if column.metric in metrics]
    parts: list[tables.RenderableType] = []
    for group in groups:
        rows = [[c.heading for c in columns]]
        rows += [[column.show(cell) for column in columns] for cell in group.cells]
        parts += [group.label, tables.aligned(rows, indent=2)]
        parts += [f"  {note}." for note in footnotes(group)]
        for claim in claims:
            if claim.group == group.label:
                text = f"  ({claim.id}) {claim.statement}: {claim.verdict}"
                if claim.difference is not None:
                    text += f", {show_difference(claim, ' points')}"
                parts.append(f"{text}; {claim.detail}")
                if len(claim.comparisons) > 1:
                    rows = [comparison_row(comparison) for comparison in claim.comparisons]
                    parts.append(tables.aligned([COMPARISON_HEADINGS, *rows], indent=6))
        parts.append("")
    for tuning in tunings:
        parts += [f"tuning of {tuning.study}", tables.aligned(trial_rows(tuning), indent=2), ""]
    return parts


def trial_rows(tuning: TunedStudy) -> list[list[str]]:
    """Returns a table of a study's pilots, with headings; CHOSEN marks the chosen candidates."""
    rows = [["network", "candidate", "training loss", "training error, %", "n", ""]]
    for trial in tuning.trials:
        loss, error = (trial.cell.stat(m) for m in (Replicate.train_loss, Replicate.train_error))
        shown = DASH if loss.mean is None else f"{loss.mean:.4g}"
        row = [trial.cell.name, show_values(trial.values), shown, str(error), show_n(trial.cell)]
        rows.append([*row, CHOSEN if trial.is_chosen else ""])
    return rows


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
    blurred = [c.name for c in group.cells if any(map(longer_than_an_epoch, c.runs))]
    if blurred:
        words = "training error is the mean over log.every steps, which are more than an epoch"
        notes.append(f"{words}: {', '.join(blurred)}")
    by_moving_averages = [
        cell.name
        for cell in group.cells
        if cell.values(Replicate.validation_error)
        and any(r.validation_metric == reader.MOVING_AVERAGES for r in cell.healthy)
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


def show_difference(compared: Claim | Comparison, unit: str = "") -> str:
    """Returns ``+1.25 [+0.90, +1.60]``: the difference with its 95 % interval."""
    if compared.difference is None:
        return DASH
    ci95 = compared.ci95
    interval = ", no interval" if ci95 is None else " [{:+.2f}, {:+.2f}]".format(*ci95)
    return f"{compared.difference:+.2f}{unit}{interval}"


def comparison_row(comparison: Comparison) -> list[str]:
    """Returns the cells of a comparison's row, under COMPARISON_HEADINGS."""
    p = comparison.p
    seeds = "{} and {}".format(*comparison.seeds) + (", paired" if comparison.paired else "")
    return [
        comparison.network,
        comparison.baseline,
        show_difference(comparison),
        comparison.outcome,
        DASH if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}",
        seeds,
    ]


def _trial(trial: Trial) -> dict[str, object]:
    return {
        "network": trial.cell.name,
        "values": trial.values,
        "is_chosen": trial.is_chosen,
        "n": len(trial.cell.healthy),
        "diverged": len(trial.cell.diverged),
        "train_loss": dataclasses.asdict(trial.cell.stat(Replicate.train_loss)),
        "train_error": dataclasses.asdict(trial.cell.stat(Replicate.train_error)),
    }


def _cell(cell: CellResult, group: Group) -> dict[str, object]:
    number = published(cell.config)
    return {
        "name": cell.name,
        "group": group.label,
        "depth": cell.depth,
        "shortcut": cell.shortcut,
        "tuned": show_values(cell.values_of(group.tuned)),
        "n": len(cell.healthy),
        "diverged": len(cell.diverged),
        "status": cell.status,
        "step": cell.step,
        "steps": cell.steps,
        "parameters": cell.parameters,
        "mult_adds": cell.mult_adds,
        "train_error": dataclasses.asdict(cell.stat(Replicate.train_error)),
        "validation_error": dataclasses.asdict(cell.stat(Replicate.validation_error)),
        "test_error": dataclasses.asdict(cell.stat(Replicate.test_error)),
        "paper_error": number.error if number else None,
        "paper_split": number.split if number else None,
        "paper_source": number.source if number else None,
        "paper_left_out": withheld(cell.config),  # the reason, empty if it is not left out
        "device_seconds": cell.device_seconds,
        "notes": list(cell.notes),
    }


def _row(fields: Sequence[str]) -> str:
    return "| " + " | ".join(field.replace("|", "\\|") for field in fields) + " |"
