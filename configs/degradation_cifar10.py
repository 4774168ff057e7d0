"""The complete degradation experiment of section 4.2 on CIFAR-10: ten networks, five seeds each.

    python -m experiments.sweep --config=configs/degradation_cifar10.py \
        --config.base.data.dir=TFDS_DATA_DIR --workdir=runs/degradation_cifar10

Do deeper plain nets have higher training error, while residual nets do not? In the paper (Fig. 6,
Table 6) the test error is 8.75 % for ResNet-20 and 6.43 % for ResNet-110; plain-110 stays above
60 %. Estimate the cost on your machine with --dry_run first.
"""

from ml_collections import ConfigDict

from configs import cifar10


def get_config() -> ConfigDict:
    """Returns plain and residual nets of 20 to 110 layers on the paper's recipe."""
    study = ConfigDict()
    study.base = cifar10.get_config()
    study.base.replicates = 5  # with 3, divergence alone cannot settle a claim: docs/statistics.md
    study.grid = ConfigDict({"model": {"depth": (20, 32, 44, 56, 110), "shortcut": ("none", "A")}})
    # Section 4.2: a rate of 0.1 is slightly too large to start ResNet-110 with. The paper says this
    # only of this network, so plain-110 starts like the others.
    study.exceptions = ConfigDict(
        {
            "resnet_110": {
                "when": {"model": {"depth": 110, "shortcut": ("A", "B", "C")}},
                "set": {"schedule": {"warmup": "until_error"}},
            }
        }
    )
    study.claims = ("1", "2", "3", "3b", "4", "7a", "7b")
    return study
