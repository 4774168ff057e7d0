"""Which shortcut? None, A (identity), B (projections where shapes change), C (all projections).

    python -m experiments.sweep --config=configs/shortcuts_cifar10.py \
        --config.base.data.dir=TFDS_DATA_DIR --workdir=runs/shortcuts_cifar10

The paper compares them on ImageNet (Table 3, 34 layers: B slightly better than A, C than B) and
concludes that projections are not needed against degradation; on CIFAR-10 it has A alone. This
asks the same of CIFAR-10.
"""

from ml_collections import ConfigDict

from configs import cifar10


def get_config() -> ConfigDict:
    """Returns the four shortcuts at 20 and 56 layers on the paper's recipe, five seeds each."""
    study = ConfigDict()
    study.base = cifar10.get_config()
    study.base.replicates = 5  # with 3, divergence alone decides no claim: docs/statistics.md
    # 20: every net trains, so a difference is that of the shortcuts' own parameters. 56: the plain
    # net degrades, so a difference is that of optimisation; and it needs no warm-up as 110 does.
    study.grid = ConfigDict({"model": {"depth": (20, 56), "shortcut": ("none", "A", "B", "C")}})
    study.exceptions = ConfigDict()
    return study
