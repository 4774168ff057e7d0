"""The views of full-size pictures in an evaluation, and the average over them."""

import collections
import math
import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import imagenet
from resnet_jax.data import jpeg, views
from resnet_jax.execution import decide
from resnet_jax.losses import MANY_CLASSES
from resnet_jax.parallel import mesh as meshes
from resnet_jax.programs import Compiler
from resnet_jax.resolve import resolve
from tests import tiny
from tests.data import pictures
from tests.data.pictures import opened


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tfds")
    pictures.prepare(folder)
    return folder


def view_of(name, config):
    return views.make_views(name, config, pictures.config("").eval)


@pytest.mark.parametrize("name", views.VIEWS)
@pytest.mark.parametrize("batch_size", [1, 4, 64])
def test_every_picture_is_evaluated_exactly_once(root, name, batch_size):
    seen = collections.Counter()
    with opened(root) as (config, data):
        for batch in data.test.views(view_of(name, config), batch_size):
            assert {len(group) for group in batch.groups} == {len(batch.mask)}
            assert len(batch.mask) % 8 == 0
            seen.update(np.asarray(batch.labels)[np.asarray(batch.mask)].tolist())
    assert seen == {pictures.label_of(1000 + n): 1 for n in range(11)}


@pytest.mark.parametrize("name", views.VIEWS)
def test_a_batch_of_views_has_no_more_pixels_than_a_batch_of_training_crops(root, name):
    for batch_size in (8, 64, 640):
        with opened(root) as (config, data):
            view = view_of(name, config)
            for batch in data.test.views(view, batch_size):
                pixels = (1 + view.mirrored) * max(math.prod(g.shape[1:-1]) for g in batch.groups)
                per_device = len(batch.mask) // 8
                assert per_device * pixels <= batch_size // 8 * 32**2 or per_device == 1
                assert (per_device + 1) * pixels > batch_size // 8 * 32**2  # the largest that fits


def test_the_papers_views_at_full_size():
    c = resolve(imagenet.get_config("paper"))
    assert decide(c, jax.devices()[:1]).eval_batch_size == 256  # of eval.batch_size=1000
    whole, ten, center = (
        views.make_views(name, c.data, c.eval)
        for name in ("fully_convolutional", "ten_crop", "center")
    )
    tall = whole.bucket(640, 832)

    def count(view, bucket, devices=1, batch_size=256):
        return views.pictures_per_batch(view, bucket, batch_size, c.data.image_size, devices)

    assert whole.shapes(tall)[-1] == (1, 640, 736)
    assert count(whole, tall) == 13  # mirrored: 26 x 640 x 736 <= 256 x 224 x 224
    assert count(ten, ()) == 25
    assert count(center, ()) == 256
    assert count(whole, tall, devices=32) == 32  # one per device, although it exceeds 8 crops
    c.accumulate = 4
    assert decide(c, jax.devices()[:1]).eval_batch_size == 64
    resident = resolve(tiny.config(accumulate=1))
    batch_size = decide(resident, jax.devices()[:1]).eval_batch_size
    assert batch_size == resident.eval.batch_size > resident.batch_size


def test_several_seeds_share_one_read_of_each_picture(root):
    with opened(root, 8, replicates=2) as (config, data):
        assert data.test.mesh.shape["replicates"] == 2
        (_,) = data.test.views(view_of("center", config), 64)
        assert data.test.records.read == 11


def test_the_centre_and_ten_crops_by_hand(root):
    with opened(root) as (config, data):
        (ten,) = data.test.views(view_of("ten_crop", config), 8 * 2 * 10)  # two on each device
        (centre,) = data.test.views(view_of("center", config), 64)
    assert (view_of("ten_crop", config).mirrored, view_of("center", config).mirrored) == (1, 0)
    records = pictures.records(root, "validation")
    for n in range(11):
        image = jpeg.decode(records[n].image)
        height, width = image.shape[:2]
        scale = 36 / min(height, width)
        resized = jpeg.resize(image, round(height * scale), round(width * scale), "bilinear")
        bottom, right = resized.shape[0] - 32, resized.shape[1] - 32
        assert min(bottom, right) == 4
        places = [(round(bottom / 2), round(right / 2)), (0, 0), (0, right), (bottom, 0),
                  (bottom, right)]  # fmt: skip
        wanted = [resized[top : top + 32, left : left + 32] for top, left in places]
        np.testing.assert_array_equal(ten.groups[0][n], wanted)
        np.testing.assert_array_equal(centre.groups[0][n], wanted[:1])


def test_whole_pictures_at_every_scale():
    whole = views.Whole((32, 48), "bilinear")
    for (height, width), shapes in {
        (100, 100): [(1, 32, 32), (1, 48, 48)],
        (100, 133): [(1, 32, 32), (1, 48, 48)],  # 14/12 of 48 is less than 64
        (100, 134): [(1, 32, 32), (1, 48, 64)],
        (134, 100): [(1, 32, 32), (1, 64, 48)],
        (100, 900): [(1, 32, 64), (1, 48, 96)],
        (900, 100): [(1, 64, 32), (1, 96, 48)],
    }.items():
        bucket = whole.bucket(height, width)
        assert whole.shapes(bucket) == shapes
        cut = whole.cut(pictures.paint(5, height, width), bucket)
        assert [view.shape for view in cut] == [(*shape, 3) for shape in shapes]
    # A long picture is cut equally at both ends.
    long = np.arange(900, dtype=np.uint16)[None, :, None] * np.ones((100, 1, 3)) / 4
    (small, _) = whole.cut(long.astype(np.uint8), whole.bucket(100, 900))
    assert abs(small[0, 16, 0, 0] + float(small[0, 16, -1, 0]) - 224) <= 2


def long_picture(height, width):
    """A picture whose brightness rises evenly along its long side."""
    ramp = np.linspace(0, 255, max(height, width)).astype(np.uint8)
    along = ramp[None, :, None] if width > height else ramp[:, None, None]
    return np.broadcast_to(along, (height, width, 3))


LONG = (views.Crops(True, 224, 256, "bilinear"), views.Whole((224, 640), "bilinear"))


@pytest.mark.parametrize("size", [(1, 2000), (2000, 1), (2, 20_000), (1, 65_000)])
@pytest.mark.parametrize("view", LONG, ids=["ten_crop", "fully_convolutional"])
def test_a_very_long_picture_takes_no_extra_memory(view, size):
    image, bucket = long_picture(*size), view.bucket(*size)
    tracemalloc.start()
    cut = view.cut(image, bucket)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 20e6
    assert [group.shape for group in cut] == [(*shape, 3) for shape in view.shapes(bucket)]
    middle, *ends = cut[0]
    assert abs(middle.mean() - 127) < 4
    if ends:  # the corners: two at one end of the picture, two at the other
        assert sorted(round(end.mean() / 255) for end in ends) == [0, 0, 1, 1]


@pytest.mark.parametrize("size", [(50, 450), (450, 50)])
def test_cutting_a_long_picture_before_resizing_gives_the_same_views(size, monkeypatch):
    image = pictures.paint(3, *size)
    for view in LONG:
        bucket = view.bucket(*size)
        cut = view.cut(image, bucket)
        with monkeypatch.context() as patch:
            patch.setattr(views, "_LONG", 10)
            wanted = view.cut(image, bucket)
        for one, other in zip(cut, wanted, strict=True):
            difference = np.abs(one.astype(int) - other)
            assert 0 < difference.mean() < 2  # half a pixel of 50, enlarged to 640


def test_predictions_of_all_views_are_averaged():
    """The network sums an image's left and right half, which mirroring swaps."""

    class Halves:
        def apply(self, variables, images, train, **_):
            left, right = (half.sum((1, 2, 3)) for half in jnp.split(images, 2, axis=2))
            # Different weights: otherwise two classes would tie in the mean over mirror images.
            logits = jnp.stack([left, right / 2, jnp.zeros_like(left)], axis=1)
            # Enough classes for a top-5 error; all but three are never predicted.
            return jnp.pad(logits, ((0, 0), (0, MANY_CLASSES - 3)), constant_values=-1e4)

    def normalization(images):
        return images.astype(jnp.float32) / 1000

    mesh = meshes.make_mesh(1, 0, 1, jax.devices()[:1])
    images = np.random.default_rng(0).integers(0, 256, (5, 2, 4, 4, 3)).astype(np.uint8)
    small = images[:, :1, :2, :2]
    labels, mask = np.array([0, 1, 2, 0, 1], np.int32), np.array([True] * 4 + [False])

    def probabilities(batch):
        x = batch.astype(np.float64) / 1000
        left, right = (half.sum((2, 3, 4)) for half in np.split(x, 2, axis=3))
        logits = np.stack([left, right / 2, np.zeros_like(left)], axis=-1)
        return np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)

    for mirrored in (False, True):
        task = tiny.task(Halves(), normalization, mesh)
        eval_step = Compiler(tiny.execution(mesh), replicates=1).eval_step(task, mirrored)
        sums = eval_step({"params": np.zeros(1)}, (images, small), labels, mask)
        views_ = [images, small]
        if mirrored:
            views_ += [batch[:, :, :, ::-1] for batch in views_]
        mean = np.concatenate(list(map(probabilities, views_)), axis=1).mean(axis=1)
        wanted = -np.log(mean[range(5), labels])[mask].sum()
        np.testing.assert_allclose(sums["loss"], [wanted], rtol=1e-5)
        error = 100.0 * (mean.argmax(1) != labels)[mask].sum()
        np.testing.assert_allclose(sums["error"], [error])
        assert set(sums) == {"loss", "error", "top5_error"}
