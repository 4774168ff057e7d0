"""Trains one run: config -> run folder.

    python -m experiments.train --config=configs/cifar10.py --config.model.depth=56 \
        --config.model.shortcut=none --workdir=runs/plain-56

The same command goes on with a run that was stopped. Any setting of configs/base.py is a flag.
"""

from collections.abc import Sequence

from absl import flags

from experiments import command_line
from resnet_jax.train import train

_CONFIG = command_line.define_config("What to train, as configs/digits.py.")
_WORKDIR = flags.DEFINE_string("workdir", None, "The run folder; made where it is new.")


def main(argv: Sequence[str]) -> int:
    """Returns the exit code."""
    command_line.no_arguments(argv)
    status = train(command_line.required(_CONFIG), command_line.required(_WORKDIR))
    return command_line.PREEMPTED if status == "preempted" else 0


if __name__ == "__main__":
    command_line.run(main)
