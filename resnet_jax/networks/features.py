"""The named intermediate results of a network.

    stem         the stem's output: every pixel (cifar) or every fourth (imagenet)
    stage1 ...   each stage's output: every second position of the stage before
    pooled       (B, C): the mean over all positions, the classifier's input
    logits       (B, num_classes)

stage1 to stage4 are the paper's conv2_x to conv5_x, and C2 to C5 of papers on detection. In a
pre-activation network, stem and stages are taken before the next BatchNorm and ReLU.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax

from resnet_jax.allowed import check_choice
from resnet_jax.networks.architectures import EXPANSION, STEMS
from resnet_jax.networks.nonlinearities import nonlinearity
from resnet_jax.networks.resnet import FEATURES, GIVEN, ResNet
from resnet_jax.pytree import PyTree


class Endpoint(NamedTuple):
    """The size of an endpoint.

    Attributes:
      stride: pixels of the image per position, along height and width: a side of n pixels has
        ceil(n / stride) positions. None: the endpoint has no positions.
      channels: numbers per position, or per image.
    """

    stride: int | None
    channels: int


def endpoints(model: ResNet) -> dict[str, Endpoint]:
    """Returns all endpoints by name, in the order of computation."""
    stride = STEMS[model.stem]
    doubled = 1 + nonlinearity(model.nonlinearity, model.arch, model.tailored_eta).doubles
    after_stem = 1 if model.preactivation else doubled
    filters = model.arch.widened(model.width)
    sizes = {"stem": Endpoint(stride, (model.stem_filters or filters[0]) * after_stem)}
    for number, count in enumerate(filters):
        channels = count * EXPANSION[model.arch.block] * after_stem
        sizes[f"stage{number + 1}"] = Endpoint(stride * 2**number, channels)
    pooled = filters[-1] * EXPANSION[model.arch.block] * doubled
    return sizes | {
        "pooled": Endpoint(None, pooled),
        "logits": Endpoint(None, model.num_classes),
    }


def features(
    model: ResNet,
    variables: Mapping[str, PyTree],
    images_BHWC: jax.Array,
    names: Sequence[str] | None = None,
) -> dict[str, jax.Array]:
    """Evaluates a network and returns {name: array}.

    Under `jax.jit` only the layers that `names` need are computed.

    Args:
      model: any ResNet.
      variables: {"params", "batch_stats"}.
      images_BHWC: float, already normalised.
      names: some of `endpoints(model)`; None for all.

    Raises:
      UserError: a name is unknown.
    """
    known = endpoints(model)
    names = list(known) if names is None else names
    for name in names:
        check_choice("names", name, known)
    logits, updated = model.apply(variables, images_BHWC, train=False, mutable=[FEATURES])
    arrays = {name: values[0] for name, values in updated[FEATURES].items()} | {"logits": logits}
    return {name: arrays[name] for name in names}


def logits_from(
    model: ResNet,
    variables: Mapping[str, PyTree],
    images_BHWC: jax.Array,
    name: str,
    values: jax.Array,
) -> jax.Array:
    """Returns the logits for given values of an endpoint, (B, num_classes).

    The logits' derivatives with respect to the values are those of the layers after the endpoint.

    Args:
      model: any ResNet.
      variables: {"params", "batch_stats"}.
      images_BHWC: as in `features`; only their shape has an effect.
      name: an endpoint before the logits.
      values: of the shape and dtype that `features` returns.

    Raises:
      UserError: the name is unknown.
    """
    check_choice("name", name, [known for known in endpoints(model) if known != "logits"])
    given = {**variables, GIVEN: {name: values}}
    logits = model.apply(given, images_BHWC, train=False)
    assert isinstance(logits, jax.Array)
    return logits
