"""JAX's persistent compilation cache: compiled programs are kept on disk for later runs.

JAX's cache key includes the version of JAX and the processor's instruction set. But JAX writes in
place: a kill or a full disk can leave half a program, which JAX then warns about at every start and
never replaces. We remove such files. We also limit the cache's size ourselves: with JAX's own limit
each program has two files, and a kill between the two stops all further writes.
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

LIMIT_BYTES = 1 << 30  # the programs of one network take a few megabytes
_VARIABLE = "JAX_COMPILATION_CACHE_DIR"  # also read by JAX
_FAILED = r"Error (read|writ)ing persistent compilation cache entry for '([\w.-]+)': (.*)"


def cache_folder(flag: str, environment: Mapping[str, str]) -> pathlib.Path | None:
    """Returns the folder for `--compilation_cache=flag` ("auto", "none" or a folder), if any."""
    name, text = "--compilation_cache", flag
    if flag == "auto":
        name, text = _VARIABLE, environment.get(_VARIABLE, "")
    if text:
        return None if flag == "none" else storage.on_disk(text, name).absolute()
    caches = pathlib.Path(environment.get("XDG_CACHE_HOME", ""))
    try:  # the XDG standard ignores relative paths
        caches = caches if caches.is_absolute() else pathlib.Path.home() / ".cache"
    except RuntimeError:  # no home directory, as in some containers
        logging.info("Compiled programs are not kept: this user has no home directory; to keep "
                     "them, set --compilation_cache=DIR or %s=DIR.", _VARIABLE)  # fmt: skip
        return None
    return caches / "resnet_jax" / "xla"


def use(folder: pathlib.Path | None) -> None:
    """Caches programs in `folder` from now on; does not cache if it is None or not writable."""
    # Users may switch the cache off with JAX's own JAX_ENABLE_COMPILATION_CACHE=false.
    allowed = jax.config.jax_enable_compilation_cache  # type: ignore[attr-defined]  # made at import
    jax.config.update("jax_enable_compilation_cache", False)
    if folder is None or not allowed:
        return
    here = folder / f"jax-{jax.__version__}"
    try:
        here.mkdir(mode=0o700, parents=True, exist_ok=True)  # private, since JAX runs its content
        (here / "last_start").touch()  # fails if an existing folder is not writable
        _prune(folder)
    except OSError as e:
        logging.warning("Compiled programs are not kept: %s cannot be written (%s).",
                        here, storage.reason(e))  # fmt: skip
        return
    jax.config.update("jax_enable_compilation_cache", True)
    jax.config.update("jax_compilation_cache_dir", str(here))
    # By default JAX caches only programs that compile for over a second; most of ours take less.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    # XLA writes its own caches while it compiles, so that compilation fails on a full disk.
    jax.config.update("jax_persistent_cache_enable_xla_caches", "none")
    warnings.showwarning = functools.partial(_show, warnings.showwarning, here)
    count = sum(1 for _ in here.glob("*-cache"))
    logging.info("Compiled programs are kept in %s (%d so far).", here, count)


def _prune(folder: pathlib.Path) -> None:
    """Removes the least recently used programs until all are within LIMIT_BYTES."""
    with contextlib.suppress(FileNotFoundError):  # another process prunes
        programs = [(path.stat(), path) for path in folder.glob("jax-*/*-cache")]
        total = sum(stat.st_size for stat, _ in programs)
        # Many file systems update access times only once per day, or never.
        for stat, path in sorted(programs, key=lambda p: max(p[0].st_atime, p[0].st_mtime)):
            if total > LIMIT_BYTES:
                total -= stat.st_size
                path.unlink()


def _show(show: Any, here: pathlib.Path, message: Warning | str, *args: Any, **kwargs: Any) -> None:
    """Shows a warning; one about a cached program is shown once, and damaged files are removed."""
    if not (failed := re.match(_FAILED, str(message))):
        show(message, *args, **kwargs)
        return
    done = {"read": "read from", "writ": "written to"}[failed[1]]
    logging.log_first_n(
        logging.WARNING, "A compiled program could not be %s %s, and maybe others: %s.", 1,
        done, here, failed[3],
    )  # fmt: skip
    for path in here.glob(f"{failed[2]}-*-cache"):  # the warning does not say which one
        with contextlib.suppress(OSError):
            path.unlink()
