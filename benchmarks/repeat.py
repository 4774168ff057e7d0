"""Checks whether training is deterministic, bit for bit, and measures its cost per step.

    python -m benchmarks.repeat --depth=20 --replicates=1,5 --dtype=float32 [--out=results/repeat]

Each row has a number of seeds, and config.deterministic on or off. A CIFAR network is trained
--rounds times from the same initial state, on random images, in one process. With several seeds it
is trained once more with NaN weights in one seed, which must not change the other seeds. "Bits" is
a hash of the first seed's final weights; the same command should print it again in another process.
"""

import hashlib
import time
from collections.abc import Sequence

import jax
import numpy as np
from absl import flags

from benchmarks import results
from benchmarks.peers import ours
from experiments.cli import command_line

_DEPTH = flags.DEFINE_integer("depth", 20, "Depth of the CIFAR network.")
_REPLICATES = flags.DEFINE_list("replicates", ["1"], "Numbers of seeds.")
_DTYPE = results.define_dtype("float32")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 128, "Batch size per seed.", lower_bound=1)
_SCAN = flags.DEFINE_enum("scan", "auto", ["auto", "on", "off"], "See config.model.scan.")
_STEPS = flags.DEFINE_integer("steps", 150, "Steps per training, at least.", lower_bound=1)
_ROUNDS = flags.DEFINE_integer("rounds", 3, "Trainings per row.", lower_bound=2)

_HEADINGS = ["seeds", "deterministic", "ms a step", "repeats exactly", "a NaN in one seed", "bits"]


def main(argv: Sequence[str]) -> int:
    """Returns the exit code."""
    command_line.no_arguments(argv)
    rows: list[results.Row] = []
    for seeds in results.numbers("replicates", _REPLICATES.value):
        for deterministic in (True, False):
            rows.append(_measure(seeds, deterministic))
            results.log(_HEADINGS, [*map(_show, rows)])
    about = {
        "unit": "milliseconds a step of all seeds, median [lowest, highest]",
        "network": f"ResNet-{_DEPTH.value}, {_DTYPE.value}",
        "batch_size": _BATCH_SIZE.value,
        "rounds": _ROUNDS.value,
        "steps_a_round_at_least": _STEPS.value,
        "device": results.name(jax.devices()[0]),
    }
    results.publish(_HEADINGS, _show, rows, about, source=results.MEASURED)
    return 0


def _measure(seeds: int, deterministic: bool) -> results.Row:
    config = ours.config(
        "cifar", _DEPTH.value, dtype=_DTYPE.value, batch_size=_BATCH_SIZE.value, scan=_SCAN.value,
        replicates=seeds, deterministic=deterministic,
    )  # fmt: skip
    training = ours.Training(ours.make_work(config))
    training.start()
    training.run(1)  # compiles
    hashes, times = zip(*(_train(training, seeds) for _ in range(_ROUNDS.value)), strict=True)
    row = {
        "replicates": seeds,
        "deterministic": deterministic,
        "seconds_a_step": times,
        "repeats": all(of_round == hashes[0] for of_round in hashes),
        "bits": hashes[0][0],
    }
    if seeds > 1 and row["repeats"]:  # otherwise they differ anyway
        broken, _ = _train(training, seeds, broken=1)
        row["others_notice_nothing"] = broken[:1] + broken[2:] == hashes[0][:1] + hashes[0][2:]
    return row


def _train(
    training: ours.Training, seeds: int, broken: int | None = None
) -> tuple[list[str], float]:
    """Restarts a training; returns a hash of each seed's final weights, and seconds per step.

    Args:
      training: of all seeds.
      seeds: the number of its seeds.
      broken: a seed whose initial weights are NaN; None: no seed's.
    """
    training.start()
    if broken is not None:
        params = jax.tree.map(lambda a: a.at[broken].set(np.nan), training.state.params)
        training.state = training.state.replace(params=params)
    dispatches = -(-_STEPS.value // training.at_once)
    began = time.perf_counter()
    training.run(dispatches)
    seconds = (time.perf_counter() - began) / (dispatches * training.at_once)
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(training.state.params)]
    hashes = [
        hashlib.sha256(b"".join(leaf[seed].tobytes() for leaf in leaves)).hexdigest()[:8]
        for seed in range(seeds)
    ]
    return hashes, seconds


def _show(row: results.Row) -> list[str]:
    yes_no = {True: "yes", False: "no"}
    effect = {None: "-", True: "changes no other", False: "changes others"}
    return [
        str(row["replicates"]),
        yes_no[row["deterministic"]],
        results.spread([1e3 * seconds for seconds in row["seconds_a_step"]], ".2f"),
        yes_no[row["repeats"]],
        effect[row.get("others_notice_nothing")],
        row["bits"],
    ]


if __name__ == "__main__":
    command_line.run(main)
