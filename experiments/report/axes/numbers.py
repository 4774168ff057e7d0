"""Everything along an axis as JSON, for summary.json."""

import dataclasses

from experiments.report.axes.answers import Estimate
from experiments.report.axes.model import Line, Value
from experiments.report.axes.rows import Section
from experiments.report.cells import CellResult
from experiments.report.replicates import Replicate

Json = dict[str, object]


def as_json(section: Section) -> Json:
    """Returns the numbers of a section; a value is a number, or a name."""
    across = section.across
    return {
        "study": across.study,
        "keys": across.axis.keys,
        "scale": across.axis.scale,
        "values": [*map(_value, across.axis.values)],
        "is_tuned": across.is_tuned,
        "by": across.by,
        "error": across.error.name,  # of gaps, cures and rankings
        "networks": [*map(_line, across.lines)],
        "gaps": [
            {
                "kind": gap.kind,
                "at": _value(gap.at),
                "deep": gap.deep,
                "shallow": gap.shallow,
                "seeds": gap.seeds,
                "gap": _estimate(gap.gap),
                "interaction": _estimate(gap.interaction),
            }
            for gap in section.gaps
        ],
        "best_by_depth": [
            {
                "kind": fit.kind,
                "best": {line.depth: _value(line.best) for line in fit.lines},
                "exponent": fit.law.exponent if fit.law else None,
                "ci95": fit.law.interval if fit.law else None,
            }
            for fit in section.fits
        ],
        "verdicts": [
            {
                "at": _value(row.at),
                "others": row.others,
                "claims": {
                    one.id: {
                        "verdict": one.verdict,
                        "difference": one.difference,
                        "ci95": one.ci95,
                    }
                    for one in row.judgements
                },
            }
            for row in section.verdicts
        ],
        "cures": [
            {
                "network": cure.line.name,
                "baseline": cure.baseline.name,
                "value": _value(cure.value),
                "above": _value(cure.above),
                "at_most": _value(cure.at_most),
            }
            for cure in section.cures
        ],
        "rankings": [
            {
                "networks": ranking.networks,
                "reference": _value(ranking.reference),
                "ranks": [
                    {
                        "value": _value(rank.value),
                        "settings": rank.value.note,
                        "minus": _estimate(rank.minus),
                        "p": rank.p,
                    }
                    for rank in ranking.ranks
                ],
            }
            for ranking in section.rankings
        ],
    }


def _line(line: Line) -> Json:
    return {
        "name": line.name,
        "kind": line.kind,
        "depth": line.depth,
        "points": [{"value": _value(v)} | _cell(cell) for v, cell in line.cells.items()],
        "best": _value(line.best),
        "is_at_the_edge": line.is_at_the_edge,
        "at_best": _cell(line.at_best) if line.at_best else None,
    }


def _cell(cell: CellResult) -> Json:
    return {
        "status": cell.status,
        "n": len(cell.healthy),
        "diverged": len(cell.diverged),
        "train_error": dataclasses.asdict(cell.stat(Replicate.train_error)),
        "train_loss": dataclasses.asdict(cell.stat(Replicate.train_loss)),
        "validation_error": dataclasses.asdict(cell.stat(Replicate.validation_error)),
        "test_error": dataclasses.asdict(cell.stat(Replicate.test_error)),
    }


def _value(value: Value | None) -> float | str | None:
    if value is None:
        return None
    return value.label if value.number is None else value.number


def _estimate(estimate: Estimate | None) -> Json | None:
    return dataclasses.asdict(estimate) if estimate else None
