"""What else rescues a plain net of 56 layers? Every cure at its best rate, ranked, on 8x8 digits.

    python -m experiments.sweep --config=configs/rescues_digits.py \
        --workdir=runs/rescues_digits --extend

docs/cures.md has the cures and their papers. The study takes about 2.5 hours on 2 CPU cores, half
as long with --config.base.model.depth=32; --dry_run estimates the time on your machine. Without
--extend, some best rates would lie at the edge of the candidates. Three seeds per pilot: with one,
rates would be chosen that are stable for that seed alone.
"""

from ml_collections import ConfigDict

from configs import digits

RATES = (0.003, 0.01, 0.03, 0.1)
_NO_NORM = {"norm": "none"}
_RESIDUAL = {"shortcut": "A"}
_NO_NORM_RESIDUAL = _NO_NORM | _RESIDUAL
_LEARNED_FROM_0 = {"branch_scale": 0.0, "branch_scale_by": "learned"}
# What differs from the plain net with BatchNorm, ReLU and He's weights.
CURES = {
    "base": {},
    "orthogonal": {"model": {"init": "orthogonal"}},
    "delta_orthogonal": {"model": {"init": "delta_orthogonal"}},
    "dirac": {"model": {"init": "dirac"}},
    "looks_linear": {"model": {"init": "looks_linear", "nonlinearity": "crelu"}},
    "leaky_relu": {"model": {"nonlinearity": "leaky_relu"}},
    "crelu": {"model": {"nonlinearity": "crelu"}},
    "gelu": {"model": {"nonlinearity": "gelu"}},
    "linear": {"model": {"nonlinearity": "linear"}},
    "group_norm": {"model": {"norm": "group"}},
    "frozen_norm": {"model": {"norm": "frozen"}},
    "no_norm": {"model": _NO_NORM},
    "no_norm+delta_orthogonal": {"model": _NO_NORM | {"init": "delta_orthogonal"}},
    "no_norm+looks_linear": {"model": _NO_NORM | {"init": "looks_linear", "nonlinearity": "crelu"}},
    "no_norm+tailored": {"model": _NO_NORM | {"nonlinearity": "tailored"}},
    "no_norm+standardized": {"model": _NO_NORM | {"weight_standardization": True}},
    "clipped": {"optimizer": {"clip_norm": 1.0}},
    "warm_up": {"schedule": {"warmup": "linear", "warmup_length": 15.0}},
    "residual": {"model": _RESIDUAL},
    "stochastic_depth": {"model": _RESIDUAL | {"stochastic_depth": 0.2}},
    "exclusive_gate": {"model": _RESIDUAL | {"gate": "exclusive"}},
    "shortcut_only_gate": {"model": _RESIDUAL | {"gate": "shortcut_only"}},
    "zero_init_residual": {"model": _RESIDUAL | {"zero_init_residual": True}},
    "no_norm+residual": {"model": _NO_NORM_RESIDUAL},
    "no_norm+scaled_residual": {"model": _NO_NORM_RESIDUAL | {"branch_scale_by": "1/sqrt(L)"}},
    "no_norm+skip_init": {"model": _NO_NORM_RESIDUAL | _LEARNED_FROM_0},
    "no_norm+fixup": {"model": _NO_NORM_RESIDUAL | {"init": "fixup", "branch_scale_by": "learned"}},
}


def get_config() -> ConfigDict:
    """Returns plain nets of 56 layers, each with one cure, and residual nets."""
    study = brief_study((0.001, *RATES))
    study.base.replicates = 5  # with three, intervals that hold for 26 comparisons are too wide
    return with_cures(study)


def brief_study(rates: tuple[float, ...]) -> ConfigDict:
    """Returns a base of 60 steps on the digits and the tuning of its rate, without a grid."""
    study = ConfigDict()
    study.base = digits.get_config("short")
    study.base.steps = 60
    study.base.replicates = 3
    study.base.checkpoint.every = 60
    study.tune = tuned_over(rates)
    return study


def with_cures(study: ConfigDict) -> ConfigDict:
    """Returns a study of plain nets of 56 layers with a cell for each cure."""
    study.base.model.depth = 56
    study.base.model.shortcut = "none"
    study.grid = ConfigDict({"variant": tuple(CURES)})
    study.exceptions = ConfigDict(
        {
            name: {"when": {"variant": name}, "set": changes}
            for name, changes in CURES.items()
            if changes
        }
    )
    study.claims = ("3", "3b", "3c", "3d")
    return study


def tuned_over(rates: tuple[float, ...] = RATES) -> ConfigDict:
    """Returns a study's part `tune`, with as many seeds per pilot as per cell: one program."""
    over = {"schedule": {"rate": rates}}
    return ConfigDict({"over": over, "by": "training_loss", "seeds": 3, "first_seed": 1000})
