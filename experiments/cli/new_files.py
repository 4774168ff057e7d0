"""The files that programs write: a bad path is refused before any work."""

import contextlib
import pathlib
import tempfile
from collections.abc import Iterator, Sequence

from absl import flags

from experiments.cli.command_line import required
from resnet_jax.errors import RunError, UserError, listing, nearest
from resnet_jax.runs import storage


def file(
    flag: flags.FlagHolder[str | None],
    suffixes: Sequence[str] = (),
    overwrite: flags.FlagHolder[bool] | None = None,
) -> pathlib.Path:
    """Returns the file that a flag names.

    Args:
      flag: of the program.
      suffixes: that are allowed; empty: all.
      overwrite: the flag that lets the program replace a file, if it has one.

    Raises:
      UserError: the flag is missing, its file exists, or cannot be written.
    """
    path = storage.on_disk(required(flag), f"--{flag.name}")
    given = f"--{flag.name}={path}"
    if suffixes and path.suffix not in suffixes:
        hint = nearest(path.suffix, suffixes) if suffixes[1:] else ""
        raise UserError(f"{given} must end with {listing(suffixes)}{hint}.")
    with _reaching(given):
        if path.is_dir():
            raise UserError(f"{given} is a folder; give a file.")
        if path.exists() and (overwrite is None or not overwrite.value):
            instead = "" if overwrite is None else f", or --{overwrite.name} to replace it"
            raise UserError(f"{given} exists already; give another name{instead}.")
        if not path.parent.is_dir():
            raise UserError(f"{given} cannot be written: the folder {path.parent} does not exist.")
        _write_in(path.parent)
    return path


def folder(flag: flags.FlagHolder[str | None]) -> pathlib.Path:
    """Returns the folder that a flag names, which may not exist yet.

    Raises:
      UserError: the flag is missing, or files cannot be written there.
    """
    path = storage.on_disk(required(flag), f"--{flag.name}")
    given = f"--{flag.name}={path}"
    with _reaching(given):
        there = next(p for p in (path, *path.absolute().parents) if p.exists())
        if not there.is_dir():
            raise UserError(f"{given} cannot be a folder: {there} is a file.")
        _write_in(there)
    return path


@contextlib.contextmanager
def _reaching(given: str) -> Iterator[None]:
    try:
        yield
    except OSError as e:
        raise UserError(f"{given} cannot be written: {storage.reason(e)}.") from e


def _write_in(folder: pathlib.Path) -> None:
    # A folder's mode does not bind the superuser, and does not show a read-only disk.
    tempfile.TemporaryFile(dir=folder).close()


def write(path: pathlib.Path, content: bytes) -> None:
    """Writes a file whole or not at all; raises RunError if it cannot be written."""
    try:
        storage.write_bytes(path, content)
    except OSError as e:
        raise RunError(f"{path} cannot be written: {storage.reason(e)}.") from e
