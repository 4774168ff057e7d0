"""Normalisation and augmentation against numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet_jax.data.augment import Augmentation, fit_normalization
from resnet_jax.parallel import mesh as meshes

KEY = jax.random.key(3)


def pixels(n=2500):
    # Several pieces of 1,000; a strong gradient makes the pixels' means differ.
    draw = np.random.default_rng(0).integers(0, 100, (n, 4, 5, 3))
    return (draw + 10 * np.arange(15).reshape(5, 3)).astype(np.uint8)


@pytest.mark.parametrize("std", [False, True])
@pytest.mark.parametrize("mean", ["pixel", "channel", "none"])
def test_normalization_is_numpys(mean, std):
    images = pixels()
    x = images.astype(np.float64)
    means = {"pixel": x.mean(0), "channel": x.mean((0, 1, 2)), "none": 0.0}
    expected = (x[:7] - means[mean]) / (x.std((0, 1, 2)) if std else 1.0)
    result = fit_normalization(images, mean, std)(jnp.asarray(images[:7]))
    assert result.dtype == jnp.float32
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-4)


def test_normalizations_differ():
    images = pixels()
    settings = [(m, s) for m in ("pixel", "channel", "none") for s in (False, True)]
    outputs = [fit_normalization(images, *s)(jnp.asarray(images[:7])) for s in settings]
    for i, a in enumerate(outputs):
        for b in outputs[:i]:
            assert np.abs(a - b).max() > 0.1


def test_a_constant_channel_is_not_divided_by_zero():
    images = pixels()
    images[..., 1] = 7
    result = fit_normalization(images, "channel", True)(jnp.asarray(images[:7]))
    assert np.isfinite(result).all()
    np.testing.assert_array_equal(result[..., 1], 0)


# --------------------------------------------------------------------------- augmentation


def ramp(batch, size=6):
    """Images whose pixels are all different and not zero."""
    count = batch * size * size * 2
    return np.arange(1, count + 1, dtype=np.float32).reshape(batch, size, size, 2)


def by_numpy(key, images, pad, flip):
    """Crops and mirrors one image at a time, with the same draws."""
    batch, height, width, _ = images.shape
    crop_key, flip_key = jax.random.split(key)
    offsets = np.asarray(jax.random.randint(crop_key, (batch, 2), 0, 2 * pad + 1))
    flips = np.asarray(jax.random.bernoulli(flip_key, 0.5, (batch,)))
    outputs = []
    for image, (top, left), flipped in zip(images, offsets, flips, strict=True):
        padded = np.zeros((height + 2 * pad, width + 2 * pad, image.shape[-1]), np.float32)
        padded[pad : pad + height, pad : pad + width] = image
        crop = padded[top : top + height, left : left + width]
        outputs.append(crop[:, ::-1] if flip and flipped else crop)
    return np.stack(outputs)


def augmented(key, images, pad=2, flip=True):
    augmentation = Augmentation(pad, flip)
    return augmentation(augmentation.draw(key, len(images)), jnp.asarray(images))


@pytest.mark.parametrize(("pad", "flip"), [(0, False), (0, True), (2, False), (2, True)])
def test_augmentation_is_numpys(pad, flip):
    images = ramp(16)
    result = augmented(KEY, images, pad, flip)
    assert np.array_equal(result, images) is (not pad and not flip)
    np.testing.assert_array_equal(result, by_numpy(KEY, images, pad, flip))


def test_keys():
    images = ramp(16)
    assert (augmented(KEY, images) != augmented(jax.random.key(4), images)).any()
    np.testing.assert_array_equal(augmented(KEY, images), augmented(KEY, images))


def test_images_do_not_mix():
    images = ramp(16)
    changed = images.copy()
    changed[5] += 10_000
    before, after = (augmented(KEY, x) for x in (images, changed))
    differs = np.asarray((before != after).any(axis=(1, 2, 3)))
    np.testing.assert_array_equal(differs, np.arange(16) == 5)


def test_every_offset_and_both_flips_occur():
    image = np.tile(ramp(1), (512, 1, 1, 1))
    seen = {a.tobytes() for a in np.asarray(augmented(KEY, image))}
    possible = {
        crop.tobytes()
        for top in range(5)
        for left in range(5)
        for crop in _both(
            np.pad(image[0], ((2, 2), (2, 2), (0, 0)))[top : top + 6, left : left + 6]
        )
    }
    assert len(possible) == 2 * 25
    assert seen == possible


def _both(crop):
    return crop.copy(), crop[:, ::-1].copy()


def test_device_count_changes_nothing():
    images = ramp(16)
    augment = jax.jit(augmented)
    spread = jax.device_put(images, meshes.split_batch(meshes.make_mesh()))
    assert len(spread.sharding.device_set) == 8
    result = augment(KEY, spread)
    assert (result != images).any()
    np.testing.assert_array_equal(result, augment(KEY, jnp.asarray(images)))
