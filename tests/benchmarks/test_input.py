"""The input benchmark runs, and its table has the measurements."""

import importlib.util
import json

import numpy as np
import pytest

from tests import tiny
from tests.data import pictures

HAS_TENSORFLOW = importlib.util.find_spec("tensorflow") is not None


@pytest.mark.slow
def test_it_measures_every_program_on_both_sets(tmp_path):
    pictures.prepare(tmp_path / "tfds")
    done = tiny.program(
        "benchmarks.input", f"--data_dir={tmp_path / 'tfds'}", f"--out={tmp_path / 'out'}",
        "--pictures=128", "--rounds=2",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    table = json.loads((tmp_path / "out" / "table.json").read_text())
    assert table["unit"] == "pictures a second and core, median [lowest, highest]"
    assert (table["rounds"], table["pictures_a_round"]) == (2, 128)
    rows = table["rows"]
    assert [(row["augmentation"], row["pictures"]) for row in rows] == [
        ("paper", "as stored"), ("paper", "prepared"),
        ("modern", "as stored"), ("modern", "prepared"),
    ]  # fmt: skip
    text = (tmp_path / "out" / "table.txt").read_text()
    assert text.strip() in done.stdout
    for row in rows:
        rates = {name: row[name] for name in ("resnet_jax", "Pillow")}
        assert all(len(each) == 2 and min(each) > 0 for each in rates.values())
        for each in rates.values():
            assert f"{np.median(each):,.0f} [{min(each):,.0f}, {max(each):,.0f}]" in text
        assert ("tf.data" in row) == HAS_TENSORFLOW
    assert ("TensorFlow is not installed" in done.stderr) == (not HAS_TENSORFLOW)
