"""Training on a CPU asks for huge pages, in one process or in a study's."""

import os
import subprocess
import sys

import pytest

from experiments.cli import huge_pages
from experiments.launchers import local
from tests import tiny

OPTION = "glibc.malloc.hugetlb=1"


@pytest.mark.parametrize(("given", "wanted"), [
    ({}, OPTION),
    ({"GLIBC_TUNABLES": "glibc.malloc.perturb=7"}, f"glibc.malloc.perturb=7:{OPTION}"),
    ({"GLIBC_TUNABLES": "glibc.malloc.hugetlb=0"}, "glibc.malloc.hugetlb=0"),
])  # fmt: skip
def test_the_option_is_added_unless_it_is_given(given, wanted):
    assert huge_pages.environment({"A": "b", **given}) == {"A": "b", "GLIBC_TUNABLES": wanted}


def test_a_cell_on_a_cpu_need_not_restart(monkeypatch):
    monkeypatch.delenv("GLIBC_TUNABLES")
    for platform in ("cpu", "gpu"):
        with local.placed(local.Machine(platform), 0, 1) as environment:
            assert (environment.get("GLIBC_TUNABLES") == OPTION) == (platform == "cpu")


@pytest.mark.skipif(sys.platform != "linux", reason="glibc is Linux's")
@pytest.mark.parametrize(("given", "starts"), [
    ({"JAX_PLATFORMS": "cpu"}, 2),
    ({}, 2),  # no package for another device is installed
    ({"JAX_PLATFORMS": "cuda"}, 1),
    ({"JAX_PLATFORMS": "cpu", "GLIBC_TUNABLES": "glibc.malloc.hugetlb=0"}, 1),
])  # fmt: skip
def test_a_program_restarts_once_with_its_arguments(tmp_path, given, starts):
    (tmp_path / "program.py").write_text(
        "import sys\n"
        "from experiments.cli import huge_pages\n"
        "print(sys.argv[1:], flush=True)\n"
        "huge_pages.restart()\n"
        "print('done')\n",
        encoding="utf-8",
    )
    absent = ("GLIBC_TUNABLES", "JAX_PLATFORMS")
    environment = {k: v for k, v in os.environ.items() if k not in absent} | given
    said = subprocess.run(
        [sys.executable, "-m", "program", "a b", "--c=d"],
        cwd=tmp_path, env={**environment, "PYTHONPATH": f"{tmp_path}:{tiny.ROOT}"},
        capture_output=True, text=True, check=True,
    ).stdout.splitlines()  # fmt: skip
    assert said == ["['a b', '--c=d']"] * starts + ["done"]


def test_training_restarts_itself(tmp_path):
    environment = {k: v for k, v in tiny.environment().items() if k != "GLIBC_TUNABLES"}
    code = (
        "import os, runpy, sys; os.execve = lambda *args: sys.exit(repr(args[2]));"
        "sys.argv = ['train']; runpy.run_module('experiments.train', run_name='__main__')"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=tiny.ROOT, env=environment, capture_output=True, text=True
    )
    assert OPTION in ended.stderr, ended.stderr
