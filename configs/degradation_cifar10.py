"""The degradation experiment of section 4.2 on CIFAR-10, whole: ten networks, five seeds each.

    python -m experiments.sweep --config=configs/degradation_cifar10.py \
        --config.base.data.dir=TFDS_DATA_DIR --workdir=runs/degradation_cifar10

It asks whether deeper plain nets have higher training error, and residual nets do not (Fig. 6,
Table 6: test error 8.75 % for ResNet-20, 6.43 % for ResNet-110; plain-110 stays above 60 %).
Ask --dry_run what it costs on your machine before you start it.
"""

from ml_collections import ConfigDict

from configs import cifar10


def get_config() -> ConfigDict:
    """Returns plain and residual nets of 20 to 110 layers on the paper's recipe."""
    study = ConfigDict()
    study.base = cifar10.get_config()
    study.base.replicates = 5  # with 3, divergence alone decides no claim: docs/statistics.md
    study.grid = ConfigDict({"model": {"depth": (20, 32, 44, 56, 110), "shortcut": ("none", "A")}})
    # Section 4.2: a rate of 0.1 is slightly too large to start ResNet-110 with. The paper says it
    # of this network alone; plain-110 starts as all others.
    study.exceptions = ConfigDict(
        {
            "resnet_110": {
                "when": {"model": {"depth": 110, "shortcut": ("A", "B", "C")}},
                "set": {"schedule": {"warmup": "until_error"}},
            }
        }
    )
    return study
