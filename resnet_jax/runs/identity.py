"""Refuses a run folder that belongs to another config."""

import json
import os

from resnet_jax.errors import UserError
from resnet_jax.runs import storage
from resnet_jax.settings import Config, deciding, identity

# Schedules whose rate at a step does not depend on the length of training.
RATES_OF_ANY_LENGTH = ("constant", "step", "plateau")
# Settings that depend on the length of training if the schedule is given in fractions.
_SCALED_BY_LENGTH = frozenset({"steps", "schedule.boundaries", "schedule.warmup_length"})


def refuse_other(path: str | os.PathLike[str] | storage.Path, config: Config) -> None:
    """Raises UserError, with the differing keys, if `path` is another config's run folder.

    A config that differs only by more steps is accepted, unless the rates of earlier steps depend
    on the number of steps.
    """
    saved = storage.read_json(storage.locate(path) / "config.json")
    if not saved or identity(saved) == identity(config):
        return
    old, new = deciding(saved), json.loads(json.dumps(deciding(config)))
    absent = object()
    differing = [
        key
        for key in sorted(old.keys() | new.keys())
        if old.get(key, absent) != new.get(key, absent)
    ]
    why = ""
    if differing == ["steps"]:
        if new["steps"] > old["steps"] and old["schedule.name"] in RATES_OF_ANY_LENGTH:
            return
        why = "a run can be made longer, not shorter; "
        if new["steps"] > old["steps"]:
            why = (
                f"schedule.name={old['schedule.name']!r} spreads the rates over all steps, so this "
                "run cannot be made longer, only a new one; "
            )
    elif "steps" in differing and _SCALED_BY_LENGTH.issuperset(differing):
        why = (
            "a run can be made longer if its schedule is given in steps (schedule.unit='steps') "
            "and does not change; "
        )
    values = (f"{k} ({old.get(k, 'absent')} there, {new.get(k, 'absent')} here)" for k in differing)
    raise UserError(
        f"{path} belongs to another config, which differs in {', '.join(values)}; {why}"
        "give another --workdir or the same settings."
    )
