"""A user's own arrays as a data set, and data sets of some classes."""

import numpy as np
import pytest

from resnet_jax import train
from resnet_jax.data import arrays, datasets, sources
from resnet_jax.errors import UserError
from resnet_jax.resolve import resolve
from resnet_jax.runs import reader
from tests import tiny


def made(**changes):
    """Returns a set of 24 training and 12 test images of 8 x 8 pixels in three classes."""
    random = np.random.default_rng(0)
    content = {}
    for split, count in (("train", 24), ("test", 12)):
        content[f"{split}_images"] = random.integers(0, 256, (count, 8, 8, 3), np.uint8)
        content[f"{split}_labels"] = np.arange(count) % 3
    return content | changes


@pytest.fixture
def file(tmp_path):
    np.savez(tmp_path / "mine.npz", **made())
    return str(tmp_path / "mine.npz")


OWN = {"data__name": "arrays", "data__validation": 4, "steps": 2, "eval__every": 2}


def test_a_run_trains_on_some_classes_of_a_users_arrays(file, tmp_path):
    config = tiny.config(**OWN, data__dir=file, data__classes=(2, 0))
    assert train.train(config, str(tmp_path / "run")) == "completed"
    run = reader.read(tmp_path / "run")
    assert run.config["model"]["num_classes"] == 2
    assert run.config["data"]["image_size"] == 8
    data = run.environment["data"]
    assert (data["train"], data["validation"], data["test"]) == (12, 4, 8)
    assert data["image_shape"] == [8, 8, 3]
    assert "test/error" in run.metrics[-1]
    assert datasets.normalization(resolve(config).data)[1] == data["content"]


def test_the_arrays_arrive_as_they_are(file):
    source = sources.read_set("arrays", file)
    expected = made()
    for name, array in expected.items():
        np.testing.assert_array_equal(getattr(source, name), array)
    assert source.train_labels.dtype == np.int32


@pytest.mark.parametrize("shape", [(24, 8, 8), (24, 8, 8, 1)])
def test_gray_images_get_three_equal_channels(shape, tmp_path):
    gray = np.arange(24 * 64, dtype=np.uint8).reshape(shape)
    np.savez(tmp_path / "gray.npz", **made(train_images=gray))
    images = arrays.read(str(tmp_path / "gray.npz"))["train_images"]
    for channel in (0, 1, 2):
        np.testing.assert_array_equal(images[..., channel], gray.reshape(24, 8, 8))


def test_a_changed_file_is_read_again(file):
    facts = sources.facts("arrays", file)
    assert (facts.train, facts.num_classes, facts.image_shape) == (24, 3, (8, 8, 3))
    np.savez(file, **made(train_labels=np.arange(24)))
    assert sources.facts("arrays", file).num_classes == 24


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"train_images": np.zeros((24, 8, 8, 3))}, r"train_images in .* is float64 \(24, 8, "),
        ({"train_images": np.zeros((24, 8, 9, 3), np.uint8)}, r"allowed is uint8 \(N, H, H, 3\), "),
        ({"train_images": np.zeros((24, 8, 8, 4), np.uint8)}, r"uint8 \(24, 8, 8, 4\); allowed"),
        ({"test_images": np.zeros((0, 8, 8, 3), np.uint8)}, r"test_images in .* \(0, 8, 8, 3\); "),
        ({"test_images": np.zeros((12, 9, 9, 3), np.uint8)}, "training and test images differ"),
        ({"train_labels": np.zeros(24, int), "test_labels": np.zeros(12, int)}, "has one class"),
        ({"test_labels": np.arange(11)}, r"whole numbers from 0, one for each of 12 images"),
        ({"test_labels": np.arange(12) - 1}, "allowed are whole numbers from 0"),
        ({"test_labels": np.arange(12) / 2}, "float64"),
        ({"test_labels": np.full(12, 2**40)}, "allowed are whole numbers from 0"),
        ({"labels": np.zeros(3)}, "holds labels, test_images, .*; a set needs train_images, "),
    ],
)  # fmt: skip
def test_unusable_arrays_are_refused(changes, sentence, tmp_path):
    np.savez(tmp_path / "mine.npz", **made(**changes))
    with pytest.raises(UserError, match=sentence):
        resolve(tiny.config(**OWN, data__dir=str(tmp_path / "mine.npz")))


@pytest.mark.parametrize("content", [b"", b"PK no zip", b"\x80\x04N."])
def test_a_broken_file_is_refused(content, tmp_path):
    (tmp_path / "mine.npz").write_bytes(content)
    with pytest.raises(UserError, match=r"is not an \.npz file of arrays"):
        resolve(tiny.config(**OWN, data__dir=str(tmp_path / "mine.npz")))


def test_a_single_array_is_refused(tmp_path):
    np.save(tmp_path / "mine.npy", np.zeros(3))
    with pytest.raises(UserError, match=r"is not an \.npz file of arrays"):
        resolve(tiny.config(**OWN, data__dir=str(tmp_path / "mine.npy")))


@pytest.mark.parametrize("place", ["", "/nothing.npz", "/"])
def test_a_missing_file_is_refused(place):
    with pytest.raises(UserError, match=r"is no file; data.name='arrays' needs an .npz file with"):
        resolve(tiny.config(**OWN, data__dir=place))


# --------------------------------------------------------------------------- some classes only


def test_examples_of_some_classes_are_renumbered_in_the_given_order():
    whole = sources.read_set("digits", "")
    some = whole.of_classes((7, 2))
    for split in ("train", "test"):
        labels = getattr(whole, f"{split}_labels")
        chosen = np.isin(labels, (7, 2))
        expected = np.where(labels[chosen] == 7, 0, 1)
        np.testing.assert_array_equal(getattr(some, f"{split}_labels"), expected)
        images = getattr(whole, f"{split}_images")[chosen]
        np.testing.assert_array_equal(getattr(some, f"{split}_images"), images)
    assert whole.of_classes(()) is whole


def test_the_mean_is_that_of_the_chosen_classes():
    config = resolve(tiny.config(data__classes=(5, 6, 7)))
    assert config.model.num_classes == 3
    images = sources.read_set("digits", "").of_classes((5, 6, 7)).train_images
    train_part, _ = datasets.split_indices(len(images), 180, 0)
    normalization, _ = datasets.normalization(config.data)
    np.testing.assert_allclose(normalization.mean[0], images[train_part].mean(axis=0), rtol=1e-6)


@pytest.mark.parametrize(
    ("classes", "logits", "names"),
    [
        ((), 3, ["cat", "dog", "owl"]),
        ((2, 0), 2, ["owl", "cat"]),
        ((), 4, ["cat", "dog", "owl", "unused"]),
    ],
)
def test_logits_are_named_by_their_classes(classes, logits, names, tmp_path):
    folder = tmp_path / "cifar10" / "3.0.2"
    folder.mkdir(parents=True)
    (folder / "dataset_info.json").write_text("{}")
    (folder / "label.labels.txt").write_text("cat\ndog\nowl\n")
    data = tiny.config(data__name="cifar10", data__dir=str(tmp_path), data__classes=classes).data
    assert sources.class_names(data, logits) == names


def test_logits_of_a_set_without_names_have_its_labels():
    assert sources.class_names(tiny.config(data__classes=(5, 7)).data, 2) == ["5", "7"]
    assert sources.class_names(tiny.config().data, 3) == ["0", "1", "2"]


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        ({"data__classes": (3,)}, "at least two different labels from 0 to 9"),
        ({"data__classes": (3, 3)}, "at least two different labels from 0 to 9"),
        ({"data__classes": (3, 10)}, "at least two different labels from 0 to 9"),
        ({"data__classes": (1, 2), "steps": None, "epochs": 2.0}, "no length can be in epochs"),
        ({"data__classes": (1, 2), "schedule__unit": "epochs"}, "no length can be in epochs"),
        ({"data__classes": (1, 2), "model__num_classes": 1}, "less than the 2 classes of digits"),
        ({"data__classes": (1, 2), "data__name": "imagenet2012", "data__mean": "channel"},
         "needs a set held in memory, but imagenet2012 is streamed"),
    ],
)  # fmt: skip
def test_classes_that_cannot_be_are_refused(overrides, sentence, no_data):
    with pytest.raises(UserError, match=sentence):
        resolve(tiny.config(**overrides))


def test_classes_with_too_few_examples_are_refused(tmp_path):
    config = tiny.config(data__classes=(1, 2), data__validation=400)
    with pytest.raises(UserError, match="leaves 288 training and 71 test examples; "):
        train.train(config, str(tmp_path))
