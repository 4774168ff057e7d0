"""What else rescues a plain net of 56 layers? Every cure at its best rate, ranked, on CIFAR-10.

    python -m experiments.sweep --config=configs/rescues_cifar10.py \
        --config.base.data.dir=TFDS_DATA_DIR --workdir=runs/rescues_cifar10

As configs/rescues_digits.py, on the recipe of configs/degradation_cifar10_short.py, 2,000 steps. It
is meant for a GPU or TPU; --dry_run estimates the time on your machine.
"""

from ml_collections import ConfigDict

from configs import degradation_cifar10_short, rescues_digits


def get_config() -> ConfigDict:
    """Returns plain nets of 56 layers, each with one cure, and residual nets."""
    study = ConfigDict()
    study.base = degradation_cifar10_short.get_config().base
    study.base.eval.population_examples = 0  # a part of them would mean nothing without BatchNorm
    study.tune = rescues_digits.tuned_over()
    return rescues_digits.with_cures(study)
