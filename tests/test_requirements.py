"""What is installed is the same everywhere, and the wheel says what it needs."""

import ast
import re
import subprocess
import sys
import tomllib
from importlib import metadata

import pytest

from tests import tiny

FILES = ["requirements.txt", "benchmarks/requirements.txt", "tests/requirements-skypilot.txt"]


@pytest.mark.parametrize("name", FILES)
def test_every_package_is_pinned_by_its_version(name):
    lines = (tiny.ROOT / name).read_text().splitlines()
    packages = [line.split("#")[0].strip() for line in lines]
    packages = [package for package in packages if package]
    assert len(packages) >= 3
    pinned = re.compile(r"[A-Za-z0-9][\w.\-]*(\[[\w,]+\])?==[\w.+]+( *;.*)?")
    assert [package for package in packages if not pinned.fullmatch(package)] == []


def normalized(name):
    """A distribution's name as package indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def project():
    return tomllib.loads((tiny.ROOT / "pyproject.toml").read_text())


def test_the_wheel_declares_what_it_imports_and_nothing_else():
    imported = set()
    for path in (tiny.ROOT / "resnet_jax").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported.add(node.module)
    tops = {name.split(".")[0] for name in imported} - {"resnet_jax", *sys.stdlib_module_names}
    declared = {normalized(name) for name in project()["project"]["dependencies"]}
    # Several distributions may share a top package, as those in nvidia do.
    owners = metadata.packages_distributions()
    given_by = {top: {normalized(name) for name in owners[top]} for top in tops}
    assert {top: names for top, names in given_by.items() if not names & declared} == {}
    assert declared - set().union(*given_by.values()) == set()


def test_the_wheel_has_every_package():
    found = {path.parent for path in (tiny.ROOT / "resnet_jax").rglob("*.py")}
    names = {".".join(path.relative_to(tiny.ROOT).parts) for path in found}
    assert set(project()["tool"]["setuptools"]["packages"]) == names


USE = """
import importlib, pkgutil
import resnet_jax
for module in pkgutil.walk_packages(resnet_jax.__path__, "resnet_jax."):
    importlib.import_module(module.name)
import jax, jax.numpy as jnp
from resnet_jax.networks.architectures import architecture
from resnet_jax.networks.resnet import ResNet
model = ResNet(architecture("cifar", 8), num_classes=10)
images = jnp.ones((2, 32, 32, 3))
variables = model.init(jax.random.key(0), images, train=True)
print(model.apply(variables, images, train=False).shape, resnet_jax.__file__)
"""


@pytest.mark.slow
def test_the_wheel_works_in_a_fresh_environment_outside_the_checkout(tmp_path):
    def run(*command):
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    python = tmp_path / "venv" / "bin" / "python"
    run("git", "clone", "--quiet", str(tiny.ROOT), "source")  # a build leaves files behind
    run(sys.executable, "-m", "venv", "venv")
    pip = (str(python), "-m", "pip", "--disable-pip-version-check", "--quiet")
    run(*pip, "wheel", "--no-deps", "--wheel-dir=dist", "./source")
    (wheel,) = (tmp_path / "dist").glob("resnet_jax-*.whl")
    run(*pip, "install", f"--constraint={tiny.ROOT / 'requirements.txt'}", str(wheel))
    shape, file = run(str(python), "-I", "-W", "error", "-c", USE).rsplit(" ", 1)
    assert shape == "(2, 10)"
    assert file.startswith(str(tmp_path / "venv"))
