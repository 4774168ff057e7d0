"""Training crops: bounds, distribution and agreement with the paper's definition."""

import math

import numpy as np
import pytest
from ml_collections import ConfigDict

from resnet_jax.data import crops, jpeg, order
from tests.data import pictures

SCALE = crops.make_crop(ConfigDict({"crop": "scale", "scales": (256, 480), "image_size": 224}))
AREA, ASPECT = (0.08, 1.0), (3 / 4, 4 / 3)
RESIZED = crops.make_crop(ConfigDict({"crop": "random_resized", "area": AREA, "aspect": ASPECT}))


def boxes(crop, height, width, count=400):
    uniform = crops.draw(seed=3, purpose=order.TRAIN, step=5, batch_size=count, draws=crop.draws)
    return [crop.box(height, width, row) for row in uniform.tolist()]


@pytest.mark.parametrize("crop", [SCALE, RESIZED], ids=["scale", "random_resized"])
@pytest.mark.parametrize(
    "size", [(375, 500), (500, 375), (224, 224), (60, 70), (30, 1000), (1000, 30), (1, 1), (1, 400)]
)
def test_boxes_lie_in_the_picture(crop, size):
    for box in boxes(crop, *size):
        assert box.height >= 1
        assert box.width >= 1
        assert 0 <= box.top <= size[0] - box.height
        assert 0 <= box.left <= size[1] - box.width


def test_the_papers_crop_is_cut_from_the_resized_picture():
    image = pictures.paint(1, 300, 400)
    uniform = [0.5, 0.25, 0.75]  # for the length (of 225), the row and the column
    short = 256 + int(0.5 * 225)
    resized = jpeg.resize(image, short, round(400 * short / 300), "bilinear")
    top = int(0.25 * (resized.shape[0] - 224 + 1))
    left = int(0.75 * (resized.shape[1] - 224 + 1))
    wanted = resized[top : top + 224, left : left + 224]

    box = SCALE.box(300, 400, uniform)
    cut = image[box.top : box.top + box.height, box.left : box.left + box.width]
    result = jpeg.resize(cut, 224, 224, "bilinear")
    difference = np.abs(result.astype(int) - wanted).mean()
    elsewhere = np.abs(np.roll(result, 8, axis=1).astype(int) - wanted).mean()
    assert difference < 1 < elsewhere


def test_the_papers_scales_and_positions_are_all_used():
    shorts = [224 * 300 / box.height for box in boxes(SCALE, 300, 400)]
    assert min(shorts) < 259
    assert max(shorts) > 476
    assert 350 < np.mean(shorts) < 386  # uniform over [256, 480]: 368
    lefts = [box.left / max(1, 400 - box.width) for box in boxes(SCALE, 300, 400)]
    assert 0.45 < np.mean(lefts) < 0.55
    assert min(lefts) < 0.02
    assert max(lefts) > 0.98


def test_areas_and_aspects_have_the_right_distribution():
    boxes_ = boxes(RESIZED, 1000, 1000, 2000)
    areas = np.array([b.height * b.width / 1e6 for b in boxes_])
    logs = np.array([math.log(b.width / b.height) for b in boxes_])
    assert areas.min() >= 0.079
    assert areas.max() > 0.95
    # Not every aspect fits if the area exceeds 3/4 of the picture. That leaves
    # 0.67 + (1 - 3/4 (1 + log 4/3)) / log 4/3 of the range, whose first quarter is 0.197 long.
    assert abs(np.quantile(areas, 0.25) - (0.08 + 0.197)) < 0.025
    assert abs(logs).max() <= math.log(4 / 3) + 0.01
    assert abs(logs.mean()) < 0.02
    assert logs.std() > 0.14  # uniform over the whole range: 0.166


def test_a_long_strip_falls_back_to_its_middle():
    assert set(boxes(RESIZED, 100, 2000)) == {crops.Box(0, 933, 100, 133)}
    assert set(boxes(RESIZED, 2000, 100)) == {crops.Box(933, 0, 133, 100)}


def test_draws_are_a_function_of_seed_purpose_and_step():
    def draw(*args):
        return crops.draw(*args, 8, 3)

    np.testing.assert_array_equal(draw(1, 0, 2), draw(1, 0, 2))
    others = [draw(1, 0, 2), draw(2, 0, 2), draw(1, 1, 2), draw(1, 0, 3)]
    assert len({d.tobytes() for d in others}) == 4
    assert len(np.unique(others[0])) == 24
