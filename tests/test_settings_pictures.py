"""Crops, views and scales: what small images and full-size pictures may ask for."""

import math

import pytest

from configs import imagenet
from resnet_jax.errors import UserError
from resnet_jax.resolve import resolve
from tests.test_settings import changed, refusal


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"eval__views": ()}, "eval.views=(); allowed are one or more of center"),
        ({"eval__views": ("ten_corp",)}, "(nearest: ten_crop)"),
        ({"eval__views": ("center", "center")}, "each once"),
        ({"eval__views": ("ten_crop",)}, "needs full-size pictures, which digits lacks"),
        ({"data__image_size": 16}, "data.image_size=16 would resize the images of digits, which"),
        ({"data__color": True}, "data.color=True needs three channels, but digits has 1"),
    ],
)
def test_settings_that_small_images_do_not_support_are_refused(values, words):
    assert words in refusal(changed(**values))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"data__mean": "pixel"}, "images of one size, but the pictures of imagenet2012 differ"),
        ({"data__pad": 4}, "data.pad=4 has no effect on imagenet2012"),
        ({"data__scales": (200, 480)}, "data.scales=(200, 480) is out of range; allowed are two"),
        ({"data__scales": (480, 256)}, "the smaller first"),
        ({"data__scales": (256,)}, "data.scales=(256,)"),
        ({"data__area": (0.0, 1.0)}, "data.area=(0.0, 1.0)"),
        ({"data__area": (0.1, 1.1)}, "data.area=(0.1, 1.1)"),
        ({"data__aspect": (math.nan, 1.0)}, "data.aspect=(nan, 1.0)"),
        ({"eval__short_side": 200}, "eval.short_side=200 is smaller than the crops of 224"),
        ({"eval__scales": ()}, "eval.scales=()"),
        ({"eval__scales": (224, 16)}, "eval.scales=(224, 16)"),
        ({"data__validation": 0}, "schedule.name='plateau'"),
    ],
)
def test_settings_that_full_size_pictures_do_not_support_are_refused(values, words, no_data):
    config = imagenet.get_config()
    resolve(config)
    assert words in refusal(changed(config, **values))


@pytest.mark.parametrize("preset", imagenet.PRESETS)
def test_presets_are_sound(preset, no_data):
    resolved = resolve(imagenet.get_config(preset))
    assert resolved.data.image_size == 224
    assert resolved.steps == {"paper": 600000, "modern": round(90 * 1271167 / 1024)}[preset]
    assert resolved.schedule.rate == {"paper": 0.1, "modern": 0.4}[preset]


def test_an_unknown_preset_is_refused():
    with pytest.raises(UserError, match=r"preset='papr' .*\(nearest: paper\)"):
        imagenet.get_config("papr")
