"""The one way into every program with a config: flags are checked, mistakes are one sentence.

program.py has the exit codes.
"""

import sys
from collections.abc import Callable, Sequence
from typing import Any

from absl import app, flags

from experiments.cli import config_flag, program
from resnet_jax.errors import UserError, nearest


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
    """Parses the flags, turning every exception of absl into one sentence."""
    app.define_help_flags()
    try:
        remaining = flags.FLAGS(argv)
    except flags.UnrecognizedFlagError as e:
        name = e.flagname
        raise UserError(
            config_flag.refusal(name)
            or f"--{name} is not a flag of this program{nearest(name, _own_flags())}; see --help."
        ) from e
    except (flags.Error, ValueError, TypeError) as e:
        text = " ".join(str(e).split()).removeprefix("ERROR:: ").removeprefix("flag ")
        raise UserError(f"{text.rstrip('.')}.") from e
    for name in flags.FLAGS:
        flag = flags.FLAGS[name]
        if flag.present and flag.value in ("", [""]):
            raise UserError(f"--{name} is empty; is a shell variable unset?")
    config_flag.keep_one_length()
    return remaining


def _own_flags() -> list[str]:
    return [f.name for f in flags.FLAGS.get_flags_for_module(sys.argv[0])] or list(flags.FLAGS)
