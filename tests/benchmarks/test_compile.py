"""The benchmark of compile times runs, and its table has the measurements."""

import importlib.util
import json

import pytest

from tests import tiny


def launch(*flags):
    return tiny.program("benchmarks.compile", *flags)


@pytest.mark.slow
def test_it_measures_every_network_both_ways(tmp_path):
    done = launch("--depths=20,32", "--batch_size=4", "--rounds=1", f"--out={tmp_path}")
    assert done.returncode == 0, done.stderr
    table = json.loads((tmp_path / "table.json").read_text())
    assert (table["rounds"], table["batch_size"], table["image_size"]) == (1, 4, 32)
    assert table["device"] == "cpu: cpu"
    rows = {(row["depth"], row["blocks"]): row for row in table["rows"]}
    assert list(rows) == [(20, "loop"), (20, "unrolled"), (32, "loop"), (32, "unrolled")]
    for row in rows.values():
        seconds = [row[name] for name in ("trace", "compile", "from_cache")]
        assert all(len(each) == 1 and each[0] > 0 for each in seconds)
        assert row["from_cache"][0] < row["compile"][0]
        assert row["memory_bytes"] > 1e6
        assert "kernels" not in row  # of a target only
    # With a loop, only the signals of each layer grow with depth.
    assert rows[32, "loop"]["operations"] < 1.05 * rows[20, "loop"]["operations"]
    assert rows[32, "unrolled"]["operations"] > 1.3 * rows[20, "unrolled"]["operations"]
    for blocks in ("loop", "unrolled"):
        deeper, first = (
            rows[d, blocks]["trace"][0] + rows[d, blocks]["compile"][0] for d in (32, 20)
        )
        assert rows[32, blocks]["over_the_first"] == pytest.approx(deeper / first)
        assert rows[20, blocks]["over_the_first"] == 1
    assert (tmp_path / "table.txt").read_text() == done.stdout


@pytest.mark.slow
@pytest.mark.compiler
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")
def test_a_targets_program_has_its_kernels_counted(tmp_path):
    flags = ["--depths=8", "--batch_size=4", "--rounds=1", "--how=unrolled", f"--out={tmp_path}"]
    done = launch("--target=v5e", *flags)
    assert done.returncode == 0, done.stderr
    (row,) = json.loads((tmp_path / "table.json").read_text())["rows"]
    assert row["kernels"] > 50
    # At least the batch's activations after each convolution and the parameters' update.
    assert row["moved_bytes"] > 1e6
    assert row["from_cache"] == []


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("--depths=20,x", "error: --depths has 'x'; allowed are whole numbers from 1 up."),
        ("--depths=21", "model.depth=21 is not in the cifar family"),
        ("--how=lop", "--how=lop: value should be one of <loop|unrolled>"),
    ],
)
def test_mistakes_are_one_sentence(flag, words):
    done = launch(flag)
    assert done.returncode == 2
    assert words in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
