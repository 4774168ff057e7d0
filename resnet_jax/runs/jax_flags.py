"""Options of JAX and XLA that change numbers, and that a run should resume with."""

import os

import jax
from absl import logging

from resnet_jax.errors import UserError
from resnet_jax.runs import storage

# Options of JAX, each also a variable in upper case, that every random draw depends on.
_DRAWS = (
    "jax_default_prng_impl",
    "jax_threefry_partitionable",
    "jax_random_seed_offset",
    "jax_enable_x64",
)
# Options and variables that change how results round.
_ROUNDING = ("jax_default_matmul_precision",)
_VARIABLES = ("XLA_FLAGS", "LIBTPU_INIT_ARGS", "NVIDIA_TF32_OVERRIDE")
# Of XLA_FLAGS: these change no number.
_HARMLESS = ("--xla_force_host_platform_device_count", "--xla_dump_")


def current() -> dict[str, str]:
    """Returns the options of JAX and XLA that change numbers, by name, as this process has them."""
    options = {
        name: str(getattr(jax.config, name))
        for name in (*_DRAWS, *_ROUNDING)
        if hasattr(jax.config, name)  # a newer JAX may have dropped it
    }
    return options | {name: os.environ.get(name, "") for name in _VARIABLES}


def refuse_other_draws(workdir: str) -> None:
    """Raises UserError if a run was started with options that its random draws depend on."""
    for name, (there, here) in _changed_flags(workdir).items():
        if name in _DRAWS:
            raise UserError(
                f"{workdir} was started with {name.upper()}={there}, and here it is {here}: the "
                f"random draws would be others; set {name.upper()}={there} to resume it, or give "
                "another --workdir."
            )


def log_other_rounding(workdir: str) -> None:
    """Logs the options that change rounding and differ from those the run was started with."""
    for name, (there, here) in _changed_flags(workdir).items():
        logging.warning(
            "%s was started with %s=%r and resumes with %r: from here on results may round "
            "differently.", workdir, name.upper(), there, here,
        )  # fmt: skip


def _changed_flags(workdir: str) -> dict[str, tuple[str, str]]:
    """Returns {name: (when the run was started, here)} of the flags that differ."""
    path = storage.locate(workdir) / "environment.json"
    there, here = storage.read_json(path).get("flags", {}), current()
    return {
        name: (there[name], here[name])
        for name in here.keys() & there.keys()
        if _told_apart(there[name]) != _told_apart(here[name])
    }


def _told_apart(value: str) -> list[str]:
    return sorted(word for word in value.split() if not word.startswith(_HARMLESS))
