"""Grad-CAM against its closed form, finite differences and a forward pass by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import resnet_jax
from resnet_jax.analysis.grad_cam import grad_cam, localization_maps
from resnet_jax.errors import UserError
from resnet_jax.networks.features import logits_from
from tests.networks import small

MODEL = small.network()
VARIABLES = small.variables(MODEL)
CLASSES = np.array([0, 3, 2, 4])


@pytest.mark.parametrize("shortcut", ["A", "none"])
def test_the_last_stage_s_map_is_the_class_activation_map(shortcut):
    """With mean pooling and a linear classifier: ReLU(sum_k w_kc A^k) / (h w), Zhou et al. 2016."""
    model = small.network(shortcut)
    variables = small.variables(model)
    activations = np.asarray(resnet_jax.features(model, variables, small.IMAGES)["stage2"])
    weights = variables["params"]["logits"]["kernel"][:, CLASSES]  # (C, B)
    by_hand = np.einsum("bhwc,cb->bhw", activations, weights).clip(0) / 16
    maps = localization_maps(model, variables, small.IMAGES, CLASSES)
    assert maps.shape == (4, 4, 4)
    assert (by_hand > 0).any()
    assert (by_hand == 0).any()
    np.testing.assert_allclose(maps, by_hand, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("endpoint", ["stem", "stage1"])
@pytest.mark.parametrize("preactivation", [False, True])
def test_an_earlier_endpoint_s_map_is_that_of_finite_differences(endpoint, preactivation):
    # A smooth nonlinearity: steps across a ReLU's kink would differ from the derivative.
    model = small.network(preactivation=preactivation, nonlinearity="gelu")
    variables = small.variables(model)
    activations = resnet_jax.features(model, variables, small.IMAGES, [endpoint])[endpoint]
    activations = np.asarray(activations)

    @jax.jit
    def logits(values):
        return logits_from(model, variables, small.IMAGES, endpoint, values)

    alpha = np.zeros((4, 4), np.float32)  # of image and channel
    step = np.float32(0.02)
    for channel in range(4):
        # All positions move together, which sums the derivative over positions.
        moved = step * (np.arange(4) == channel).reshape(1, 1, 1, 4)
        change = np.asarray(logits(activations + moved) - logits(activations - moved))
        alpha[:, channel] = change[np.arange(4), CLASSES] / (2 * step) / 64
    by_hand = np.einsum("bhwc,bc->bhw", activations, alpha).clip(0)
    assert (by_hand > 0).any()
    maps = localization_maps(model, variables, small.IMAGES, CLASSES, endpoint)
    np.testing.assert_allclose(maps, by_hand, atol=5e-3 * by_hand.max())


def test_maps_are_scaled_to_1_and_follow_the_predicted_class_by_default():
    predicted = MODEL.apply(VARIABLES, small.IMAGES, train=False).argmax(axis=1)
    own, given = (jax.jit(lambda c=c: grad_cam(MODEL, VARIABLES, small.IMAGES, c))()
                  for c in (None, predicted))  # fmt: skip
    np.testing.assert_array_equal(own, given)
    other = grad_cam(MODEL, VARIABLES, small.IMAGES, (predicted + 1) % 5)
    assert not np.allclose(own, other)
    maps = np.asarray(localization_maps(MODEL, VARIABLES, small.IMAGES))
    assert own.dtype == jnp.float32
    np.testing.assert_allclose(own, maps / maps.max((1, 2), keepdims=True), rtol=1e-5)


def test_a_class_that_nothing_supports_has_a_map_of_zeros():
    head = VARIABLES["params"]["logits"]
    opposed = head | {"kernel": -np.abs(head["kernel"])}
    variables = VARIABLES | {"params": VARIABLES["params"] | {"logits": opposed}}
    np.testing.assert_array_equal(grad_cam(MODEL, variables, small.IMAGES), 0.0)


@pytest.mark.parametrize(
    ("classes", "sentence"),
    [
        ([0, 3, 2, 5], r"^classes_B has 5; allowed are 0 to 4\.$"),
        ([0, 3, -1, 4], r"^classes_B has -1; allowed are 0 to 4\.$"),
        ([0, 3], r"^classes_B has the shape \(2,\); allowed is one class for each of 4 images\.$"),
        (3, r"^classes_B has the shape \(\); allowed is one class for each of 4 images\.$"),
    ],
)
def test_classes_that_a_network_lacks_are_refused(classes, sentence):
    with pytest.raises(UserError, match=sentence):
        grad_cam(MODEL, VARIABLES, small.IMAGES, np.array(classes))


def test_classes_may_be_traced():
    of = jax.jit(lambda classes: grad_cam(MODEL, VARIABLES, small.IMAGES, classes))
    expected = grad_cam(MODEL, VARIABLES, small.IMAGES, CLASSES)
    np.testing.assert_allclose(of(CLASSES), expected, rtol=1e-4, atol=1e-6)


def test_images_in_a_batch_do_not_affect_each_other():
    together = grad_cam(MODEL, VARIABLES, small.IMAGES, CLASSES, "stage1")
    for i in range(4):
        alone = grad_cam(MODEL, VARIABLES, small.IMAGES[i : i + 1], CLASSES[i : i + 1], "stage1")
        np.testing.assert_allclose(together[i], alone[0], atol=1e-5)


def test_bfloat16_networks_have_float32_maps():
    model = small.network(dtype=jnp.bfloat16)
    maps = grad_cam(model, VARIABLES, small.IMAGES, CLASSES)
    assert maps.dtype == jnp.float32
    np.testing.assert_allclose(maps, grad_cam(MODEL, VARIABLES, small.IMAGES, CLASSES), atol=0.1)


@pytest.mark.parametrize("endpoint", ["pooled", "stage3"])
def test_an_endpoint_without_positions_is_refused(endpoint):
    with pytest.raises(UserError, match=r"endpoint='.*' is not known; allowed are stem, stage1"):
        grad_cam(MODEL, VARIABLES, small.IMAGES, endpoint=endpoint)
