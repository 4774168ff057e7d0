"""How much shortcut does a deep net need? Blocks output a * shortcut + branch, on 8x8 digits.

    python -m experiments.sweep --config=configs/dose_digits.py --workdir=runs/dose_digits

a = 0 is the plain net and a = 1 the residual net. Each net is trained at its best rate of four. The
values of a share a compiled program (1 has its own). --dry_run estimates the time on your machine.
"""

from ml_collections import ConfigDict

from configs import rescues_digits

SCALES = (0.0, 0.05, 0.1, 0.2, 0.4, 0.7, 1.0)


def get_config() -> ConfigDict:
    """Returns nets of 20, 32 and 56 layers with seven scales of their shortcuts."""
    study = rescues_digits.brief_study(rescues_digits.RATES)
    study.tune.seeds = 1  # a third of the pilots' steps
    return with_scales(study, (20, 32, 56))


def with_scales(study: ConfigDict, depths: tuple[int, ...]) -> ConfigDict:
    """Returns a study of residual nets with scaled shortcuts."""
    study.base.model.shortcut = "A"
    study.grid = ConfigDict({"model": {"depth": depths, "shortcut_scale": SCALES}})
    study.exceptions = ConfigDict()
    study.claims = ("1", "2")  # of the plain nets at 0, and of the others at each scale
    return study
