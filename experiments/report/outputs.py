"""The files of numbers: JSON and CSV for programs, Markdown and text for people."""

import csv
import dataclasses
import io
import json
from collections.abc import Sequence

from experiments.cli import tables
from experiments.report import headlines
from experiments.report.axes import numbers
from experiments.report.axes.model import all_variants
from experiments.report.axes.rows import Field
from experiments.report.cells import CellResult
from experiments.report.claims import Judgement
from experiments.report.claims.comparisons import COMPARED
from experiments.report.claims.registry import NOT_TESTED
from experiments.report.contents import Contents
from experiments.report.groups import Group
from experiments.report.paper import published, withheld
from experiments.report.replicates import Replicate
from experiments.report.table import (
    COLUMNS,
    COMPARISON_HEADINGS,
    claim_sections,
    comparison_row,
    footnotes,
    show_difference,
    trial_headings,
    trial_note,
    trial_rows,
)
from experiments.report.tuned import Trial, show_values

CSV_COLUMNS = (
    "group", "name", "depth", "shortcut", "tuned", "parameters", "mult_adds", "n", "diverged",
    "train_error_mean", "train_error_std", "validation_error_mean", "validation_error_std",
    "test_error_mean", "test_error_std", "paper_error", "paper_source", "status", "step", "steps",
    "device_seconds", "data_note", "notes",
)  # fmt: skip


def as_json(contents: Contents) -> str:
    """Returns summary.json: every number of a report; null stands for unknown, NaN never occurs."""
    content = {
        "groups": [
            {"label": g.label, "data": g.data, "note": g.note, "settings": g.settings}
            for g in contents.groups
        ],
        "cells": [_cell(cell, group) for group in contents.groups for cell in group.cells],
        "margin": contents.margin,
        "claims": [*map(_judgement, contents.judgements)],
        "axes": [*map(numbers.as_json, contents.sections)],
        "tuning": [
            {
                "study": tuning.study,
                "tuned": tuning.keys,
                "by": tuning.by,
                "trials": [*map(_trial, tuning.trials)],
            }
            for tuning in contents.tunings
        ],
    }
    return json.dumps(content, indent=2, allow_nan=False) + "\n"


def as_csv(contents: Contents) -> str:
    """Returns one row per cell with plain numbers, and a column per axis; missing ones are empty.

    Pilots come last; their group is ``pilots of STUDY``.
    """
    keys = list(dict.fromkeys(k for section in contents.sections for k in section.across.axis.keys))
    out = io.StringIO()
    columns = [*CSV_COLUMNS, *keys]
    writer = csv.DictWriter(out, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    rows = [(cell, group) for group in contents.groups for cell in group.cells]
    for tuning in contents.tunings:
        pilots = Group(f"pilots of {tuning.study}", {}, "", tuple(t.cell for t in tuning.trials))
        rows += [(cell, pilots) for cell in pilots.cells]
    for cell, group in rows:
        row = _cell(cell, group) | cell.values_of(keys)
        row |= {"data_note": group.note, "notes": "; ".join(cell.notes)}
        for error in ("train_error", "validation_error", "test_error"):
            stat = cell.stat(getattr(Replicate, error))
            row |= {f"{error}_mean": stat.mean, f"{error}_std": stat.std}
        writer.writerow(row)
    return out.getvalue()


def as_markdown(contents: Contents) -> str:
    """Returns a table per group with its notes, then the claims and what the pilots found."""
    lines = []
    for group in contents.groups:
        rows = [[column.show(cell) for column in COLUMNS] for cell in group.cells]
        lines += [f"## {group.label}", ""]
        lines += _table(
            [column.heading for column in COLUMNS], rows, [column.is_number for column in COLUMNS]
        )
        lines += ["", *(f"{note}.\n" for note in footnotes(group))]
    for stage in claim_sections(contents.judgements):
        rows = [
            [j.group, f"({j.id}) {j.statement}", j.verdict, _with_unit(j), j.detail]
            for j in stage.judgements
        ]
        lines += [f"## {stage.heading}", "", stage.note, ""]
        lines += [*_table(["group", "claim", "verdict", "difference", "detail"], rows), ""]
    rows = [
        [judgement.group, f"({judgement.id})", *comparison_row(comparison)]
        for judgement in contents.judgements
        for comparison in judgement.comparisons
    ]
    lines += [COMPARED, "", *_table(["group", "claim", *COMPARISON_HEADINGS], rows), ""]
    for sentences in headlines.not_tested(contents.judgements).values():
        lines += [f"{sentence}\n" for sentence in sentences]
    for section in contents.sections:
        lines += [f"## {section.title} ({section.across.study})", "", section.origin, ""]
        for table in section.tables:
            rows = [[_field(field) for field in row] for row in table.rows]
            lines += [f"### {table.title}", "", *_table(table.headings, rows, table.is_number), ""]
            lines += [table.note, ""]
    for tuning in contents.tunings:
        headings, is_number = trial_headings(tuning)
        trials = _table(headings, trial_rows(tuning), is_number)
        lines += [f"## Tuning: {tuning.study}", "", *trials, "", trial_note(tuning), ""]
    return "\n".join(lines)


def _with_unit(judgement: Judgement) -> str:
    return show_difference(judgement, f" {judgement.claim.unit}")


def as_text(contents: Contents) -> tables.Parts:
    """Returns the report for a terminal: a short table per group, and the verdicts."""
    metrics = ("name", "train_error", "validation_error", "test_error", "n", "status")
    columns = [column for column in COLUMNS if column.metric in metrics]
    parts: list[tables.RenderableType] = []
    for group in contents.groups:
        rows = [[c.heading for c in columns]]
        rows += [[column.show(cell) for column in columns] for cell in group.cells]
        parts += [group.label, tables.aligned(rows, indent=2)]
        parts += [f"  {note}." for note in footnotes(group)]
        parts += [*_verdicts(contents, group.label), ""]
    for sentences in headlines.not_tested(contents.judgements).values():
        parts += sentences
    parts.append("")
    for across in contents.sections:
        parts += [f"{across.title} ({across.across.study})", across.origin]
        parts += _verdicts(contents, all_variants(across.across).label)
        for table in across.tables:
            fields = [[_field(field, bold="*") for field in row] for row in table.rows]
            parts += [f"  {table.title}", tables.aligned([table.headings, *fields], indent=4)]
        parts.append("")
    for tuning in contents.tunings:
        pilots = tables.aligned([trial_headings(tuning)[0], *trial_rows(tuning)], indent=2)
        parts += [f"tuning of {tuning.study}", trial_note(tuning), pilots, ""]
    return parts


def _field(field: Field, bold: str = "**") -> str:
    shown = f"{bold}{field.text}{bold}" if field.is_best else field.text
    return f"{shown} ({field.note})" if field.note else shown


def _verdicts(contents: Contents, label: str) -> tables.Parts:
    """Returns the verdicts on a group's claims, those named before the runs first."""
    parts: list[tables.RenderableType] = []
    for section in claim_sections([one for one in contents.judgements if one.group == label]):
        parts.append(f"  {section.heading}")
        for judgement in section.judgements:
            parts += _verdict(judgement) if judgement.verdict != NOT_TESTED else []
    return parts


def _verdict(judgement: Judgement) -> tables.Parts:
    text = f"  ({judgement.id}) {judgement.statement}: {judgement.verdict}"
    if judgement.difference is not None:
        text += f", {_with_unit(judgement)}"
    parts: list[tables.RenderableType] = [f"{text}; {judgement.detail}"]
    if len(judgement.comparisons) > 1:
        rows = [comparison_row(comparison) for comparison in judgement.comparisons]
        parts.append(tables.aligned([COMPARISON_HEADINGS, *rows], indent=6))
    return parts


def _judgement(judgement: Judgement) -> dict[str, object]:
    naming = judgement.naming
    return {
        key: value for key, value in dataclasses.asdict(judgement).items() if key != "naming"
    } | {
        "statement": judgement.statement,
        "source": judgement.claim.source,
        "named_before_runs": naming.before_runs,
        "named_at": naming.at or None,
    }


def _trial(trial: Trial) -> dict[str, object]:
    return {
        "network": trial.network,
        "values": trial.values,
        "is_chosen": trial.is_chosen,
        "n": len(trial.cell.healthy),
        "diverged": len(trial.cell.diverged),
        "train_loss": dataclasses.asdict(trial.cell.stat(Replicate.train_loss)),
        "train_error": dataclasses.asdict(trial.cell.stat(Replicate.train_error)),
        "validation_error": dataclasses.asdict(trial.cell.stat(Replicate.validation_error)),
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


def _table(
    headings: Sequence[str], rows: Sequence[Sequence[str]], is_number: Sequence[bool] = ()
) -> list[str]:
    """Returns the lines of a Markdown table; columns of numbers are aligned to the right."""
    rules = ["---:" if number else "---" for number in is_number] or ["---"] * len(headings)
    return [*map(_row, (headings, rules, *rows))]


def _row(fields: Sequence[str]) -> str:
    return "| " + " | ".join(field.replace("|", "\\|") for field in fields) + " |"
