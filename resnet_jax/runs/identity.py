"""Whether a folder's run is the one that a config describes."""

import json
import os
from collections.abc import Mapping
from typing import Any

from resnet_jax.errors import UserError
from resnet_jax.runs import storage
from resnet_jax.settings import deciding, identity

# Schedules under which a step's rate does not depend on how many steps there will be.
RATES_OF_ANY_LENGTH = ("constant", "step", "plateau")
# The settings in steps that come from fractions of the length.
_MOVED_BY_LENGTH = frozenset({"steps", "schedule.boundaries", "schedule.warmup_length"})


def refuse_other(path: str | os.PathLike[str] | storage.Path, config: Mapping[str, Any]) -> None:
    """Raises UserError, with the differing keys, if `path` is another config's run folder.

    A config that only asks for more steps is no other one, unless the rates of the steps before
    depend on the length.
    """
    there = storage.read_json(storage.locate(path) / "config.json")
    if not there or identity(there) == identity(config):
        return
    old, new = deciding(there), json.loads(json.dumps(deciding(config)))
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
    elif "steps" in differing and _MOVED_BY_LENGTH.issuperset(differing):
        why = (
            "a run can be made longer if its schedule is given in steps (schedule.unit='steps') "
            "and stays the same; "
        )
    values = (f"{k} ({old.get(k, 'absent')} there, {new.get(k, 'absent')} here)" for k in differing)
    raise UserError(
        f"{path} belongs to another config, which differs in {', '.join(values)}; {why}"
        "give another --workdir or the same settings."
    )
