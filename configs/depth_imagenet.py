"""How much does depth help? Residual nets of 18 to 152 layers on ImageNet (Tables 3 and 4).

    python -m experiments.sweep --config=configs/depth_imagenet.py \
        --config.base.data.dir=TFDS_DATA_DIR --workdir=runs/depth_imagenet \
        --dry_run --rate=2470 --devices=8

The paper, 10-crop: ResNet-34 24.52 %, 50 22.85 %, 101 21.75 %, 152 21.43 % (projection shortcuts,
B). Table 4 tests the same nets fully convolutionally at several scales, which eval.views also does.
It has not been run here. `configs/depth_imagenet.py:modern` uses the modern recipe.
"""

from ml_collections import ConfigDict

from configs import imagenet


def get_config(preset: str = "paper") -> ConfigDict:
    """Returns the five depths of Table 1 on a preset of configs/imagenet.py, one seed each."""
    study = ConfigDict()
    study.base = imagenet.get_config(preset)
    study.base.model.shortcut = "B"
    study.grid = ConfigDict({"model": {"depth": (18, 34, 50, 101, 152)}})
    study.exceptions = ConfigDict()
    study.claims = ("2", "7b")
    return study
