"""Everything that a report shows, read from run folders once and written in several forms."""

import dataclasses
from collections.abc import Iterable, Sequence

from experiments.report import claims, groups, tuned
from experiments.report.claims import Judgement
from experiments.report.groups import Group
from experiments.report.tuned import TunedStudy
from resnet_jax.runs import reader


@dataclasses.dataclass(frozen=True)
class Contents:
    """The numbers and verdicts of a report.

    Attributes:
      groups: the cells, in groups of comparable ones.
      judgements: of every claim in every group.
      tunings: what the pilots of each tuned study found.
      margin: claim 2's margin, in percentage points.
      window: steps of a trailing mean over drawn training errors; 0 draws them as logged.
    """

    groups: Sequence[Group]
    judgements: Sequence[Judgement]
    tunings: Sequence[TunedStudy]
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
    return Contents(compared, judgements, tunings, margin, window)
