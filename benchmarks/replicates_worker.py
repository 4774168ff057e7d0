"""One process of benchmarks.replicates: compiles a training step, then runs it when told.

Takes a resolved config as its argument. It writes {"compile_seconds", "device", "mesh"} to stdout
when it is ready, and {"seconds"} after each line of stdin, which says how many steps to run.
"""

import json
import sys
import time

import jax

from configs import saved
from experiments.calibrate import on_noise
from resnet_jax import mesh as meshes


def main() -> None:
    """Runs until stdin ends."""
    config = saved.from_dict(json.loads(sys.argv[1]), "The config")
    # Seeds that share a device are what is measured, on however many devices there are.
    device = jax.devices()[0]
    programs, arguments = on_noise(config, meshes.make_mesh(config.replicates, devices=[device]))
    state = programs.start(arguments[0])
    began = time.perf_counter()
    step = programs.train_step.lower(state, *arguments).compile()  # type: ignore[attr-defined]  # jit
    _say(compile_seconds=time.perf_counter() - began, device=device.device_kind)
    for line in sys.stdin:
        began = time.perf_counter()
        for _ in range(int(line)):
            state, _ = step(state, *arguments)
        jax.block_until_ready(state)
        _say(seconds=time.perf_counter() - began)


def _say(**what: float | str) -> None:
    print(json.dumps(what), flush=True)


if __name__ == "__main__":
    main()
