"""How much shortcut does a deep net need? Blocks output a * shortcut + branch, on CIFAR-10.

    python -m experiments.sweep --config=configs/dose_cifar10.py \
        --config.base.data.dir=TFDS_DATA_DIR --workdir=runs/dose_cifar10

As configs/dose_digits.py, on the recipe of configs/degradation_cifar10_short.py, 2,000 steps. It is
meant for a GPU or TPU; --dry_run estimates the time on your machine.
"""

from ml_collections import ConfigDict

from configs import degradation_cifar10_short, dose_digits, rescues_digits


def get_config() -> ConfigDict:
    """Returns nets of 20 and 56 layers with seven scales of their shortcuts."""
    study = ConfigDict()
    study.base = degradation_cifar10_short.get_config().base
    study.tune = rescues_digits.tuned_over()
    return dose_digits.with_scales(study, (20, 56))
