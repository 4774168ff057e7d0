"""Trains one run: config -> run folder.

    python -m experiments.train --config=configs/cifar10.py --config.model.depth=56 \
        --config.model.shortcut=none --workdir=runs/plain-56

The same command goes on with a run that was stopped. Any setting of configs/base.py is a flag.

Several processes train one run together, each with its share of the devices, and must see the same
--workdir. In Slurm's srun, on Cloud TPU and in a Kubernetes Job they find each other. By hand, give
each the same command with --coordinator=HOST:PORT (of process 0), --processes=N and --process=0
... N-1.

Compiled programs are kept for the next run in --compilation_cache: a folder of this machine, or
none. By default it is JAX_COMPILATION_CACHE_DIR, or a folder in ~/.cache; several processes keep
none by default.
"""

import os
from collections.abc import Sequence

from absl import flags

from configs import base
from experiments.cli import command_line, config_flag
from resnet_jax import compilation_cache
from resnet_jax.errors import UserError
from resnet_jax.parallel import processes
from resnet_jax.runs import storage
from resnet_jax.train import train

_CONFIG = config_flag.define("What to train, as configs/digits.py.")
_WORKDIR = flags.DEFINE_string("workdir", None, "The run folder; made where it is new.")
_COORDINATOR = flags.DEFINE_string("coordinator", None, "HOST:PORT where process 0 listens.")
_PROCESSES = flags.DEFINE_integer("processes", None, "How many processes train together.")
_PROCESS = flags.DEFINE_integer("process", None, "Which of them this is, from 0.")
_CLUSTER = flags.DEFINE_enum(
    "cluster", "auto", ["auto", "none"], "Whether to join the processes that a cluster has started."
)
_COMPILATION_CACHE = flags.DEFINE_string(
    "compilation_cache", "auto", "Where compiled programs are kept for the next run: a folder of "
    "this machine, which several processes must share; auto; or none.",
)  # fmt: skip


def main(argv: Sequence[str]) -> int:
    """Returns the exit code."""
    command_line.no_arguments(argv)
    config = command_line.required(_CONFIG)
    workdir = str(storage.locate(command_line.required(_WORKDIR), "--workdir"))
    cache = compilation_cache.locate(_COMPILATION_CACHE.value, os.environ)
    _join_processes()
    if _COMPILATION_CACHE.value == "auto" and processes.is_several():
        # On GPUs they try out kernels together while they compile: one that found its program,
        # while another did not, would leave it waiting. JAX writes in process 0 only, so each must
        # see the folder of process 0, and that a user must say.
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
    command_line.run(main)
