"""From a weight file to a run folder, as a user does it."""

import dataclasses
import hashlib

import h5py
import jax
import numpy as np
import pytest

import resnet_jax
from resnet_jax.interop import export
from resnet_jax.interop.onnx_export import to_onnx
from resnet_jax.runs import reader
from tests import tiny
from tests.interop import foreign
from tests.interop.keras_writer import save
from tests.interop.test_keras_graph import without_a_norm
from tests.interop.test_weights import in_kerass_names

DIGITS = ("--data=digits", "--mean=0.25", "--std=0.5")


def convert(*flags):
    return tiny.program("experiments.convert", *flags)


@pytest.fixture(scope="module")
def network():
    """A plain network of 8 layers for digits: (model, variables)."""
    model = resnet_jax.resnet("cifar", 8, shortcut="none")
    return model, foreign.drawn(model, channels=1)


@pytest.fixture(scope="module")
def file(network, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "plain.npz"
    np.savez(path, **export.to_torchvision(*network))
    return path


def test_a_converted_network_is_a_run_that_can_be_loaded(network, file, tmp_path):
    model, variables = network
    done = convert(f"--from={file}", f"--to={tmp_path / 'run'}", *DIGITS, "--shortcut=none")
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    for row in (["model.depth", "8"], ["model.num_classes", "10"]):
        assert row in lines
    assert ["shortcut", "none", "a", "flag"] in lines
    assert ["epsilon", "1e-05", "assumed"] in lines
    assert not [line for line in lines if line[:1] == ["bottleneck_stride"]]  # it has none
    assert done.stdout.splitlines()[-1] == str(tmp_path / "run")

    loaded = resnet_jax.load(tmp_path / "run")
    assert loaded.model == dataclasses.replace(model, bn_group=64)  # of the recipe for training
    assert (loaded.step, loaded.is_tested) == (0, True)
    assert jax.tree.all(
        jax.tree.map(lambda a, b: bool(np.array_equal(a, b)), loaded.variables, variables)
    )
    pixels = np.full((1, 8, 8, 1), 102, np.uint8)  # 0.4 of 255
    np.testing.assert_allclose(loaded.normalization(pixels), (0.4 - 0.25) / 0.5, rtol=1e-6)

    run = reader.read(tmp_path / "run")
    assert run.status["status"] == "completed"
    assert run.status["reason"] == "converted from plain.npz, not trained here"
    converted = run.environment["converted"]
    assert converted["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert (converted["scheme"], converted["conventions"]["shortcut"]) == ("torchvision", "none")
    assert run.environment["network"]["parameters"] == sum(
        leaf.size for leaf in jax.tree.leaves(variables["params"])
    )


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--data=digits",), "--data=digits needs --mean and --std: the tensors cannot tell"),
        (("--data=digit", "--mean=0", "--std=1"), "(nearest: digits)"),
        (("--data=digits", "--mean=0", "--std=0"), "--std=0 is not one number"),
        (
            ("--data=digits", "--mean=1,2,3", "--std=1"),
            "--mean=1,2,3 is not one number, or one per",
        ),
        (("--data=digits", "--mean=x", "--std=1"), "--mean=x is not one number"),
        ((*DIGITS, "--same_padding=stems"), "(nearest: stem)"),
        ((*DIGITS, "--epsilon=-1"), "--epsilon=-1.0 is out of range"),
        ((*DIGITS, "--prefix=module."), "under the prefix 'module.'"),
        (("--data=imagenet2012",), "takes images of 1 channels, but those of --data=imagenet2012"),
        ((*DIGITS, "--classes=3,77"), "data.classes=(3, 77)"),
        ((*DIGITS, "--classes=a"), "--classes=a are not labels; give numbers, as in 3,5."),
        ((*DIGITS, "--expected=x.npz"), "--expected needs the images that the numbers belong to"),
    ],
)
def test_a_mistake_is_one_sentence_and_leaves_nothing_behind(file, tmp_path, flags, words):
    done = convert(f"--from={file}", f"--to={tmp_path / 'run'}", *flags)
    assert done.returncode == 2, done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


def test_an_onnx_graph_tells_its_conventions(tmp_path):
    model = resnet_jax.resnet("cifar", 8, shortcut="B", bn_epsilon=1e-3)
    graph = to_onnx(model, foreign.drawn(model, channels=1), (8, 8, 1))
    (tmp_path / "net.onnx").write_bytes(graph.SerializeToString())
    done = convert(f"--from={tmp_path / 'net.onnx'}", f"--to={tmp_path / 'run'}", *DIGITS)
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    assert ["epsilon", "0.001", "the", "graph"] in lines
    assert ["order", "RGB", "assumed"] in lines
    assert resnet_jax.load(tmp_path / "run").model.bn_epsilon == 1e-3


def test_a_whole_keras_model_may_lack_a_norm(tmp_path):
    save(tmp_path / "model.h5", *without_a_norm())
    flags = ("--data=cifar10", "--mean=0.5", "--std=0.25")
    done = convert(f"--from={tmp_path / 'model.h5'}", f"--to={tmp_path / 'run'}", *flags)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Found by the structure of the model's graph.")
    norms = "Convolutions without a norm, which got one that changes nothing: stage3_block2/conv2."
    assert norms in done.stdout.splitlines()


def keras_file(folder, model, variables):
    tensors, _ = in_kerass_names(variables, np.random.default_rng(0))
    with h5py.File(folder / "net.h5", "w") as written:
        for name, array in tensors.items():
            written[name.replace(".", "/")] = array
    return folder / "net.h5"


def onnx_file(folder, model, variables):
    graph = to_onnx(model, variables, (64, 64, 3))
    (folder / "net.onnx").write_bytes(graph.SerializeToString())
    return folder / "net.onnx"


@pytest.mark.parametrize(("write", "flags"), [(keras_file, ()), (onnx_file, ("--mean=0",))])
def test_keras_and_onnx_have_no_usual_normalisation(write, flags, tmp_path):
    model = resnet_jax.resnet("imagenet", 18, shortcut="B", width=0.0625)
    path = write(tmp_path, model, foreign.drawn(model))
    done = convert(f"--from={path}", f"--to={tmp_path / 'run'}", "--data=imagenet2012", *flags)
    assert done.returncode == 2, done.stderr
    assert "--data=imagenet2012 needs --mean and --std: the tensors cannot tell" in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def check(network, tmp_path_factory):
    """Flags that check a network which pads as "SAME", in eight-bit pixels."""
    folder = tmp_path_factory.mktemp("check")
    model = dataclasses.replace(network[0], same_padding=("blocks",))
    pixels = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 1), np.uint8)
    images = (pixels / np.float32(255) - np.float32(0.25)) / np.float32(0.5)
    np.save(folder / "images.npy", pixels)
    np.savez(folder / "logits.npz", logits=model.apply(network[1], images, train=False))
    np.savez(folder / "others.npz", logits=np.ones((3, 10)))
    (folder / "text.npz").write_text("logits")
    return folder


def checked(file, folder, to, expected="logits.npz", *flags):
    images = f"--check={folder / 'images.npy'}"
    return convert(
        f"--from={file}", f"--to={to}", *DIGITS, images, f"--expected={folder / expected}", *flags
    )


def test_conventions_are_found_by_what_the_network_computed(file, check, tmp_path):
    done = checked(file, check, tmp_path / "run", "logits.npz", "--shortcut=none", "--order=RGB")
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()[:2]
    assert "--same_padding=blocks --epsilon=1e-05 --order=RGB --shortcut=none fits, of " in first
    assert "--epsilon=1.001e-05" in second
    assert second.endswith("fits as well: these images cannot tell.")
    assert ["same_padding", "('blocks',)", "--check"] in map(str.split, done.stdout.splitlines())
    assert resnet_jax.load(tmp_path / "run").model.same_padding == ("blocks",)


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ((3, 1, 8, 8), "yours are (N, C, H, W): transpose them with (0, 2, 3, 1)."),
        ((3, 8, 8, 3), "has images of the shape (3, 8, 8, 3); allowed is (N, H, W, 1)."),
        ((64,), "has images of the shape (64,); allowed is (N, H, W, 1)."),
    ],
)
def test_images_to_check_have_channels_last(file, check, tmp_path, shape, words):
    np.save(tmp_path / "images.npy", np.zeros(shape, np.float32))
    flags = (f"--check={tmp_path / 'images.npy'}", f"--expected={check / 'logits.npz'}")
    done = convert(f"--from={file}", f"--to={tmp_path / 'run'}", *DIGITS, *flags)
    assert done.returncode == 2, done.stderr
    assert words in done.stderr


def test_a_network_for_some_classes_comes_back(tmp_path):
    model = resnet_jax.resnet("cifar", 8, shortcut="none", num_classes=2)
    np.savez(tmp_path / "two.npz", **export.to_torchvision(model, foreign.drawn(model, channels=1)))
    flags = (*DIGITS, "--classes=3,5", "--shortcut=none")
    done = convert(f"--from={tmp_path / 'two.npz'}", f"--to={tmp_path / 'run'}", *flags)
    assert done.returncode == 0, done.stderr
    assert resnet_jax.load(tmp_path / "run").class_names == ["3", "5"]


@pytest.mark.parametrize(
    ("expected", "words"),
    [
        ("others.npz", "the closest ("),
        ("text.npz", "is no readable .npy or .npz file"),
        ("nothing.npz", "is no readable .npy or .npz file"),
    ],
)
def test_a_network_that_no_convention_explains_is_not_written(
    file, check, tmp_path, expected, words
):
    done = checked(file, check, tmp_path / "run", expected, "--shortcut=none", "--epsilon=1e-5")
    assert done.returncode == 2, done.stderr
    assert words in done.stderr
    assert not (tmp_path / "run").exists()


def test_a_run_is_not_overwritten(file, tmp_path):
    for code in (0, 2):
        done = convert(f"--from={file}", f"--to={tmp_path / 'run'}", *DIGITS)
        assert done.returncode == code, done.stderr
    assert "already holds a run; give a new folder." in done.stderr


def test_a_file_of_another_kind_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("weights")
    done = convert(f"--from={tmp_path / 'notes.txt'}", f"--to={tmp_path / 'run'}", *DIGITS)
    assert done.returncode == 2
    assert "is of no known format" in done.stderr
