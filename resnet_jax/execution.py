"""Decides once how a run is computed: every "auto", and everything that depends on the platform.

These decisions change results only by rounding. environment.json records them, and
`python -m experiments.describe --execution` prints them. No other file asks for the platform.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from resnet_jax.data.sets import DATA_SETS
from resnet_jax.loops import Estimate, estimate
from resnet_jax.parallel import mesh as meshes
from resnet_jax.pytree import PyTree
from resnet_jax.settings import get

# Enough steps per dispatch to make its overhead negligible, but few enough that a run stops soon
# after a signal.
_MOST_STEPS = 32
# Programs end at these numbers of steps.
DISPATCH_KEYS = ("log.every", "log.signals.every", "eval.every", "checkpoint.every")
_SMALL_IMAGE = 64  # side in pixels
_MUCH_WORK = 64_000  # steps times pixels per example: 1,000 steps on digits


@dataclasses.dataclass(frozen=True)
class Execution:
    """How one run is computed.

    Attributes:
      mesh: the devices, see parallel/mesh.py.
      platform: "cpu", "gpu" or "tpu".
      scan: whether equal blocks of a stage run in a loop.
      loops: what such loops save and cost, as estimated for `scan`; None on CPU.
      seeds_by: how seeds that share a device are computed, one of parallel.seeds.WAYS.
      steps_per_dispatch: training steps per program.
      unroll: whether loops over steps, and over the parts of a batch, are unrolled.
      waits: whether a program must end before the next one starts.
      eval_batch_size: examples per evaluation batch, see data.splits.Split.views.
      compiler_options: for every program that contains the network.
      init_options: compiler options for drawing the initial weights.
    """

    mesh: Mesh
    platform: str
    scan: bool
    loops: Estimate | None
    seeds_by: str
    steps_per_dispatch: int
    unroll: bool
    waits: bool
    eval_batch_size: int
    compiler_options: Mapping[str, bool]
    init_options: Mapping[str, str]

    def settle(self, results: PyTree) -> None:
        """Waits for a program's results if `waits` is set."""
        if self.waits:
            jax.block_until_ready(results)

    def facts(self) -> dict[str, object]:
        """Returns all decisions, ready for JSON."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        loops = self.loops and dataclasses.asdict(self.loops)
        return values | {"mesh": dict(self.mesh.shape), "loops": loops}


def decide(config: ConfigDict, devices: Sequence[jax.Device] | None = None) -> Execution:
    """Decides how a resolved config is computed on `devices`, by default on all devices.

    Raises:
      UserError: the devices do not divide as `config.mesh` asks, or cannot share a batch evenly.
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
    is_resident = DATA_SETS[config.data.name].resident
    seeds_by = _seeds_by(config, mesh, on_cpu)
    loops = None if on_cpu else _loops(config, mesh, seeds_by)
    return Execution(
        mesh=mesh,
        platform=platform,
        scan=_scan(config, loops),
        loops=loops,
        unroll=on_cpu,
        seeds_by=seeds_by,
        steps_per_dispatch=_steps_per_dispatch(config, on_cpu, is_resident),
        # On several CPU devices a collective blocks a thread until all devices arrive, and there
        # are only as many threads as cores: two programs at once could deadlock.
        waits=on_cpu and mesh.size > 1,
        # Full-size pictures need much memory. A batch as large as a part of a training step is
        # known to fit.
        eval_batch_size=config.eval.batch_size
        if is_resident
        else min(config.eval.batch_size, config.batch_size // config.accumulate),
        # Excludes cuDNN algorithms that sum in varying order, and autotuning, which may choose
        # different algorithms next time. A TPU's compiler rejects unknown options.
        compiler_options={"xla_gpu_deterministic_ops": config.deterministic}
        if platform == "gpu"
        else {},
        # Weights are drawn once per seed, so optimising that program for seconds does not pay.
        init_options={"xla_backend_optimization_level": "0"} if on_cpu else {},
    )


def _loops(config: ConfigDict, mesh: Mesh, seeds_by: str) -> Estimate:
    seeds = config.replicates // mesh.shape[meshes.REPLICATES]
    compiled = 1 if seeds_by == "loop" else seeds
    return estimate(config, mesh, compiled)


def _scan(config: ConfigDict, loops: Estimate | None) -> bool:
    if config.model.scan != "auto":
        return bool(config.model.scan == "on")
    # On CPU XLA's convolutions in a loop are over ten times slower. Elsewhere all steps of the run
    # count, also when it resumes, so that it resumes with the same program.
    return loops is not None and loops.pays(config.steps)


def allowed_steps_per_dispatch(config: ConfigDict) -> list[int]:
    """Returns the common divisors of the numbers of steps between rows, signals and so on."""
    common = math.gcd(*(get(config, key) for key in DISPATCH_KEYS))  # gcd(n, 0) = n
    small = [number for number in range(1, math.isqrt(common) + 1) if common % number == 0]
    return sorted({*small, *(common // number for number in small)})


def _steps_per_dispatch(config: ConfigDict, on_cpu: bool, is_resident: bool) -> int:
    if config.train.steps_per_dispatch != "auto":
        return int(config.train.steps_per_dispatch)
    # On CPU a step takes far longer than its dispatch, and steps are unrolled, so that several take
    # longer to compile. Streamed pictures arrive one step at a time.
    if on_cpu or not is_resident:
        return 1
    return max(number for number in allowed_steps_per_dispatch(config) if number <= _MOST_STEPS)


def _seeds_by(config: ConfigDict, mesh: Mesh, on_cpu: bool) -> str:
    if config.replicates == mesh.shape[meshes.REPLICATES]:
        return "unroll"  # one seed per group of devices: nothing to combine
    if config.replicates_by != "auto":
        return config.replicates_by
    if on_cpu:
        # Unrolled seeds run a sixth faster, but compiling takes twice as long for four, and longer
        # for more.
        is_long = config.steps * config.data.image_size**2 > _MUCH_WORK
        return "unroll" if is_long else "separate"
    # Small images: one seed's kernels are too small to fill a GPU, so everything except the
    # convolutions and products is computed for all seeds together, with a third of the kernels
    # (benchmarks/traffic.py --seeds=8). In float32 that gains little, since convolutions dominate
    # (results/README.md); bfloat16 and the other ways are yet to be timed (benchmarks/seeds.py).
    # Large images: one seed keeps the device busy, and a loop needs the memory of one seed only and
    # is compiled once.
    return "separate" if config.data.image_size <= _SMALL_IMAGE else "loop"
