"""Other people's programs compute what our network computes with their weights."""

import dataclasses
import os
import subprocess

import jax
import numpy as np
import pytest

from resnet_jax.interop import weights
from resnet_jax.interop.schemes import SCHEMES
from resnet_jax.weight_files import files
from tests import tiny

TORCH, KERAS = (tiny.ROOT / f".venv-{name}" / "bin" / "python" for name in ("torch", "tensorflow"))
NAMES = [
    *(f"imagenet-{depth}" for depth in (18, 34, 50, 101, 152)),
    "imagenet-50-v1",
    *(f"cifar-{depth}" for depth in (20, 32, 44, 56, 110)),
]

pytestmark = pytest.mark.slow


def made_by(python, script, out):
    done = subprocess.run(
        [python, tiny.ROOT / "tests" / "interop" / script, out],
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONPATH": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return out


@pytest.fixture(scope="module")
def of_torch(tmp_path_factory):
    """A folder with the networks of torch_own.py."""
    return made_by(TORCH, "torch_own.py", tmp_path_factory.mktemp("torch"))


def error(ours, theirs):
    """Returns the largest difference, as a share of the largest number."""
    return np.abs(np.asarray(ours) - theirs).max() / np.abs(theirs).max()


@pytest.mark.skipif(not TORCH.exists(), reason="no .venv-torch: make test-slow makes it")
@pytest.mark.parametrize("name", NAMES)
def test_logits_and_gradients_are_those_of_pytorch(of_torch, name):
    tensors = files.read(of_torch / f"{name}.pth").tensors
    theirs = np.load(of_torch / f"{name}.npz")
    family, depth, *version = name.split("-")
    scheme = "cifar" if family == "cifar" else "torchvision"
    conventions = dataclasses.replace(
        SCHEMES[scheme].conventions, bottleneck_stride=version[0] if version else "v1.5"
    )
    found = weights.convert(tensors, name, conventions=conventions)
    assert (found.scheme, found.settings["family"]) == (scheme, family)
    assert found.settings["depth"] == int(depth)

    def total(params):
        variables = {"params": params, "batch_stats": found.variables["batch_stats"]}
        logits = found.model.apply(variables, theirs["images"], train=False)
        return (logits * theirs["weights"]).sum(), logits

    gradients, logits = jax.jit(jax.grad(total, has_aux=True))(found.variables["params"])
    assert error(logits, theirs["logits"]) < 1e-4
    # The gradients have the names of the parameters, and the same way to our layout.
    named = {key.removeprefix("grad."): theirs[key] for key in theirs if key.startswith("grad.")}
    wanted = weights.convert(tensors | named, name, conventions=conventions).variables["params"]
    errors = jax.tree.map(error, gradients, wanted)
    assert max(jax.tree.leaves(errors)) < 1e-3, errors


@pytest.mark.skipif(not KERAS.exists(), reason="no .venv-tensorflow: make test-slow makes it")
def test_logits_are_those_of_keras(tmp_path):
    made_by(KERAS, "keras_own.py", tmp_path)
    found = weights.convert(files.read(tmp_path / "keras-50.h5").tensors, "keras-50.h5")
    assert (found.scheme, found.settings["depth"]) == ("keras", 50)
    theirs = np.load(tmp_path / "keras-50.npz")
    images = theirs["images"][..., ::-1]  # theirs are BGR
    logits = jax.jit(found.model.apply, static_argnames="train")(
        found.variables, images, train=False
    )
    assert error(logits, theirs["logits"]) < 1e-4
