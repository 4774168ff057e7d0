"""What `import resnet_jax` offers, and what it costs."""

import re
import subprocess
import sys
import tomllib
import types
from importlib import metadata

import numpy as np
import pytest

import resnet_jax
from resnet_jax.errors import UserError
from resnet_jax.networks import resnet as networks
from resnet_jax.networks.architectures import CIFAR_STUDIED, IMAGENET, architecture
from resnet_jax.runs import reader
from tests import tiny
from tests.interop import foreign


def test_the_import_imports_no_jax():
    code = (
        "import resnet_jax, sys; dir(resnet_jax); print({'jax', 'flax', 'numpy'} & {*sys.modules})"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tiny.ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "set()\n"


def test_every_public_name_is_there():
    assert resnet_jax.__all__ == sorted(resnet_jax.__all__)
    assert {*resnet_jax.__all__} <= {*dir(resnet_jax)}
    for name in resnet_jax.__all__:
        assert getattr(resnet_jax, name) is not None
    assert resnet_jax.ResNet is networks.ResNet
    with pytest.raises(AttributeError, match="no attribute 'resnett'"):
        resnet_jax.resnett  # noqa: B018 - looking it up is the test


def project():
    return tomllib.loads((tiny.ROOT / "pyproject.toml").read_text())["project"]


def test_the_version_is_the_project_s(monkeypatch):
    monkeypatch.setattr(metadata, "version", {"resnet_jax": "7.8"}.__getitem__)
    assert resnet_jax.__version__ == "7.8"

    def absent(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", absent)
    assert resnet_jax.__version__ == project()["version"]


@pytest.mark.parametrize("depth", [*IMAGENET])
def test_an_imagenet_network_is_the_paper_s(depth):
    """Section 4.1: option A for 18 and 34 layers (Table 2), B for bottlenecks (Table 4)."""
    model = resnet_jax.resnet("imagenet", depth)
    shortcut = "A" if depth < 50 else "B"
    assert model == networks.ResNet(
        architecture("imagenet", depth), 1000, shortcut=shortcut, stem="imagenet"
    )
    assert (model.bottleneck_stride, model.preactivation) == ("v1", False)


@pytest.mark.parametrize("depth", CIFAR_STUDIED)
def test_a_cifar_network_is_the_paper_s(depth):
    model = resnet_jax.resnet("cifar", depth)
    assert model == networks.ResNet(architecture("cifar", depth), 10, shortcut="A", stem="cifar")


def test_what_is_given_differs_from_the_paper():
    model = resnet_jax.resnet("imagenet", 50, shortcut="none", num_classes=7, stem="cifar", width=2)
    assert (model.shortcut, model.num_classes, model.stem, model.width) == ("none", 7, "cifar", 2)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: resnet_jax.resnet("imagenet", 51), "nearest: 50 and 101"),
        (lambda: resnet_jax.resnet("cfiar", 20), "nearest: cifar"),
        (lambda: resnet_jax.resnet("cifar", 20, shortcut="D"), "shortcut='D' is not known"),
        (lambda: resnet_jax.resnet("cifar", 20, num_classes=0), "num_classes=0 is out of range"),
        (lambda: resnet_jax.resnet("cifar", 20, preactivaton=True), "(nearest: preactivation)"),
        (lambda: resnet_jax.resnet("cifar", 20, arch=None), "arch is not an attribute"),
    ],
)
def test_a_wrong_argument_is_one_sentence(make, words):
    with pytest.raises(UserError) as refused:
        make()
    assert words in str(refused.value)


def blocks():
    guide = (tiny.ROOT / "docs" / "library.md").read_text(encoding="utf-8")
    return re.findall(r"```python\n(.*?)```", guide, re.DOTALL)


def test_the_guide_builds_a_network_and_takes_its_features():
    build, features = blocks()[:2]
    names = {}
    exec(build + features, names)
    assert names["logits"].shape == (2, 10)
    assert {name: a.shape for name, a in names["features"].items()} == {
        "stage3": (2, 8, 8, 64), "pooled": (2, 64)
    }  # fmt: skip


def test_the_guide_loads_a_run_and_trains_on_arrays(tmp_path, monkeypatch):
    load, train = blocks()[2:4]
    assert all(len(block.splitlines()) < 10 for block in blocks()[:4])
    monkeypatch.chdir(tmp_path)
    foreign.write_run(tmp_path / "runs" / "plain-56")
    names = {}
    exec(load, names)
    assert names["logits"].shape == (2, 10)
    # A smaller network, and two steps.
    shorter = train.replace("32, 32", "8, 8").replace("= 20, 300", "= 8, 2")
    assert shorter.count("8, 2") == 1
    exec(shorter, names)
    assert reader.read("runs/mine").status["status"] == "completed"
    assert resnet_jax.load("runs/mine").model.num_classes == 3


def test_a_users_own_configs_stay_as_they_are(monkeypatch):
    own = types.ModuleType("configs")
    monkeypatch.setitem(sys.modules, "configs", own)
    path = list(sys.path)
    config = resnet_jax.config("degradation_digits", "one_rate")
    assert config.grid.model.depth == (20, 56)
    config.base.steps = 7
    assert resnet_jax.config("degradation_digits", "one_rate").base.steps == 120
    assert sys.modules["configs"] is own
    assert sys.path == path
    with pytest.raises(UserError, match=r"name='cifar1' is not known; .* \(nearest: cifar10\)"):
        resnet_jax.config("cifar1")


def test_the_guide_s_feature_pyramid_is_the_paper_s():
    guide = (tiny.ROOT / "docs" / "library.md").read_text(encoding="utf-8")
    *_, pyramid, maps = re.findall(r"```python\n(.*?)```", guide, re.DOTALL)
    names = {}
    exec(pyramid, names)
    sizes = [(1, 18, 16, 256), (1, 9, 8, 256), (1, 5, 4, 256), (1, 3, 2, 256)]
    assert [level.shape for level in names["pyramid"]] == sizes
    assert [names["strides"][name] for name in names["names"]] == [4, 8, 16, 32]
    exec(maps, names)
    assert names["maps"].shape == (1, 3, 2)

    # With output convolutions that copy their input: the lateral maps plus those from above.
    random = np.random.default_rng(0)
    stages = [random.normal(size=(1, side, side, 3)).astype(np.float32) for side in (9, 5, 3, 2)]
    kernels = random.normal(size=(4, 3, 2)).astype(np.float32)
    copy = np.zeros((3, 3, 2, 2), np.float32)
    copy[1, 1] = np.eye(2)
    bias, params = np.zeros(2, np.float32), {}
    for level, kernel in enumerate(kernels, start=2):
        params[f"lateral{level}"] = {"kernel": kernel[None, None], "bias": bias}
        params[f"output{level}"] = {"kernel": copy, "bias": bias}
    found = names["FeaturePyramid"](channels=2).apply({"params": params}, stages)
    merged = 0
    for level, x, kernel in zip(found[::-1], stages[::-1], kernels[::-1], strict=True):
        lateral = np.einsum("bhwc,cd->bhwd", x, kernel)
        upsampled = np.kron(merged, np.ones((1, 2, 2, 1)))
        merged = lateral + (upsampled[:, : x.shape[1], : x.shape[2]] if np.ndim(merged) else 0)
        np.testing.assert_allclose(level, merged, rtol=1e-4, atol=1e-5)


SCRIPT = """
import resnet_jax
model = resnet_jax.resnet("cifar", 20, num_classes=100)
found = resnet_jax.features(model, {}, resnet_jax.__version__)
reveal_type(resnet_jax.__version__)
reveal_type(model)
"""


@pytest.mark.slow
def test_a_user_s_script_is_type_checked(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    mypy = [sys.executable, "-m", "mypy", "--config-file=pyproject.toml", "--no-error-summary"]
    done = subprocess.run(
        [*mypy, str(tmp_path / "script.py")], cwd=tiny.ROOT, capture_output=True, text=True
    )
    said = [line.split(": ", 1)[1] for line in done.stdout.splitlines()]
    assert said == [
        'error: Argument 3 to "features" has incompatible type "str"; expected "Array"  [arg-type]',
        'note: Revealed type is "str"',
        'note: Revealed type is "resnet_jax.networks.resnet.ResNet"',
    ]
