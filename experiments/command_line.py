"""The one way into every program with a config: flags are checked, mistakes are one sentence.

program.py has the exit codes.
"""

import importlib.util
import itertools
import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import Any

from absl import app, flags
from ml_collections import ConfigDict, config_flags

from experiments import program
from resnet_jax.errors import UserError, nearest, nearest_key
from resnet_jax.runs import flatten
from resnet_jax.settings import LENGTHS


def define_config(help_text: str) -> flags.FlagHolder[ConfigDict]:
    """Defines --config=FILE.py and with it --config.KEY=VALUE for every key of the file."""
    return config_flags.DEFINE_config_file("config", None, help_text, lock_config=True)


def run(main: Callable[[Sequence[str]], int | None]) -> None:
    """Runs a program's `main(argv)` and exits with its code (None is 0)."""
    program.run(main, _parse)


def required(flag: flags.FlagHolder[Any]) -> Any:
    """Returns a flag's value; raises UserError where it was not given."""
    if flag.value is None:
        raise UserError(f"--{flag.name} is missing; see --help.")
    return flag.value


def no_arguments(argv: Sequence[str]) -> None:
    """Raises UserError where words stand beside the flags."""
    if argv[1:]:
        raise UserError(f"{argv[1]!r} is neither a flag nor a flag's value; see --help.")


def _parse(argv: Sequence[str]) -> Sequence[str]:
    """Parses the flags, turning whatever absl and ml_collections raise into one sentence."""
    app.define_help_flags()
    _check_config_keys(argv)
    try:
        remaining = flags.FLAGS(argv)
    except flags.UnrecognizedFlagError as e:
        name = e.flagname
        raise UserError(
            f"--{name} is not a flag of this program{nearest(name, _own_flags())}; see --help."
        ) from e
    except (flags.Error, ValueError, TypeError) as e:
        text = " ".join(str(e).split()).removeprefix("flag ")
        raise UserError(f"{text.rstrip('.')}.") from e
    _keep_one_length(argv)
    return remaining


def _own_flags() -> list[str]:
    return [f.name for f in flags.FLAGS.get_flags_for_module(sys.argv[0])] or list(flags.FLAGS)


def _check_config_keys(argv: Sequence[str]) -> None:
    """Raises UserError where --config names no file or --config.KEY no key or a wrong value."""
    given = [a for a in argv[1:] if a.lstrip("-").startswith("config") and a.startswith("-")]
    files = _values(argv, "config")
    if not given or "config" not in flags.FLAGS:
        return
    if not files:
        raise UserError("--config is missing: which file's settings are meant?")
    config = load_config(files[-1])
    for arg in given:
        name, has_value, text = arg.lstrip("-").partition("=")
        if not name.startswith("config."):
            continue
        check_override(config, name.removeprefix("config."), text if has_value else None)


def _values(argv: Sequence[str], flag: str) -> list[str]:
    """Returns the values that argv gives to a flag, in either spelling."""
    found = []
    for arg, following in itertools.pairwise([*argv[1:], ""]):
        name, has_value, value = arg.lstrip("-").partition("=")
        if arg.startswith("-") and name == flag:
            found.append(value if has_value else following)
    return found


def load_config(spec: str) -> ConfigDict:
    """Returns get_config() of ``FILE.py`` or get_config(ARGUMENT) of ``FILE.py:ARGUMENT``.

    Raises:
      UserError: there is no such file, or it defines no get_config().
    """
    file, has_argument, argument = spec.partition(":")
    path = pathlib.Path(file)
    if not path.is_file():
        there = [str(p) for p in sorted(path.parent.glob("*.py")) if p.name != "__init__.py"]
        raise UserError(f"--config={file} is not a file{nearest(file, there)}.")
    module_spec = importlib.util.spec_from_file_location("config_file", path)
    if module_spec is None or module_spec.loader is None:
        raise UserError(f"--config={file} is not a Python file.")
    module = importlib.util.module_from_spec(module_spec)
    module_spec.loader.exec_module(module)
    if not hasattr(module, "get_config"):
        raise UserError(f"--config={file} defines no get_config().")
    return module.get_config(argument) if has_argument else module.get_config()


def check_override(config: ConfigDict, key: str, text: str | None) -> None:
    """Raises UserError unless `key` is in the config and `text` reads as its type."""
    node: Any = config
    for part in key.split("."):
        if not isinstance(node, ConfigDict) or part not in node:
            hint = nearest_key(key, [*config, *flatten(config.to_dict())])
            raise UserError(f"config.{key} is not a setting{hint}; configs/base.py has all.")
        kind = node.get_type(part)
        node = node[part]
    if isinstance(node, ConfigDict):
        raise UserError(f"config.{key} is a group of settings; give one of {', '.join(node)}.")
    if text is None:
        raise UserError(f"config.{key} needs a value, as in --config.{key}={node}.")
    if kind in (int, float):
        try:
            kind(float(text)) if kind is float else int(text)
        except ValueError:
            what = "a whole number" if kind is int else "a number"
            raise UserError(
                f"config.{key}={text!r} is not {what}; it is {node} by default."
            ) from None
    if kind is bool and text.lower() not in ("true", "false", "1", "0", "t", "f"):
        raise UserError(f"config.{key}={text!r} is neither true nor false.")


def _keep_one_length(argv: Sequence[str]) -> None:
    """Clears the other lengths where the command line gives one of steps, epochs and examples.

    The file has said how long to train; whoever gives another length means that one.
    """
    if "config" not in flags.FLAGS or flags.FLAGS["config"].value is None:
        return
    config = flags.FLAGS["config"].value
    for prefix, group in (("config.", config), ("config.base.", config.get("base"))):
        given = [key for key in LENGTHS if _values(argv, prefix + key)]
        if len(given) == 1:
            for key in LENGTHS:
                if key not in given:
                    group[key] = None
