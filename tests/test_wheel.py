"""The wheel in fresh environments, outside the checkout."""

import shutil
import subprocess
import sys

import pytest

from tests import test_library, tiny

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"  # a build leaves files behind
    run(folder, "git", "clone", "--quiet", str(tiny.ROOT), str(source))
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet")
    run(folder, *pip, "wheel", "--no-deps", f"--wheel-dir={folder}", str(source))
    (wheel,) = folder.glob("resnet_jax-*.whl")
    return wheel


class Installed:
    """A fresh environment, and an empty folder to work in."""

    def __init__(self, wheel, extras, folder):
        self.cwd, venv = folder / "cwd", folder / "venv"
        self.cwd.mkdir()
        run(folder, sys.executable, "-m", "venv", str(venv))
        self.python = venv / "bin" / "python"
        pip = (str(self.python), "-m", "pip", "--disable-pip-version-check", "--quiet")
        pins = f"--constraint={tiny.ROOT / 'requirements.txt'}"
        run(folder, *pip, "install", pins, f"resnet_jax{extras} @ {wheel.as_uri()}")
        (self.packages,) = venv.glob("lib/*/site-packages")

    def fails(self, *arguments):
        """Runs `resnet-jax` and returns its CompletedProcess."""
        command = [str(self.python.parent / "resnet-jax"), *map(str, arguments)]
        return subprocess.run(
            command, cwd=self.cwd, env=tiny.environment() | {"JAX_PLATFORMS": "cpu"},
            capture_output=True, text=True,
        )  # fmt: skip

    def program(self, *arguments):
        """Runs `resnet-jax`, which must end well, and returns its stdout."""
        done = self.fails(*arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout


def run(cwd, *command):
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


USE = """
import resnet_jax, jax, jax.numpy as jnp
model = resnet_jax.resnet("cifar", 8, num_classes=3)
images = jnp.ones((2, 32, 32, 3))
variables = model.init(jax.random.key(0), images, train=True)
print(model.apply(variables, images, train=False).shape, resnet_jax.__version__)
trained = resnet_jax.load("run")
print(trained.is_tested, trained.normalization(jnp.ones((1, 8, 8, 1), jnp.uint8)).shape)
print(resnet_jax.__file__)
"""


def test_the_core_trains_digits_and_names_the_extra_of_all_else(wheel, scratch):
    installed = Installed(wheel, "", scratch)
    flags = tiny.flags_of(log__tensorboard=True)
    installed.program("train", "--config=configs/digits.py", *flags, "--workdir=run")
    used = run(installed.cwd, str(installed.python), "-I", "-W", "error", "-c", USE)
    shape, loaded, file = used.splitlines()
    assert shape == f"(2, 3) {test_library.project()['version']}"
    assert loaded == "True (1, 8, 8, 1)"
    assert file.startswith(str(installed.packages))
    for arguments, extra in {
        ("compare", "run", "--out=report"): "plots",
        ("prepare", "cifar10", "--out=data"): "tfds",
        ("shrink", "--out=small"): "jpeg",
        ("train", "--config=configs/cifar10.py", "--workdir=other"): "tfds",
        ("train", "--config=configs/digits.py", "--workdir=s3://bucket/run"): "buckets",
    }.items():
        done = installed.fails(*arguments)
        assert done.returncode == 2
        assert done.stderr.splitlines()[-1].endswith(f"pip install 'resnet_jax[{extra}]'.")
    (installed.cwd / "script.py").write_text(test_library.SCRIPT)
    mypy = [sys.executable, "-m", "mypy", f"--python-executable={installed.python}"]
    done = subprocess.run([*mypy, "script.py"], cwd=installed.cwd, capture_output=True, text=True)
    assert 'Revealed type is "resnet_jax.networks.resnet.ResNet"' in done.stdout


MINE = """
from configs import degradation_digits

def get_config():
    study = degradation_digits.get_config("one_rate")
    study.grid.model.depth = (8,)
    return study
"""
SHORT = {"steps": 4, "replicates": 1, "batch_size": 16, "model.width": 0.25, "eval.every": 2,
         "checkpoint.every": 2, "log.every": 2, "eval.population_examples": 32}  # fmt: skip


def test_a_study_and_its_report_outside_the_checkout(wheel, scratch):
    installed = Installed(wheel, "[all]", scratch)
    names = {path.name for path in installed.packages.iterdir()}
    assert not names & {"experiments", "configs", "benchmarks", "tests"}
    assert "resnet_jax" in names
    # A user's own configs/ hides nothing of ours.
    (installed.cwd / "configs").mkdir()
    (installed.cwd / "configs" / "__init__.py").touch()
    (installed.cwd / "mine.py").write_text(MINE)
    short = [f"--config.base.{key}={value}" for key, value in SHORT.items()]

    study = (
        "--config=configs/degradation_digits.py:one_rate",
        *short,
        "--config.grid.model.depth=(8,14)",
    )
    installed.program("sweep", *study, "--workdir=study")
    printed = installed.program("compare", "study", "--out=report")
    assert printed.splitlines()[-1] == "report/index.html"
    written = {path.name for path in (installed.cwd / "report").iterdir()}
    assert written >= {"index.html", "summary.json", "table.csv", "table.md", "curves.png"}
    page = (installed.cwd / "report" / "index.html").read_text()
    assert "resnet-jax compare study --out=report" in page

    plan = installed.program("sweep", "--config=mine.py", *short, "--workdir=mine", "--dry_run")
    assert "plain-8" in plan
    shutil.rmtree(installed.cwd / "study" / "plain-8")
    installed.program("sweep", *study, "--workdir=study")
    assert (installed.cwd / "study" / "plain-8" / "tested").is_dir()
