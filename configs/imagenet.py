"""ImageNet, in two presets: `paper` (section 3.4; the default) and `modern`.

    python -m experiments.train --config=configs/imagenet.py:paper --config.model.depth=34 \
        --config.model.shortcut=A --config.data.dir=TFDS_DATA_DIR --workdir=runs/resnet-34
    python -m experiments.train --config=configs/imagenet.py:modern --workdir=runs/resnet-50

paper: 600k steps of batch 256, the rate cut when the validation error plateaus, 10-crop test. The
paper reports 25.03 % top-1 error for ResNet-34 (A) and 22.85 % for ResNet-50 (B).
modern: 90 epochs of batch 1024, v1.5 blocks, random resized crops, label smoothing, cosine. Others
report 23.3 to 23.6 % for ResNet-50 with one centre crop.
At 7,000 images/s an epoch takes about 3 minutes. Neither recipe has been run here in full.
"""

from ml_collections import ConfigDict

from configs import base
from resnet_jax.allowed import check_choice

PRESETS = ("paper", "modern")


def get_config(preset: str = "paper") -> ConfigDict:
    """Returns a preset; raises UserError if no preset has that name."""
    check_choice("preset", preset, PRESETS)
    c = base.get_config()
    c.batch_size = 256
    c.model.family = "imagenet"
    c.model.depth = 50
    c.model.shortcut = "B"
    c.model.stem = "imagenet"
    c.model.bn_group = 32  # 256 examples on 8 GPUs, each with its own statistics
    c.data.name = "imagenet2012"
    # Held out of the training split, for curves and the plateau schedule. The 50,000 pictures of
    # the official validation split are the test set, evaluated once.
    c.data.validation = 10000
    c.data.mean = "channel"
    c.eval.every = 5000
    c.eval.batch_size = 1000
    c.checkpoint.every = 1000
    c.log.signals.every = 1000
    return _modern(c) if preset == "modern" else _paper(c)


def _paper(c: ConfigDict) -> ConfigDict:
    c.steps = 600000
    c.eval.population_examples = 51200
    c.data.color = True
    c.schedule.name = "plateau"
    c.eval.views = ("ten_crop", "center", "fully_convolutional")
    return c


def _modern(c: ConfigDict) -> ConfigDict:
    c.epochs = 90.0
    c.steps = None
    c.batch_size = 1024
    c.model.bottleneck_stride = "v1.5"
    c.model.zero_init_residual = True
    c.model.dtype = "bfloat16"
    c.data.crop = "random_resized"
    c.data.resample = "bicubic"
    c.optimizer.nesterov = True
    c.optimizer.decay_on = "kernels"
    c.schedule.name = "cosine"
    c.schedule.rate_for_batch = 256
    c.schedule.unit = "epochs"
    c.schedule.warmup = "linear"
    c.schedule.warmup_length = 5.0
    c.label_smoothing = 0.1
    c.eval.every = 1250
    c.log.signals.every = 1250
    c.eval.statistics = "moving_average"
    return c
