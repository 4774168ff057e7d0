"""One process of benchmarks.replicates: compiles a training step, then runs it when told.

Takes a resolved config as its argument. It writes {"compile_seconds", "device"} to stdout when it
is ready, and {"steps"} after each line of stdin, which says how many to run: it runs as many as
that at least, by as many as are handed over together.
"""

import json
import sys
import time

import jax

from configs import saved
from experiments.calibrate import on_noise
from resnet_jax import mesh as meshes
from resnet_jax.dispatch import steps_at_once


def main() -> None:
    """Runs until stdin ends."""
    config = saved.from_dict(json.loads(sys.argv[1]), "The config")
    # Seeds that share a device are what is measured, on however many devices there are.
    device = jax.devices()[0]
    mesh = meshes.make_mesh(config.replicates, devices=[device])
    programs, arguments = on_noise(config, mesh)
    at_once = steps_at_once(config, mesh)
    state = programs.start(arguments[0])
    began = time.perf_counter()
    step = programs.train_steps.lower(state, *arguments).compile()  # type: ignore[attr-defined]  # jit
    _say(compile_seconds=time.perf_counter() - began, device=device.device_kind)
    for line in sys.stdin:
        calls = -(-int(line) // at_once)
        for _ in range(calls):
            state, _ = step(state, *arguments)
        jax.block_until_ready(state)
        _say(steps=calls * at_once)


def _say(**what: float | str) -> None:
    print(json.dumps(what), flush=True)


if __name__ == "__main__":
    main()
