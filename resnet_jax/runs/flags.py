"""Options of JAX and XLA that change results.

switch_ynn_off() sets the one that the pinned compiler needs for correct results on a CPU, before
anything uses XLA, so this module imports JAX in functions only. A run should resume with the
options that it was started with.
"""

import importlib.util
import mmap
import os
import pathlib
import re
from importlib import metadata

from absl import logging

from resnet_jax.errors import UserError

# Since jaxlib 0.10.2, XLA computes sums and products on a CPU with a library, YNN. In 0.10.2 it
# gives wrong results for some and crashes on others (jax issues 39103, 39257 and 40412). 0.12 fixes
# these, but accumulates bfloat16 products too coarsely: a convolution's gradient written as a
# product was 1.9 % off, and below 1 % without YNN. Without YNN XLA adds float32 sums one by one,
# with errors up to 5e-6. (0.11 needs Python 3.12; 0.10.1 logs pages for each cached program.)
_PINNED, _SINCE = "0.10.2", (0, 10, 2)
_FUSIONS = "xla_cpu_experimental_ynn_fusion_type"

# JAX options that change random draws. Each is also an environment variable, in upper case.
_DRAWS = (
    "jax_default_prng_impl",
    "jax_threefry_partitionable",
    "jax_random_seed_offset",
    "jax_enable_x64",
)
# Options and variables that change rounding.
_ROUNDING = ("jax_default_matmul_precision",)
_VARIABLES = ("XLA_FLAGS", "LIBTPU_INIT_ARGS", "NVIDIA_TF32_OVERRIDE")
# XLA flags that change no result.
_HARMLESS = ("--xla_force_host_platform_device_count", "--xla_dump_")


def is_known_to_xla(flag: str) -> bool:
    """Whether a flag's name occurs in jaxlib's libraries; XLA aborts on unknown flags."""
    spec = importlib.util.find_spec("jaxlib")
    for folder in spec.submodule_search_locations or () if spec else ():
        for path in (p for p in pathlib.Path(folder).iterdir() if p.suffix in (".so", ".dylib")):
            with open(path, "rb") as f, mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ) as text:
                if text.find(flag.encode()) >= 0:
                    return True
    return False


def without_ynn(flags: str, version: str) -> str:
    """Returns XLA_FLAGS with YNN switched off, unless they already set it."""
    numbers = tuple(map(int, re.findall(r"\d+", version)[:3]))
    if _FUSIONS in flags or numbers < _SINCE:
        return flags
    if version != _PINNED and not is_known_to_xla(_FUSIONS):
        return flags
    return f"{flags} --{_FUSIONS}=".strip()


def switch_ynn_off() -> None:
    """Switches YNN off in this process; XLA reads its flags when it is first used."""
    if flags := without_ynn(os.environ.get("XLA_FLAGS", ""), metadata.version("jaxlib")):
        os.environ["XLA_FLAGS"] = flags


def current() -> dict[str, str]:
    """Returns this process's options of JAX and XLA that change results, by name."""
    import jax

    options = {
        name: str(getattr(jax.config, name))
        for name in (*_DRAWS, *_ROUNDING)
        if hasattr(jax.config, name)  # a newer JAX may lack it
    }
    return options | {name: os.environ.get(name, "") for name in _VARIABLES}


def refuse_other_draws(workdir: str) -> None:
    """Raises UserError if the run was started with options that give other random draws."""
    for name, (old, new) in _changed_flags(workdir).items():
        if name in _DRAWS:
            raise UserError(
                f"{workdir} was started with {name.upper()}={old}, but now it is {new}, which "
                f"changes the random draws; set {name.upper()}={old} to resume, or give another "
                "--workdir."
            )


def log_other_rounding(workdir: str) -> None:
    """Logs each option that changes rounding and differs from the start of the run."""
    for name, (old, new) in _changed_flags(workdir).items():
        logging.warning(
            "%s was started with %s=%r and resumes with %r: from here on results may round "
            "differently.", workdir, name.upper(), old, new,
        )  # fmt: skip


def _changed_flags(workdir: str) -> dict[str, tuple[str, str]]:
    """Returns {name: (value at the start of the run, value now)} of the flags that differ."""
    from resnet_jax.runs import records, storage  # `import resnet_jax` need not import them

    old = records.read_environment(storage.locate(workdir)).get("flags", {})
    new = current()
    return {
        name: (old[name], new[name])
        for name in new.keys() & old.keys()
        if _relevant_flags(old[name]) != _relevant_flags(new[name])
    }


def _relevant_flags(value: str) -> list[str]:
    return sorted(flag for flag in value.split() if not flag.startswith(_HARMLESS))
