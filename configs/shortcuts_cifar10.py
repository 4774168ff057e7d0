"""Which shortcut is best? None, A (identity), B (projections where shapes change), C (all).

    python -m experiments.sweep --config=configs/shortcuts_cifar10.py \
        --config.base.data.dir=TFDS_DATA_DIR --workdir=runs/shortcuts_cifar10

The paper compares them on ImageNet (Table 3, 34 layers: B is slightly better than A, C than B) and
concludes that projections are not needed against degradation. On CIFAR-10 it uses only A; this
study makes the comparison there.
"""

from ml_collections import ConfigDict

from configs import cifar10


def get_config() -> ConfigDict:
    """Returns the four shortcuts at 20 and 56 layers on the paper's recipe, five seeds each."""
    study = ConfigDict()
    study.base = cifar10.get_config()
    study.base.replicates = 5  # with 3, divergence alone cannot settle a claim: docs/statistics.md
    # At 20 layers every net trains, so differences come from the shortcuts' own parameters. At 56
    # the plain net degrades, so differences come from optimisation; unlike 110 it needs no warm-up.
    study.grid = ConfigDict({"model": {"depth": (20, 56), "shortcut": ("none", "A", "B", "C")}})
    study.exceptions = ConfigDict()
    study.claims = ("1", "2", "3", "3b", "4", "7a", "7b")
    return study
