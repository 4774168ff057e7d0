"""Pictures per second and core that are decoded, cropped and resized: ours, tf.data and Pillow.

    pip install -r benchmarks/requirements.txt    # TensorFlow, only for the comparison
    python -m benchmarks.input --data_dir=TFDS_DATA_DIR [--out=results/input]

Each row is an augmentation, of the data set as TFDS stores it or of a copy by experiments.shrink.
All three programs do the same work, from encoded records to batches of uint8 crops of 224 pixels,
on all cores of this process. They take turns, so a noisy machine affects all alike. Results are
medians over the rounds, with the lowest and highest.
"""

import importlib.util
import itertools
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence

import numpy as np
from absl import flags, logging

from benchmarks import results
from benchmarks.peers import input_readers
from configs import imagenet
from experiments.cli import command_line
from resnet_jax.data import datasets, sources
from resnet_jax.data.order import TRAIN, spans
from resnet_jax.parallel import mesh as meshes
from resnet_jax.parallel.cores import usable_cores

_DATA_DIR = flags.DEFINE_string("data_dir", "", "The TFDS data_dir with imagenet2012.")
_PICTURES = flags.DEFINE_integer("pictures", 1024, "Pictures per round.", lower_bound=64)
_ROUNDS = results.define_rounds(5)

BATCH_SIZE = 64
_PACKAGES = ("nvidia-nvimgcodec-cu12", "opencv-python-headless", "tensorflow-cpu", "pillow")
_WARM_UP = 8  # batches: more than any program prefetches
_HEADINGS = ["augmentation", "pictures", "resnet_jax", "tf.data", "Pillow", "ours / tf.data",
             "ours / tf.data as stored"]  # fmt: skip


def main(argv: Sequence[str]) -> int:
    """Returns the exit code."""
    command_line.no_arguments(argv)
    sources.require("imagenet2012", _DATA_DIR.value)
    has_tensorflow = importlib.util.find_spec("tensorflow") is not None
    if not has_tensorflow:
        logging.warning("TensorFlow is not installed: pip install -r benchmarks/requirements.txt")
    with tempfile.TemporaryDirectory() as small:
        subprocess.run(
            [sys.executable, "-m", "experiments.shrink", f"--data_dir={_DATA_DIR.value}",
             f"--out={small}"],
            check=True, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        _, _, note = sources.open_records("imagenet2012", small)
        rows: list[results.Row] = []
        for preset, folder in itertools.product(imagenet.PRESETS, (_DATA_DIR.value, small)):
            kind = "prepared" if folder == small else "as stored"
            rows.append({"augmentation": preset, "pictures": kind})
            rows[-1] |= _measure(preset, folder, has_tensorflow)
            results.log(_HEADINGS, [_show(rows[-1], rows)])
    about = {
        "unit": "pictures a second and core, median [lowest, highest]",
        "rounds": _ROUNDS.value,
        "pictures_a_round": _PICTURES.value,
        "prepared": note,
    }
    results.publish(
        _HEADINGS, lambda row: _show(row, rows), rows, about, _PACKAGES, source=results.MEASURED
    )
    return 0


def _measure(preset: str, folder: str, has_tensorflow: bool) -> dict[str, list[float]]:
    """Returns each program's rate per round, in pictures per second and core."""
    config = imagenet.get_config(preset).data
    config.dir, config.validation, config.image_size = folder, 0, 224
    mesh = meshes.make_mesh()
    data = datasets.open_set(config, mesh)
    records = data.train.records  # type: ignore[attr-defined]  # a streamed split has them
    steps = spans(range(10**6))
    batches = data.train.batches(np.zeros(1, np.int32), steps, BATCH_SIZE, 1, TRAIN)
    programs: dict[str, Iterator[object]] = {"resnet_jax": batches}
    with tempfile.TemporaryDirectory() as scratch:
        if has_tensorflow:
            programs["tf.data"] = input_readers.tf_data(records, config, BATCH_SIZE, scratch)
        programs["Pillow"] = input_readers.pillow(records, config, BATCH_SIZE, len(usable_cores()))
        rates: dict[str, list[float]] = {name: [] for name in programs}
        for number in range(_ROUNDS.value + 1):
            for name, program in programs.items():
                for _ in range(_WARM_UP):  # batches prefetched during another program's turn
                    next(program)
                began = time.perf_counter()
                for _ in range(_PICTURES.value // BATCH_SIZE):
                    next(program)
                seconds = time.perf_counter() - began
                if number:  # the first round warms up
                    done = _PICTURES.value // BATCH_SIZE * BATCH_SIZE
                    rates[name].append(done / seconds / len(usable_cores()))
                time.sleep(1)  # until its prefetching no longer disturbs the next program
    batches.close()
    data.close()
    return rates


def _show(row: results.Row, rows: Sequence[results.Row]) -> list[str]:
    stored = next(r for r in rows if r["augmentation"] == row["augmentation"])

    def ratio(other: results.Row) -> str:
        if "tf.data" not in other:
            return "-"
        return f"{np.median(row['resnet_jax']) / np.median(other['tf.data']):.2f}"

    rates = [
        results.spread(row.get(name, []), ",.0f") for name in ("resnet_jax", "tf.data", "Pillow")
    ]
    return [row["augmentation"], row["pictures"], *rates, ratio(row), ratio(stored)]


if __name__ == "__main__":
    command_line.run(main)
