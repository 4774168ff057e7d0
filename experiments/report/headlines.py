"""The verdicts that a report opens with."""

import dataclasses
from collections.abc import Sequence

from experiments.report.axes import answers, cures
from experiments.report.axes.model import all_variants
from experiments.report.claims import Judgement
from experiments.report.claims.registry import NEEDS_VARIANTS, NOT_TESTED, RECIPE
from experiments.report.contents import Contents


@dataclasses.dataclass(frozen=True)
class Headline:
    """The tested claims of one group, or of one study with each network at its best value.

    A study of variants has the summary of its ranking instead, a study of doses its smallest cures
    as well.
    """

    label: str
    lead: str  # how the networks' values were chosen; or a summary
    note: str  # a warning about the data
    judgements: tuple[Judgement, ...]


def of(contents: Contents) -> list[Headline]:
    """Returns the headlines.

    The groups of an untuned study with an axis are its values. Their verdicts are in the section on
    the axis, so that the report opens with each network at its best value.
    """
    untuned = [section for section in contents.sections if not section.across.is_tuned]
    headlines = [
        Headline(
            f"{section.across.study}: {answers.condition(section.across, None, row.others)}",
            section.origin,
            "",
            row.judgements,
        )
        for section in untuned
        for row in section.verdicts
        if row.at is None
    ]
    headlines += [
        Headline(
            f"{section.across.study}: smallest {section.across.axis.name} that cures",
            cures.summary(section.cures),
            "",
            (),
        )
        for section in untuned
        if section.cures
    ]
    headlines += [
        Headline(
            f"{section.across.study}: {each.networks}",
            each.summary,
            "",
            _tested(contents, all_variants(section.across).label) if i == 0 else (),
        )
        for section in untuned
        if section.across.is_variants
        for i, each in enumerate(section.rankings)
    ]
    along = {section.across.study for section in untuned}
    for group in contents.groups:
        if {str(run.path.parent) for cell in group.cells for run in cell.runs} <= along:
            continue
        best = ", ".join(group.tuned)
        lead = f"Each network is at its best {best}, which its pilots chose." if best else ""
        tested = _tested(contents, group.label)
        headlines.append(Headline(group.label, lead, group.note, tested))
    return headlines


def _tested(contents: Contents, label: str) -> tuple[Judgement, ...]:
    """Returns the judgements of a group's claims that could be tested."""
    own = [one for one in contents.judgements if one.group == label]
    return tuple(one for one in own if one.verdict != NOT_TESTED)


def not_tested(judgements: Sequence[Judgement]) -> dict[str, list[str]]:
    """Returns, by claim, a sentence per reason; it names the groups unless it holds for all.

    A claim that a group tests is left out.
    """
    groups = {one.group for one in judgements if one.claim.over == RECIPE}
    tested = {one.id for one in judgements if one.verdict != NOT_TESTED}
    reasons: dict[tuple[str, str, str], list[str]] = {}
    for one in sorted(judgements, key=lambda one: one.id):
        if one.id not in tested:
            reasons.setdefault((one.id, one.statement, one.detail), []).append(one.group)
    sentences: dict[str, list[str]] = {}
    # A study of variants is judged as a whole: its single recipes have no reason of their own.
    of_variants = {id for id, _, detail in reasons if detail != NEEDS_VARIANTS}
    for (id, statement, detail), own in reasons.items():
        if detail == NEEDS_VARIANTS and id in of_variants:
            continue
        where = "" if set(own) == groups else f" (in {', '.join(own)})"
        words = f"Claim {id} is not tested ({statement}): it {detail}{where}."
        sentences.setdefault(id, []).append(words)
    return sentences
