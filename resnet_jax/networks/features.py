"""What a network computes on its way to the logits, by name.

    stem         after the first convolution (and ReLU, and max pool): 1/1 of the images' size with
                 the cifar stem, 1/4 with imagenet's
    stage1 ...   after each stage; stage k has 1 / 2^(k - 1) of the stem's size
    pooled       (B, C): the mean over all positions, which the classifier sees
    logits       (B, num_classes)

Of a pre-activation network, stem and stages are the sums that the next BatchNorm and ReLU take.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax

from resnet_jax.allowed import check_choice
from resnet_jax.networks.resnet import FEATURES, ResNet


def endpoints(model: ResNet) -> tuple[str, ...]:
    """Returns the names of all that `features` can return, in the order of computation."""
    stages = (f"stage{number}" for number in range(1, len(model.arch.stage_sizes) + 1))
    return ("stem", *stages, "pooled", "logits")


def features(
    model: ResNet,
    variables: Mapping[str, Any],
    images_BHWC: jax.Array,
    names: Sequence[str] | None = None,
) -> dict[str, jax.Array]:
    """Evaluates a network and returns {name: array}.

    Under `jax.jit` only what `names` need is computed.

    Args:
      model: any ResNet.
      variables: {"params", "batch_stats"}.
      images_BHWC: float, already normalised.
      names: which of `endpoints(model)`; None: all.

    Raises:
      UserError: a name is not one of them.
    """
    known = endpoints(model)
    names = known if names is None else names
    for name in names:
        check_choice("names", name, known)
    logits, updated = model.apply(variables, images_BHWC, train=False, mutable=[FEATURES])
    found = {name: values[0] for name, values in updated[FEATURES].items()}
    return {name: (found | {"logits": logits})[name] for name in names}
