"""The file of features: of pictures and of a split, and what is refused."""

import pathlib
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

import resnet_jax
from experiments.prediction import inputs
from resnet_jax.data import sources
from resnet_jax.errors import UserError
from tests import tiny
from tests.interop import foreign


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return foreign.write_run(tmp_path_factory.mktemp("features") / "run")


def features(*arguments):
    return tiny.program("experiments.features", *arguments)


def of_digits(run, images):
    loaded = resnet_jax.load(run)
    return resnet_jax.features(loaded.model, loaded.variables, loaded.normalization(images))


def test_features_of_a_split_come_with_its_labels(run, tmp_path):
    out = tmp_path / "test.npz"
    done = features(run, "--split=test", "--endpoints=stage3,pooled,logits", f"--out={out}")
    assert done.returncode == 0, done.stderr
    assert "360 pictures, 0.1 MiB of features" in done.stderr
    assert done.stdout.splitlines()[0] == "stage3: float32 360 x 2 x 2 x 16"
    digits = sources.read_set("digits", "")
    wanted = of_digits(run, digits.test_images)
    with np.load(out) as found:
        assert {*found} == {"stage3", "pooled", "logits", "labels"}
        np.testing.assert_array_equal(found["labels"], digits.test_labels)
        for name in ("stage3", "pooled", "logits"):
            assert found[name].dtype == np.float32
            np.testing.assert_allclose(found[name], wanted[name], rtol=1e-3, atol=1e-5)


def test_features_of_pictures_come_with_their_names(run, tmp_path):
    images = sources.read_set("digits", "").test_images[:5]
    for number, image in enumerate(images):
        pixels = np.rint(image[..., 0] * (255 / 16)).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    (tmp_path / "2.png").write_text("broken")
    out = tmp_path / "pictures.npz"
    flags = ("--endpoints=stage2", "--mean_over_positions", f"--out={out}")
    done = features(run, tmp_path, *flags)
    assert done.returncode == 1, done.stderr
    assert "2.png is left out: it is not a picture in any known format." in done.stderr
    kept = [0, 1, 3, 4]
    wanted = np.asarray(of_digits(run, images[kept])["stage2"]).mean((1, 2))
    with np.load(out) as found:
        assert found["files"].tolist() == [str(tmp_path / f"{number}.png") for number in kept]
        np.testing.assert_allclose(found["stage2"], wanted, rtol=1e-4, atol=1e-5)
    before = out.read_bytes()
    done = features(run, tmp_path, *flags)
    assert done.returncode == 2
    assert f"--out={out} exists already; give another name, or --overwrite" in done.stderr
    assert out.read_bytes() == before
    done = features(run, tmp_path / "3.png", *flags, "--overwrite")
    assert done.returncode == 0, done.stderr
    with np.load(out) as found:
        assert found["files"].tolist() == [str(tmp_path / "3.png")]
    assert sorted(path.name for path in tmp_path.glob(".*")) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("{run}", "--out=x.npz"), "name a run folder, and either pictures or --split"),
        (("{run}", "docs", "--split=test", "--out=x.npz"), "either pictures or --split"),
        (("{run}", "--split=tests", "--out=x.npz"), "--split='tests' is not known"),
        (("{run}", "--split=test", "--out=x.npy"), "--out=x.npy must end with .npz."),
        (
            ("{run}", "--split=test", "--out=x.npz", "--endpoints=stage4"),
            "--endpoints='stage4' is not known; allowed are stem, stage1, stage2, stage3, pooled",
        ),
        (
            ("{run}", "--split=test", "--out=x.npz", "--endpoints="),
            "--endpoints=[]; allowed are one or more of stem,",
        ),
        (
            ("{run}", "--split=test", "--out=x.npz", "--endpoints=stem,stem"),
            "--endpoints=['stem', 'stem']; allowed are one or more of stem, stage1, stage2,",
        ),
    ],
)
def test_a_mistake_is_one_sentence(run, arguments, words):
    done = features(*(argument.format(run=run) for argument in arguments))
    assert done.returncode == 2, done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tiny.ROOT / "x.npz").exists()


def test_features_that_do_not_fit_are_refused(monkeypatch):
    here = pathlib.Path()
    inputs.require_room(1 << 20, here)
    with pytest.raises(UserError, match=r"take 1,099,511,627,776 MiB, but this machine's memory"):
        inputs.require_room(1 << 60, here)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=5 << 20))
    with pytest.raises(UserError, match=r"6 MiB, but the disk of --out has room for 5; take fewer"):
        inputs.require_room(6 << 20, here)
