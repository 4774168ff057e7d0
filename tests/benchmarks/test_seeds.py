"""The benchmark of several seeds runs, and its table has the measurements."""

import json
import statistics

import pytest

from resnet_jax.parallel.seeds import WAYS
from tests import tiny


def launch(*flags):
    return tiny.program("benchmarks.seeds", *flags)


@pytest.mark.slow
def test_it_measures_every_way(tmp_path):
    done = launch(
        "--depth=8", "--replicates=1,2", "--batch_size=4", "--image_size=8", "--rounds=3",
        "--steps=2", f"--out={tmp_path / 'out'}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    table = json.loads((tmp_path / "out" / "table.json").read_text())
    assert table["unit"] == "seconds a step of all seeds, median [lowest, highest]"
    assert (table["network"], table["batch_size"]) == ("ResNet-8, 8 pixels, float32", 4)
    assert (table["rounds"], table["steps_a_round_at_least"], table["device"]) == (3, 2, "cpu")
    assert set(table["versions"]) == {"python", "jax", "jaxlib", "flax"}
    rows = table["rows"]
    assert [(row["replicates"], row["how"]) for row in rows] == [
        (1, "alone"), *((2, how) for how in (*WAYS, "processes"))
    ]  # fmt: skip
    assert rows[0]["over_one"] == [1.0] * 3
    text = (tmp_path / "out" / "table.txt").read_text()
    assert text.strip() in done.stdout
    for row in rows:
        assert len(row["seconds_a_step"]) == len(row["over_one"]) == 3
        assert min(row["seconds_a_step"]) > 0
        assert row["compile_seconds"] > 0
        assert f"{statistics.median(row['over_one']):.2f} [{min(row['over_one']):.2f}" in text


@pytest.mark.slow
def test_a_way_that_fails_is_reported_and_the_others_are_measured(tmp_path, monkeypatch):
    # Simulates a device without enough memory.
    (tmp_path / "sitecustomize.py").write_text(
        "import os, sys\n"
        "if '\"replicates_by\": \"unroll\"' in ' '.join(sys.orig_argv):\n"
        "    os.write(2, b'out of memory')\n"
        "    os._exit(1)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    done = launch(
        "--depth=8", "--replicates=2", "--batch_size=4", "--image_size=8", "--rounds=1",
        "--steps=1", "--how=unroll,separate",
    )  # fmt: skip
    assert done.returncode == 1
    assert "2      unroll       failed: out of memory" in done.stdout
    assert "2      separate     0." in done.stdout


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("--how=unrol", "how='unrol'"),
        ("--replicates=2,no", "--replicates has 'no'; allowed are whole numbers from 1 up."),
        ("--depth=19", "19"),
        ("--dtype=float16", "model.dtype='float16'"),
        ("--rounds=0", "rounds"),
    ],
)
def test_mistakes_are_one_sentence(flag, words):
    done = launch(flag)
    assert done.returncode == 2
    assert words in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
