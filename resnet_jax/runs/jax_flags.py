"""Options of JAX and XLA that change results, so that a run should resume with the same ones."""

import os

import jax
from absl import logging

from resnet_jax.errors import UserError
from resnet_jax.runs import storage

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


def current() -> dict[str, str]:
    """Returns this process's options of JAX and XLA that change results, by name."""
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
    path = storage.locate(workdir) / "environment.json"
    old, new = storage.read_json(path).get("flags", {}), current()
    return {
        name: (old[name], new[name])
        for name in new.keys() & old.keys()
        if _relevant_flags(old[name]) != _relevant_flags(new[name])
    }


def _relevant_flags(value: str) -> list[str]:
    return sorted(flag for flag in value.split() if not flag.startswith(_HARMLESS))
