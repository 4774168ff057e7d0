"""summary.json: every number of a report, for programs."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from experiments.report.cells import CellResult
from experiments.report.claims import Claim
from experiments.report.groups import Group
from experiments.report.paper import published, withheld
from experiments.report.replicates import Replicate


def make(groups: Sequence[Group], claims: Sequence[Claim], margin: float) -> dict[str, Any]:
    """Returns the content of summary.json; what is unknown is None, and nothing is NaN."""
    return {
        "groups": [
            {"label": g.label, "data": g.data, "note": g.note, "settings": g.settings}
            for g in groups
        ],
        "cells": [_cell(cell, group) for group in groups for cell in group.cells],
        "margin": margin,
        "claims": [dataclasses.asdict(c) | {"statement": c.statement} for c in claims],
    }


def _cell(cell: CellResult, group: Group) -> dict[str, Any]:
    number = published(cell)
    return {
        "name": cell.name,
        "group": group.label,
        "depth": cell.depth,
        "shortcut": cell.shortcut,
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
        "paper_left_out": withheld(cell),  # why; empty if it is not
        "device_seconds": cell.device_seconds,
        "notes": list(cell.notes),
    }
