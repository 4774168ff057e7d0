"""Times the tracing and compiling of a network's training step.

    python -m benchmarks.compile [--out=results/compile]
    python -m benchmarks.compile --family=imagenet --depths=18,34,50,101,152
    python -m benchmarks.compile --target=H200

Networks with their blocks in a loop (model.scan=on) and unrolled (off) take turns. "Compile" is
XLA's time without a cache. "From the cache" is the time with a warm persistent compilation cache,
as in later launches of a study; programs for a --target cannot be loaded here, so it has none.
Nothing is trained. Memory is the compiled program's temporaries. Kernels, and GB between the chip
and its memory, are those of a step; they are counted for a --target only.
"""

import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence

import jax
from absl import flags, logging
from jax.experimental.compilation_cache import compilation_cache
from ml_collections import ConfigDict

from benchmarks import results
from benchmarks.peers import ours
from experiments.cli import command_line
from experiments.pods import kernels, target
from experiments.pods.program import shapes

DEPTHS = {"cifar": ["20", "56", "110", "1202"], "imagenet": ["18", "34", "50", "101", "152"]}
LAYOUTS = {"loop": "on", "unrolled": "off"}  # values of model.scan

_FAMILY = flags.DEFINE_enum("family", "cifar", list(DEPTHS), "Family of the networks.")
_DEPTHS = flags.DEFINE_list("depths", None, "Depths of the networks; by default the paper's.")
_HOW = flags.DEFINE_multi_enum("how", list(LAYOUTS), list(LAYOUTS), "Ways to lay out the blocks.")
_BATCH_SIZE = results.define_batch_size()
_DTYPE = results.define_dtype()
_ROUNDS = results.define_rounds(3)

_SECONDS = ("trace", "compile", "from_cache")
_HEADINGS = ["network", "blocks", "trace s", "compile s", "from the cache s", "over the first",
             "operations", "memory GB", "kernels", "GB moved"]  # fmt: skip


def main(argv: Sequence[str]) -> int:
    """Returns the exit code."""
    command_line.no_arguments(argv)
    depths = results.numbers("depths", _DEPTHS.value or DEPTHS[_FAMILY.value])
    configs = [_config(depth, how) for depth in depths for how in _HOW.value]
    device = target.device()
    rows = [_row(config, how) for config, how in configs]
    for number in range(_ROUNDS.value):
        for (config, _), row in zip(configs, rows, strict=True):
            _measure(config, row, device)
        logging.info("round %d of %d is done", number + 1, _ROUNDS.value)
    for row in rows:
        first = next(r for r in rows if r["blocks"] == row["blocks"])
        row["over_the_first"] = _ready(row) / _ready(first)
    about = {
        "unit": "seconds, median [lowest, highest]",
        "rounds": _ROUNDS.value,
        "batch_size": configs[0][0].batch_size,
        "image_size": configs[0][0].data.image_size,
        "dtype": _DTYPE.value,
        "over the first": "trace + compile over those of the table's first network",
        "device": results.name(device),
    }
    results.publish(_HEADINGS, _show, rows, about, source=results.TIMED)
    return 0


def _config(depth: int, how: str) -> tuple[ConfigDict, str]:
    config = ours.config(
        _FAMILY.value, depth, dtype=_DTYPE.value, batch_size=_BATCH_SIZE.value, scan=LAYOUTS[how]
    )
    return config, how


def _row(config: ConfigDict, how: str) -> results.Row:
    return {
        "family": config.model.family,
        "depth": config.model.depth,
        "blocks": how,
        **{name: [] for name in _SECONDS},
    }


def _measure(config: ConfigDict, row: results.Row, device: jax.Device) -> None:
    """Traces and compiles a resolved config's training step, and again from a cache."""
    programs, arguments = shapes(config, [device])
    before = {name: getattr(jax.config, name) for name in _CACHE}
    with tempfile.TemporaryDirectory() as folder:
        try:
            _use_cache({**_CACHE, "jax_compilation_cache_dir": folder})
            jax.clear_caches()  # of earlier traces
            began = time.perf_counter()
            lowered = programs.train_steps.lower(programs.state, *arguments)
            traced = time.perf_counter()
            compiled = lowered.compile()
            done = time.perf_counter()
            if target.TARGET.value is None:
                jax.clear_caches()
                lowered = programs.train_steps.lower(programs.state, *arguments)
                again = time.perf_counter()
                lowered.compile()
                row["from_cache"].append(time.perf_counter() - again)
        finally:
            _use_cache(before)
    row["trace"].append(traced - began)
    row["compile"].append(done - traced)
    row["operations"] = lowered.as_text().count(" = ")
    memory = compiled.memory_analysis()
    assert memory is not None  # CPUs, GPUs and TPUs have it
    row["memory_bytes"] = memory.temp_size_in_bytes
    if target.TARGET.value is not None and "kernels" not in row:
        steps = programs.execution.steps_per_dispatch
        of_step = kernels.of_text(compiled.as_text() or "")
        row["kernels"] = sum(kernel.times for kernel in of_step) / steps
        row["moved_bytes"] = sum(kernel.total for kernel in of_step) / steps


_CACHE: Mapping[str, str | float | None] = {
    "jax_compilation_cache_dir": None,
    "jax_persistent_cache_min_compile_time_secs": 0.0,
    "jax_persistent_cache_min_entry_size_bytes": -1,
}


def _use_cache(settings: Mapping[str, str | float | None]) -> None:
    for name, value in settings.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


def _ready(row: results.Row) -> float:
    """Returns the median seconds of tracing plus compiling."""
    pairs = zip(row["trace"], row["compile"], strict=True)
    return statistics.median(map(sum, pairs))


def _show(row: results.Row) -> list[str]:
    return [
        f"{row['family']} {row['depth']}",
        row["blocks"],
        *(results.spread(row[name], ".1f") for name in _SECONDS),
        f"{row['over_the_first']:.2f}",
        f"{row['operations']:,}",
        f"{row['memory_bytes'] / 1e9:.1f}",
        f"{row['kernels']:,.0f}" if "kernels" in row else "-",
        f"{row['moved_bytes'] / 1e9:.3f}" if "moved_bytes" in row else "-",
    ]


if __name__ == "__main__":
    command_line.run(main)
