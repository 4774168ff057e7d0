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
from resnet_jax.programs import Programs, build

_TIMED_SECONDS = 1.0


def calibrate(content: dict[str, Any]) -> dict[str, Any]:
    """Trains a saved config for about a second and returns what was measured."""
    config = saved.from_dict(content, "The config")
    mesh = meshes.make_mesh(config.replicates, config.mesh.replicates, config.mesh.fsdp)
    programs, arguments = on_noise(config, mesh)

    def train_step(state: Any) -> Any:
        return jax.block_until_ready(programs.train_step(state, *arguments))

    began = time.monotonic()
    state = programs.start(arguments[0])
    state, _ = train_step(state)
    compiled = time.monotonic()
    done, seconds = 0, 0.0
    while seconds < _TIMED_SECONDS:
        state, _ = train_step(state)
        done, seconds = done + 1, time.monotonic() - compiled
    seconds_a_step = seconds / done
    return {
        "devices": jax.device_count(),
        "seconds_a_step": seconds_a_step,
        "seconds_before": compiled - began - seconds_a_step,
    }


def on_noise(config: ConfigDict, mesh: Mesh) -> tuple[Programs, tuple[Any, ...]]:
    """Returns a resolved config's programs, and what its train_step takes beside the state.

    The data are a batch of noise, so that no data set is needed.
    """
    shape = (config.batch_size, *sources.image_shape(config.data))
    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    seeds = np.arange(config.replicates, dtype=np.int32)
    normalization = fit_normalization(images, config.data.mean, config.data.std)
    split = ResidentSplit.place(images, np.zeros(config.batch_size, np.int32), mesh)
    batch = next(split.batches(seeds, range(1), config.batch_size, config.accumulate, TRAIN))
    return build(config, normalization, split.select, mesh), (seeds, split.arrays, batch)


if __name__ == "__main__":
    print(json.dumps(calibrate(json.loads(sys.argv[1]))))
