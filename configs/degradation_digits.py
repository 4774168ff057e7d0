"""Does depth hurt a plain net and not a residual one? On 8x8 digits: no download, minutes on a CPU.

    python -m experiments.sweep --config=configs/degradation_digits.py \
        --workdir=runs/degradation_digits

The training error of plain-56 stays above that of plain-20; the training error of ResNet-56 does
not. The study takes about 5 minutes on 2 CPU cores (results in results/README.md). --dry_run lists
its runs and estimates the time on your machine.
"""

from ml_collections import ConfigDict

from configs import digits


def get_config() -> ConfigDict:
    """Returns plain and residual nets of 20 and 56 layers, four seeds each."""
    study = ConfigDict()
    study.base = digits.get_config()
    # Half of the digits recipe's steps are enough to separate the nets, and four seeds tell more
    # than two seeds trained twice as long.
    study.base.steps = 120
    study.base.replicates = 4
    study.base.eval.every = 20
    study.base.checkpoint.every = 40
    study.base.log.every = 5
    study.base.log.signals.every = 20
    study.grid = ConfigDict({"model": {"depth": (20, 56), "shortcut": ("none", "A")}})
    study.exceptions = ConfigDict()
    study.claims = ("1", "2", "3", "3b", "4", "7a", "7b")
    return study
