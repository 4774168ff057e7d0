"""Degradation on CIFAR-10 in 2,000 steps, each network at its best rate: some hours on a CPU.

    python -m experiments.sweep --config=configs/degradation_cifar10_short.py \
        --config.base.data.dir=TFDS_DATA_DIR --workdir=runs/degradation_cifar10_short --extend

Do deeper plain nets have higher training error even when each network has its own learning rate?
Plain and residual nets of 20 and 56 layers, three seeds each, after one pilot per rate. Without
--extend, three of the four best rates would lie at the edge of the candidates. results/README.md
has the answer; --dry_run estimates the time on your machine.
"""

from ml_collections import ConfigDict

from configs import cifar10


def get_config() -> ConfigDict:
    """Returns the paper's networks on a recipe of 1.4 epochs: linear warm-up, then a cosine."""
    study = ConfigDict()
    base = study.base = cifar10.get_config()
    base.replicates = 3
    base.batch_size = 32  # more steps for the same examples; one group of BatchNorm
    base.model.bn_group = 0
    base.steps = 2000
    base.schedule.name = "cosine"
    base.schedule.warmup = "linear"
    base.schedule.warmup_length = 100.0
    base.eval.every = 1000
    base.eval.population_examples = 5_000
    base.checkpoint.every = 100
    base.log.every = 20
    base.log.signals.every = 100
    study.grid = ConfigDict({"model": {"depth": (20, 56), "shortcut": ("none", "A")}})
    study.exceptions = ConfigDict()
    study.claims = ("1", "2", "3", "3b", "4", "7a", "7b")
    study.tune = ConfigDict(
        {
            "over": {"schedule": {"rate": (0.01, 0.03, 0.1)}},
            "by": "training_loss",
            "seeds": 1,
            "first_seed": 1000,
        }
    )
    return study
