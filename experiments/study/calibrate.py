"""A process that trains one cell's network on random images, on request.

    python -m experiments.study.calibrate CONFIG [--devices=N]

CONFIG is a run's config as JSON. side_by_side.py starts these processes and talks to them. When the
process is ready, it writes {"start_seconds", "compile_seconds", "device", "devices"} to stdout: the
time to initialize and to trace the training step, and the time to compile it. Each line of stdin is
a number of steps to take. The process rounds it up to whole dispatches and answers {"steps"} when
they are done. It uses N devices, by default all.
"""

import json
import sys
import time
from collections.abc import Sequence

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
from resnet_jax.pytree import PyTree

_DEVICES = flags.DEFINE_integer("devices", None, "The number of devices to use; all by default.")


def main(argv: Sequence[str]) -> None:
    """Runs until stdin ends."""
    config = saved.from_dict(json.loads(argv[1]), "The config")
    devices = jax.devices()[: _DEVICES.value]
    programs, arguments = on_noise(config, decide(config, devices))
    steps_per_dispatch = programs.execution.steps_per_dispatch
    began = time.perf_counter()
    state = jax.block_until_ready(programs.start(arguments[0]))
    lowered = programs.train_steps.lower(state, *arguments)
    started = time.perf_counter()
    train_steps = lowered.compile()
    _answer(
        start_seconds=started - began,
        compile_seconds=time.perf_counter() - started,
        device=devices[0].device_kind,
        devices=len(devices),
    )
    for line in sys.stdin:
        dispatches = -(-int(line) // steps_per_dispatch)
        for _ in range(dispatches):
            state, _ = train_steps(state, *arguments)
        jax.block_until_ready(state)
        _answer(steps=dispatches * steps_per_dispatch)


def on_noise(config: ConfigDict, execution: Execution) -> tuple[Programs, tuple[PyTree, ...]]:
    """Returns a resolved config's programs, and the arguments of its train_steps after the state.

    The arguments are those of one dispatch, on a batch of noise, so no data set is needed.
    """
    shape = (config.batch_size, *sets.image_shape(config.data))
    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    seeds = np.arange(config.replicates, dtype=np.int32)
    normalization = fit_normalization(images, config.data.mean, config.data.std)
    split = ResidentSplit.place(images, np.zeros(config.batch_size, np.int32), execution.mesh)
    steps = [range(execution.steps_per_dispatch)]
    _, batches = next(split.batches(seeds, steps, config.batch_size, config.accumulate, TRAIN))
    programs = build(config, execution, normalization, split.select)
    return programs, (seeds, programs.numbers, split.arrays, batches)


def _answer(**values: float | str) -> None:
    print(json.dumps(values), flush=True)


if __name__ == "__main__":
    main(command_line.parse(sys.argv))  # not command_line.run: side_by_side.py wants the raw error
