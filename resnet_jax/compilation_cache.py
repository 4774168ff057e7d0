"""Where compiled programs are kept for the runs that come after, and how many.

JAX keeps them and knows by a key of its own when one is the same. It writes them in place, so that
a killed process, a full disk or two processes at once may leave half of one. Each is compressed
with a checksum: what is damaged is not read, but warned of at every start and never written anew.
Here it is removed. JAX would also bound the folder, but with one lock around every read and write,
and the filelock package; here the oldest go when a run starts.
"""

import contextlib
import hashlib
import pathlib
import platform
import re
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import jax
from absl import logging

from resnet_jax.runs import storage
from resnet_jax.runs.storage import reason

LIMIT_BYTES = 1 << 30  # a network's programs are some megabytes
_VARIABLE = "JAX_COMPILATION_CACHE_DIR"  # JAX's own
_CPUINFO = pathlib.Path("/proc/cpuinfo")
# What of it says which instructions a processor has: of x86, then of Arm.
_OF_PROCESSOR = ("vendor_id", "cpu family", "model", "model name", "flags", "CPU implementer",
                 "CPU architecture", "CPU variant", "CPU part", "Features")  # fmt: skip


def locate(flag: str, environment: Mapping[str, str]) -> pathlib.Path | None:
    """Returns the folder that `--compilation_cache=flag` means, or None where there is to be none.

    Args:
      flag: "auto", "none" or a folder.
      environment: the process's variables.

    Raises:
      UserError: it is no folder of this machine.
    """
    if flag == "none":
        return None
    if flag != "auto":
        return storage.on_disk(flag, "--compilation_cache").absolute()
    if given := environment.get(_VARIABLE):
        return storage.on_disk(given, _VARIABLE).absolute()
    caches = pathlib.Path(environment.get("XDG_CACHE_HOME", ""))
    if not caches.is_absolute():  # such are to be ignored, says the standard
        try:
            caches = pathlib.Path.home() / ".cache"
        except RuntimeError:  # as in some containers
            logging.info(
                "Compiled programs are not kept: this user has no home; --compilation_cache=DIR or "
                "%s=DIR keeps them.", _VARIABLE,
            )  # fmt: skip
            return None
    return caches / "resnet_jax" / "xla"


def use(folder: pathlib.Path | None) -> None:
    """Keeps what is compiled from now on in a folder, or with None nowhere.

    Where the folder cannot be written, a warning says so and nothing is kept.
    """
    # JAX_ENABLE_COMPILATION_CACHE=false is JAX's own way to say none.
    allowed = jax.config.jax_enable_compilation_cache  # type: ignore[attr-defined]  # made at import
    jax.config.update("jax_enable_compilation_cache", False)
    if folder is None or not allowed:
        return
    here = folder / f"jax-{jax.__version__}-{_processor()}"
    try:
        here.mkdir(mode=0o700, parents=True, exist_ok=True)  # what lies there is run as it is
        (here / "last_start").touch()  # or an old folder that cannot be written would do
        _prune(folder)
    except OSError as e:
        logging.warning("Compiled programs are not kept: %s cannot be written (%s).",
                        here, reason(e))  # fmt: skip
        return
    jax.config.update("jax_enable_compilation_cache", True)
    jax.config.update("jax_compilation_cache_dir", str(here))
    # Most programs of a run take less than JAX's one second, and together as long as a large one.
    # With 0 it does not depend on how busy the machine is whether one is kept.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    # Files of XLA's own beside them would be written by the compiler itself, which might fail where
    # the disk is full. JAX only warns.
    jax.config.update("jax_persistent_cache_enable_xla_caches", "none")
    warnings.showwarning = _instead_of(warnings.showwarning, here)
    count = sum(1 for _ in here.glob("*-cache"))
    logging.info("Compiled programs are kept in %s (%d of them there).", here, count)


def _processor(cpuinfo: pathlib.Path = _CPUINFO) -> str:
    """Returns a short name of the processor's kind.

    A program that was compiled for another may have instructions that this one lacks: XLA then
    loads it, and the process dies. Machines that share a home are not always alike.
    """
    kind = [platform.machine()]
    with contextlib.suppress(OSError):  # other systems than Linux have no such file
        first, *_ = cpuinfo.read_text(encoding="utf-8").split("\n\n")
        fields = (line.partition(":")[::2] for line in first.splitlines())
        kind += [value.strip() for name, value in fields if name.strip() in _OF_PROCESSOR]
    return hashlib.sha256("\n".join(kind).encode()).hexdigest()[:8]


def _prune(folder: pathlib.Path) -> None:
    """Removes programs, the longest unused first, until all are within LIMIT_BYTES."""
    found = sorted(_used(folder), reverse=True)
    total = 0
    for _, size, path in found:
        total += size
        if total > LIMIT_BYTES:
            path.unlink(missing_ok=True)


def _used(folder: pathlib.Path) -> Iterator[tuple[float, int, pathlib.Path]]:
    """Yields when each program was last used, its size and its file."""
    for path in folder.glob("jax-*/*-cache"):  # nothing of other users of the same folder
        with contextlib.suppress(FileNotFoundError):  # another process has removed it
            stat = path.stat()
            # Many file systems note reads once a day only, or never.
            yield max(stat.st_atime, stat.st_mtime), stat.st_size, path


def _instead_of(show: Any, here: pathlib.Path) -> Any:
    """Returns what shows warnings as `show` does, but one line for all programs not read or kept.

    JAX compiles these, and goes on. Its warning names a program, which may have several files
    there; one of them is damaged, or was half written.
    """

    def shown(message: Warning | str, *args: Any, **kwargs: Any) -> None:
        failed = re.match(
            r"Error (reading|writing) persistent compilation cache entry for '([\w.-]+)': (.*)",
            str(message),
        )
        if failed is None:
            show(message, *args, **kwargs)
            return
        doing, name, why = failed.groups()
        done = {"reading": "read from", "writing": "written to"}[doing]
        logging.log_first_n(
            logging.WARNING, "A compiled program could not be %s %s, and maybe others: %s.", 1,
            done, here, why,
        )  # fmt: skip
        for path in here.glob(f"{name}-*-cache"):
            with contextlib.suppress(OSError):  # it is gone, or cannot be removed: the same later
                path.unlink()

    return shown
