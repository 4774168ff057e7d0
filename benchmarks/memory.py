"""The device memory of a training step, by the stages that are rematerialised (model.remat).

    python -m benchmarks.memory [--out=results/memory]
    python -m benchmarks.memory --family=cifar --depths=56,110,1202 --batch_size=1024
    python -m benchmarks.memory --target=H100
    python -m benchmarks.memory --views --target=v5e --dtype=float32 --batch_size=32

The step is compiled for this machine's first device or for --target, with blocks in a loop
(model.scan=on), and never run. The compiler's numbers hold only for that platform: on CPU, for
example, much of what is bfloat16 is kept as float32. "Kept" is the size of what the forward pass
leaves for the backward pass, counted from shapes for any platform (kept.py).

--views compares the training step of ImageNet's ResNet-34 (or --depths) with the programs that run
after training: the population statistics and each view of the recipe's test, at a run's batch size
for evaluation.
"""

import math
from collections.abc import Iterator, Sequence

import jax
import numpy as np
from absl import flags, logging
from jax.stages import Wrapped
from jax.typing import DTypeLike
from ml_collections import ConfigDict

from benchmarks import results
from benchmarks.compiled.kept import kept_bytes
from benchmarks.peers import ours
from experiments.cli import command_line
from experiments.pods import target
from experiments.pods.program import shapes
from resnet_jax.data import sets
from resnet_jax.data.views import make_views, pictures_per_batch
from resnet_jax.errors import UserError
from resnet_jax.execution import decide
from resnet_jax.networks.architectures import architecture
from resnet_jax.parallel import mesh as meshes
from resnet_jax.pytree import PyTree
from resnet_jax.state import POPULATION

DEPTHS = {"cifar": ["1202"], "imagenet": ["152"]}

_FAMILY = flags.DEFINE_enum("family", None, list(DEPTHS), "Family of the networks; default: both.")
_DEPTHS = flags.DEFINE_list("depths", None, "Depths of one --family; its deepest by default.")
_BATCH_SIZE = results.define_batch_size()
_DTYPE = results.define_dtype()
_VIEWS = flags.DEFINE_bool("views", False, "Compare with the programs that run after training.")
_DEVICE_GB = flags.DEFINE_float(
    "device_gb", 80.0, "Memory that a step should fit into, in 1e9 bytes.", lower_bound=0.0
)

_TALL, _WIDE = 3, 4  # the shape of the pictures of --views
_PARTS = ("temporaries", "arguments", "output", "aliased")
_HEADINGS = ["network", "batch", "remat", "kept", *_PARTS, "peak", "fits"]


def main(argv: Sequence[str]) -> int:
    """Returns the exit code."""
    command_line.no_arguments(argv)
    device = target.device()
    if _VIEWS.value:
        return _publish_views(device)
    rows = []
    for config in _configs():
        rows.append(_row(config, device))
        logging.info(
            "%s %s, remat %s: done", *(rows[-1][key] for key in ("family", "depth", "remat"))
        )
    about = {
        "remat": "stages whose blocks are computed again in the backward pass (model.remat)",
        "kept": "by the forward pass for the backward pass, from shapes alone: on every platform",
        "arguments": "with the training split of a data set on the device, not the other splits",
    }
    results.publish(_HEADINGS, _show, rows, about | _about(device), source=results.COMPILED)
    return 0


def _about(device: jax.Device) -> dict[str, object]:
    """Returns the facts below every table."""
    return {
        "unit": "GB of 1e9 bytes",
        "peak": "arguments + output - aliased + temporaries",
        "fits": f"whether the peak is at most {_DEVICE_GB.value:g} GB",
        "compiled for": f"{device.platform}; another compiler lays memory out otherwise",
        "dtype": _DTYPE.value,
        "device": results.name(device),
    }


def _configs() -> list[ConfigDict]:
    """Returns a resolved config for each row of the table."""
    if _DEPTHS.value and not _FAMILY.value:
        raise UserError(f"--depths needs --family: {' or '.join(DEPTHS)}.")
    configs = []
    for family in [_FAMILY.value] if _FAMILY.value else DEPTHS:
        for depth in results.numbers("depths", _DEPTHS.value or DEPTHS[family]):
            stages = range(1, 1 + len(architecture(family, depth).stage_sizes))
            for remat in ((), stages[:1], stages[:2], stages):
                changes = {"dtype": _DTYPE.value, "batch_size": _BATCH_SIZE.value}
                configs.append(ours.config(family, depth, scan="on", remat=tuple(remat), **changes))
    return configs


def _row(config: ConfigDict, device: jax.Device) -> results.Row:
    programs, arguments = shapes(config, [device])
    variables = jax.tree.map(  # of one replicate
        lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype),
        {"params": programs.state.params, "batch_stats": programs.state.batch_stats},
    )
    image_shape = sets.image_shape(config.data)
    return {
        "family": config.model.family,
        "depth": config.model.depth,
        "batch_size": config.batch_size,
        "image_size": config.data.image_size,
        "remat": list(config.model.remat),
        "kept_bytes": kept_bytes(programs.model, variables, config.batch_size, image_shape),
    } | _memory(programs.train_steps, programs.state, *arguments)


def _memory(program: Wrapped, *arguments: PyTree) -> results.Row:
    """Compiles a program for arguments of given shapes; returns the compiler's memory analysis."""
    sizes = program.lower(*arguments).compile().memory_analysis()
    assert sizes is not None  # CPUs, GPUs and TPUs have it
    held = sizes.argument_size_in_bytes + sizes.output_size_in_bytes - sizes.alias_size_in_bytes
    peak = held + sizes.temp_size_in_bytes
    return {
        "temporaries_bytes": sizes.temp_size_in_bytes,
        "arguments_bytes": sizes.argument_size_in_bytes,
        "output_bytes": sizes.output_size_in_bytes,
        "aliased_bytes": sizes.alias_size_in_bytes,
        "peak_bytes": peak,
        # Not the table's peak: for CPU programs it leaves out the temporaries.
        "compilers_peak_bytes": sizes.peak_memory_in_bytes,
        "fits": peak <= _DEVICE_GB.value * 1e9,
    }


def _publish_views(device: jax.Device) -> int:
    """Publishes the table of --views; returns the exit code."""
    rows = []
    for depth in results.numbers("depths", _DEPTHS.value or ["34"]):
        config = ours.config(
            "imagenet", depth, shortcut="A", dtype=_DTYPE.value, batch_size=_BATCH_SIZE.value
        )
        for row in _after_training(config, device):
            rows.append({"network": f"imagenet {depth}"} | row)
            logging.info("%s %s: %.2f GB", depth, row["program"], row["peak_bytes"] / 1e9)
    about = {
        "pictures": "in a batch",
        "largest view": "of a picture: views x height x width; mirror images come on top",
    }
    headings = ["network", "program", "pictures", "largest view", *_PARTS, "peak", "fits"]
    results.publish(headings, _show_view, rows, about | _about(device), source=results.COMPILED)
    return 0


def _after_training(config: ConfigDict, device: jax.Device) -> Iterator[results.Row]:
    """Yields a row for the training step, the population statistics and each view of a test."""
    programs, arguments = shapes(config, [device])
    variables = {"params": programs.state.params, "batch_stats": programs.state.batch_stats}
    batch_size, size = config.batch_size, config.data.image_size
    training_batch = {"pictures": batch_size, "largest_view": [1, size, size]}
    yield (
        {"program": "training step"}
        | training_batch
        | _memory(programs.train_steps, programs.state, *arguments)
    )
    seeds, _, arrays, batches = arguments
    number = jax.ShapeDtypeStruct((), np.int32)
    yield (
        {"program": "population statistics"}
        | training_batch
        | _memory(programs.observe_step, variables, seeds, POPULATION, number, arrays, batches)
    )
    execution = decide(config, [device])
    split = meshes.split_batch(execution.mesh)
    for name in config.eval.views:
        view = make_views(name, config.data, config.eval)
        bucket = view.bucket(_TALL, _WIDE)
        pictures = pictures_per_batch(view, bucket, execution.eval_batch_size, size, devices=1)

        def shaped(*shape: int, dtype: DTypeLike, pictures: int = pictures) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct((pictures, *shape), dtype, sharding=split)

        groups = tuple(shaped(*shape, 3, dtype=np.uint8) for shape in view.shapes(bucket))
        yield {
            "program": name,
            "pictures": pictures,
            "largest_view": list(max(view.shapes(bucket), key=math.prod)),
        } | _memory(
            programs.eval_steps[view.mirrored],
            variables,
            groups,
            shaped(dtype=np.int32),
            shaped(dtype=bool),
        )


def _show(row: results.Row) -> list[str]:
    gigabytes = [f"{row[f'{name}_bytes'] / 1e9:.2f}" for name in ("kept", *_PARTS, "peak")]
    return [
        f"{row['family']} {row['depth']}",
        str(row["batch_size"]),
        ",".join(map(str, row["remat"])) or "none",
        *gigabytes,
        "yes" if row["fits"] else "no",
    ]


def _show_view(row: results.Row) -> list[str]:
    gigabytes = [f"{row[f'{name}_bytes'] / 1e9:.2f}" for name in (*_PARTS, "peak")]
    view = " x ".join(map(str, row["largest_view"]))
    fits = "yes" if row["fits"] else "no"
    return [row["network"], row["program"], str(row["pictures"]), view, *gigabytes, fits]


if __name__ == "__main__":
    command_line.run(main)
