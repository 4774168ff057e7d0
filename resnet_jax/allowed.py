"""The values that each setting of configs/base.py may have, whatever the others are."""

from resnet_jax.data import sources
from resnet_jax.data.augment import MEANS
from resnet_jax.data.crops import CROPS
from resnet_jax.errors import Range
from resnet_jax.networks.architectures import BOTTLENECK_STRIDES, FAMILIES, SHORTCUTS
from resnet_jax.networks.resnet import DTYPES, PRECISIONS, STEMS
from resnet_jax.parallel.seeds import BY

LENGTHS = {
    "steps": Range(1, whole=True),
    "epochs": Range(0, above=True),
    "examples": Range(1, 2**53, whole=True),
}
RATES = ("rate", "final_rate", "warmup_rate")  # of the schedule

CHOICES = {
    "replicates_by": BY,
    "model.family": tuple(FAMILIES),
    "model.shortcut": SHORTCUTS,
    "model.bottleneck_stride": BOTTLENECK_STRIDES,
    "model.activation": ("post", "pre"),
    "model.stem": STEMS,
    "model.dtype": tuple(DTYPES),
    "model.precision": PRECISIONS,
    "model.scan": ("auto", "on", "off"),
    "data.name": tuple(sources.KNOWN),
    "data.mean": MEANS,
    "data.flip": ("on", "off", "auto"),
    "data.crop": CROPS,
    "data.resample": ("bilinear", "bicubic", "area"),
    "optimizer.name": ("sgd", "adam", "adamw", "lars"),
    "optimizer.decay_on": ("all", "kernels"),
    "schedule.name": ("constant", "step", "cosine", "plateau"),
    "schedule.unit": (*LENGTHS, "fraction"),
    "schedule.warmup": ("none", "linear", "until_error"),
    "eval.statistics": ("population", "moving_average"),
    "eval.weights": ("last", "best"),
}

SWITCHES = (  # True or False
    "deterministic",
    "model.space_to_depth",
    "model.zero_init_residual",
    "data.std",
    "data.color",
    "optimizer.nesterov",
    "log.tensorboard",
)

STRINGS = ("data.dir", "train.steps_per_dispatch")  # storage.py, dispatch.py check them

_COUNT = Range(1, whole=True)
_UP_TO_1 = Range(0, 1, below=True)  # at 1 an average would never change
RANGES = {
    "seed": Range(0, whole=True),
    "replicates": Range(1, 1024, whole=True),
    "batch_size": _COUNT,
    "accumulate": _COUNT,
    "model.width": Range(1e-3, 1e3),
    "model.num_classes": Range(0, whole=True),
    "model.bn_group": Range(0, whole=True),
    "model.bn_momentum": _UP_TO_1,
    "model.bn_epsilon": Range(0, 1, above=True),
    "data.validation": Range(0, whole=True),
    "data.split_seed": Range(0, whole=True),
    "data.pad": Range(0, 1024, whole=True),
    "data.image_size": Range(0, 4096, whole=True),
    "data.workers": Range(0, 4096, whole=True),
    "optimizer.momentum": _UP_TO_1,
    "optimizer.trust": Range(0, above=True),
    "optimizer.b1": _UP_TO_1,
    "optimizer.b2": _UP_TO_1,
    "optimizer.epsilon": Range(0, 1, above=True),
    "optimizer.weight_decay": Range(0),
    "optimizer.clip_norm": Range(0),
    "schedule.rate": Range(0, above=True),
    "schedule.rate_for_batch": Range(0, whole=True),
    "schedule.factor": Range(0, 1, above=True, below=True),
    "schedule.final_rate": Range(0),
    "schedule.patience": _COUNT,
    "schedule.tolerance": Range(0, 100, above=True),
    "schedule.warmup_length": Range(0),
    "schedule.warmup_rate": Range(0, above=True),
    "schedule.warmup_error": Range(0, 100, above=True),
    "schedule.warmup_window": _COUNT,
    "label_smoothing": _UP_TO_1,
    "ema_decay": _UP_TO_1,
    "eval.every": _COUNT,
    "eval.batch_size": _COUNT,
    "eval.population_examples": Range(0, whole=True),
    "eval.short_side": Range(1, 4096, whole=True),
    "mesh.replicates": Range(0, whole=True),
    "mesh.fsdp": _COUNT,
    "checkpoint.every": _COUNT,
    "checkpoint.keep": _COUNT,
    "log.every": _COUNT,
}

# The range of each number in a tuple, and how many there are; None: any number of them.
TUPLES: dict[str, tuple[Range, int | None]] = {
    "model.remat": (_COUNT, None),
    "data.scales": (Range(1, 4096, whole=True), 2),
    "data.area": (Range(1e-6, 1), 2),
    "data.aspect": (Range(0.01, 100), 2),
    "schedule.boundaries": (Range(0), None),
    "eval.scales": (Range(32, 4096, whole=True), None),
}
