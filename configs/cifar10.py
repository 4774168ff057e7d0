"""CIFAR-10 as in section 4.2 of the paper: 64k steps of batch 128, rate cut at 32k and 48k steps.

    python -m experiments.train --config=configs/cifar10.py --config.model.depth=56 \
        --config.model.shortcut=none --config.data.dir=TFDS_DATA_DIR --workdir=runs/plain-56

Other data sets work too: --config.data.name=cifar100 | mnist | fashion_mnist | svhn_cropped.
The paper reports 8.75 % test error for ResNet-20 and 6.97 % for ResNet-56. ResNet-110 needs
--config.schedule.warmup=until_error.
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    """Returns the paper's CIFAR-10 recipe."""
    c = base.get_config()
    c.steps = 64000
    c.model.bn_group = 64  # 128 examples on 2 GPUs, each with its own statistics
    c.data.name = "cifar10"
    c.data.validation = 5000
    c.data.pad = 4
    c.eval.every = 1000
    c.checkpoint.every = 1000
    c.log.every = 100
    c.log.signals.every = 1000
    return c
