"""Images a second of the training step: ours, plain Flax's, PyTorch's, on one device.

    pip install -r benchmarks/requirements.txt    # PyTorch, for the comparison alone
    python -m benchmarks.train_step --depths=18,34,50,101,152 --peers=flax,torch [--out=FOLDER]
    python -m benchmarks.train_step --family=cifar --depths=20,56 --peers=flax,torch,torch_loop

Every program has the same network, batch size and dtype, and takes whole steps: forward,
cross-entropy, backward, momentum with weight decay, BatchNorm's moving averages. They take turns,
so a noisy machine hurts them alike; in a turn a program's steps follow one another without a look
at their results. Figures are medians over the rounds, with the lowest and highest.

    resnet_jax   a run's own step (peers/ours.py), from uint8 images on the device: it
                 normalises and flips them, and gathers and crops CIFAR's, as a run does
    flax         the step of Flax's ImageNet example (peers/flax_example.py)
    torch        PyTorch compiled, channels last, autocast (peers/torch_example.py)
    torch_loop   an ordinary PyTorch loop, its pictures from a data loader; of CIFAR only

flax and torch get one batch that lies on the device, already normalised. TFLOP/s are 2 x the
mult-adds of the network's convolutions and classifier, x 3 for the two products of the backward
pass. What the share of the memory bound is counts bound.py.
"""

import importlib.util
import os
from collections.abc import Sequence
from typing import Any

import jax
from absl import flags, logging

from benchmarks import machine, results
from benchmarks.peers import ours, turns
from experiments.cli import command_line
from resnet_jax.allowed import check_choice
from resnet_jax.errors import UserError
from resnet_jax.networks.architectures import SHORTCUTS

_FAMILY = flags.DEFINE_enum("family", "imagenet", ["imagenet", "cifar"], "Of the networks.")
_DEPTHS = flags.DEFINE_list("depths", None, "Of the networks; 50 or 20 by default.")
_SHORTCUT = flags.DEFINE_enum(
    "shortcut", None, SHORTCUTS, "none is the plain net; by default B of imagenet, A of cifar."
)
_STRIDE = flags.DEFINE_enum("bottleneck_stride", "v1", ["v1", "v1.5"], "Where bottlenecks stride.")
_GROUP = flags.DEFINE_integer(
    "bn_group", None, "Of our BatchNorm; 0: the whole batch, as the others; by default the "
    "recipe's, or 0 where that does not divide the batch.", lower_bound=0,
)  # fmt: skip
_BATCH = results.define_batch_size()
_SIZE = flags.DEFINE_integer("image_size", None, "Pixels a side; of imagenet only.", lower_bound=1)
_DTYPE = results.define_dtype()
_PEERS = flags.DEFINE_list("peers", ["flax", "torch"], f"Any of {', '.join(turns.PEERS)}.")
_COMPILE = flags.DEFINE_enum(
    "torch_compile", "auto", ["auto", "none", "default", "reduce-overhead", "max-autotune"],
    "Mode of torch.compile; auto: reduce-overhead (CUDA graphs) on a GPU, on a CPU default where "
    "there is a compiler.",
)  # fmt: skip
_ROUNDS = results.define_rounds(5)
_STEPS = flags.DEFINE_integer("steps", 20, "That each takes in a round, at least.", lower_bound=1)
_BANDWIDTH = flags.DEFINE_float(
    "bandwidth", 0.0, "GB/s of the device's memory; 0: as known or measured.", lower_bound=0.0
)
_PEAK = flags.DEFINE_float(
    "peak", 0.0, "TFLOP/s that the device can do; 0: as known.", lower_bound=0.0
)

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "torch", "torchvision")


def main(argv: Sequence[str]) -> int:
    """Returns the exit code."""
    command_line.no_arguments(argv)
    configs = _configs()
    peers = _installed(_PEERS.value)
    # PyTorch shares the device: JAX shall take what it needs, not three quarters at the start.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    device = jax.devices()[0]
    bandwidth, bandwidth_from = machine.bandwidth(device, _BANDWIDTH.value)
    peak = machine.peak(device, _DTYPE.value, _PEAK.value)
    about: dict[str, Any] = {
        "unit": "images a second, median [lowest, highest]",
        "rounds": _ROUNDS.value,
        "steps_a_round_at_least": _STEPS.value,
        "batch_size": configs[0].batch_size,
        "image_size": configs[0].data.image_size,
        "dtype": _DTYPE.value,
        "bottleneck_stride": _STRIDE.value,
        "bn_group": configs[0].model.bn_group,
        "device": results.name(device),
        "bandwidth": f"{bandwidth:,.0f} GB/s ({bandwidth_from})",
        "peak": f"{peak[0]:,.0f} TFLOP/s ({peak[1]})" if peak else "unknown",
    }
    torch_mode = "none"
    if {"torch", "torch_loop"} & set(peers):
        from benchmarks.peers import torch_example

        torch_mode = torch_example.compile_mode(_COMPILE.value)
        about["torch"] = {
            "device": str(torch_example.device()),
            "compile": torch_mode,
            "loader_workers": torch_example.workers(),
        }
    makers = turns.makers(peers, torch_mode)
    rows: list[dict[str, Any]] = []
    for config in configs:
        row = turns.measure(
            config, makers, _ROUNDS.value, _STEPS.value, bandwidth, peak[0] if peak else None
        )
        rows.append(row)
        results.log(turns.HEADINGS, [turns.show(row)])
    results.publish(turns.HEADINGS, turns.show, rows, about, _PACKAGES)
    return 0


# ---------------------------------------------------------------------------------- what is asked


def _configs() -> list[Any]:
    """Returns a resolved config a depth; raises UserError where a flag is not allowed."""
    given = {
        "shortcut": _SHORTCUT.value,
        "bottleneck_stride": _STRIDE.value,
        "bn_group": _GROUP.value,
        "dtype": _DTYPE.value,
        "precision": "default",  # as the peers'
        "batch_size": _BATCH.value,
        "image_size": _SIZE.value,
    }
    for name in _PEERS.value:
        check_choice("--peers", name, turns.PEERS)
    if "torch_loop" in _PEERS.value and _FAMILY.value != "cifar":
        raise UserError(
            f"--peers=torch_loop does not go with --family={_FAMILY.value}: its data loader has "
            "CIFAR's pictures in memory; allowed is cifar."
        )
    default = "50" if _FAMILY.value == "imagenet" else "20"
    depths = results.numbers("depths", _DEPTHS.value or [default])
    return [ours.config(_FAMILY.value, depth, **given) for depth in depths]


def _installed(peers: Sequence[str]) -> list[str]:
    """Returns the peers that can run here, in the table's order; warns once of the others."""
    needs = {"flax": (), "torch": ("torch",), "torch_loop": ("torch", "torchvision")}
    lacking = {
        package
        for name in peers
        for package in needs[name]
        if importlib.util.find_spec(package) is None
    }
    if lacking:
        logging.warning(
            "%s not installed: pip install -r benchmarks/requirements.txt",
            " and ".join(sorted(lacking)) + (" is" if len(lacking) == 1 else " are"),
        )
    return [name for name in turns.PEERS if name in peers and not lacking & set(needs[name])]


if __name__ == "__main__":
    command_line.run(main)
