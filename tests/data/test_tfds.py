"""Sets that TFDS prepared as array_record are read back exactly, without TensorFlow."""

import io
import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordWriter
from PIL import Image
from tensorflow_datasets.proto import tf_example_pb2

from resnet_jax.data import sets, sources
from resnet_jax.errors import UserError

ROOT = pathlib.Path(__file__).parents[2]
SMALL = ("cifar10", "cifar100", "mnist", "fashion_mnist", "svhn_cropped")
SIZES = {"train": 11, "test": 5}


def draw(name, split):
    """Random images and labels of the set's shape; the last class occurs."""
    known = sets.DATA_SETS[name]
    random = np.random.default_rng([len(name), len(split)])
    images = random.integers(0, 256, (SIZES[split], *known.image_shape)).astype(np.uint8)
    labels = random.integers(0, known.num_classes, SIZES[split])
    labels[0] = known.num_classes - 1
    return images, labels


def encode(image, label, encoding="png"):
    """A tf.train.Example as TFDS writes it."""
    encoded = io.BytesIO()
    Image.fromarray(image.squeeze()).save(encoded, format=encoding)
    example = tf_example_pb2.Example()
    example.features.feature["image"].bytes_list.value.append(encoded.getvalue())
    example.features.feature["label"].int64_list.value.append(int(label))
    return example.SerializeToString()


def prepare(root, name, version="3.0.2", encoding="png", file_format="array_record", stored=None):
    """Writes a data set as TFDS's download_and_prepare leaves it.

    `stored` has {number: bytes} to replace training records.
    """
    folder = pathlib.Path(root) / name / version
    folder.mkdir(parents=True)
    known = sets.DATA_SETS[name]
    features = "tensorflow_datasets.core.features"
    image = {
        "dtype": "uint8",
        "encodingFormat": "png",  # ignored: the images themselves decide
        "shape": {"dimensions": [str(d) for d in known.image_shape]},
    }
    content = {
        "image": {"pythonClassName": f"{features}.image_feature.Image", "image": image},
        "label": {
            "pythonClassName": f"{features}.class_label_feature.ClassLabel",
            "classLabel": {"numClasses": str(known.num_classes)},
        },
    }
    whole = {
        "pythonClassName": f"{features}.features_dict.FeaturesDict",
        "featuresDict": {"features": content},
    }
    (folder / "features.json").write_text(json.dumps(whole))
    splits = []
    for split, size in SIZES.items():
        path = folder / f"{name}-{split}.{file_format}-00000-of-00001"
        writer = ArrayRecordWriter(str(path), "group_size:1")
        for number, (one, label) in enumerate(zip(*draw(name, split), strict=True)):
            other = (stored or {}).get(number) if split == "train" else None
            writer.write(encode(one, label, encoding) if other is None else other)
        writer.close()
        splits.append(
            {
                "name": split,
                "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
                "numBytes": str(path.stat().st_size),
                "shardLengths": [str(size)],
            }
        )
    info = {"name": name, "version": version, "fileFormat": file_format, "splits": splits}
    (folder / "dataset_info.json").write_text(json.dumps(info))
    return folder


@pytest.mark.parametrize("name", SMALL)
def test_images_and_labels_come_back_exactly(name, tmp_path):
    prepare(tmp_path, name)
    source = sources.read_set(name, str(tmp_path))
    for split in SIZES:
        images, labels = getattr(source, f"{split}_images"), getattr(source, f"{split}_labels")
        expected_images, expected_labels = draw(name, split)
        assert (images.dtype, labels.dtype) == (np.uint8, np.int32)
        np.testing.assert_array_equal(images, expected_images)
        np.testing.assert_array_equal(labels, expected_labels)
    assert source.note == ""


def test_sizes_are_those_on_disk(tmp_path):
    assert sources.facts("cifar100", str(tmp_path)) == sets.DATA_SETS["cifar100"]
    prepare(tmp_path, "cifar100")
    facts = sources.facts("cifar100", str(tmp_path))
    assert (facts.train, facts.test, facts.num_classes) == (11, 5, 100)


def test_root_comes_from_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "set"))
    assert sources.root_of("") == tmp_path / "set"
    assert sources.root_of(str(tmp_path / "given")) == tmp_path / "given"
    monkeypatch.delenv("TFDS_DATA_DIR")
    assert sources.root_of("") == pathlib.Path.home() / "tensorflow_datasets"


def test_jpeg_copies_are_noted(tmp_path):
    prepare(tmp_path, "cifar10", encoding="jpeg")
    assert "JPEG copies of cifar10" in sources.read_set("cifar10", str(tmp_path)).note


def test_an_unknown_encoding_is_noted(tmp_path):
    prepare(tmp_path, "cifar10", encoding="bmp")
    assert "the original ones is unknown" in sources.read_set("cifar10", str(tmp_path)).note


def test_the_newest_version_is_found_by_number(tmp_path):
    for version in ("3.0.2", "3.0.10", "2.9.9"):
        prepare(tmp_path, "mnist", version)
    (tmp_path / "mnist" / "incomplete.4.0.0").mkdir()
    assert max(["3.0.2", "3.0.10"]) == "3.0.2"  # as text
    assert sources._folder("mnist", str(tmp_path)) == tmp_path / "mnist" / "3.0.10"


def one_sentence(error):
    text = str(error.value)
    assert "\n" not in text
    return text


@pytest.mark.parametrize("name", SMALL)
def test_absent_set_names_the_command_that_prepares_it(name, tmp_path):
    with pytest.raises(UserError) as refused:
        sources.read_set(name, str(tmp_path))
    text = one_sentence(refused)
    assert f"data.dir='{tmp_path}' holds no {name}" in text
    assert text.endswith(f"prepare it with: python -m experiments.prepare {name} --out={tmp_path}.")


def test_other_file_formats_are_refused(tmp_path):
    prepare(tmp_path, "mnist", file_format="tfrecord")
    with pytest.raises(UserError) as refused:
        sources.read_set("mnist", str(tmp_path))
    text = one_sentence(refused)
    assert str(tmp_path) in text
    assert "is not in array_record form" in text


def test_a_large_set_is_not_read_whole(tmp_path):
    prepare(tmp_path, "imagenet2012", "5.1.0")
    with pytest.raises(UserError, match=r"data\.name='imagenet2012' is too large"):
        sources.read_set("imagenet2012", str(tmp_path))


def test_unknown_set_is_refused():
    with pytest.raises(UserError, match=r"data\.name='cifar11' is not known.*nearest: cifar10"):
        sources.read_set("cifar11", "")


def test_tensorflow_is_never_imported(tmp_path):
    prepare(tmp_path, "mnist")
    program = (
        "import sys; from resnet_jax.data import sources; "
        f"assert len(sources.read_set('mnist', {str(tmp_path)!r}).train_labels) == 11; "
        "assert 'tensorflow_datasets' in sys.modules; "
        "print([m for m in sys.modules if m.split('.')[0] == 'tensorflow'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=os.environ, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


# ------------------------------------------------------------------------------ real sets


def test_digits():
    from sklearn.datasets import load_digits

    source = sources.read_set("digits", "")
    assert source.train_images.shape == (1437, 8, 8, 1)
    assert source.test_images.shape == (360, 8, 8, 1)
    assert (source.train_images.dtype, source.train_labels.dtype) == (np.uint8, np.int32)
    assert (source.train_images.min(), source.train_images.max()) == (0, 16)
    assert set(source.test_labels) == set(range(10))

    # Every example of the set is in exactly one split, with its own label.
    def rows(images, labels):
        return sorted((i.tobytes(), int(y)) for i, y in zip(images, labels, strict=True))

    images = np.concatenate([source.train_images, source.test_images])[..., 0]
    labels = np.concatenate([source.train_labels, source.test_labels])
    whole = load_digits()
    assert rows(images, labels) == rows(whole.images.astype(np.uint8), whole.target)
    again = sources.read_set("digits", "")
    np.testing.assert_array_equal(source.test_images, again.test_images)


@pytest.mark.slow
def test_real_cifar10(tfds_dir):
    source = sources.read_set("cifar10", tfds_dir)
    assert source.train_images.shape == (50_000, 32, 32, 3)
    assert source.test_images.shape == (10_000, 32, 32, 3)
    assert np.bincount(source.train_labels).tolist() == [5000] * 10
    assert np.bincount(source.test_labels).tolist() == [1000] * 10
    # CIFAR-10's published channel means; JPEG changes them by less than the tolerance.
    mean = source.train_images[::10].mean((0, 1, 2)) / 255
    np.testing.assert_allclose(mean, [0.4914, 0.4822, 0.4465], atol=0.005)
    assert ("JPEG" in source.note) is ("jpeg" in encoding_on_disk(tfds_dir))


def encoding_on_disk(root):
    files = sorted((pathlib.Path(root) / "cifar10").glob("*/features.json"))
    return files[-1].read_text().lower()
