"""The entry point of every program: parses flags, reports errors in a sentence, sets exit codes.

Exit codes: 0 done (a diverged run counts, it is a result); 1 the run could not continue; 2 a
mistake of the user; 42 stopped by a signal with everything saved, so that a scheduler can restart
it; 70 a bug in resnet_jax; 130 interrupted a second time, while saving.
"""

import contextlib
import logging as python_logging
import pathlib
import platform
import shlex
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Sequence
from typing import TypeVar

from absl import app, flags, logging

import resnet_jax
from experiments.cli import output
from resnet_jax.errors import RunError, UserError, is_missing_package, nearest, sentence
from resnet_jax.runs import storage

ROOT = pathlib.Path(__file__).parents[2]  # the checkout, or the folder of programs in a wheel
PREEMPTED = 42
BUG = 70  # EX_SOFTWARE of sysexits.h

_T = TypeVar("_T")


class FlagOfFlags(flags.Flag):
    """A flag that defines others when it is parsed, such as --config."""

    def refusal(self, name: str) -> str | None:
        """Returns the error message if this flag should have defined flag `name`, else None."""
        return None

    def finish(self) -> None:
        """Called after all flags are parsed."""


def run(main: Callable[[Sequence[str]], int | None]) -> None:
    """Calls a program's `main`, with argv without flags, and exits with its code (None: 0)."""
    output.install()
    _plain_log_lines()
    _say_a_failed_checkpoint_once()
    try:
        code = main(parse(sys.argv))
        _require_printed()
        sys.exit(code)
    except UserError as e:
        _fail(str(e), 2)
    except RunError as e:
        _fail(str(e), 1)
    except KeyboardInterrupt:  # the second one; programs catch the first, save and report it
        _fail("interrupted before everything was saved", 130)
    except Exception as e:
        if is_missing_package(e):
            _fail(f"{sentence(e)}.", 2)
        _fail(f"{sentence(e)}; {_report(e)}", BUG)


def parse(argv: Sequence[str]) -> Sequence[str]:
    """Parses the flags and returns the rest of `argv`; raises UserError for any mistake."""
    app.define_help_flags()
    try:
        remaining = flags.FLAGS(argv)
    except SystemExit:  # absl's, with code 1, after --help
        sys.exit(0)
    except flags.UnrecognizedFlagError as e:
        refusals = (flag.refusal(e.flagname) for flag in _flags_of_flags())
        raise UserError(
            next(filter(None, refusals), None)
            or f"--{e.flagname} is not a flag of this program{nearest(e.flagname, _own_flags())}; "
            "see --help."
        ) from e
    except (flags.Error, ValueError, TypeError) as e:
        text = " ".join(str(e).split()).removeprefix("ERROR:: ").removeprefix("flag ")
        raise UserError(f"{text.rstrip('.')}.") from e
    for name in flags.FLAGS:
        flag = flags.FLAGS[name]
        if flag.present and flag.value in ("", [""]):
            raise UserError(f"--{name} is empty; is a shell variable unset?")
    for flag in _flags_of_flags():
        flag.finish()
    return remaining


def spelled(program: str) -> str:
    """Returns how a user starts a program."""
    is_wheel = ROOT.name == "_programs"
    return f"resnet-jax {program}" if is_wheel else f"python -m experiments.{program}"


def required(flag: flags.FlagHolder[_T | None]) -> _T:
    """Returns a flag's value; raises UserError if it was not given."""
    if flag.value is None:
        raise UserError(f"--{flag.name} is missing; see --help.")
    return flag.value


def no_arguments(argv: Sequence[str]) -> None:
    """Raises UserError if there are arguments beside the flags."""
    if argv[1:]:
        raise UserError(f"{argv[1]!r} is neither a flag nor the value of one; see --help.")


def _own_flags() -> list[str]:
    return [f.name for f in flags.FLAGS.get_flags_for_module(sys.argv[0])] or list(flags.FLAGS)


def _flags_of_flags() -> list[FlagOfFlags]:
    every = [flags.FLAGS[name] for name in flags.FLAGS]
    return [flag for flag in every if isinstance(flag, FlagOfFlags)]


def _plain_log_lines() -> None:
    logging.use_absl_handler()
    logging.set_verbosity(logging.INFO)
    handler = logging.get_absl_handler()
    # A library that logs a warning when it is imported installs a second root handler.
    python_logging.root.handlers = [handler]
    handler.python_handler.stream = sys.stderr  # absl kept the one from its import
    handler.setFormatter(python_logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    handler.addFilter(_is_for_the_user)


def _is_for_the_user(record: python_logging.LogRecord) -> bool:
    for ours in (str(ROOT), resnet_jax.__path__[0]):
        if record.pathname.startswith(ours) and not record.pathname.startswith(f"{ours}/.venv"):
            return True
    # Orbax and JAX log a page per checkpoint and backend. Orbax logs the errors of its threads four
    # times, with tracebacks, although checkpoints.py reports them in one sentence, and each of its
    # threads logs a preemption.
    is_repeated = "orbax" in record.pathname and (
        record.exc_info is not None or "preemption sync point" in str(record.msg)
    )
    return record.levelno > python_logging.INFO and not is_repeated


def _say_a_failed_checkpoint_once() -> None:
    """Silences follow-up errors after one read or write of a checkpoint has failed.

    Orbax then closes the event loop of all reads and writes, and each of them prints an error. The
    first failure is raised and reported.
    """

    def hook(unraisable: "sys.UnraisableHookArgs") -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            sys.__unraisablehook__(unraisable)

    sys.unraisablehook = hook
    warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
    python_logging.getLogger("asyncio").setLevel(python_logging.CRITICAL)


def _require_printed() -> None:
    """Raises RunError if printed text was lost, for example on a full disk."""
    sys.stdout.flush()
    if isinstance(sys.stdout, output.Display) and (error := sys.stdout.missed()):
        raise RunError(f"stdout could not be written: {storage.reason(error)}.")


def _report(error: Exception) -> str:
    """Writes a bug's traceback to a file; returns a request to report it."""
    python = f"Python {platform.python_version()}, {platform.platform()}"
    content = "\n".join([shlex.join(sys.orig_argv), python, *traceback.format_exception(error)])
    for folder in _folders():
        try:
            handle, name = tempfile.mkstemp(".txt", "bug-", folder)
            with open(handle, "w", encoding="utf-8", errors="backslashreplace") as f:
                f.write(content)
        except OSError:  # the disk may be full
            continue
        return f"please report it with {name}, which has the traceback (README, Reporting a bug)"
    print(content, file=sys.stderr)
    return "please report it with the traceback above (README, Reporting a bug)"


def _folders() -> list[str | None]:
    """Returns folders for a traceback: the run folder if on a disk, None for a temporary one."""
    with contextlib.suppress(UserError, OSError):
        workdir = flags.FLAGS["workdir"].value if "workdir" in flags.FLAGS else None
        folder = storage.locate(workdir) if workdir else None
        if folder is not None and not storage.is_bucket(folder) and folder.is_dir():
            return [str(folder), None]
    return [None]


def _fail(message: str, code: int) -> None:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(code)
