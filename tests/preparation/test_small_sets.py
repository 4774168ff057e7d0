"""The small sets' archives become what TFDS writes, and are read back exactly."""

import hashlib
import io
import json

import numpy as np
import pytest
from PIL import Image
from tensorflow_datasets.proto import tf_example_pb2

from experiments.preparation import png, published, small_sets
from resnet_jax.data import sets, sources
from resnet_jax.data.records import Records
from tests import tiny
from tests.preparation import archives_of


@pytest.fixture(scope="module", params=archives_of.MAKERS)
def prepared(request, tmp_path_factory):
    """Returns a set's name, what is in its archives, the TFDS root, and the program's output."""
    name, given = request.param, tmp_path_factory.mktemp("archives")
    out = tmp_path_factory.mktemp("tfds")
    made = archives_of.MAKERS[name](given)
    done = prepare(name, out, given, "--noverify")
    assert done.returncode == 0, done.stderr
    return name, made, out, done


def prepare(name, out, given, *flags):
    return tiny.program("experiments.prepare", name, f"--out={out}", f"--from={given}", *flags)


def folder_of(prepared):
    name, _, out, _ = prepared
    return next((out / name).iterdir())


def test_images_and_labels_are_read_back_in_the_order_of_tfds(prepared):
    name, made, out, _ = prepared
    source = sources.read_set(name, str(out))
    for split in ("train", "test"):
        images, labels = made[split]
        order = sorted(
            range(len(images)), key=lambda n: hashlib.md5(f"{split}{n}".encode()).digest()
        )
        assert order != sorted(order)
        np.testing.assert_array_equal(getattr(source, f"{split}_images"), images[order])
        np.testing.assert_array_equal(getattr(source, f"{split}_labels"), labels[order])
    facts = sources.facts(name, str(out))
    assert (facts.train, facts.test) == (len(made["train"][0]), len(made["test"][0]))


def test_records_have_the_features_of_tfds(prepared):
    name, made, _, _ = prepared
    more = {
        "cifar10": ["id"],
        "cifar100": ["coarse_label", "id"],
        "svhn_cropped": ["id"],
    }
    records = Records(folder_of(prepared), "train", sets.DATA_SETS[name].num_classes)
    seen = set()
    for number in range(len(records)):
        stored = records.stored(number)
        example = tf_example_pb2.Example.FromString(stored)
        assert stored == example.SerializeToString(deterministic=True)
        feature = example.features.feature
        assert sorted(feature) == sorted(["image", "label", *more.get(name, [])])
        if "id" in feature:
            digits = 6 if name == "svhn_cropped" else 5
            (text,) = feature["id"].bytes_list.value
            prefix, _, position = text.decode().partition("_")
            assert (prefix, len(position)) == ("train", digits)
            seen.add(int(position))
            label = feature["label"].int64_list.value[0]
            assert label == made["train"][1][int(position)]
            if name == "cifar100":
                assert feature["coarse_label"].int64_list.value[0] == label % 20
    assert seen == (set(range(len(records))) if name in more else set())


def test_the_metadata_are_those_of_tfds(prepared):
    import tensorflow_datasets as tfds

    name, made, out, _ = prepared
    folder = folder_of(prepared)
    info = json.loads((folder / "dataset_info.json").read_text())
    assert folder.name == info["version"] == str(tfds.builder_cls(name).VERSION)
    lengths = {split["name"]: split["shardLengths"] for split in info["splits"]}
    assert lengths == {split: [str(len(images))] for split, (images, _) in made.items()}
    for split in info["splits"]:
        records = Records(folder, split["name"], 10**6)
        total = sum(len(records.stored(number)) for number in range(len(records)))
        assert split["numBytes"] == str(total)
    label = tfds.builder(name, data_dir=out).info.features["label"]
    classes = sets.DATA_SETS[name].num_classes
    assert label.num_classes == classes
    if name.startswith("cifar"):
        assert label.names == [f"kind {number}" for number in range(classes)]
    assert {path.name for path in folder.iterdir()} - {"label.labels.txt"} == {
        "dataset_info.json",
        "features.json",
        "prepared.json",
        *(f"{name}-{split}.array_record-00000-of-00001" for split in made),
    } | ({"coarse_label.labels.txt"} if name == "cifar100" else set())


def test_the_program_says_what_it_made_and_stops_at_a_complete_set(prepared):
    name, made, out, done = prepared
    train, test = (len(made[split][0]) for split in ("train", "test"))
    assert done.stdout.splitlines() == [
        f"{out / name}: {train} training and {test} test pictures.",
        f"Train from it with --config.data.name={name} --config.data.dir={out}",
    ]
    before = {path: path.stat().st_mtime_ns for path in folder_of(prepared).iterdir()}
    again = prepare(name, out, out, "--noverify")
    assert again.returncode == 0, again.stderr
    folder = folder_of(prepared)
    assert again.stdout.splitlines()[0] == (
        f"{folder} is already complete; remove it to prepare it again."
    )
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_a_set_from_other_archives_than_the_published_ones_says_so(prepared, tmp_path):
    name, _, out, _ = prepared
    note = "prepared from archives that differ from the published ones"
    assert sources.read_set(name, str(out)).note == note
    given = tmp_path / "archives"
    given.mkdir()
    archives_of.MAKERS[name](given)
    done = prepare(name, tmp_path, given)
    assert done.returncode == 2
    assert done.stdout == ""
    file = next(iter(published.files(name, None)))
    (sentence,) = done.stderr.splitlines()
    size = (given / file).stat().st_size
    assert sentence.startswith(f"error: {given / file} has {size:,} bytes, the published {file} ")
    assert "--noverify reads it nonetheless" in sentence
    assert not (tmp_path / name).exists()


def test_a_published_set_has_no_note_and_an_altered_one_is_refused(tmp_path):
    given, out = tmp_path / "archives", tmp_path / "tfds"
    given.mkdir()
    archives_of.cifar10(given)
    files = archives_of.described(given)
    paths = published.locate(files, [str(given)])
    info = published.info("cifar10", out)
    folder = out / "cifar10" / "3.0.2"
    folder.mkdir(parents=True)
    (folder / "prepared.json").write_text('{"note": "of an earlier attempt with --noverify"}')
    published.prepare("cifar10", info, folder, files, paths, True)
    assert sources.read_set("cifar10", str(out)).note == ""
    (archive,) = paths.values()
    content = bytearray(archive.read_bytes())
    content[len(content) // 2] ^= 1
    archive.write_bytes(content)
    other = tmp_path / "other" / "cifar10" / "3.0.2"
    with pytest.raises(sources.UserError, match=r"has SHA-256 \w+, the published .* altered"):
        published.prepare("cifar10", info, other, files, paths, True)
    assert not other.exists()


def test_archives_are_found_alone_by_name_and_in_a_folder(tmp_path):
    archives_of.mnist(tmp_path)
    files = archives_of.described(tmp_path)
    whole = published.locate(files, [str(tmp_path)])
    assert whole == published.locate(files, [str(tmp_path / name) for name in files])
    assert set(whole) == set(published.files("mnist", None))
    with pytest.raises(sources.UserError, match=r"has no t10k-images-idx3-ubyte\.gz; allowed are"):
        published.locate(
            published.files("mnist", None), [str(tmp_path / "train-labels-idx1-ubyte.gz")]
        )
    with pytest.raises(sources.UserError, match="nowhere does not exist"):
        published.locate(files, [str(tmp_path / "nowhere")])
    renamed = tmp_path / "mine.tgz"
    renamed.touch()
    one = published.files("cifar10", None)
    assert published.locate(one, [str(renamed)]) == {"cifar-10-binary.tar.gz": renamed}


def test_every_small_set_can_be_prepared():
    resident = {name for name, facts in sets.DATA_SETS.items() if facts.resident}
    assert set(small_sets.READERS) == set(archives_of.MAKERS) == resident - {"digits", "arrays"}
    for name in published.NAMES:
        for file, about in published.files(name, None).items():
            assert about.url.startswith("http")
            assert about.url.endswith(f"/{file}")
            assert len(about.sha256) == 64
            assert about.size > 1000
            mirrored = published.files(name, "https://mirror.test/sets/")[file]
            assert mirrored.url == f"https://mirror.test/sets/{file}"
            assert (mirrored.size, mirrored.sha256) == (about.size, about.sha256)


@pytest.mark.parametrize("name", ["cifar10", "mnist"])
def test_png_is_lossless(name):
    for image in archives_of.draw(name, 20, 3)[0]:
        encoded = png.encode(image)
        with Image.open(io.BytesIO(encoded)) as decoded:
            np.testing.assert_array_equal(np.asarray(decoded).reshape(image.shape), image)
    with pytest.raises(ValueError, match="too large"):
        png.encode(np.zeros((64, 64, 3), np.uint8))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "NAME is missing; allowed are cifar10, cifar100, mnist"),
        (["cifar11"], "NAME='cifar11' is not known; allowed are"),
        (["cifar10", "mnist"], "'mnist' is neither a flag"),
        (["cifar10", "--out="], "--out is empty"),
        (["cifar10"], "--out is missing"),
        (["imagenet2012", "--out={}"], "--from is missing; imagenet2012 is prepared from"),
        (["image_folder", "--out={}"], "--from is missing; image_folder is prepared from a folder"),
        (["image_folder", "--out={}", "--from={}/a,{}/b"], "is not a folder"),
        (["mnist", "--out={}", "--from={}", "--mirror=http://a"], "--from and --mirror are both"),
        (["mnist", "--out={}", "--mirror=file:///etc"], "--mirror=file:///etc is not allowed"),
        (["image_folder", "--out={}", "--from={}", "--noverify"], "--noverify has no effect on im"),
        (["mnist", "--out={}", "--noverify"], "--noverify has no effect on downloads"),
        (["mnist", "--out={}", "--from={}", "--seed=1"], "--seed has no effect on mnist"),
        (["image_folder", "--out={}", "--from={}", "--test_share=1"], "test_share"),
    ],
)
def test_a_mistake_is_one_sentence(arguments, sentence, tmp_path):
    done = tiny.program("experiments.prepare", *(a.format(*[tmp_path] * 2) for a in arguments))
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert sentence in line
    assert list(tmp_path.iterdir()) == []
