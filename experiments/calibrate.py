"""Times one cell's training step on this machine, on images of noise; a sweep's plan asks for it.

    python -m experiments.calibrate "$(cat runs/plain-20/config.json)"

Prints {"devices", "seconds_a_step", "seconds_before"}: the last for compiling and initialising. A
program of its own: it holds the devices only while it runs, on the cores that a cell will have.
"""

import json
import sys
import time
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from configs import saved
from resnet_jax import mesh as meshes
from resnet_jax.data import sources
from resnet_jax.data.augment import fit_normalization
from resnet_jax.data.crops import TRAIN
from resnet_jax.data.resident import ResidentSplit
from resnet_jax.dispatch import steps_at_once
from resnet_jax.programs import Programs, build

_TIMED_SECONDS = 1.0


def calibrate(content: dict[str, Any]) -> dict[str, Any]:
    """Trains a saved config for about a second and returns what was measured."""
    config = saved.from_dict(content, "The config")
    mesh = meshes.make_mesh(config.replicates, config.mesh.replicates, config.mesh.fsdp)
    programs, arguments = on_noise(config, mesh)
    at_once = steps_at_once(config, mesh)

    def train_steps(state: Any) -> Any:
        return jax.block_until_ready(programs.train_steps(state, *arguments))

    began = time.monotonic()
    state = programs.start(arguments[0])
    state, _ = train_steps(state)
    compiled = time.monotonic()
    done, seconds = 0, 0.0
    while seconds < _TIMED_SECONDS:
        state, _ = train_steps(state)
        done, seconds = done + at_once, time.monotonic() - compiled
    seconds_a_step = seconds / done
    return {
        "devices": jax.device_count(),
        "seconds_a_step": seconds_a_step,
        "seconds_before": compiled - began - seconds_a_step * at_once,
    }


def on_noise(config: ConfigDict, mesh: Mesh) -> tuple[Programs, tuple[Any, ...]]:
    """Returns a resolved config's programs, and what its train_steps take beside the state.

    The data are a batch of noise, so that no data set is needed; the steps are as many as
    dispatch.steps_at_once says.
    """
    shape = (config.batch_size, *sources.image_shape(config.data))
    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    seeds = np.arange(config.replicates, dtype=np.int32)
    normalization = fit_normalization(images, config.data.mean, config.data.std)
    split = ResidentSplit.place(images, np.zeros(config.batch_size, np.int32), mesh)
    steps = [range(steps_at_once(config, mesh))]
    batches = next(split.batches(seeds, steps, config.batch_size, config.accumulate, TRAIN))
    return build(config, normalization, split.select, mesh), (seeds, split.arrays, batches)


if __name__ == "__main__":
    print(json.dumps(calibrate(json.loads(sys.argv[1]))))
