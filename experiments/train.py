"""Trains one run: config -> run folder.

    python -m experiments.train --config=configs/cifar10.py --config.model.depth=56 \
        --config.model.shortcut=none --workdir=runs/plain-56

The same command resumes a run that was stopped. Every setting of configs/base.py is a flag.

Several processes can train one run together, each with its share of the devices. All of them need
the same --workdir. Under Slurm's srun, on Cloud TPU and in a Kubernetes Job they find each other.
Elsewhere, start each with the same command plus --coordinator=HOST:PORT (the address of process
0), --processes=N and --process=0 ... N-1.

--compilation_cache keeps compiled programs for the next run. The default is
JAX_COMPILATION_CACHE_DIR or a folder in ~/.cache for a single process, and no cache for several.
"""

import os
from collections.abc import Sequence

from absl import flags

from configs import base
from experiments.cli import command_line, compilation_cache, config_flag, huge_pages
from resnet_jax.errors import UserError
from resnet_jax.parallel import processes
from resnet_jax.runs import storage
from resnet_jax.train import train

_CONFIG = config_flag.define("The run's config, for example configs/digits.py.")
_WORKDIR = flags.DEFINE_string("workdir", None, "The run folder; created if it does not exist.")
_COORDINATOR = flags.DEFINE_string("coordinator", None, "HOST:PORT where process 0 listens.")
_PROCESSES = flags.DEFINE_integer("processes", None, "Number of processes that train together.")
_PROCESS = flags.DEFINE_integer("process", None, "Number of this process, from 0.")
_CLUSTER = flags.DEFINE_enum(
    "cluster", "auto", ["auto", "none"], "Whether to join the processes that a cluster has started."
)
_COMPILATION_CACHE = flags.DEFINE_string(
    "compilation_cache", "auto", "Keeps compiled programs for the next run: a local folder, which "
    "all processes of a run must share; auto; or none.",
)  # fmt: skip


def main(argv: Sequence[str]) -> int:
    """Returns the exit code."""
    command_line.no_arguments(argv)
    config = command_line.required(_CONFIG)
    workdir = str(storage.locate(command_line.required(_WORKDIR), "--workdir"))
    cache = compilation_cache.cache_folder(_COMPILATION_CACHE.value, os.environ)
    _join_processes()
    if _COMPILATION_CACHE.value == "auto" and processes.is_several():
        # On GPUs the processes autotune kernels together while they compile. If only some of them
        # find the program in the cache, the others wait for ever. JAX writes the cache in process
        # 0 only, so the folder must be shared, and only the user knows whether one is.
        cache = None
    compilation_cache.use(cache)
    status = train(config, workdir, defaults=base.get_config())
    return command_line.PREEMPTED if status == "preempted" else 0


def _join_processes() -> None:
    coordinator, count, number = _COORDINATOR.value, _PROCESSES.value, _PROCESS.value
    if coordinator is None and count is None and number is None:
        if _CLUSTER.value == "auto":
            processes.initialize_cluster()
        return
    if coordinator is None or count is None or number is None:
        raise UserError("--coordinator, --processes and --process go together; one is missing.")
    processes.initialize(coordinator, count, number)


if __name__ == "__main__":
    huge_pages.restart()
    command_line.run(main)
