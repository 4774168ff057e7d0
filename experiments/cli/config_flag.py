"""The flag --config=FILE.py, and a flag --config.KEY=VALUE for every setting in that file.

Parsing --config loads the file and defines the flags of its settings, so absl's own forms work:
--flagfile, ``--config.KEY VALUE`` and ``--noconfig.KEY``.
"""

import ast
import importlib.util
import inspect
import pathlib
import re
import sys
import traceback
from collections.abc import Callable
from typing import Any

from absl import flags
from ml_collections import ConfigDict

from configs import saved
from experiments.cli import command_line
from experiments.study import grid
from resnet_jax import settings
from resnet_jax.errors import UserError, nearest
from resnet_jax.runs import storage

_KINDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a string",
    tuple: "a tuple of values, such as (1, 2)",
}


def define(help_text: str, *, is_study: bool = False) -> flags.FlagHolder[ConfigDict]:
    """Defines --config for the config of a run or of a study."""
    return flags.DEFINE_flag(_ConfigFlag(help_text, is_study), module_name=sys.argv[0])


class _ConfigFlag(command_line.FlagOfFlags):
    """The flag --config; its value is the file's config, changed by the flags of its settings."""

    def __init__(self, help_text: str, is_study: bool):
        self._is_study = is_study
        super().__init__(flags.ArgumentParser(), None, "config", None, help_text)

    def parse(self, argument: str) -> None:
        """Loads the file and defines the flags of its settings."""
        if self.present:
            raise UserError(f"--config={argument} is a second --config; give one file.")
        self.value = load_config(argument, self._is_study)
        self.present += 1
        for key, kind in _settings_of(self.value).items():
            flags.DEFINE_flag(_SettingFlag(self.value, key, kind), module_name=__name__)

    def refusal(self, name: str) -> str | None:
        """Returns the error message for an unknown flag of a setting, or None."""
        key = name.removeprefix("no").removeprefix("config.")
        if not name.removeprefix("no").startswith("config."):
            return None
        if self.value is None:
            return (
                f"--{name} needs --config=FILE.py, the file whose setting it changes; see --help."
            )
        known = _settings_of(self.value)
        if key in known:
            if name.startswith("no") and known[key] is not bool:
                return (
                    f"--{name} is for settings that are true or false; give --config.{key}=VALUE."
                )
            return f"--{name} comes before --config=FILE.py; put it after."
        inside = [k.removeprefix(f"{key}.") for k in known if k.startswith(f"{key}.")]
        if inside:
            return f"--config.{key} is a group of settings; give one of {', '.join(inside)}."
        return grid.not_a_setting(f"--config.{key}", key, known)

    def finish(self) -> None:
        """Lets a flag for one of steps, epochs and examples replace the length in the file."""
        if self.value is None:
            return
        for prefix, group in (
            ("config.", self.value),
            ("config.base.", self.value.get("base")),
        ):
            given = [
                key
                for key in settings.LENGTHS
                if prefix + key in flags.FLAGS and flags.FLAGS[prefix + key].present
            ]
            if len(given) == 1:
                for key in settings.LENGTHS:
                    if key not in given:
                        group[key] = None


class _SettingFlag(flags.Flag):
    """The flag --config.KEY; parsing it sets the key."""

    def __init__(self, config: ConfigDict, key: str, kind: type):
        self._config, self._key, self._kind = config, key, kind
        super().__init__(
            flags.ArgumentParser(), None, f"config.{key}", None, "", boolean=kind is bool
        )

    def parse(self, argument: str) -> None:
        """Sets the key; raises UserError if the text is not of the setting's type."""
        try:
            self.value = _read(self._kind, argument)
        except ValueError:
            raise UserError(
                f"--{self.name}={argument!r} is not {_KINDS[self._kind]}{self._default()}."
            ) from None
        self.present += 1
        with self._config.unlocked():
            _put(self._config, self._key, self.value)

    def _default(self) -> str:
        try:
            return f"; it is {settings.get(self._config, self._key)} by default"
        except KeyError:  # a grid axis that the study does not have
            return ""


def _read(kind: type, text: str) -> Any:
    """Returns a setting's value; raises ValueError."""
    if kind is bool:
        return flags.BooleanParser().parse(text)
    if kind is not tuple:
        return kind(text)
    try:
        value = ast.literal_eval(text)
    except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError):
        if not re.fullmatch(r"[A-Za-z_][\w.]*(,[A-Za-z_][\w.]*)*", text):
            raise ValueError from None
        value = text.split(",")  # words need no quotes
    return tuple(value) if isinstance(value, (tuple, list)) else (value,)


def _settings_of(config: ConfigDict) -> dict[str, type]:
    """Returns the type of every key that has a flag; any base setting can be a grid axis."""
    kinds = _leaves(config)
    base = [key.removeprefix("base.") for key in kinds if key.startswith("base.")]
    kinds |= {f"grid.{key}": tuple for key in base}
    return {key: kind for key, kind in kinds.items() if kind in _KINDS}


def _leaves(config: ConfigDict, prefix: str = "") -> dict[str, type]:
    kinds: dict[str, type] = {}
    for key, value in config.items():
        if isinstance(value, ConfigDict):
            kinds |= _leaves(value, f"{prefix}{key}.")
        else:
            kinds[f"{prefix}{key}"] = config.get_type(key)
    return kinds


def _put(config: ConfigDict, key: str, value: object) -> None:
    """Sets a key and creates its groups if they are absent."""
    *groups, last = key.split(".")
    for group in groups:
        if group not in config:
            config[group] = ConfigDict()
        config = config[group]
    config[last] = value


# ---------------------------------------------------------------------------- the file


def load_config(spec: str, is_study: bool = False) -> ConfigDict:
    """Returns get_config() of ``FILE.py`` or get_config(ARGUMENT) of ``FILE.py:ARGUMENT``.

    Args:
      spec: the value of --config.
      is_study: whether to expect a study instead of the config of one run.

    Returns:
      The config, locked, with the keys and types of configs/base.py.

    Raises:
      UserError: the file does not exist, cannot be executed, or has an invalid config.
    """
    file, has_argument, argument = spec.partition(":")
    origin = f"--config={spec}"
    path = _locate(file)
    get_config = _get_config(path, file)
    try:
        inspect.signature(get_config).bind(*([argument] if has_argument else []))
    except TypeError:
        advice = f"leave out :{argument}" if has_argument else f"give one, as in {file}:ARGUMENT"
        takes = "takes no argument" if has_argument else "needs an argument"
        raise UserError(f"{origin}: get_config() of this file {takes}; {advice}.") from None
    config = _executed(path, lambda: get_config(*([argument] if has_argument else [])))
    if not isinstance(config, ConfigDict):
        name = type(config).__name__
        raise UserError(f"{origin}: get_config() returns {name} instead of ConfigDict.")
    if is_study:
        grid.check_parts(config)
        config.base = saved.from_dict(config.base.to_dict(), f"The base of {origin}")
    elif any(key in config for key in grid.KEYS):
        raise UserError(
            f"{origin} is a study; run it with {command_line.spelled('sweep')}, or give a run's "
            "config."
        )
    else:
        config = saved.from_dict(config.to_dict(), origin)
    return config.lock()


def _locate(file: str) -> pathlib.Path:
    """Returns a config file's path; configs/NAME.py may be ours in any working directory."""
    path = storage.on_disk(file, "--config")
    if path.is_file():
        return path
    files = {str(p): p for p in path.parent.glob("*.py")}
    if path.parent == pathlib.Path("configs"):
        ours = pathlib.Path(saved.__file__).parent.glob("*.py")
        files = {f"configs/{p.name}": p for p in ours} | files
    if file in files:
        return files[file]
    names = sorted(name for name, p in files.items() if p.name != "__init__.py")
    raise UserError(f"--config={file} is not a file{nearest(file, names)}.")


def _get_config(path: pathlib.Path, file: str) -> Callable[..., Any]:
    spec = importlib.util.spec_from_file_location("config_file", path)
    if spec is None or spec.loader is None:
        raise UserError(f"--config={file} is not a Python file.")
    module = importlib.util.module_from_spec(spec)
    loader = spec.loader
    _executed(path, lambda: loader.exec_module(module))
    if not hasattr(module, "get_config"):
        raise UserError(f"--config={file} defines no get_config().")
    return module.get_config


def _executed(path: pathlib.Path, call: Callable[[], Any]) -> Any:
    """Calls code of a config file; raises UserError with the line that failed."""
    try:
        return call()
    except UserError:
        raise
    except Exception as e:
        here = [f.lineno for f in traceback.extract_tb(e.__traceback__) if f.filename == str(path)]
        line = e.lineno if isinstance(e, SyntaxError) else here[-1] if here else None
        at = f", line {line}" if line else ""
        message = " ".join(str(e.msg if isinstance(e, SyntaxError) else e).split())
        raise UserError(f"{path}{at}: {type(e).__name__}: {message.rstrip('.')}.") from e
