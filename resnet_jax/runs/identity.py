"""Which settings make two runs the same run, or comparable; refuses the folder of another run."""

import copy
import hashlib
import json
import os
from typing import Any

from ml_collections import ConfigDict

from resnet_jax import settings
from resnet_jax.errors import UserError
from resnet_jax.runs import storage

# Schedules whose rate at a step does not depend on the length of training.
RATES_OF_ANY_LENGTH = ("constant", "step", "plateau")
# Settings that depend on the length of training if the schedule is given in fractions.
_SCALED_BY_LENGTH = frozenset({"steps", "schedule.boundaries", "schedule.warmup_length"})
_IMPLIED = {
    # As read from JSON, which has no tuples.
    key: list(setting.implied) if isinstance(setting.implied, tuple) else setting.implied
    for key, setting in settings.SETTINGS.items()
    if setting.implied is not None
}
# Keys of which settings are parts, such as "log" and "log.signals".
_GROUPS = {
    key.rsplit(".", count)[0] for key in settings.SETTINGS for count in range(1, key.count(".") + 1)
}


def complete(config: settings.Config) -> dict[str, Any]:
    """Returns a saved config with the values that older versions implied, where it lacks them."""
    completed = copy.deepcopy(dict(config))
    for key, value in _IMPLIED.items():
        *groups, last = key.split(".")
        group: Any = completed
        for name in groups:
            group = group.setdefault(name, {}) if isinstance(group, dict) else {}
        if isinstance(group, dict):
            group.setdefault(last, value)
    return completed


def read(folder: storage.Path) -> dict[str, Any]:
    """Returns the completed config of a run folder; empty if there is none.

    Raises:
      UserError: it cannot be read, or a setting has a wrong value. Versions may differ in which
        settings there are.
    """
    path = folder / "config.json"
    saved = storage.read_json(path)
    if not saved:
        return {}
    config = complete(saved)
    for key, value in settings.flatten(config).items():
        if key in _GROUPS:
            raise UserError(f"{path} has a wrong value: {key}={value!r} is not an object.")
        if key in settings.SETTINGS:
            plain = tuple(value) if isinstance(value, list) else value
            settings.SETTINGS[key].allowed.check(f"{path} has a wrong value: {key}", plain)
    return config


def deciding(config: settings.Config) -> settings.Flat:
    """Returns the settings that can change a result, flat, including unknown ones."""
    return {
        key: value
        for key, value in settings.flatten(complete(config)).items()
        if key not in settings.SETTINGS or settings.SETTINGS[key].changes_results
    }


def of(config: settings.Config) -> str:
    """Returns the run's identity: a hash, in 12 hex digits, of all settings that change results.

    A setting at its implied value does not count, so that older runs keep their identity.
    """
    given = {k: v for k, v in deciding(config).items() if k not in _IMPLIED or v != _IMPLIED[k]}
    return hashlib.sha256(json.dumps(given, sort_keys=True).encode()).hexdigest()[:12]


def recipe(config: settings.Config) -> settings.Flat:
    """Returns the settings, flat, that runs must share for a report to compare them.

    Args:
      config: as saved, possibly by another version of the program.
    """
    saved = ConfigDict(config)

    def decides(key: str) -> bool:
        condition = settings.SETTINGS[key].decides_if
        try:
            return condition is None or condition.holds(saved)
        except (KeyError, AttributeError):  # another version did not save the deciding setting
            return True

    return {
        key: value
        for key, value in deciding(config).items()
        if key not in settings.SETTINGS or (not settings.SETTINGS[key].varied and decides(key))
    }


def refuse_other(path: str | os.PathLike[str] | storage.Path, config: settings.Config) -> None:
    """Raises UserError, with the differing keys, if `path` is another config's run folder.

    A config that differs only by more steps is accepted, unless the rates of earlier steps depend
    on the number of steps.
    """
    saved = read(storage.locate(path))
    if not saved or of(saved) == of(config):
        return
    old, new = deciding(saved), json.loads(json.dumps(deciding(config)))
    absent = object()
    differing = [
        key
        for key in sorted(old.keys() | new.keys())
        if old.get(key, absent) != new.get(key, absent)
    ]
    why = ""
    if differing == ["steps"] and isinstance(old.get("steps"), int):
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
