"""Fine-tunes the network of a run, which may be one that experiments.convert made.

    python -m experiments.train --config=configs/finetune.py:runs/resnet50 \
        --config.data.name=image_folder --config.data.dir=TFDS_DATA_DIR --workdir=runs/flowers

The network and how it sees pictures are the run's, with the same numbers for normalisation; the
classifier is new, and BatchNorm takes its statistics over whole batches. 20 epochs of SGD with
momentum, and a rate that falls from 0.01 to 0 as a cosine, are a usual start. A linear probe trains
the classifier alone: --config.optimizer.rate_factors="(0, 0, 0, 0, 0, 1)".
"""

from ml_collections import ConfigDict

from configs import base, saved
from resnet_jax.errors import UserError
from resnet_jax.runs import storage
from resnet_jax.settings import SETTINGS

_OF_ITS_DATA = ("name", "dir", "validation", "split_seed", "classes", "workers")
_OF_PIXELS = ("mean", "std", "channel_mean", "channel_std")


def get_config(run: str = "") -> ConfigDict:
    """Returns a recipe that starts from the weights of `run`, a run folder.

    Raises:
      UserError: it is not a run folder, or another version wrote it.
    """
    if not run:
        raise UserError("Which run? Name its folder: --config=configs/finetune.py:runs/resnet50.")
    if not storage.is_dir(storage.locate(run, "The run folder in --config")):
        raise UserError(
            f"--config=configs/finetune.py:{run} is not a run folder; experiments.convert "
            "makes one from a file with weights."
        )
    source = saved.get_config(run)
    c = base.get_config()
    c.init["from"], c.init.normalization = run, "kept"
    c.model = source.model
    c.model.num_classes, c.model.bn_group = 0, 0
    c.data.name, c.data.dir = source.data.name, source.data.dir
    left_out = {*_OF_ITS_DATA, *_OF_PIXELS}
    if not SETTINGS["data.workers"].acts(source):
        left_out.add("image_size")  # that of a set whose pictures have one size
    c.data.update({k: v for k, v in source.data.items() if k not in left_out})
    c.eval.short_side, c.eval.scales = source.eval.short_side, source.eval.scales
    c.data.validation = 0
    c.epochs = 20.0
    c.schedule.name = "cosine"
    c.schedule.rate = 0.01
    return c
