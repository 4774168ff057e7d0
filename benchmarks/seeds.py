"""Times a step of several seeds on one device, compared with a step of one seed.

    python -m benchmarks.seeds --depth=20 --replicates=1,2,4,8 [--out=results/replicates]

Each row is a way to compute the seeds: a value of config.replicates_by, or `processes`, which is
one process per seed, side by side on the device. For each number of seeds, all ways and a single
seed take turns, so a noisy machine affects all alike. Each has its own processes, which wait while
another is measured. The images are random. Results are medians over the rounds, with the lowest and
highest; ratios are taken within rounds. To measure one core of a CPU, put `taskset -c 0` before the
command.
"""

import contextlib
import os
from collections.abc import Iterator, Sequence

from absl import flags
from ml_collections import ConfigDict

from benchmarks import results
from configs import cifar10
from experiments.cli import command_line, huge_pages
from experiments.study.side_by_side import TimedProcesses, TimingFailedError
from resnet_jax.allowed import check_choice
from resnet_jax.errors import UserError
from resnet_jax.parallel.seeds import WAYS
from resnet_jax.resolve import resolve

PROCESSES = "processes"
ALL_WAYS = (*WAYS, PROCESSES)

_DEPTH = flags.DEFINE_integer("depth", 20, "Depth of the CIFAR network.")
_REPLICATES = flags.DEFINE_list("replicates", ["1", "2", "4", "8"], "Numbers of seeds.")
_HOW = flags.DEFINE_list(
    "how", list(ALL_WAYS), f"Ways to compute the seeds: any of {', '.join(ALL_WAYS)}."
)
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 128, "Batch size per seed.")
_IMAGE_SIZE = flags.DEFINE_integer("image_size", 32, "Pixels per side.", lower_bound=1)
_DTYPE = flags.DEFINE_string("dtype", "float32", "Activations' dtype; see config.model.dtype.")
_STEPS = flags.DEFINE_integer("steps", 20, "Steps per round, at least.", lower_bound=1)
_ROUNDS = results.define_rounds(5)

_HEADINGS = ["seeds", "computed by", "seconds a step", "over one seed", "seconds to compile"]


def main(argv: Sequence[str]) -> int:
    """Returns the exit code."""
    command_line.no_arguments(argv)
    for how in _HOW.value:
        check_choice("how", how, ALL_WAYS)
    numbers = results.numbers("replicates", _REPLICATES.value)
    one = _config(1, WAYS[0])
    rows: list[results.Row] = []
    for number in numbers:
        rows += _measure(one, number)
        results.log(_HEADINGS, [*map(_show, rows)])
    about = {
        "unit": "seconds a step of all seeds, median [lowest, highest]",
        "network": f"ResNet-{_DEPTH.value}, {_IMAGE_SIZE.value} pixels, {_DTYPE.value}",
        "batch_size": _BATCH_SIZE.value,
        "rounds": _ROUNDS.value,
        "steps_a_round_at_least": _STEPS.value,
        "device": next((row["device"] for row in rows if "device" in row), "unknown"),
    }
    results.publish(_HEADINGS, _show, rows, about, source=results.MEASURED)
    return 1 if any("failed" in row for row in rows) else 0


def _config(replicates: int, by: str) -> ConfigDict:
    """Returns the resolved config of `replicates` seeds; raises UserError like resolve()."""
    config = cifar10.get_config()
    config.replicates, config.replicates_by = replicates, by
    config.batch_size = _BATCH_SIZE.value
    config.model.depth, config.model.dtype = _DEPTH.value, _DTYPE.value
    config.model.bn_group = 0  # allows any batch size
    config = resolve(config)
    config.data.image_size = _IMAGE_SIZE.value
    return config


def _measure(one: ConfigDict, number: int) -> list[results.Row]:
    """Returns the rows of a number of seeds; a single seed has only one row."""
    rows: list[results.Row] = [{"replicates": 1, "how": "alone"}]
    if number > 1:
        rows += [{"replicates": number, "how": how} for how in _HOW.value]
    with contextlib.ExitStack() as stack:
        started = []
        for row in rows:  # one by one, since compiling at the same time would slow them down
            how, seeds = row["how"], row["replicates"]
            is_one_process = how != PROCESSES
            config = _config(seeds, how) if is_one_process and seeds > 1 else one
            processes = TimedProcesses(config, 1 if is_one_process else seeds, _shared, devices=1)
            started.append(stack.enter_context(processes))
            try:
                row |= processes.wait_until_ready()
                row["seconds_a_step"] = []
            except TimingFailedError as e:
                row["failed"] = str(e)
        for turn in range(_ROUNDS.value + 1):
            for row, processes in zip(rows, started, strict=True):
                if "failed" in row:
                    continue
                try:
                    seconds = processes.run(_STEPS.value)
                except TimingFailedError as e:
                    row["failed"] = str(e)
                    continue
                if turn:  # the first round warms up
                    row["seconds_a_step"].append(seconds)
    alone = rows[0]
    if "failed" in alone:
        raise UserError(f"one seed cannot be trained: {alone['failed']}.")
    for row in rows:
        if "failed" not in row:
            times = zip(row["seconds_a_step"], alone["seconds_a_step"], strict=True)
            row["over_one"] = [ours / theirs for ours, theirs in times]
    return rows if number == 1 else rows[1:]


@contextlib.contextmanager
def _shared(number: int) -> Iterator[dict[str, str]]:
    """Yields a process's environment: all cores, and a device shared with all other processes."""
    # Waiting processes keep their memory. By default each would preallocate three quarters of the
    # GPU's; fixed fractions would have to be guessed.
    yield {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"} | os.environ


def _show(row: results.Row) -> list[str]:
    start = [str(row["replicates"]), row["how"]]
    if "failed" in row:
        return [*start, f"failed: {row['failed']}"]
    return [
        *start,
        results.spread(row["seconds_a_step"], ".4f"),
        results.spread(row["over_one"], ".2f"),
        f"{row['compile_seconds']:.1f}",
    ]


if __name__ == "__main__":
    huge_pages.restart()
    command_line.run(main)
