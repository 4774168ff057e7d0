"""Broken resident, streamed and prepared sets give one-sentence errors that name the place.

All three read through data/records.py.
"""

import json
import subprocess
import sys

import numpy as np
import pytest
from tensorflow_datasets.proto import tf_example_pb2

from resnet_jax.data import datasets, order, sources
from resnet_jax.data.records import Records
from resnet_jax.errors import RunError, UserError
from resnet_jax.parallel import mesh as meshes
from resnet_jax.resolve import resolve
from tests import tiny
from tests.data import pictures
from tests.data import test_tfds as small


def shard(folder):
    """The training split's first file."""
    return min(folder.glob("*-train.array_record-*"))


def cut(path, share=0.5):
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])


def edit_info(folder, change):
    path = folder / "dataset_info.json"
    info = json.loads(path.read_text())
    change(info)
    path.write_text(json.dumps(info))


def empty_train(info):
    info["splits"][0]["shardLengths"] = ["0"]


def shorten_train(info):
    info["splits"][0]["shardLengths"][0] = "3"


METADATA = {
    "half dataset_info.json": (
        lambda folder: cut(folder / "dataset_info.json"),
        "dataset_info.json is not JSON (",
    ),
    "empty dataset_info.json": (
        lambda folder: cut(folder / "dataset_info.json", 0),
        "dataset_info.json is not JSON (",
    ),
    "a list for dataset_info.json": (
        lambda folder: (folder / "dataset_info.json").write_text("[1]"),
        "dataset_info.json is not a JSON object. Copy or prepare",
    ),
    "dataset_info.json that is not UTF-8": (
        lambda folder: (folder / "dataset_info.json").write_bytes(b'{"name": "\xe9"}'),
        "dataset_info.json is not JSON (",
    ),
    "no features.json": (
        lambda folder: (folder / "features.json").unlink(),
        "features.json is missing or empty; copy or prepare",
    ),
    "half features.json": (
        lambda folder: cut(folder / "features.json"),
        "features.json is not JSON (",
    ),
    "an invalid version": (
        lambda folder: edit_info(folder, lambda info: info.update(version="new")),
        "cannot be read by TFDS (Invalid version 'new'",
    ),
    "no training split": (
        lambda folder: edit_info(folder, lambda info: info["splits"].pop(0)),
        "holds no records of the split 'train', only of ",
    ),
    "an empty training split": (
        lambda folder: edit_info(folder, empty_train),
        "holds no records of the split 'train', only of ",
    ),
    "no splits": (
        lambda folder: edit_info(folder, lambda info: info.pop("splits")),
        "holds no records of the split 'train', only of none",
    ),
    "another format": (
        lambda folder: edit_info(folder, lambda info: info.update(fileFormat="tfrecord")),
        "is not in array_record form",
    ),
}
FILES = {
    "a missing file": (
        lambda folder: shard(folder).unlink(),
        "cannot be read: No such file or directory; copy or prepare the set again",
    ),
    "half a file": (
        lambda folder: cut(shard(folder)),
        "holds 0 records, but dataset_info.json says",
    ),
    "an empty file": (
        lambda folder: cut(shard(folder), 0),
        "holds 0 records, but dataset_info.json says",
    ),
    "another copy's file": (
        lambda folder: edit_info(folder, shorten_train),
        "records, but dataset_info.json says 3: it was cut short or belongs to another copy",
    ),
}


def prepare(name, root, stored=None):
    if name == "mnist":
        return small.prepare(root, name, stored=stored)
    return pictures.prepare(root, stored=stored)


def config_of(name, root):
    if name == "imagenet2012":
        return pictures.config(root)
    return tiny.config(data__name=name, data__dir=str(root), data__validation=2)


def one_sentence(refused):
    text = str(refused.value)
    assert "\n" not in text
    return text


RESIDENT_AND_STREAMED = pytest.mark.parametrize("name", ["mnist", "imagenet2012"])


@RESIDENT_AND_STREAMED
@pytest.mark.parametrize("case", METADATA)
def test_broken_metadata_are_refused_when_a_config_is_resolved(case, name, tmp_path):
    folder = prepare(name, tmp_path)
    resolve(config_of(name, tmp_path))
    damage, words = METADATA[case]
    damage(folder)
    with pytest.raises(UserError) as refused:
        resolve(config_of(name, tmp_path))
    text = one_sentence(refused)
    assert str(folder) in text
    assert words in text


@RESIDENT_AND_STREAMED
@pytest.mark.parametrize("case", FILES)
def test_a_broken_file_stops_a_run_before_it_begins(case, name, tmp_path):
    folder = prepare(name, tmp_path)
    config = resolve(config_of(name, tmp_path))
    damage, words = FILES[case]
    damage(folder)
    with pytest.raises(UserError) as refused:
        datasets.open_set(config.data, meshes.make_mesh())
    text = one_sentence(refused)
    assert str(shard(folder) if case != "a missing file" else folder) in text
    assert words in text


# ------------------------------------------------------------------------------- one record


def labelled(name, *labels):
    """A record with any number of labels."""
    image = np.zeros((28, 28), np.uint8) if name == "mnist" else pictures.paint(0)
    example = tf_example_pb2.Example.FromString(small.encode(image, 0))
    del example.features.feature["label"].int64_list.value[:]
    example.features.feature["label"].int64_list.value.extend(labels)
    return example.SerializeToString()


def without_image(name):
    example = tf_example_pb2.Example.FromString(labelled(name, 1))
    del example.features.feature["image"].bytes_list.value[:]
    return example.SerializeToString()


RECORDS = {
    "a negative label": (lambda name: labelled(name, -1), "its label is -1; allowed is from 0 to "),
    "a label too high": (lambda name: labelled(name, 1000), "its label is 1000; allowed is from"),
    "no label": (labelled, "it has 1 images and 0 labels"),
    "two labels": (lambda name: labelled(name, 1, 2), "it has 1 images and 2 labels"),
    "no image": (without_image, "it has 0 images and 1 labels"),
    "no record": (lambda name: b"\xff\xff\xff", "it is not a tf.train.Example ("),
}


def named(folder):
    return f"{shard(folder)}: record 3 of the file (record 3 of train): "


@pytest.mark.parametrize("case", RECORDS)
def test_a_broken_record_of_a_resident_set_stops_a_run_before_it_begins(case, tmp_path):
    make, words = RECORDS[case]
    folder = prepare("mnist", tmp_path, {3: make("mnist")})
    config = resolve(config_of("mnist", tmp_path))
    with pytest.raises(UserError) as refused:
        datasets.open_set(config.data, meshes.make_mesh())
    assert named(folder) + words in one_sentence(refused)


@pytest.mark.parametrize("case", RECORDS)
def test_a_broken_record_of_a_streamed_set_is_named_when_it_is_read(case, tmp_path):
    make, words = RECORDS[case]
    folder = prepare("imagenet2012", tmp_path, {3: make("imagenet2012")})
    with pictures.opened(tmp_path, 1, data__validation=0) as (_, data):
        batches = data.train.batches(np.zeros(1, int), [range(4)], 8, 1, order.TRAIN)
        with pytest.raises(RunError) as refused:
            next(batches)
        batches.close()
    assert named(folder) + words in one_sentence(refused)


def test_corruption_inside_a_file_names_the_record(tmp_path):
    folder = pictures.prepare(tmp_path)
    content = bytearray(shard(folder).read_bytes())
    content[8000:8050] = bytes(50)
    shard(folder).write_bytes(content)
    records, broken = Records(folder, "train", 1000), {}
    for number in range(len(records)):
        try:
            assert records[number].label == pictures.label_of(number)
        except RunError as e:
            broken[number] = str(e)
    ((number, text),) = broken.items()
    assert text.startswith(
        f"{shard(folder)}: record {number} of the file (record {number} of train): it cannot be "
        "read (Corrupted"
    )


IMAGES = {
    "another size": (np.zeros((28, 27), np.uint8), "it has 28 x 27 pixels; those of the set"),
    "colour": (np.arange(28 * 28 * 3, dtype=np.uint8).reshape(28, 28, 3), "it is in colour"),
}


@pytest.mark.parametrize("case", IMAGES)
def test_an_image_that_does_not_fit_a_resident_set_is_named(case, tmp_path):
    image, words = IMAGES[case]
    folder = small.prepare(tmp_path, "mnist", stored={3: small.encode(image, 0)})
    with pytest.raises(RunError) as refused:
        sources.read_set("mnist", str(tmp_path))
    assert f"{named(folder)}its image cannot be used ({words}" in one_sentence(refused)


def test_a_file_name_that_is_not_utf8_is_escaped(tmp_path):
    example = tf_example_pb2.Example.FromString(labelled("imagenet2012", 5))
    example.features.feature["file_name"].bytes_list.value.append("é.JPEG".encode("latin-1"))
    folder = pictures.prepare(tmp_path, stored={3: example.SerializeToString()})
    assert Records(folder, "train", 1000)[3].name == "\\xe9.JPEG"


@pytest.mark.slow
def test_preparing_stops_at_a_broken_record_and_at_a_broken_set(tmp_path):
    def prepare_():
        done = tiny.program(
            "experiments.shrink", f"--data_dir={tmp_path}", f"--out={tmp_path / 'out'}"
        )
        assert "Traceback" not in done.stderr
        return done.returncode, done.stderr.splitlines()[-1]

    folder = pictures.prepare(tmp_path, stored={3: labelled("imagenet2012", -1)})
    code, last = prepare_()
    assert code == 1
    assert last.startswith(f"error: {named(folder)}its label is -1; ")
    lost = shard(folder)
    lost.unlink()
    code, last = prepare_()
    assert code == 2
    assert last.startswith(f"error: {lost} cannot be read: No such file")


# -------------------------------------------------------------------------- many files

READ_ALL_TWICE = """
import os, pathlib, resource, sys
from resnet_jax.data.records import Records
train, test = (Records(pathlib.Path(sys.argv[1]), s, 1000) for s in ("train", "validation"))
for _ in range(2):
    print([train[n].label for n in range(len(train))], [test[n].label for n in range(len(test))])
print(resource.getrlimit(resource.RLIMIT_NOFILE), len(os.listdir("/proc/self/fd")))
"""


@pytest.mark.parametrize(("soft", "hard"), [(64, 512), (64, 64)])
def test_a_set_may_have_more_files_than_may_be_open(soft, hard, tmp_path):
    folder = pictures.prepare(tmp_path, shards=80, sizes={"train": 90, "validation": 80})
    done = subprocess.run(
        ["bash", "-c", f'ulimit -Sn {soft} && ulimit -Hn {hard} && exec "$@"', "limited",
         sys.executable, "-c", READ_ALL_TWICE, folder],
        cwd=tiny.ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    *labels, limits = done.stdout.splitlines()
    expected = [[pictures.label_of(first + n) for n in range(count)]
                for first, count in ((0, 90), (1000, 80))]  # fmt: skip
    assert labels == [f"{expected[0]} {expected[1]}"] * 2
    assert limits.startswith(f"({hard}, {hard}) ")  # the limit on open files is raised
    open_files = int(limits.split()[-1])
    assert open_files > 160 if hard == 512 else open_files < 64
