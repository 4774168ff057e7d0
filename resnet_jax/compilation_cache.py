"""Compiled programs, kept on a disk for later runs.

JAX's key of a program includes the versions of JAX and the processor's instructions. But JAX writes
in place: a kill or a full disk may leave half a program, which JAX then warns of at every start and
never replaces. Here such a file is removed. JAX's own limit on the folder's size is not used: once
a kill has come between the two files that it then writes per program, JAX writes no more programs.
"""

import contextlib
import functools
import pathlib
import re
import warnings
from collections.abc import Mapping
from typing import Any

import jax
from absl import logging

from resnet_jax.runs import storage

LIMIT_BYTES = 1 << 30  # a network's programs are some megabytes
_VARIABLE = "JAX_COMPILATION_CACHE_DIR"  # JAX's own
_FAILED = r"Error (read|writ)ing persistent compilation cache entry for '([\w.-]+)': (.*)"


def locate(flag: str, environment: Mapping[str, str]) -> pathlib.Path | None:
    """Returns the folder for `--compilation_cache=flag` ("auto", "none" or a folder), if any."""
    name, text = "--compilation_cache", flag
    if flag == "auto":
        name, text = _VARIABLE, environment.get(_VARIABLE, "")
    if text:
        return None if flag == "none" else storage.on_disk(text, name).absolute()
    caches = pathlib.Path(environment.get("XDG_CACHE_HOME", ""))
    try:  # a relative path does not count, by the XDG standard
        caches = caches if caches.is_absolute() else pathlib.Path.home() / ".cache"
    except RuntimeError:  # as in some containers
        logging.info("Compiled programs are not kept: this user has no home; "
                     "--compilation_cache=DIR or %s=DIR keeps them.", _VARIABLE)  # fmt: skip
        return None
    return caches / "resnet_jax" / "xla"


def use(folder: pathlib.Path | None) -> None:
    """Keeps what is compiled from now on in a folder, and nothing if it cannot be written."""
    # JAX_ENABLE_COMPILATION_CACHE=false is JAX's own way to keep none.
    allowed = jax.config.jax_enable_compilation_cache  # type: ignore[attr-defined]  # made at import
    jax.config.update("jax_enable_compilation_cache", False)
    if folder is None or not allowed:
        return
    here = folder / f"jax-{jax.__version__}"
    try:
        here.mkdir(mode=0o700, parents=True, exist_ok=True)  # JAX runs what it finds there
        (here / "last_start").touch()  # or an old folder that cannot be written would do
        _prune(folder)
    except OSError as e:
        logging.warning("Compiled programs are not kept: %s cannot be written (%s).",
                        here, storage.reason(e))  # fmt: skip
        return
    jax.config.update("jax_enable_compilation_cache", True)
    jax.config.update("jax_compilation_cache_dir", str(here))
    # Most programs of a run compile in less than JAX's default limit of one second.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    # XLA writes its own files during compilation, which then fails on a full disk.
    jax.config.update("jax_persistent_cache_enable_xla_caches", "none")
    warnings.showwarning = functools.partial(_show, warnings.showwarning, here)
    count = sum(1 for _ in here.glob("*-cache"))
    logging.info("Compiled programs are kept in %s (%d of them there).", here, count)


def _prune(folder: pathlib.Path) -> None:
    """Removes the least recently used programs until all are within LIMIT_BYTES."""
    with contextlib.suppress(FileNotFoundError):  # another process prunes
        programs = [(path.stat(), path) for path in folder.glob("jax-*/*-cache")]
        total = sum(stat.st_size for stat, _ in programs)
        # Many file systems note reads once per day only, or never.
        for stat, path in sorted(programs, key=lambda p: max(p[0].st_atime, p[0].st_mtime)):
            if total > LIMIT_BYTES:
                total -= stat.st_size
                path.unlink()


def _show(show: Any, here: pathlib.Path, message: Warning | str, *args: Any, **kwargs: Any) -> None:
    """Shows a warning; if it is about a program, says so once and removes what may be damaged."""
    if not (failed := re.match(_FAILED, str(message))):
        show(message, *args, **kwargs)
        return
    done = {"read": "read from", "writ": "written to"}[failed[1]]
    logging.log_first_n(
        logging.WARNING, "A compiled program could not be %s %s, and maybe others: %s.", 1,
        done, here, failed[3],
    )  # fmt: skip
    for path in here.glob(f"{failed[2]}-*-cache"):  # the warning does not say which of these
        with contextlib.suppress(OSError):
            path.unlink()
