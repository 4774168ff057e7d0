"""The pod benchmark: its mistakes, its rows from made-up programs, and with TPU's own compiler."""

import importlib.util
import json
import subprocess
import sys

import pytest

from tests import tiny


def launch(*flags):
    return tiny.program("benchmarks.pod", *flags)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("", "Give either --target=CHIPS or --topologies=CHIPS,CHIPS."),
        ("--target=v5e:2x2 --topologies=v5e:2x2", "Give either --target"),
        ("--target=v5e", "v5e is one chip; give a topology"),
        ("--topologies=v5e:2x2,v6e:2x2", "several kinds of chips"),
        ("--topologies=v5e:2x2,v5e:4", "--topologies=v5e:4 is not a topology"),
        ("--target=v5e:4x4 --family=cifar --depth=20 --batch_size=100", "multiples of 16"),
        ("--target=v5e:2x2 --family=cifar --depth=21", "depth=21"),
    ],
)
def test_mistakes_are_one_sentence(flags, words):
    done = launch(*flags.split())
    assert done.returncode == 2
    assert words in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


# In a process of its own: flags of the benchmarks and of `compare` have the same names.
MADE_UP = """
from benchmarks import pod
from experiments.cli import command_line
from experiments.pods import program, target
from tests.pods.test_bound import SUM, needs


class Made:
    def __init__(self, devices):
        self.chips = len(devices)

    def needs(self, config):
        images = config.replicates * config.batch_size // self.chips
        if images > 300:
            raise program.TooLargeError("that takes (20.00G), but there are (15.75G)")
        made = vars(needs(SUM)) | {"images": images, "temporaries": config.replicates}
        return program.Needs(**made)


program.Compiler = Made
target.Target.devices = lambda self: [None] * self.chips
command_line.run(pod.main)
"""


def rows(tmp_path, *flags):
    """Returns the rows of a step that takes a millisecond, and (temporaries) has so many seeds."""
    flags = ["--family=cifar", "--depth=20", f"--out={tmp_path}", *flags]
    done = subprocess.run(
        [sys.executable, "-c", MADE_UP, *flags], cwd=tiny.ROOT, env=tiny.environment(),
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads((tmp_path / "table.json").read_text())["rows"]


@pytest.mark.slow
def test_a_target_is_compared_with_one_host_at_as_many_images_per_chip(tmp_path):
    host, pod_row = rows(tmp_path, "--target=v5e:4x4", "--batch_size=1024")
    assert (host["target"], pod_row["target"]) == ("v5e:2x2", "v5e:4x4")
    assert host["images_per_chip"] == pod_row["images_per_chip"] == 64
    assert (host["efficiency"], pod_row["efficiency"]) == (1, 1)
    assert host["bound_seconds"] == pytest.approx(1e-3 + 6e-5)
    assert host["bound_by"] in ("matrix unit", "memory")
    assert host["sent_bytes"] == 2 * 3 / 4 * 4e6
    assert host["collectives"] == [
        {"kind": "all-reduce", "dtypes": ["f32"], "axes": ["data"], "chips": 4,
         "overlapped": False, "count": 1, "bytes": 4_000_000}
    ]  # fmt: skip
    text = (tmp_path / "table.txt").read_text()
    assert f"{16 * 64 / (1e-3 + 6e-5):,.0f}" in text  # images per second
    assert "compiled, not run: v5e:2x2, v5e:4x4" in text


@pytest.mark.slow
def test_what_does_not_fit_is_a_row_too(tmp_path):
    (row,) = rows(tmp_path, "--topologies=v5e:2x2", "--batch_size=2048")
    assert (row["fits"], row["efficiency"], row["memory_bytes"]) == (False, None, 20 * 2**30)
    assert "does not fit" in (tmp_path / "table.txt").read_text()


@pytest.mark.slow
def test_seeds_of_their_own_make_more_of_them_on_more_chips(tmp_path):
    few, many = rows(tmp_path, "--topologies=v5e:2x2,v5e:4x4", "--seeds_per_chip=2")
    assert [row["temporaries_bytes"] for row in (few, many)] == [8, 32]
    assert few["images_per_chip"] == many["images_per_chip"] == 2 * 128


@pytest.mark.slow
@pytest.mark.compiler
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")
def test_of_compiled_programs(tmp_path):
    done = launch("--topologies=v5e:2x2,v5e:2x4", "--family=cifar", "--depth=8",
                  "--batch_size=128", f"--out={tmp_path}")  # fmt: skip
    assert done.returncode == 0, done.stderr
    table = json.loads((tmp_path / "table.json").read_text())
    few, many = table["rows"]
    assert few["fits"]
    assert few["flops"] == many["flops"]
    assert few["efficiency"] == 1
    assert 0.5 < many["efficiency"] <= 1
    assert done.stdout.count("all-reduce") >= 2
