"""A user's picture files: found, prepared as evaluation prepares its set, or named."""

import numpy as np
import pytest
from absl import logging
from PIL import Image

from configs import base
from resnet_jax.data import pictures as files
from resnet_jax.data import sets
from resnet_jax.data.views import make_views
from resnet_jax.errors import UserError
from resnet_jax.parallel import mesh as meshes
from resnet_jax.resolve import resolve
from tests.data import pictures


def config(name):
    c = base.get_config()
    c.data.name, c.steps, c.data.workers = name, 1, 2
    c.model.num_classes = 10
    return resolve(c)


def prepared(c, paths, batch_size=8):
    """Returns (what the network is given, as one array; the Files)."""
    found = files.Files(paths)
    views = files.views_of(c.data, c.eval)
    with files.opened(found, c.data, meshes.make_mesh()) as split:
        batches = list(split.views(views, batch_size))
    groups = [np.asarray(batch.groups[0])[np.asarray(batch.mask)] for batch in batches]
    numbers = [np.asarray(batch.labels)[np.asarray(batch.mask)] for batch in batches]
    assert np.concatenate(numbers).tolist() == list(range(len(paths)))
    (images,) = np.moveaxis(np.concatenate(groups), 1, 0)  # there is one view
    return images, found


def saved(folder, images, kind="png"):
    paths = [folder / f"{number:03}.{kind}" for number in range(len(images))]
    for path, image in zip(paths, images, strict=True):
        Image.fromarray(image.squeeze()).save(path)
    return paths


@pytest.mark.parametrize("name", ["cifar10", "mnist", "digits"])
def test_a_picture_of_the_set_s_size_is_taken_pixel_for_pixel(name, tmp_path, no_data):
    known = sets.DATA_SETS[name]
    draw = np.random.default_rng(0)
    images = draw.integers(0, known.white + 1, (11, *known.image_shape)).astype(np.uint8)
    assert {0, known.white} <= {*images.flat}
    # As anybody would save them: a set's white as white.
    paths = saved(tmp_path, np.rint(images * (255 / known.white)).astype(np.uint8))
    found, given = prepared(config(name), paths)
    np.testing.assert_array_equal(found, images)
    assert found.dtype == np.uint8
    assert {*map(tuple, (given.notes(i, config(name).data) for i in range(11)))} == {()}


def test_another_size_is_averaged_over_areas_and_cropped_at_the_centre(tmp_path, no_data):
    random = np.random.default_rng(0)
    square, upright = (
        random.integers(0, 256, (height, 96, 3)).astype(np.uint8) for height in (96, 288)
    )
    paths = saved(tmp_path, [square, upright])
    found, given = prepared(config("cifar10"), paths)
    # A third of the size: each pixel is the mean of 3 x 3.
    for image, middle in zip(found, (square, upright[96:192]), strict=True):
        means = middle.reshape(32, 3, 32, 3, 3).mean((1, 3))
        np.testing.assert_allclose(image, means, atol=0.501)
    notes = [given.notes(i, config("cifar10").data) for i in (0, 1)]
    assert notes == [["resized from 96 x 96 pixels"], ["resized from 96 x 288 pixels"]]


def test_colours_become_grey_by_their_luminance_and_grey_keeps_its_value(tmp_path, no_data):
    colours = np.random.default_rng(0).integers(0, 256, (28, 28, 3)).astype(np.uint8)
    grey = np.arange(28 * 28).reshape(28, 28) % 256
    found, given = prepared(config("mnist"), saved(tmp_path, [colours, grey.astype(np.uint8)]))
    luminance = colours @ np.array([0.299, 0.587, 0.114])
    np.testing.assert_allclose(found[0, ..., 0], luminance, atol=0.501)
    np.testing.assert_array_equal(found[1, ..., 0], grey)
    data = config("mnist").data
    assert [given.notes(i, data) for i in (0, 1)] == [["colours became grey"], []]


def test_whatever_is_ignored_is_noted(tmp_path, no_data):
    rgba = np.full((32, 32, 4), 100, np.uint8)
    rotated = Image.fromarray(rgba[..., :3])
    exif = Image.Exif()
    exif[0x0112] = 6
    rotated.save(tmp_path / "rotated.jpg", exif=exif)
    Image.fromarray(rgba[..., 0]).save(tmp_path / "grey.png")
    Image.fromarray(rgba, "RGBA").save(tmp_path / "transparent.png")
    paths = [tmp_path / name for name in ("rotated.jpg", "grey.png", "transparent.png")]
    found, given = prepared(config("cifar10"), paths)
    np.testing.assert_array_equal(found, 100)
    assert [given.notes(i, config("cifar10").data) for i in range(3)] == [
        ["EXIF rotation ignored"], ["grey, taken as RGB"], ["transparency ignored"],
    ]  # fmt: skip


def test_a_streamed_set_s_pictures_are_those_of_its_evaluation(tmp_path):
    pictures.prepare(tmp_path)
    records = pictures.records(tmp_path, "validation")
    paths = [tmp_path / f"{number}.jpg" for number in range(len(records))]
    for number, path in enumerate(paths):
        path.write_bytes(records[number].image)
    with pictures.opened(tmp_path) as (data, opened):
        c = resolve(pictures.config(tmp_path))
        batches = list(opened.test.views(make_views("center", data, c.eval), 8))
    of_set = np.concatenate([np.asarray(b.groups[0])[np.asarray(b.mask)] for b in batches])
    found, _ = prepared(c, paths)
    assert len(found) == 11
    np.testing.assert_array_equal(found, of_set[:, 0])
    said = files.preparation(c.data, c.eval)
    assert "a short side of 36 pixels (bilinear) and cropped to the central 32 x 32." in said


def test_a_broken_picture_is_named_and_does_not_lose_the_others(tmp_path, monkeypatch, no_data):
    lines = []
    monkeypatch.setattr(logging, "warning", lambda text, *args: lines.append(text % args))
    images = np.random.default_rng(0).integers(0, 256, (20, 32, 32, 3)).astype(np.uint8)
    paths = saved(tmp_path, images)
    paths[3].write_bytes(paths[3].read_bytes()[:-900])
    paths[7].write_text("no picture")
    paths[9].unlink()
    paths[12].write_bytes(b"")
    found, given = prepared(config("cifar10"), paths)
    assert sorted(given.unreadable) == [3, 7, 9, 12]
    assert "truncated" in given.unreadable[3]
    assert given.unreadable[7] == "it is not a picture in any known format"
    assert given.unreadable[9] == "No such file or directory"
    assert sorted(lines) == [
        f"{paths[i]} is left out: {given.unreadable[i]}." for i in (3, 7, 9, 12)
    ]
    others = [i for i in range(20) if i not in given.unreadable]
    np.testing.assert_array_equal(found[others], images[others])


def test_pictures_below_a_folder_are_found_in_order(tmp_path):
    names = ["b.PNG", "a/z.jpg", "a/b/c.webp", "a.txt", ".hidden/d.png", "a/._z.jpg"]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "folder.png").mkdir()
    found = files.find([str(tmp_path / "a.txt"), str(tmp_path)])
    wanted = ["a.txt", "a/b/c.webp", "a/z.jpg", "b.PNG"]
    assert [path.relative_to(tmp_path).as_posix() for path in found] == wanted


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("absent.jpg", "absent.jpg does not exist; allowed are pictures and folders of pictures"),
        ("empty", "empty has no picture; allowed are files that end with .bmp, .gif"),
    ],
)
def test_what_holds_no_picture_is_refused(name, words, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "a.txt").touch()
    with pytest.raises(UserError, match=words):
        files.find([str(tmp_path / name)])
