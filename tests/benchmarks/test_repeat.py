"""The benchmark of determinism runs, and reports differences."""

import json
import subprocess
import sys

import pytest

from tests import tiny


@pytest.mark.slow
def test_a_cpu_is_deterministic_with_and_without_the_setting(tmp_path):
    done = tiny.program(
        "benchmarks.repeat", "--depth=8", "--replicates=1,2", "--batch_size=8", "--steps=2",
        "--rounds=2", f"--out={tmp_path}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    table = json.loads((tmp_path / "table.json").read_text())
    assert (table["network"], table["device"]) == ("ResNet-8, float32", "cpu: cpu")
    rows = table["rows"]
    assert [(row["replicates"], row["deterministic"]) for row in rows] == [
        (1, True), (1, False), (2, True), (2, False)
    ]  # fmt: skip
    assert all(row["repeats"] for row in rows)
    assert {row["bits"] for row in rows} == {rows[0]["bits"]}  # the first seed is in all of them
    assert [row.get("others_notice_nothing") for row in rows] == [None, None, True, True]
    assert (tmp_path / "table.txt").read_text() in done.stdout


# Simulates a GPU, in another process because several benchmarks define the same flags.
_FAKE_GPU = """
from absl import flags
from benchmarks import repeat
flags.FLAGS(["repeat", "--rounds=2", "--depth=8"])
class Training:
    def __init__(self, work): pass
    def start(self): pass
    def run(self, times): pass
repeat.ours.Training = Training
for ends in ("ab", "ab", "ax"), ("ab", "ac", "ax"), ("ab", "ab", "yx"):
    trained = iter([(list(end), 0.001) for end in ends])
    repeat._train = lambda *_, **__: next(trained)
    print(*repeat._show(repeat._measure(2, True)), sep="|")
"""


@pytest.mark.slow
def test_it_reports_differences():
    done = subprocess.run(
        [sys.executable, "-c", _FAKE_GPU],
        cwd=tiny.ROOT, env=tiny.environment(), capture_output=True, text=True,
    )  # fmt: skip
    assert done.stdout.splitlines() == [
        "2|yes|1.00 [1.00, 1.00]|yes|changes no other|a",
        "2|yes|1.00 [1.00, 1.00]|no|-|a",
        "2|yes|1.00 [1.00, 1.00]|yes|changes others|a",
    ], done.stderr
