"""Counts the kernels of the compiled training step and the bytes they move, ours and plain Flax's.

    python -m benchmarks.traffic --target=H200 [--out=results/traffic]
    python -m benchmarks.traffic --target=H200 --family=imagenet --depths=50
    python -m benchmarks.traffic --target=H200 --depths=20 --seeds=8 --program=unrolled

Small convolutional networks are limited by memory bandwidth, and the smallest by kernel launches,
far more than by arithmetic. Bytes and kernels are read off XLA's optimised program (hlo.py).
Nothing runs, so the chip is not needed (--target). "Bound" is the time to move the bytes at full
bandwidth, a lower limit. Several seeds are computed in every way (config.replicates_by) and
compared with a single seed.
"""

from collections.abc import Sequence
from typing import Any

import jax
from absl import flags, logging
from ml_collections import ConfigDict

from benchmarks import machine, results
from benchmarks.peers import flax_example, ours
from experiments.cli import command_line
from experiments.pods import target
from experiments.pods.kernels import of_text as kernels_of_text
from experiments.pods.program import shapes
from resnet_jax.errors import UserError
from resnet_jax.parallel.seeds import WAYS

DEPTHS = {"cifar": ["20", "56", "110"], "imagenet": ["50"]}
VARIANTS = ("loop", "unrolled", "flax")
_SCAN = {"loop": "on", "unrolled": "off", "flax": "off"}

_FAMILY = flags.DEFINE_enum("family", "cifar", list(DEPTHS), "Family of the networks.")
_DEPTHS = flags.DEFINE_list("depths", None, "Depths of the networks.")
_PROGRAMS = flags.DEFINE_multi_enum(
    "program", list(VARIANTS), list(VARIANTS), "Ours with blocks in a loop or unrolled, and Flax's."
)
_BATCH_SIZE = results.define_batch_size()
_DTYPE = results.define_dtype()
_SEEDS = flags.DEFINE_integer("seeds", 1, "Number of seeds in one program.", lower_bound=1)
_HOW = flags.DEFINE_multi_enum("how", list(WAYS), list(WAYS), "Ways to compute several seeds.")
_KERNELS = flags.DEFINE_integer(
    "kernels", 0, "Print this many kernels of each program, by bytes moved.", lower_bound=0
)

_HEADINGS = ["network", "program", "seeds", "kernels a step", "convolutions GB", "others GB",
             "in all GB", "bound ms", "over the last"]  # fmt: skip


def main(argv: Sequence[str]) -> int:
    """Returns the exit code."""
    command_line.no_arguments(argv)
    groups = _configs(results.numbers("depths", _DEPTHS.value or DEPTHS[_FAMILY.value]))
    device = target.device()
    if device.platform == "tpu":
        raise UserError(
            f"--target={target.TARGET.value or 'none'} is a TPU, whose convolutions are fused with "
            "other operations (benchmarks.pod reads its programs); allowed are H100 and H200, or "
            "none on a GPU or CPU."
        )
    bandwidth, source = machine.bandwidth(device, 0)
    rows = []
    for group in groups:
        compared = [_row(config, program, device, bandwidth) for program, config in group]
        for row in compared:
            row["over_the_last"] = row["bytes_a_step"] / compared[-1]["bytes_a_step"]
        rows += compared
    first = groups[0][0][1]
    about = {
        "unit": "GB of 1e9 bytes that kernels read and write, a step",
        "bound": f"at {bandwidth:g} GB/s, from {source}",
        "over the last": f"bytes over those of {_last()}",
        "batch_size": first.batch_size,
        "image_size": first.data.image_size,
        "dtype": _DTYPE.value,
        "device": results.name(device),
    }
    results.publish(_HEADINGS, _show, rows, about, source=results.COMPILED)
    return 0


def _configs(depths: Sequence[int]) -> list[list[tuple[str, ConfigDict]]]:
    """Returns lists of programs; the last of each list is the one to compare the others with.

    Raises:
      UserError: there is no such depth, or several seeds are given for Flax alone.
    """
    if _SEEDS.value > 1 and set(_PROGRAMS.value) == {"flax"}:
        raise UserError(
            f"--program=flax does not support --seeds={_SEEDS.value}; allowed with several seeds "
            "are loop and unrolled."
        )
    if _SEEDS.value == 1:
        return [
            [(program, _config(depth, program)) for program in _PROGRAMS.value] for depth in depths
        ]
    return [
        [
            *((program, _config(depth, program, _SEEDS.value, by)) for by in _HOW.value),
            (program, _config(depth, program)),
        ]
        for depth in depths
        for program in _PROGRAMS.value
        if program != "flax"
    ]


def _last() -> str:
    return "one seed" if _SEEDS.value > 1 else "the network's last program"


def _config(depth: int, program: str, seeds: int = 1, by: str = "auto") -> ConfigDict:
    config = ours.config(
        _FAMILY.value,
        depth,
        dtype=_DTYPE.value,
        precision="default",  # as Flax's
        batch_size=_BATCH_SIZE.value,
        scan=_SCAN[program],
    )
    config.replicates, config.replicates_by = seeds, by
    return config


def _row(config: ConfigDict, program: str, device: jax.Device, bandwidth: float) -> results.Row:
    step: Any  # jitted
    if program == "flax":
        steps, (step, arguments) = 1, flax_example.shapes(config, device)
    else:
        programs, rest = shapes(config, [device])
        step, arguments = programs.train_steps, (programs.state, *rest)
        steps = programs.execution.steps_per_dispatch
    kernels = kernels_of_text(step.lower(*arguments).compile().as_text())
    for kernel in sorted(kernels, key=lambda kernel: -kernel.total)[: _KERNELS.value]:
        print(f"{kernel.total / 1e6:10.2f} MB {kernel.times:4} x {kernel.opcode} {kernel.name} "
              f"{kernel.source}")  # fmt: skip
    convolutions = sum(kernel.total for kernel in kernels if "conv" in kernel.opcode.lower())
    moved = sum(kernel.total for kernel in kernels)
    by = config.replicates_by if config.replicates > 1 else "alone"
    network = f"{config.model.family} {config.model.depth}"
    logging.info("%s, %s, %d seeds %s: done", network, program, config.replicates, by)
    return {
        "family": config.model.family,
        "depth": config.model.depth,
        "program": program,
        "seeds": config.replicates,
        "computed_by": by,
        "steps_at_once": steps,
        "kernels_a_step": sum(kernel.times for kernel in kernels) / steps,
        "convolutions_bytes_a_step": convolutions / steps,
        "bytes_a_step": moved / steps,
        "bound_seconds": moved / steps / (bandwidth * 1e9),
    }


def _show(row: results.Row) -> list[str]:
    convolutions, moved = row["convolutions_bytes_a_step"], row["bytes_a_step"]
    return [
        f"{row['family']} {row['depth']}",
        row["program"],
        f"{row['seeds']} {row['computed_by']}",
        f"{row['kernels_a_step']:.0f}",
        *(f"{each / 1e9:.3f}" for each in (convolutions, moved - convolutions, moved)),
        f"{1e3 * row['bound_seconds']:.2f}",
        f"{row['over_the_last']:.2f}",
    ]


if __name__ == "__main__":
    command_line.run(main)
