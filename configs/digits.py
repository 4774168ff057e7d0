"""Plain and residual nets on scikit-learn's 8x8 digits: no download, minutes on a laptop.

    python -m experiments.train --config=configs/digits.py --config.model.depth=56 --workdir=DIR

The data are 1,797 real images: 1,257 train, 180 validation, 360 test. Training and test error after
120 of the 240 steps, 4 seeds, one core of an AMD EPYC: plain-20 0 % and
3.3 % (1 minute), plain-56 71 % and 75 % (2 minutes), ResNet-56 0 % and 2.2 % (3 minutes).
"""

from ml_collections import ConfigDict

from configs import base
from resnet_jax.allowed import check_choice

PRESETS = ("full", "short")


def get_config(preset: str = "full") -> ConfigDict:
    """Returns a recipe under which plain-20 trains and plain-56 does not, within 240 steps.

    The preset "short" has half of the steps, which are enough to separate the nets, and more rows.
    Raises UserError for another one.
    """
    check_choice("preset", preset, PRESETS)
    c = base.get_config()
    c.steps = 240
    c.schedule.name = "constant"
    c.schedule.rate = 0.02
    c.eval.every = 40
    c.eval.batch_size = 180  # divides both validation and test, so no padding is computed
    c.checkpoint.every = 80
    c.log.every = 10
    c.log.signals.every = 40
    if preset == "short":
        c.steps = 120
        c.eval.every = 20
        c.checkpoint.every = 40
        c.log.every = 5
        c.log.signals.every = 20
    return c
