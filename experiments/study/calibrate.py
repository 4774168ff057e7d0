"""A process that trains one cell's network on images of noise, when it is told to.

    python -m experiments.study.calibrate CONFIG [--devices=N]

CONFIG is that of a run, as JSON; side_by_side.py starts such processes and talks to them. It writes
{"start_seconds", "compile_seconds", "device", "devices"} to stdout when it is ready: what
initialising took, and the training step's compilation. Then it writes {"steps"} after each line of
stdin, which says how many to take: it takes as many as that at least, by as many as are handed over
together. It may use N devices; by default all.
"""

import json
import sys
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from absl import flags
from ml_collections import ConfigDict

from configs import saved
from experiments.cli import command_line
from resnet_jax.data import sets
from resnet_jax.data.augment import fit_normalization
from resnet_jax.data.order import TRAIN
from resnet_jax.data.resident import ResidentSplit
from resnet_jax.execution import Execution, decide
from resnet_jax.programs import Programs, build

_DEVICES = flags.DEFINE_integer("devices", None, "How many devices it may use; all by default.")


def main(argv: Sequence[str]) -> None:
    """Runs until stdin ends."""
    config = saved.from_dict(json.loads(argv[1]), "The config")
    devices = jax.devices()[: _DEVICES.value]
    programs, arguments = on_noise(config, decide(config, devices))
    at_once = programs.execution.steps_per_dispatch
    began = time.perf_counter()
    state = jax.block_until_ready(programs.start(arguments[0]))
    started = time.perf_counter()
    step = programs.train_steps.lower(state, *arguments).compile()
    _say(
        start_seconds=started - began,
        compile_seconds=time.perf_counter() - started,
        device=devices[0].device_kind,
        devices=len(devices),
    )
    for line in sys.stdin:
        calls = -(-int(line) // at_once)
        for _ in range(calls):
            state, _ = step(state, *arguments)
        jax.block_until_ready(state)
        _say(steps=calls * at_once)


def on_noise(config: ConfigDict, execution: Execution) -> tuple[Programs, tuple[Any, ...]]:
    """Returns a resolved config's programs, and what its train_steps take beside the state.

    The data are a batch of noise, so that no data set is needed; the steps are those of a dispatch.
    """
    shape = (config.batch_size, *sets.image_shape(config.data))
    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    seeds = np.arange(config.replicates, dtype=np.int32)
    normalization = fit_normalization(images, config.data.mean, config.data.std)
    split = ResidentSplit.place(images, np.zeros(config.batch_size, np.int32), execution.mesh)
    steps = [range(execution.steps_per_dispatch)]
    _, batches = next(split.batches(seeds, steps, config.batch_size, config.accumulate, TRAIN))
    return build(config, execution, normalization, split.select), (seeds, split.arrays, batches)


def _say(**what: float | str) -> None:
    print(json.dumps(what), flush=True)


if __name__ == "__main__":
    main(command_line.parse(sys.argv))  # its reader wants the error itself, no sentence
