"""How a run is computed on its devices: whatever "auto" or the platform decides, decided once.

None of it changes a result by more than rounding. environment.json records it, and
`python -m experiments.describe --execution` prints it. No other file asks for the platform.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from resnet_jax.data.sets import KNOWN
from resnet_jax.parallel import mesh as meshes

# Enough steps per dispatch that handing them over costs nothing beside them; few enough that a run
# stops soon after it is asked to.
_MOST_STEPS = 32
_SMALL_IMAGE = 64  # pixels a side
_MUCH_WORK = 64_000  # pixels per example, times steps: 1,000 of the digits'


@dataclasses.dataclass(frozen=True)
class Execution:
    """How one run is computed.

    Attributes:
      mesh: the devices, see parallel/mesh.py.
      platform: of the devices: "cpu", "gpu" or "tpu".
      scan: whether blocks of a stage that are alike run in a loop.
      seeds_by: how seeds that share a device are computed, one of parallel.seeds.WAYS.
      steps_per_dispatch: training steps that are one program.
      unroll: whether loops over steps, and over the parts of a batch, are unrolled.
      waits: whether a program must end before the next one starts.
      eval_batch_size: examples evaluated at a time, see data.splits.Split.views.
      compiler_options: of all programs that hold the network.
      init_options: compiler options of the program that draws the initial weights.
    """

    mesh: Mesh
    platform: str
    scan: bool
    seeds_by: str
    steps_per_dispatch: int
    unroll: bool
    waits: bool
    eval_batch_size: int
    compiler_options: Mapping[str, bool]
    init_options: Mapping[str, str]

    def settle(self, results: Any) -> None:
        """Waits for a program's results if the next program must not start before."""
        if self.waits:
            jax.block_until_ready(results)

    def facts(self) -> dict[str, Any]:
        """Returns all decisions, ready for JSON."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return values | {"mesh": dict(self.mesh.shape)}


def decide(config: ConfigDict, devices: Sequence[jax.Device] | None = None) -> Execution:
    """Decides how a resolved config is computed on `devices`, by default on all there are.

    Raises:
      UserError: the devices cannot be laid out as `config.mesh` says, or cannot share a batch.
    """
    mesh = meshes.make_mesh(
        config.replicates, config.mesh.replicates, config.mesh.fsdp, devices=devices
    )
    meshes.check_batch(mesh, config.batch_size, config.accumulate)
    return on_mesh(config, mesh)


def on_mesh(config: ConfigDict, mesh: Mesh) -> Execution:
    """Decides how a resolved config is computed on the devices of `mesh`."""
    platform = mesh.devices.flat[0].platform
    on_cpu = platform == "cpu"
    is_resident = KNOWN[config.data.name].resident
    return Execution(
        mesh=mesh,
        platform=platform,
        # XLA's convolutions in a loop are over ten times slower on CPU.
        scan=not on_cpu if config.model.scan == "auto" else config.model.scan == "on",
        unroll=on_cpu,
        seeds_by=_seeds_by(config, mesh, on_cpu),
        steps_per_dispatch=_steps_per_dispatch(config, on_cpu, is_resident),
        # On several CPU devices a collective holds a thread while it waits for the others, and the
        # threads are as few as the cores: two programs could each hold what the other waits for.
        waits=on_cpu and mesh.size > 1,
        # Full-size pictures fill a device's memory: of a streamed set at most what a training step
        # computes at once, which is known to fit.
        eval_batch_size=config.eval.batch_size
        if is_resident
        else min(config.eval.batch_size, config.batch_size // config.accumulate),
        # It excludes cuDNN's algorithms that sum in any order, and autotuning, which might choose
        # other algorithms next time. A TPU's compiler refuses options that it does not know.
        compiler_options={"xla_gpu_deterministic_ops": config.deterministic}
        if platform == "gpu"
        else {},
        # It runs once per seed: on CPU the compiler would take seconds to make it faster.
        init_options={"xla_backend_optimization_level": "0"} if on_cpu else {},
    )


def allowed_steps_per_dispatch(config: ConfigDict) -> list[int]:
    """Returns the numbers of steps after which no row, evaluation or checkpoint comes too late."""
    common = math.gcd(config.log.every, config.eval.every, config.checkpoint.every)
    small = [number for number in range(1, math.isqrt(common) + 1) if common % number == 0]
    return sorted({*small, *(common // number for number in small)})


def _steps_per_dispatch(config: ConfigDict, on_cpu: bool, is_resident: bool) -> int:
    if config.train.steps_per_dispatch != "auto":
        return int(config.train.steps_per_dispatch)
    # On CPU a step takes far longer than its dispatch, and each step of a program of several would
    # be compiled for itself. Streamed pictures come one step at a time.
    if on_cpu or not is_resident:
        return 1
    return max(number for number in allowed_steps_per_dispatch(config) if number <= _MOST_STEPS)


def _seeds_by(config: ConfigDict, mesh: Mesh, on_cpu: bool) -> str:
    if config.replicates == mesh.shape[meshes.REPLICATES]:
        return "unroll"  # one seed per place, as if it were alone
    if config.replicates_by != "auto":
        return config.replicates_by
    if on_cpu:
        # A sixth faster, but four seeds take twice as long to compile, and more seeds longer yet.
        is_long = config.steps * config.data.image_size**2 > _MUCH_WORK
        return "unroll" if is_long else "separate"
    # One seed's kernels for small images are too small for a GPU: all but the products are then
    # computed for all seeds together, a third of the kernels (benchmarks/traffic.py --seeds=8). In
    # float32 that gains little, since the convolutions take the time (results/README.md); bfloat16
    # and the other ways are yet to be timed (benchmarks/seeds.py). One seed's convolutions of large
    # images keep it busy, and all seeds' need their memory at once; a loop is then compiled once,
    # whatever the number of seeds.
    return "separate" if config.data.image_size <= _SMALL_IMAGE else "loop"
