"""The named intermediate results of a network.

    stem         the stem's output, in the images' size (cifar) or a quarter of it (imagenet)
    stage1 ...   each stage's output; stage k has 1 / 2^(k - 1) of the stem's size
    pooled       (B, C): the mean over all positions, the classifier's input
    logits       (B, num_classes)

In a pre-activation network, stem and stages are taken before the next BatchNorm and ReLU.
"""

from collections.abc import Mapping, Sequence

import jax

from resnet_jax.allowed import check_choice
from resnet_jax.networks.resnet import FEATURES, ResNet
from resnet_jax.pytree import PyTree


def endpoints(model: ResNet) -> tuple[str, ...]:
    """Returns the names of all features, in the order of computation."""
    stages = (f"stage{number}" for number in range(1, len(model.arch.stage_sizes) + 1))
    return ("stem", *stages, "pooled", "logits")


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
    names = known if names is None else names
    for name in names:
        check_choice("names", name, known)
    logits, updated = model.apply(variables, images_BHWC, train=False, mutable=[FEATURES])
    arrays = {name: values[0] for name, values in updated[FEATURES].items()} | {"logits": logits}
    return {name: arrays[name] for name in names}
