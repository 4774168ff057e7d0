"""The registry of claims: a claim is one function with the decorator `judges`.

A claim says what is stated and where, which data it needs, how it is judged, and how the page words
each verdict. Every form of the report takes these words from here.
"""

import dataclasses
from collections.abc import Callable, Mapping

from experiments.report.claims import naming
from experiments.report.claims.comparisons import Comparison
from experiments.report.claims.naming import Naming
from experiments.report.groups import Group

# The verdicts, beside UNDECIDED and SATURATED of comparisons.py.
CONFIRMED, REJECTED = "confirmed", "rejected"
POINTS = "points of training error"
NOT_TESTED = "not tested"  # the runs lack data that the claim needs
# What a claim compares: nets of one recipe, or the variants of a study, each with its own.
RECIPE, VARIANTS = "one recipe", "variants"
NEEDS_VARIANTS = "needs a study of variants"


@dataclasses.dataclass(frozen=True)
class Finding:
    """What a claim's judgement function returns.

    Attributes:
      verdict: CONFIRMED, REJECTED, UNDECIDED, SATURATED or NOT_TESTED.
      detail: the networks compared and their errors, or why none were compared.
      difference: the one shown beside the verdict, in the claim's unit.
      ci95: its 95 % interval.
      comparisons: all that decide the verdict.
    """

    verdict: str
    detail: str
    difference: float | None = None
    ci95: tuple[float, float] | None = None
    comparisons: tuple[Comparison, ...] = ()


Judge = Callable[[Group, float], Finding]


@dataclasses.dataclass(frozen=True)
class Claim:
    """One claim.

    Attributes:
      id: short, as in ``"1"`` or ``"7a"``; a study's config names it.
      statement: in words.
      source: the section or figure that states it.
      needs: returns why a group's runs cannot test the claim, or "" if they can.
      rule: when it is confirmed, after "Claim 1 ..."; ``{margin}`` stands for the margin.
      words: the verdict in plain words, for each verdict but NOT_TESTED.
      unit: of the difference.
      over: RECIPE or VARIANTS, which nets it compares.
      judge: the judgement of a group, given the margin in percentage points; None if the report
        cannot judge the claim.
    """

    id: str
    statement: str
    source: str
    needs: Callable[[Group], str]
    rule: str = ""
    words: Mapping[str, str] = dataclasses.field(default_factory=dict)
    unit: str = POINTS
    over: str = RECIPE
    judge: Judge | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Judgement(Finding):
    """A finding on one claim within one group.

    Attributes:
      id: the claim's.
      group: the group's label.
      naming: whether and when the group's studies named the claim in their configs.
    """

    id: str
    group: str
    naming: Naming

    @property
    def claim(self) -> Claim:
        """The claim judged."""
        return _REGISTRY[self.id]

    @property
    def statement(self) -> str:
        """The claim in words."""
        return self.claim.statement

    @property
    def plainly(self) -> str:
        """The verdict in plain words; the statement if it was not tested."""
        return self.claim.words.get(self.verdict, self.statement)


_REGISTRY: dict[str, Claim] = {}


def register(claim: Claim) -> None:
    """Adds a claim; raises ValueError if its id is taken."""
    if claim.id in _REGISTRY:
        raise ValueError(f"claim {claim.id} is registered twice")
    _REGISTRY[claim.id] = claim


def judges(claim: Claim) -> Callable[[Judge], Judge]:
    """Registers a claim with the decorated function as its judgement."""

    def registered(judge: Judge) -> Judge:
        register(dataclasses.replace(claim, judge=judge))
        return judge

    return registered


def all_claims() -> list[Claim]:
    """Returns every claim, by id."""
    return [_REGISTRY[id] for id in sorted(_REGISTRY)]


def judge(group: Group, margin: float, over: str = RECIPE) -> list[Judgement]:
    """Returns the judgement of every claim for one group.

    Claims about VARIANTS are not tested in a group of one recipe, and the others are left out in a
    group of variants.

    Only cells whose runs have ended are compared. A diverged replicate counts with an error of
    100 %.

    Args:
      group: comparable cells.
      margin: percentage points. A claim that the error does *not* rise cannot be shown by a finite
        sample, so a rise below the margin counts as none (a test of non-inferiority).
      over: RECIPE, or VARIANTS for a group of all variants of a study.
    """
    namings = naming.of_group(group)
    judgements = []
    for one in all_claims():
        if over == VARIANTS and one.over != VARIANTS:
            continue
        lack = one.needs(group) if one.over == over else NEEDS_VARIANTS
        if lack or one.judge is None:
            finding = Finding(NOT_TESTED, lack or "this report has no judgement of it")
        else:
            finding = one.judge(group, margin)
        own = namings.get(one.id, Naming())
        judgements.append(Judgement(**vars(finding), id=one.id, group=group.label, naming=own))
    return judgements
