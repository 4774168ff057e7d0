"""Everything that a report shows, read from run folders once and written in several forms."""

import dataclasses
from collections.abc import Iterable, Sequence

from experiments.report import claims, groups, tuned
from experiments.report.axes import finding, rows
from experiments.report.axes.model import all_variants
from experiments.report.axes.rows import Section
from experiments.report.claims import Judgement
from experiments.report.claims.registry import VARIANTS
from experiments.report.groups import Group
from experiments.report.tuned import TunedStudy
from resnet_jax.runs import reader


@dataclasses.dataclass(frozen=True)
class Contents:
    """The numbers and verdicts of a report.

    Attributes:
      groups: the cells, in groups of comparable ones.
      judgements: of every claim in every group, and of those about variants in every study of some.
      tunings: what the pilots of each tuned study found.
      sections: what each study says along each of its axes.
      margin: claim 2's margin, in percentage points.
      window: steps of a trailing mean over drawn training errors; 0 draws them as logged.
    """

    groups: Sequence[Group]
    judgements: Sequence[Judgement]
    tunings: Sequence[TunedStudy]
    sections: Sequence[Section]
    margin: float
    window: int = 0


def of_runs(runs: Iterable[reader.Run], margin: float, window: int = 0) -> Contents:
    """Returns the contents of a report on some runs.

    Raises:
      UserError: a run's file is malformed.
    """
    runs = list(runs)
    tunings = tuned.find(runs)
    compared = groups.comparable(runs, tuned.by_study(tunings))
    judgements = [one for group in compared for one in claims.judge(group, margin)]
    sections = [rows.section(across, margin) for across in finding.find(runs, tunings)]
    for across in (section.across for section in sections if section.across.is_variants):
        judgements += claims.judge(all_variants(across), margin, VARIANTS)
    return Contents(compared, judgements, tunings, sections, margin, window)
