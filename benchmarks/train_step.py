"""Images per second of the training step on one device: ours, plain Flax's and PyTorch's.

    pip install -r benchmarks/requirements.txt    # PyTorch, only for the comparison
    python -m benchmarks.train_step --depths=18,34,50,101,152 --peers=flax,torch [--out=FOLDER]
    python -m benchmarks.train_step --family=cifar --depths=20,56 --peers=flax,torch,torch_loop

All programs have the same network, batch size and dtype, and take complete steps: forward pass,
cross-entropy, backward pass, momentum with weight decay, BatchNorm's moving averages. They take
turns, so a noisy machine affects all alike. Within a turn a program's steps are dispatched without
waiting for results. Results are medians over the rounds, with the lowest and highest.

    resnet_jax   the step of a run (peers/ours.py), from uint8 images on the device: it
                 normalises and flips them, and gathers and crops CIFAR's
    flax         the step of Flax's ImageNet example (peers/flax_example.py)
    torch        PyTorch compiled, channels last, autocast (peers/torch_example.py)
    torch_loop   an ordinary PyTorch loop with a data loader, for CIFAR only

flax and torch train on a single normalised batch on the device. The FLOP of a step are 2 x the
mult-adds of the network's convolutions and classifier, x 3 for the forward pass and the two
products of the backward pass. bound.py computes the memory bound.
"""

import importlib.util
import os
from collections.abc import Sequence

import jax
from absl import flags, logging
from ml_collections import ConfigDict

from benchmarks import machine, results
from benchmarks.peers import ours, turns
from experiments.cli import command_line, huge_pages
from resnet_jax.allowed import check_choice
from resnet_jax.errors import UserError
from resnet_jax.networks.architectures import SHORTCUTS

_FAMILY = flags.DEFINE_enum("family", "imagenet", ["imagenet", "cifar"], "Family of the networks.")
_DEPTHS = flags.DEFINE_list("depths", None, "Depths of the networks; 50 or 20 by default.")
_SHORTCUT = flags.DEFINE_enum(
    "shortcut", None, SHORTCUTS, "none is the plain net; default: B for imagenet, A for cifar."
)
_STRIDE = flags.DEFINE_enum("bottleneck_stride", "v1", ["v1", "v1.5"], "Stride of bottlenecks.")
_GROUP = flags.DEFINE_integer(
    "bn_group", None, "Group size of our BatchNorm; 0: the whole batch, as in the peers; by "
    "default the recipe's, or 0 if that does not divide the batch.", lower_bound=0,
)  # fmt: skip
_BATCH_SIZE = results.define_batch_size()
_SIZE = flags.DEFINE_integer(
    "image_size", None, "Pixels per side, for imagenet only.", lower_bound=1
)
_DTYPE = results.define_dtype()
_PEERS = flags.DEFINE_list("peers", ["flax", "torch"], f"Any of {', '.join(turns.PEERS)}.")
_COMPILE = flags.DEFINE_enum(
    "torch_compile", "auto", ["auto", "none", "default", "reduce-overhead", "max-autotune"],
    "Mode of torch.compile; auto: reduce-overhead (CUDA graphs) on a GPU, default on a CPU with a "
    "compiler.",
)  # fmt: skip
_ROUNDS = results.define_rounds(5)
_STEPS = flags.DEFINE_integer("steps", 20, "Steps per round, at least.", lower_bound=1)
_BANDWIDTH = flags.DEFINE_float(
    "bandwidth", 0.0, "Memory bandwidth in GB/s; 0: the known or a measured one.", lower_bound=0.0
)
_PEAK = flags.DEFINE_float(
    "peak", 0.0, "Peak TFLOP/s of the device; 0: the known one.", lower_bound=0.0
)

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "torch", "torchvision")


def main(argv: Sequence[str]) -> int:
    """Returns the exit code."""
    command_line.no_arguments(argv)
    configs = _configs()
    peers = _installed(_PEERS.value)
    # PyTorch shares the device, so JAX must not preallocate three quarters of its memory.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    device = jax.devices()[0]
    bandwidth, bandwidth_from = machine.bandwidth(device, _BANDWIDTH.value)
    peak = machine.peak(device, _DTYPE.value, _PEAK.value)
    about: dict[str, object] = {
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
            "device": str(torch_example.torch_device()),
            "compile": torch_mode,
            "loader_workers": torch_example.workers(),
        }
    makers = turns.makers(peers, torch_mode)
    rows: list[results.Row] = []
    for config in configs:
        row = turns.measure(
            config, makers, _ROUNDS.value, _STEPS.value, bandwidth, peak[0] if peak else None
        )
        rows.append(row)
        results.log(turns.HEADINGS, [turns.show(row)])
    results.publish(turns.HEADINGS, turns.show, rows, about, _PACKAGES, source=results.MEASURED)
    return 0


# ---------------------------------------------------------------------------------- flags


def _configs() -> list[ConfigDict]:
    """Returns a resolved config per depth; raises UserError if a flag is not allowed."""
    changes = {
        "shortcut": _SHORTCUT.value,
        "bottleneck_stride": _STRIDE.value,
        "bn_group": _GROUP.value,
        "dtype": _DTYPE.value,
        "precision": "default",  # as the peers'
        "batch_size": _BATCH_SIZE.value,
        "image_size": _SIZE.value,
    }
    for name in _PEERS.value:
        check_choice("--peers", name, turns.PEERS)
    if "torch_loop" in _PEERS.value and _FAMILY.value != "cifar":
        raise UserError(
            f"--peers=torch_loop does not support --family={_FAMILY.value}, since its data loader "
            "keeps CIFAR's images in memory; allowed is cifar."
        )
    default = "50" if _FAMILY.value == "imagenet" else "20"
    depths = results.numbers("depths", _DEPTHS.value or [default])
    return [ours.config(_FAMILY.value, depth, **changes) for depth in depths]


def _installed(peers: Sequence[str]) -> list[str]:
    """Returns the peers that can run here, in the table's order; warns about missing packages."""
    needs = {"flax": (), "torch": ("torch",), "torch_loop": ("torch", "torchvision")}
    missing = {
        package
        for name in peers
        for package in needs[name]
        if importlib.util.find_spec(package) is None
    }
    if missing:
        logging.warning(
            "%s not installed: pip install -r benchmarks/requirements.txt",
            " and ".join(sorted(missing)) + (" is" if len(missing) == 1 else " are"),
        )
    return [name for name in turns.PEERS if name in peers and not missing & set(needs[name])]


if __name__ == "__main__":
    huge_pages.restart()
    command_line.run(main)
