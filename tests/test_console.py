"""The command `resnet-jax`, started from a folder that is no checkout; see test_wheel.py, too."""

import json
import os
import subprocess
import sys

import pytest

from resnet_jax import console
from tests import tiny

COMMAND = (sys.executable, "-c", "from resnet_jax.console import main; raise SystemExit(main())")


@pytest.fixture
def elsewhere(tmp_path):
    """A user's folder, which has a configs/ of its own."""
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "__init__.py").write_text("raise ImportError('the user has his own')")
    return tmp_path


def run(cwd, *arguments):
    given = tiny.environment() | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(tiny.ROOT)}
    return subprocess.run(
        [*COMMAND, *map(str, arguments)], cwd=cwd, env=given, capture_output=True, text=True
    )


def test_every_program_is_there():
    programs = {path.stem for path in (tiny.ROOT / "experiments").glob("*.py")} - {"__init__"}
    assert programs == console.PROGRAMS.keys()


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--help"], 0, "usage: resnet-jax PROGRAM FLAGS"),
        (["--version"], 0, ""),
        ([], 2, "error: PROGRAM is missing; see resnet-jax --help."),
        (["sweeep"], 2, "error: 'sweeep' is not a program (nearest: sweep); see"),
    ],
)
def test_the_command_itself(arguments, code, words, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["resnet-jax", *arguments])
    assert console.main() == code
    printed = capsys.readouterr()
    assert words in (printed.err if code else printed.out)
    assert len((printed.err if code else printed.out).splitlines()) >= 1


def test_a_config_of_ours_is_found_from_anywhere(elsewhere):
    done = run(elsewhere, "describe", "--config=configs/cifar10.py", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["depth"] == 20
    done = run(elsewhere, "describe", "--config=configs/cifar.py")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == (
        "error: --config=configs/cifar.py is not a file (nearest: configs/cifar10.py)."
    )


def test_a_user_s_config_comes_before_ours_and_may_use_ours_and_its_neighbours(elsewhere):
    (elsewhere / "neighbour.py").write_text("DEPTH = 14")
    (elsewhere / "configs" / "digits.py").write_text(
        "from configs import digits\n"
        "import neighbour\n"
        "def get_config():\n"
        "    c = digits.get_config()\n"
        "    c.model.depth = neighbour.DEPTH\n"
        "    return c\n"
    )
    done = run(elsewhere, "describe", "--config=configs/digits.py", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["depth"] == 14


def test_exit_codes_and_help_are_the_program_s(elsewhere):
    done = run(elsewhere, "train", "--workdir=run")
    assert (done.returncode, done.stderr) == (2, "error: --config is missing; see --help.\n")
    done = run(elsewhere, "compare", "--help")
    assert done.returncode == 0
    assert "--margin" in done.stdout
    assert "python -m experiments.compare" in done.stdout


def test_a_package_that_a_whole_program_needs_is_one_sentence(elsewhere):
    (elsewhere / "sitecustomize.py").write_text("import sys\nsys.modules['matplotlib'] = None\n")
    given = os.environ | {"PYTHONPATH": f"{tiny.ROOT}{os.pathsep}{elsewhere}"}
    done = subprocess.run(
        [*COMMAND, "compare", ".", "--out=x"],
        cwd=elsewhere,
        env=given,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr == (
        "error: a package is missing or broken (import of matplotlib halted; None in "
        "sys.modules); install it with: pip install 'resnet_jax[plots]'.\n"
    )
