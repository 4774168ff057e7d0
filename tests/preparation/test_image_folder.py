"""A folder of class folders becomes a data set, with a test split that a seed decides."""

import json

import pytest

from experiments.preparation import image_folder
from resnet_jax import train, trained
from resnet_jax.data import datasets, sources
from resnet_jax.errors import UserError
from resnet_jax.runs import reader
from tests import tiny
from tests.data import pictures
from tests.interop import foreign

COUNTS = {"ant": 10, "Bee": 7, "cow dung": 3}


def paint(folder, counts, first=0):
    """Writes a folder per class, with pictures of several kinds; returns {name: bytes}."""
    made = {}
    for label, (name, count) in enumerate(counts.items()):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            kind = "PNG" if number % 3 == 2 else "JPEG"
            file = f"{first + number:03d}.{'png' if kind == 'PNG' else 'JPG'}"
            image = pictures.paint(first + 100 * label + number)
            made[f"{name}/{file}"] = pictures.encode(image, kind=kind)
            (folder / name / file).write_bytes(made[f"{name}/{file}"])
    return made


def prepare(folder, out, *flags):
    return tiny.program(
        "experiments.prepare", "image_folder", f"--out={out}", f"--from={folder}", *flags
    )


def read(out):
    """Returns {name: Record} of both splits."""
    splits = sources.open_records("image_folder", str(out))[:2]
    return [{r[n].name: r[n] for n in range(len(r))} for r in splits]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder, out = tmp_path_factory.mktemp("pictures"), tmp_path_factory.mktemp("tfds")
    made = paint(folder, COUNTS)
    (folder / ".hidden").mkdir()
    (folder / "ant" / "Thumbs.db").write_bytes(b"no picture")
    done = prepare(folder, out, "--test_share=0.2")
    assert done.returncode == 0, done.stderr
    return folder, made, out, done


def test_a_network_is_used_with_the_folders_that_it_was_trained_on(prepared, tmp_path):
    """Other folders have other classes."""
    folder, _, out, _ = prepared
    (folder / "cow dung").rename(folder / "zebra")
    try:
        assert prepare(folder, tmp_path / "other").returncode == 0
    finally:
        (folder / "zebra").rename(folder / "cow dung")
    foreign.write_run(tmp_path / "run")
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    config["data"] |= {"name": "image_folder", "dir": str(out), "mean": "channel"}
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    content = datasets.streamed_content(trained.load(str(tmp_path / "run")).config.data)
    (tmp_path / "run" / "environment.json").write_text(json.dumps({"data": {"content": content}}))
    run = trained.load(str(tmp_path / "run"))
    assert run.class_names[:3] == sorted(COUNTS)
    with pytest.raises(UserError, match="does not hold the image_folder that the run was trained"):
        _ = trained.load(str(tmp_path / "run"), data_dir=str(tmp_path / "other")).class_names


def test_every_picture_is_in_one_split_with_its_class(prepared):
    _, made, out, done = prepared
    train_, test = read(out)
    assert not train_.keys() & test.keys()
    assert (train_ | test).keys() == made.keys()
    classes = sorted(COUNTS)
    for name, record in (train_ | test).items():
        assert record.image == made[name]
        assert classes[record.label] == name.split("/")[0]
    per_class = [sum(name.startswith(f"{c}/") for name in test) for c in COUNTS]
    assert per_class == [2, 1, 1]  # a fifth of each, and at least one
    assert done.stdout.splitlines() == [
        f"{out / 'image_folder'}: 16 training and 4 test pictures.",
        f"Train from it with --config.data.name=image_folder --config.data.dir={out}",
    ]
    facts = sources.facts("image_folder", str(out))
    assert (facts.train, facts.test, facts.num_classes) == (16, 4, 3)


def test_the_seed_decides_the_split(prepared, tmp_path):
    folder, _, out, _ = prepared
    for name, flags in {"again": (), "other": ("--seed=1",)}.items():
        done = prepare(folder, tmp_path / name, "--test_share=0.2", *flags)
        assert done.returncode == 0, done.stderr
    tests = [read(place)[1].keys() for place in (out, tmp_path / "again", tmp_path / "other")]
    assert tests[0] == tests[1] != tests[2]
    assert len(tests[0]) == len(tests[2])


def test_another_picture_moves_no_other_from_the_training_split_to_the_test(tmp_path):
    def draw(counts):
        found = [
            image_folder._Picture(f"{c}/{n}", label, tmp_path)
            for label, (c, count) in enumerate(counts.items())
            for n in range(count)
        ]
        train_, test = image_folder._draw(found, 0.5, 0)
        return {p.name for p in train_}, {p.name for p in test}

    train_, test = draw({"a": 20, "b": 20})
    more, _ = draw({"a": 21, "b": 20})
    assert len(train_) == len(test) == 20
    assert len(train_ - more) <= 1


@pytest.mark.parametrize("name", ["test", "val", "validation"])
def test_given_splits_are_kept(name, tmp_path):
    made = {
        split: paint(tmp_path / "pictures" / split, {"a": 3, "b": 2}, first)
        for first, split in enumerate(("train", name))
    }
    done = prepare(tmp_path / "pictures", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    train_, test = read(tmp_path / "out")
    assert {n: r.image for n, r in train_.items()} == made["train"]
    assert {n: r.image for n, r in test.items()} == made[name]


def test_classes_may_be_called_train_and_test(tmp_path):
    paint(tmp_path, {"test": 3, "train": 3})
    assert image_folder._given_splits(tmp_path) is None
    (tmp_path / "more").mkdir()
    paint(tmp_path / "more", {"train": 2, "test": 2, "other": 2})
    assert image_folder._given_splits(tmp_path / "more") is None


def split_classes(folder):
    paint(folder / "train", {"a": 2, "b": 2})
    paint(folder / "val", {"a": 2, "c": 2})


def two_tests(folder):
    for split in ("train", "val", "test"):
        paint(folder / split, {"a": 2, "b": 2})


def one_class(folder):
    paint(folder, {"a": 3})


def empty_class(folder):
    paint(folder, {"a": 3})
    (folder / "b").mkdir()


def damaged(folder):
    made = paint(folder, {"a": 9, "b": 2})
    for name in list(made)[:7]:
        (folder / name).write_bytes(made[name][:50])


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (split_classes, "val has other classes than {}/train: b and c."),
        (two_tests, "{} has test and val; allowed is one of them."),
        (one_class, "{} has 1 folders; allowed are at least two, one per class."),
        (lambda folder: None, "{} has 0 folders; allowed are at least two, one per class."),
        (empty_class, "{}/b has no picture; allowed are files that end with .bmp, .gif, "),
        (damaged, "7 pictures cannot be decoded; repair or remove them: a/"),
    ],
)
def test_a_folder_of_another_form_is_refused(make, sentence, tmp_path):
    folder, out = tmp_path / "pictures", tmp_path / "out"
    folder.mkdir()
    make(folder)
    with pytest.raises(UserError) as refused:
        image_folder.prepare(folder, out, 0.1, 0)
    assert sentence.format(folder) in str(refused.value)
    if make is damaged:
        assert str(refused.value).endswith(" and 2 more.")
    assert not out.exists()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda path: path.unlink(), "a/000.JPG of train cannot be read: No such file"),
        (lambda path: path.write_bytes(b"short"), "a/000.JPG of train has changed since it was"),
    ],
)
def test_a_picture_that_changes_meanwhile_is_named(change, sentence, tmp_path):
    paint(tmp_path, {"a": 2, "b": 2})
    pictures_ = image_folder._pictures(tmp_path, ["a", "b"])
    split = image_folder._split("train", pictures_)
    change(tmp_path / "a" / "000.JPG")
    info = image_folder._info(tmp_path, ["a", "b"])
    with pytest.raises(UserError, match=sentence):
        image_folder.writer.write(info, tmp_path / "out", [split], made_from="", note="")
    assert not list((tmp_path / "out").glob("image_folder-*"))


def test_a_folder_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(UserError, match="absent cannot be read: No such file"):
        image_folder.prepare(tmp_path / "absent", tmp_path / "out", 0.1, 0)


def test_a_complete_data_set_is_not_replaced(prepared):
    folder, _, out, _ = prepared
    done = prepare(folder, out)
    assert done.returncode == 2
    (sentence,) = done.stderr.splitlines()
    assert sentence.endswith("is already complete; remove it, or give another --out.")
    missing = prepare(folder / "nowhere", out)
    assert missing.returncode == 2
    assert missing.stderr == f"error: --from={folder / 'nowhere'} is not a folder.\n"


def test_a_run_trains_on_it_and_tests(prepared, tmp_path):
    _, _, out, _ = prepared
    config = pictures.config(out, data__name="image_folder", data__validation=2, steps=2)
    assert train.train(config, str(tmp_path / "run")) == "completed"
    run = reader.read(tmp_path / "run")
    assert run.config["model"]["num_classes"] == 3
    data = run.environment["data"]
    assert (data["train"], data["validation"], data["test"], data["classes"]) == (14, 2, 4, 3)
    assert data["note"] == ""
    assert "test/error" in run.metrics[-1]


def test_without_its_data_it_is_refused(no_data):
    with pytest.raises(UserError, match=r"prepare image_folder --out=.* --from=FOLDER"):
        sources.facts("image_folder", no_data)
