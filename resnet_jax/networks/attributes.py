"""The values that the attributes of a ResNet may have, each by itself."""

from collections.abc import Mapping

from resnet_jax.allowed import Allowed, Choice, Choices, Range
from resnet_jax.networks.architectures import (
    BOTTLENECK_STRIDES,
    DOWNSAMPLINGS,
    INITS,
    NONLINEARITIES,
    NORMS,
    PADDED,
    PRECISIONS,
    SCALED_BY,
    SHORTCUTS,
    STEMS,
)

ALLOWED: Mapping[str, Allowed] = {
    "shortcut": Choice(SHORTCUTS),
    "shortcut_downsampling": Choice(DOWNSAMPLINGS),
    "shortcut_scale_by": Choice(SCALED_BY),
    "branch_scale_by": Choice(SCALED_BY),
    "nonlinearity": Choice(NONLINEARITIES),
    "norm": Choice(NORMS),
    "kernel_init": Choice(INITS),
    "stochastic_depth": Range(0, 1, below=True),
    "dropout": Range(0, 1, below=True),
    "bottleneck_stride": Choice(BOTTLENECK_STRIDES),
    "stem": Choice(tuple(STEMS)),
    "precision": Choice(PRECISIONS),
    "num_classes": Range(1, whole=True),
    "width": Range(0, above=True),
    "bottleneck_width": Range(0, above=True),
    "groups": Range(1, whole=True),
    "se_reduction": Range(0, whole=True),
    "stem_filters": Range(0, whole=True),
    "same_padding": Choices(PADDED, or_none=True),
    "bn_group": Range(0, whole=True),
    "bn_momentum": Range(0, 1, below=True),
}
