"""Which shortcut is best? Table 3: A (identity), B (projections where shapes change), C (all).

    python -m experiments.sweep --config=configs/shortcuts_imagenet.py \
        --config.base.data.dir=TFDS_DATA_DIR --workdir=runs/shortcuts_imagenet \
        --dry_run --rate=2470 --devices=8

The paper, ResNet-34, 10-crop: A 25.03 %, B 24.52 %, C 24.19 %; it concludes that projections are
not essential against degradation. It has not been run here. `configs/shortcuts_imagenet.py:modern`
uses the modern recipe.
"""

from ml_collections import ConfigDict

from configs import imagenet


def get_config(preset: str = "paper") -> ConfigDict:
    """Returns ResNet-34 with each shortcut on a preset of configs/imagenet.py, one seed each."""
    study = ConfigDict()
    study.base = imagenet.get_config(preset)
    study.base.model.depth = 34
    study.grid = ConfigDict({"model": {"shortcut": ("A", "B", "C")}})
    study.exceptions = ConfigDict()
    return study
