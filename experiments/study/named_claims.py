"""The claims that a study names in its config, recorded before it has any run.

    study.claims = ("1", "2", "4")

A report separates these from claims that nobody named before the results were seen.
"""

import datetime

from ml_collections import ConfigDict

from experiments.report import claims
from experiments.report.claims import naming
from experiments.study import grid
from resnet_jax.allowed import check_choice
from resnet_jax.errors import UserError
from resnet_jax.runs import reader, storage


def of_study(study: ConfigDict) -> tuple[str, ...]:
    """Returns the ids of the claims that a study names; none if it has no part `claims`.

    Raises:
      UserError: it is not a tuple, or an id is unknown.
    """
    named = study.get(grid.CLAIMS, ())
    if not isinstance(named, (tuple, list)):
        raise UserError(f"claims={named!r} is not a tuple of claims' ids, as in ('1', '2').")
    ids = [str(one) for one in named]  # the command line gives numbers
    for id in ids:
        check_choice("The id in claims", id, [claim.id for claim in claims.all_claims()])
    return tuple(ids)


def record(workdir: storage.Path, ids: tuple[str, ...]) -> None:
    """Adds claims to the record in a study's folder; those recorded earlier stay as they are.

    Args:
      workdir: the study's folder; created if it does not exist.
      ids: of the claims.

    Raises:
      UserError: the record cannot be read or written.
    """
    recorded = naming.read(workdir)
    new = [id for id in ids if id not in recorded]
    if not new:
        return
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    namings = recorded | {id: naming.Naming(not _has_runs(workdir), now) for id in new}
    try:
        if not storage.is_bucket(workdir):
            workdir.mkdir(parents=True, exist_ok=True)
        naming.write(workdir, namings)
    except OSError as e:
        raise UserError(f"{workdir} cannot be written: {storage.reason(e)}.") from e


def _has_runs(workdir: storage.Path) -> bool:
    return any(reader.configs(folder) for folder in (workdir, workdir / reader.PILOTS))
