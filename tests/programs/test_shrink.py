"""A prepared copy has the same pictures in the same order, smaller, and none is lost."""

import io
import json
import pathlib

import numpy as np
import pytest
from PIL import Image

from resnet_jax import train
from resnet_jax.data import jpeg, sources
from resnet_jax.runs import reader
from tests import tiny
from tests.data import pictures


def shrink(root, out, *flags):
    return tiny.program(
        "experiments.shrink", f"--data_dir={root}", f"--out={out}", "--short_side=60", *flags
    )


def wrong_inside():
    """Returns a damaged JPEG that can be decoded, but to another picture."""
    encoded = pictures.encode(pictures.paint(7, 70, 90), subsampling="4:4:4")
    return encoded[: len(encoded) // 2] + encoded[len(encoded) // 2 + 100 :]


@pytest.fixture(scope="module")
def copied(tmp_path_factory):
    root, out = tmp_path_factory.mktemp("tfds"), tmp_path_factory.mktemp("small")
    replaced = {
        3: pictures.encode(pictures.paint(3, 50, 50), "CMYK"),
        4: pictures.encode(pictures.paint(4, 100, 120), "L"),
        5: pictures.encode(pictures.paint(5, 100, 120), kind="PNG"),
        6: b"not a picture",
        7: wrong_inside(),
        8: pictures.encode(pictures.paint(8, 2, 66_000), kind="PNG"),  # too long for a JPEG
    }
    pictures.prepare(root, replaced)
    done = shrink(root, out)
    assert done.returncode == 0, done.stderr
    return root, out, done


def test_every_picture_is_copied_in_order(copied):
    root, out, _ = copied
    sizes = set()
    for split, count in pictures.SIZES.items():
        old, new = pictures.records(root, split), pictures.records(out, split)
        assert len(old) == len(new) == count
        for number in range(count):
            before, after = old[number], new[number]
            assert (before.label, before.name) == (after.label, after.name)
            if split == "train" and number in (6, 8):
                assert before.image == after.image
                continue
            image, copy = jpeg.decode(before.image), jpeg.decode(after.image)
            short = min(image.shape[:2])
            sizes.add(short > 60)
            if short <= 60 and jpeg.is_rgb(before.image):
                assert before.image == after.image
                continue
            assert jpeg.is_rgb(after.image)
            assert min(copy.shape[:2]) == min(60, short)
            aspects = [shape[0] / shape[1] for shape in (image.shape, copy.shape)]
            assert abs(aspects[0] - aspects[1]) < 0.02
            like = Image.fromarray(image).resize(copy.shape[1::-1], Image.Resampling.BOX)
            # A damaged picture has sharp edges, which JPEG does not preserve.
            near = 12 if (split, number) == ("train", 7) else 4
            assert np.abs(np.asarray(like).astype(int) - copy).mean() < near
    assert sizes == {True, False}


def test_savings_and_damaged_pictures_are_reported(copied):
    _, out, done = copied
    train_, validation, where = done.stdout.splitlines()
    assert train_.startswith("train: 30 pictures, ")
    assert "; 3 converted to RGB JPEGs; PSNR after recompression " in train_
    unreadable = "; cannot be decoded: train_6.JPEG (it is not a picture in any known format)"
    doubtful = "; decoded with warnings: train_7.JPEG (Corrupt JPEG data: "
    assert unreadable + doubtful in train_
    assert validation.startswith("validation: 11 pictures, ")
    assert where == f"Train from it with --config.data.dir={out}"
    assert done.stderr.count("train_6.JPEG") == 1
    folder = out / "imagenet2012" / "5.1.0"
    before, after = (
        sum(len(pictures.records(root, "validation")[n].image) for n in range(11))
        for root in copied[:2]
    )
    assert (
        f"{before / 1e6:,.1f} MB became {after / 1e6:,.1f} MB ({after / before:.0%})" in validation
    )
    info = json.loads((folder / "dataset_info.json").read_text())
    assert [split["name"] for split in info["splits"]] == ["train", "validation"]


@pytest.mark.slow
def test_a_run_trains_from_a_copy_and_records_that(copied, tmp_path):
    _, out, _ = copied
    status = train.train(pictures.config(out, steps=1), str(tmp_path / "run"))
    assert status == "completed"
    found = reader.read(tmp_path / "run")
    assert found.environment["data"]["note"] == (
        "copies of the pictures reduced to a short side of 60 pixels, JPEG quality 90"
    )


def test_a_killed_copy_resumes(tmp_path):
    pictures.prepare(tmp_path / "tfds")
    first = shrink(tmp_path / "tfds", tmp_path / "small")
    folder = tmp_path / "small" / "imagenet2012" / "5.1.0"
    kept, lost = sorted(folder.glob("*train*00002"))
    names = {path.name for path in folder.iterdir()}
    was = list(map(pictures.records(tmp_path / "small").__getitem__, range(30)))
    # As if killed during the second file of the training split.
    lost.rename(folder / f".{lost.name}.tmp")
    (folder / f"{lost.name}.tally.json").unlink()
    (folder / "dataset_info.json").unlink()
    with pytest.raises(sources.UserError, match="holds no imagenet2012"):
        sources.require("imagenet2012", str(tmp_path / "small"))
    stamp = kept.stat().st_mtime_ns
    second = shrink(tmp_path / "tfds", tmp_path / "small")
    assert second.returncode == 0, second.stderr
    assert second.stdout == first.stdout
    assert kept.stat().st_mtime_ns == stamp
    assert {path.name for path in folder.iterdir()} == names
    assert list(map(pictures.records(tmp_path / "small").__getitem__, range(30))) == was


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--short_side=10"], "--short_side=10; allowed is from 32 to 4096."),
        (["--quality=96"], "--quality=96; allowed is from 50 to 95."),
        (["--name=cifar10"], "--name='cifar10' is not known; allowed are imagenet2012"),
        (["--data_dir=nowhere"], "holds no imagenet2012"),
        (["--quality=80"], "holds a copy made with different settings"),
        (["--data_dir={out}", "--out={out}/again"], "is itself a prepared copy"),
        (["--out={root}"], "is the folder of the original data set"),
    ],
)
def test_a_mistake_is_one_sentence(copied, flags, words):
    root, out, _ = copied
    files = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    done = shrink(root, out, *(flag.format(out=out, root=root) for flag in flags))
    assert done.returncode == 2
    assert done.stdout == ""
    assert words in done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == files


def test_the_copy_of_the_real_pictures_is_smaller(tmp_path):
    root = pathlib.Path(tiny.ROOT.parent / "shared" / "datasets")
    if not (root / "imagenet2012").is_dir():
        pytest.skip("no prepared imagenet2012 beside the project")
    done = shrink(root, tmp_path / "small", "--short_side=320")
    assert done.returncode == 0, done.stderr
    old, new = (pictures.records(where) for where in (root, tmp_path / "small"))
    assert len(old) == len(new)
    assert sum(len(new[n].image) for n in range(64)) < 0.6 * sum(
        len(old[n].image) for n in range(64)
    )
    for n in range(64):
        assert min(Image.open(io.BytesIO(new[n].image)).size) <= 320
