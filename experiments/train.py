"""Trains one run: config -> run folder.

    python -m experiments.train --config=configs/cifar10.py --config.model.depth=56 \
        --config.model.shortcut=none --workdir=runs/plain-56

The same command goes on with a run that was stopped. Any setting of configs/base.py is a flag.

Several processes train one run together, each with its share of the devices, and must see the same
--workdir. In Slurm's srun, on Cloud TPU and in a Kubernetes Job they find each other. By hand, give
each the same command with --coordinator=HOST:PORT (of process 0), --processes=N and --process=0
... N-1.
"""

from collections.abc import Sequence

from absl import flags

from experiments import command_line
from resnet_jax import distributed
from resnet_jax.errors import UserError
from resnet_jax.train import train

_CONFIG = command_line.define_config("What to train, as configs/digits.py.")
_WORKDIR = flags.DEFINE_string("workdir", None, "The run folder; made where it is new.")
_COORDINATOR = flags.DEFINE_string("coordinator", None, "HOST:PORT where process 0 listens.")
_PROCESSES = flags.DEFINE_integer("processes", None, "How many processes train together.")
_PROCESS = flags.DEFINE_integer("process", None, "Which of them this is, from 0.")
_CLUSTER = flags.DEFINE_enum(
    "cluster", "auto", ["auto", "none"], "Whether to join the processes that a cluster has started."
)


def main(argv: Sequence[str]) -> int:
    """Returns the exit code."""
    command_line.no_arguments(argv)
    config, workdir = command_line.required(_CONFIG), command_line.required(_WORKDIR)
    _join_processes()
    status = train(config, workdir)
    return command_line.PREEMPTED if status == "preempted" else 0


def _join_processes() -> None:
    coordinator, processes, process = _COORDINATOR.value, _PROCESSES.value, _PROCESS.value
    if coordinator is None and processes is None and process is None:
        if _CLUSTER.value == "auto":
            distributed.initialize_cluster()
        return
    if coordinator is None or processes is None or process is None:
        raise UserError("--coordinator, --processes and --process go together; one is missing.")
    distributed.initialize(coordinator, processes, process)


if __name__ == "__main__":
    command_line.run(main)
