"""The chip that programs are compiled for: this machine's, or an absent one (ahead of time).

XLA's compilers for GPUs and TPUs run without the chip, so its programs can be read, and compiling
timed, on any machine:

    pip install 'jax[cuda13]==0.10.2'    # for H100, H200
    pip install 'jax[tpu]==0.10.2'       # for v4, v5e, v5p, v6e

Without a GPU there is no autotuning: the compiler does not time cuDNN's algorithms, which on the
GPU takes longer, and gives them no scratch memory.
"""

import dataclasses
import importlib.util
import os

import jax
from absl import flags
from jax.experimental import topologies

from benchmarks import machine
from resnet_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Gpu:
    """A GPU of NVIDIA's Hopper family.

    Attributes:
      name: JAX's device_kind.
      memory: bytes.
    """

    name: str
    memory: int

    @property
    def config(self) -> str:
        """XLA's GpuTargetConfigProto as text, from the manufacturer's data."""
        bandwidth = round(machine.LIMITS[self.name].bandwidth * 1e9)  # bytes per second
        return f"""
            platform_name: "CUDA"
            device_description_str: "{self.name}"
            dnn_version_info {{ major: 9 minor: 10 }}
            runtime_version {{ major: 13 }}
            gpu_device_info {{
              cuda_compute_capability {{ major: 9 }}
              clock_rate_ghz: 1.98
              core_count: 132
              fpus_per_core: 128
              threads_per_warp: 32
              threads_per_block_limit: 1024
              threads_per_core_limit: 2048
              registers_per_block_limit: 65536
              registers_per_core_limit: 65536
              shared_memory_per_block: {48 << 10}
              shared_memory_per_block_optin: {227 << 10}
              shared_memory_per_core: {228 << 10}
              l2_cache_size: {50 << 20}
              block_dim_limit_x: {2**31 - 1}
              block_dim_limit_y: {2**16 - 1}
              block_dim_limit_z: {2**16 - 1}
              device_memory_size: {self.memory}
              memory_bandwidth: {bandwidth}
            }}"""


_GPUS = {
    "H100": Gpu("NVIDIA H100 80GB HBM3", 80 << 30),
    "H200": Gpu("NVIDIA H200", 141 << 30),
}
# Hosts with four chips, of which one is used.
_TPUS = {"v4": "v4:2x2x1", "v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2"}

TARGET = flags.DEFINE_enum(
    "target",
    None,
    [*_GPUS, *_TPUS],
    "Compile for this chip, which may be absent; by default for this machine's first device.",
)


def device() -> jax.Device:
    """Returns the device to compile for; nothing can run on an absent one.

    Raises:
      UserError: the chip's compiler is not installed.
    """
    return jax.devices()[0] if TARGET.value is None else named(TARGET.value)


def named(target: str) -> jax.Device:
    """Returns one of --target's chips to compile for; raises UserError like device()."""
    # Nothing runs, so JAX must not look for an absent GPU.
    jax.config.update("jax_platforms", "cpu")
    if target in _GPUS:
        _need(target, "jax_cuda13_plugin", "cuda13")
        gpu = _GPUS[target]
        return topologies.get_topology_desc(
            gpu.name, "cuda", target_config=gpu.config, topology="1x1x1"
        ).devices[0]
    _need(target, "libtpu", "tpu")
    for key, value in _NO_HOST.items():
        os.environ.setdefault(key, value)
    return topologies.get_topology_desc(_TPUS[target], "tpu").devices[0]


# Without the first two, libtpu queries the network for this machine's TPU.
_NO_HOST = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # no chip is used, so several may compile
}


def _need(target: str, package: str, extra: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise UserError(
            f"--target={target} needs that chip's compiler, which is not installed: "
            f"pip install 'jax[{extra}]=={jax.__version__}'."
        )
