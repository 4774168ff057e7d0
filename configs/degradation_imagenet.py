"""The degradation experiment on ImageNet (Table 2, Fig. 4): plain and residual, 18 and 34 layers.

    python -m experiments.sweep --config=configs/degradation_imagenet.py \
        --config.base.data.dir=TFDS_DATA_DIR --workdir=runs/degradation_imagenet \
        --dry_run --rate=2470 --devices=8

The paper, 10-crop: plain-18 27.94 %, plain-34 28.54 %; ResNet-18 27.88 %, ResNet-34 25.03 %, all
with parameter-free shortcuts. Others report 2,470 images/s for ResNet-50 on one A100; the study has
not been run here. `configs/degradation_imagenet.py:modern` uses the modern recipe.
"""

from ml_collections import ConfigDict

from configs import imagenet


def get_config(preset: str = "paper") -> ConfigDict:
    """Returns the four networks of Table 2 on a preset of configs/imagenet.py, one seed each."""
    study = ConfigDict()
    study.base = imagenet.get_config(preset)
    study.base.model.depth = 18
    study.base.model.shortcut = "A"
    study.grid = ConfigDict({"model": {"depth": (18, 34), "shortcut": ("none", "A")}})
    study.exceptions = ConfigDict()
    if study.base.model.zero_init_residual:
        # A plain net whose blocks start at zero is constant and never learns.
        study.exceptions.plain = ConfigDict(
            {
                "when": {"model": {"shortcut": "none"}},
                "set": {"model": {"zero_init_residual": False}},
            }
        )
    study.claims = ("1", "2", "3", "3b", "4", "7a", "7b")
    return study
