"""Fine-tunes the network of a run, which may be one that experiments.convert made.

    python -m experiments.train --config=configs/finetune.py:runs/resnet50 \
        --config.data.name=image_folder --config.data.dir=TFDS_DATA_DIR --workdir=runs/flowers

The network and how it sees pictures are the run's; the classifier is new. 20 epochs of SGD with
momentum, and a rate that falls from 0.01 to 0 as a cosine, are a usual start. A linear probe trains
the classifier alone: --config.optimizer.rate_factors="(0, 0, 0, 0, 0, 1)".
"""

from ml_collections import ConfigDict

from configs import base, saved
from resnet_jax.errors import UserError

_OF_ITS_DATA = ("name", "dir", "validation", "split_seed", "classes", "image_size", "workers")


def get_config(run: str = "") -> ConfigDict:
    """Returns a recipe that starts from the weights of `run`, a run folder.

    Raises:
      UserError: it is not a run folder, or another version wrote it.
    """
    if not run:
        raise UserError("Which run? Name its folder: --config=configs/finetune.py:runs/resnet50.")
    source = saved.get_config(run)
    c = base.get_config()
    c.init["from"] = run
    c.model = source.model
    c.model.num_classes = 0
    c.data.name, c.data.dir = source.data.name, source.data.dir
    c.data.update({k: v for k, v in source.data.items() if k not in _OF_ITS_DATA})
    c.data.validation = 0
    c.epochs = 20.0
    c.schedule.name = "cosine"
    c.schedule.rate = 0.01
    return c
