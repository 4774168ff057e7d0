"""Which claims a study named in its config before it ran.

A study's folder holds claims.json, written by the sweep: each claim's id, when it was named, and
whether the study had no run folder yet. Claims that it names later, or never, are observations.
"""

import dataclasses
from collections.abc import Iterable, Mapping

from experiments.report.groups import Group
from resnet_jax.errors import UserError
from resnet_jax.runs import storage

FILE = "claims.json"
BEFORE_RUNS = "before_runs"  # whether the study had no run yet
AT = "at"  # in UTC, as 2026-01-02T03:04:05+00:00


@dataclasses.dataclass(frozen=True)
class Naming:
    """Whether and when a claim was named.

    Attributes:
      before_runs: whether it was named before any run of its study.
      at: in UTC, as ``2026-01-02T03:04:05+00:00``; empty if it was never named.
    """

    before_runs: bool = False
    at: str = ""

    def __str__(self) -> str:
        """Returns ``named 2026-01-02, before the runs``."""
        if not self.at:
            return "not named in the study's config"
        return f"named {self.at[:10]}, {'before' if self.before_runs else 'after'} the runs"


def read(study: storage.Path) -> dict[str, Naming]:
    """Returns the claims that a study named, by id; empty without a record.

    Raises:
      UserError: the record is malformed.
    """
    content = storage.read_json(study / FILE)
    try:
        return {id: Naming(entry[BEFORE_RUNS], entry[AT]) for id, entry in content.items()}
    except (AttributeError, KeyError, TypeError) as e:
        raise UserError(f"{study / FILE} is not a record of claims.") from e


def write(study: storage.Path, namings: Mapping[str, Naming]) -> None:
    """Writes a study's record; raises OSError."""
    content = {id: {BEFORE_RUNS: one.before_runs, AT: one.at} for id, one in namings.items()}
    storage.write_json(study / FILE, content)


def of_group(group: Group) -> dict[str, Naming]:
    """Returns the claims that every study of a group has named, by id."""
    studies = {run.path.parent for cell in group.cells for run in cell.runs}
    return _common(map(read, studies))


def _common(records: Iterable[Mapping[str, Naming]]) -> dict[str, Naming]:
    """Returns the claims in all records; the latest naming of each counts."""
    first, *others = records
    ids = first.keys() & set.intersection(set(first), *map(set, others))
    by_id = {id: [first[id], *(record[id] for record in others)] for id in ids}
    return {
        id: Naming(all(n.before_runs for n in namings), max(n.at for n in namings))
        for id, namings in by_id.items()
    }
