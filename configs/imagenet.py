"""ImageNet as in section 3.4 of the paper. Its data pipeline is not here yet: describe it only.

python -m experiments.describe --config=configs/imagenet.py --config.model.depth=50
python -m experiments.describe --config=configs/imagenet.py --family
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    """Returns the paper's ImageNet recipe."""
    c = base.get_config()
    c.batch_size = 256
    c.steps = 600000
    c.model.family = "imagenet"
    c.model.depth = 50
    c.model.shortcut = "B"
    c.model.stem = "imagenet"
    c.model.bn_group = 32  # 256 examples on 8 GPUs, each with its own statistics
    c.data.name = "imagenet2012"
    c.data.validation = 0
    c.data.mean = "pixel"
    c.schedule.name = "plateau"
    c.eval.every = 5000
    c.checkpoint.every = 5000
    return c
