"""Grad-CAM (Selvaraju et al. 2017, arXiv 1610.02391): where an image supports a class."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from resnet_jax.allowed import check_choice
from resnet_jax.errors import UserError
from resnet_jax.networks.features import endpoints, features, logits_from
from resnet_jax.networks.resnet import ResNet
from resnet_jax.pytree import PyTree


def grad_cam(
    model: ResNet,
    variables: Mapping[str, PyTree],
    images_BHWC: jax.Array,
    classes_B: jax.Array | None = None,
    endpoint: str | None = None,
) -> jax.Array:
    """Returns the map of each image, divided by its largest value: float32 (B, h, w) in [0, 1].

    A map is 0 everywhere if no position supports the class. Arguments are those of
    `localization_maps`.
    """
    maps_BHW = localization_maps(model, variables, images_BHWC, classes_B, endpoint)
    largest = maps_BHW.max(axis=(1, 2), keepdims=True)
    return maps_BHW / jnp.where(largest > 0, largest, 1.0)


def localization_maps(
    model: ResNet,
    variables: Mapping[str, PyTree],
    images_BHWC: jax.Array,
    classes_B: jax.Array | None = None,
    endpoint: str | None = None,
) -> jax.Array:
    """Returns ReLU(sum_k alpha_k A^k), equation 2: float32 (B, h, w), in units of the logit.

    A^k is channel k of the endpoint, and alpha_k the mean over positions of the derivative of the
    class's logit with respect to A^k (equation 1).

    Args:
      model: any ResNet.
      variables: {"params", "batch_stats"}.
      images_BHWC: float, already normalised.
      classes_B: int, from 0 to num_classes - 1; None for the predicted classes.
      endpoint: one with positions, see networks.features; None for the last stage.

    Raises:
      UserError: the endpoint is unknown or has no positions, or a class is not the network's.
    """
    with_positions = [name for name, size in endpoints(model).items() if size.stride]
    endpoint = with_positions[-1] if endpoint is None else endpoint
    check_choice("endpoint", endpoint, with_positions)
    activations_BHWC = features(model, variables, images_BHWC, [endpoint])[endpoint]
    logits_BK, derivative = jax.vjp(
        lambda values: logits_from(model, variables, images_BHWC, endpoint, values),
        activations_BHWC,
    )
    if classes_B is None:
        classes_B = logits_BK.argmax(axis=1)
    else:
        _check_classes(classes_B, model.num_classes, len(images_BHWC))
    # Images do not affect each other's logits, so one product gives every image's own derivative.
    (derivatives_BHWC,) = derivative(jax.nn.one_hot(classes_B, model.num_classes))
    alpha_BC = derivatives_BHWC.astype(jnp.float32).mean(axis=(1, 2))
    weighted_BHW = jnp.einsum(
        "bhwc,bc->bhw", activations_BHWC.astype(jnp.float32), alpha_BC, precision="highest"
    )
    return jax.nn.relu(weighted_BHW)


def _check_classes(classes_B: jax.Array | np.ndarray, classes: int, images: int) -> None:
    if np.shape(classes_B) != (images,):
        raise UserError(
            f"classes_B has the shape {np.shape(classes_B)}; allowed is one class for each of "
            f"{images} images."
        )
    # Under jit the classes are not known.
    known = [] if isinstance(classes_B, jax.core.Tracer) else np.asarray(classes_B).tolist()
    for number in known:
        if number not in range(classes):
            raise UserError(f"classes_B has {number}; allowed are 0 to {classes - 1}.")
