"""What is installed is the same everywhere, and the wheel says what it needs."""

import ast
import re
import subprocess
import sys
import tomllib
from importlib import metadata

import pytest

from resnet_jax.errors import EXTRAS, sentence
from tests import tiny

FILES = ["requirements.txt", "benchmarks/requirements.txt", "tests/requirements-skypilot.txt",
         "tests/requirements-tensorflow.txt"]  # fmt: skip


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


def imported(*folders):
    """Returns the top packages of others that the files of `folders` import."""
    names = set()
    for path in (path for folder in folders for path in (tiny.ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                names.add(node.module)
    tops = {name.split(".")[0] for name in names}
    return tops - {"resnet_jax", "experiments", "configs", *sys.stdlib_module_names}


def owners(package):
    """Returns the distributions that have a package; several may share a top package."""
    top, _, inside = package.partition(".")
    found = metadata.packages_distributions()[top]
    if inside:
        place = f"{top}/{inside}/"
        found = [d for d in found if any(str(f).startswith(place) for f in metadata.files(d))]
    return {normalized(name) for name in found}


def declared(extra=""):
    """Returns the distributions of the core, or of an extra."""
    lists = project()["project"]
    names = lists["optional-dependencies"][extra] if extra else lists["dependencies"]
    return {normalized(name) for name in names if not name.startswith("resnet_jax[")}


def test_the_wheel_declares_what_it_imports_and_nothing_else():
    optional = {package.split(".")[0] for packages in EXTRAS.values() for package in packages}
    core = {top: owners(top) for top in imported("resnet_jax", "experiments", "configs") - optional}
    assert {top: names for top, names in core.items() if not names & declared()} == {}
    assert declared() - set().union(*core.values()) == set()


@pytest.mark.parametrize("extra", EXTRAS)
def test_an_extra_declares_its_packages_and_nothing_else(extra):
    by_package = {package: owners(package) & declared(extra) for package in EXTRAS[extra]}
    assert all(len(names) == 1 for names in by_package.values()), by_package
    assert set().union(*by_package.values()) == declared(extra)


def test_the_extras_are_those_that_the_library_knows():
    extras = project()["project"]["optional-dependencies"]
    assert extras.keys() == EXTRAS.keys() | {"all"}
    assert extras["all"] == ["resnet_jax[buckets,interop,plots,tensorboard,tfds]"]
    assert "resnet_jax[jpeg]" in extras["tfds"]
    # Packages reached through another one, as buckets and JAX's files are, are imported nowhere.
    reached = {package.split(".")[0] for extra in EXTRAS if extra != "buckets"
               for package in EXTRAS[extra] if package != "flatbuffers"}  # fmt: skip
    assert reached <= imported("resnet_jax", "experiments")


WITHOUT_EXTRAS = """
import sys
from resnet_jax.errors import EXTRAS
for packages in EXTRAS.values():
    # They cannot be imported; but scikit-learn has scipy.
    sys.modules |= dict.fromkeys({*packages} - {"scipy"})
import runpy
sys.argv = ["train", *sys.argv[1:]]
runpy.run_module("experiments.train", run_name="__main__", alter_sys=True)
"""


def without_extras(*arguments):
    return subprocess.run(
        [sys.executable, "-c", WITHOUT_EXTRAS, *map(str, arguments)],
        cwd=tiny.ROOT, env=tiny.environment() | {"JAX_PLATFORMS": "cpu"},
        capture_output=True, text=True,
    )  # fmt: skip


@pytest.mark.slow
def test_digits_train_without_any_extra(tmp_path):
    flags = tiny.flags_of(log__tensorboard=True)
    arguments = ["--config=configs/digits.py", *flags, f"--workdir={tmp_path / 'run'}"]
    done = without_extras(*arguments)
    assert done.returncode == 0, done.stderr
    assert "pip install 'resnet_jax[tensorboard]', or log.tensorboard=false" in done.stderr
    assert not (tmp_path / "run" / "tensorboard").exists()


@pytest.mark.parametrize(
    ("config", "workdir", "words"),
    [
        ("configs/cifar10.py", "run", "error: data.name='cifar10' needs array_record, which is "
         "missing; install it with: pip install 'resnet_jax[tfds]'."),
        ("configs/digits.py", "gs://bucket/run", "error: gs://bucket/run needs gcsfs, which is "
         "missing; install it with: pip install 'resnet_jax[buckets]'."),
    ],
)  # fmt: skip
def test_what_needs_an_extra_names_it(config, workdir, words, tmp_path):
    workdir = workdir if "://" in workdir else tmp_path / workdir
    done = without_extras(f"--config={config}", f"--workdir={workdir}")
    assert (done.returncode, done.stderr.splitlines()[-1]) == (2, words)


def test_a_package_of_an_extra_that_cannot_be_imported_names_the_extra():
    error = ImportError("No module named 'matplotlib'", name="matplotlib.axes")
    assert sentence(error) == (
        "a package is missing or broken (No module named 'matplotlib'); install it with: "
        "pip install 'resnet_jax[plots]'"
    )


def test_the_wheel_has_every_package():
    found = {path.parent for top in ("resnet_jax", "experiments", "configs")
             for path in (tiny.ROOT / top).rglob("*.py")}  # fmt: skip
    names = {".".join(path.relative_to(tiny.ROOT).parts) for path in found}
    setuptools = project()["tool"]["setuptools"]
    programs = "resnet_jax._programs."
    moved = {f"{programs}{top}": top for top in ("configs", "experiments")}
    assert setuptools["package-dir"] == moved
    assert {name.removeprefix(programs) for name in setuptools["packages"]} == names
    assert all(name.startswith("resnet_jax") for name in setuptools["packages"])
