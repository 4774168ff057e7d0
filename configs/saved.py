"""The config of an earlier run, to repeat the run, with or without changes, or to resume it.

    python -m experiments.train --config=configs/saved.py:runs/plain-56/config.json \
        --config.seed=5 --workdir=runs/plain-56-seed5

The run folder runs/plain-56 may stand in for its config.json. Sweeps start cells this way.
"""

from ml_collections import ConfigDict

from configs import base
from resnet_jax import settings
from resnet_jax.errors import UserError, nearest
from resnet_jax.runs import identity, storage


def get_config(path: str = "") -> ConfigDict:
    """Returns the config in `path`, a run folder or its config.json.

    Raises:
      UserError: there is no such file, or it is not a config of this version.
    """
    if not path:
        raise UserError("Which run? Name its folder: --config=configs/saved.py:runs/plain-56.")
    file = storage.locate(path, "The run folder in --config")
    file = file / "config.json" if storage.is_dir(file) else file
    content = storage.read_json(file)
    if content == {}:
        raise UserError(f"{file} cannot be read: there is no such file.")
    return from_dict(content, str(file))


def from_dict(content: settings.Config, origin: str) -> ConfigDict:
    """Returns a saved config with the keys and types of configs/base.py.

    Args:
      content: as read from JSON.
      origin: where it comes from, for error messages.

    Raises:
      UserError: a key is unknown or missing, or a value has the wrong type.
    """
    config = base.get_config()
    given = settings.flatten(identity.complete(content))
    known = settings.flatten(config.to_dict())
    for key in given:
        if key not in known:
            raise UserError(f"{origin} has {key}, which is not a setting{nearest(key, known)}.")
    if missing := settings.missing(given):
        raise UserError(f"{origin} lacks {', '.join(missing)}; another version wrote it.")
    for key, value in given.items():
        settings.assign(config, key, value, f"{origin} has a wrong value: {key}")
    return config
