"""What else rescues a plain net of 56 layers? One cure at a time, on 8x8 digits.

    for part in init nonlinearity norm shortcut; do
        python -m experiments.sweep --config=configs/rescues_digits.py:$part \
            --workdir=runs/rescues_digits/$part
    done

Every net is trained at its best rate of five. docs/cures.md has the cures and their papers;
--dry_run estimates the time on your machine.
"""

from ml_collections import ConfigDict

from configs import digits
from resnet_jax.allowed import check_choice

# What differs from plain-56 with BatchNorm, ReLU and He's weights.
PARTS = {
    "init": ("he", "orthogonal", "delta_orthogonal", "dirac", "looks_linear"),
    "nonlinearity": ("leaky_relu", "crelu", "tailored", "gelu", "linear"),
    "norm": ("none", "group", "frozen"),
    "shortcut": ("none", "A"),
}


def get_config(part: str = "init") -> ConfigDict:
    """Returns the cures of one part, a key of PARTS."""
    check_choice("The part in configs/rescues_digits.py:PART", part, PARTS)
    study = ConfigDict()
    study.base = digits.get_config("short")
    study.base.replicates = 3
    study.base.model.depth = 56
    study.base.model.shortcut = "none"
    study.grid = ConfigDict({"model": {part: PARTS[part]}})
    study.exceptions = ConfigDict(
        {
            # It undoes crelu and nothing else.
            "looks_linear": {
                "when": {"model": {"init": "looks_linear"}},
                "set": {"model": {"nonlinearity": "crelu"}},
            },
        }
        if part == "init"
        else {}
    )
    study.tune = ConfigDict(
        {
            "over": {"schedule": {"rate": (0.0005, 0.002, 0.008, 0.03, 0.1)}},
            "by": "training_loss",
            "seeds": 2,
            "first_seed": 1000,
        }
    )
    return study
