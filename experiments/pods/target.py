"""The chips that programs are compiled for: this machine's, or absent ones (ahead of time).

XLA's compilers for GPUs and TPUs run without the chip, so its programs can be read, and compiling
timed, on any machine:

    pip install -c requirements.txt 'jax[cuda13]'    # for H100, H200
    pip install -c requirements.txt 'jax[tpu]'       # for v4, v5e, v5p, v6e

A target is a chip, such as v5e, or several: v5e:16x16 is a slice with that topology, H100:8 one
host with eight GPUs, H100:4x8 four such hosts.

Without a GPU there is no autotuning: the compiler does not time cuDNN's algorithms, which on the
GPU takes longer, and gives them no scratch memory. Of a v4 chip the compiler offers both cores as
devices, with half of the memory each; on a v4 itself a device is a chip.
"""

import dataclasses
import importlib.util
import math
import os
import re

import jax
from absl import flags
from jax.experimental import topologies

from resnet_jax.errors import UserError, listing, nearest
from resnet_jax.parallel.chips import CHIPS, Chip

GPUS = {"H100": "NVIDIA H100 80GB HBM3", "H200": "NVIDIA H200"}
# The smallest topology of each: a host with four chips.
TPUS = {
    "v4": ("TPU v4", (2, 2, 1)),
    "v5e": ("TPU v5 lite", (2, 2)),
    "v5p": ("TPU v5", (2, 2, 1)),
    "v6e": ("TPU v6 lite", (2, 2)),
}
NAMES = [*GPUS, *TPUS]
EXAMPLES = "v5e, v5e:16x16, v4:4x4x4, H100:8 or H100:4x8"

TARGET = flags.DEFINE_string(
    "target",
    None,
    "Compile for this chip, which may be absent; by default for this machine's first device. One "
    f"of {', '.join(NAMES)}.",
)


@dataclasses.dataclass(frozen=True)
class Target:
    """Chips to compile for.

    Attributes:
      name: of the chip, one of NAMES.
      shape: of a TPU slice, its topology; of GPUs, (hosts, GPUs of a host). Empty for one chip.
    """

    name: str
    shape: tuple[int, ...] = ()

    def __str__(self) -> str:
        """Returns the target as it is given on the command line."""
        return ":".join(filter(None, (self.name, "x".join(map(str, self.shape)))))

    @property
    def chip(self) -> Chip:
        """What is known about the chip."""
        return CHIPS[GPUS[self.name] if self.name in GPUS else TPUS[self.name][0]]

    @property
    def chips(self) -> int:
        """The number of chips."""
        return math.prod(self.shape)

    def devices(self) -> list[jax.Device]:
        """Returns the devices in the order in which a run would use them; nothing can run on them.

        Raises:
          UserError: the chip's compiler is not installed, or refuses the topology.
        """
        # Nothing runs, so JAX must not look for an absent GPU.
        jax.config.update("jax_platforms", "cpu")
        if self.name in GPUS:
            self._need("jax_cuda13_plugin", "cuda13")
            hosts, gpus = self.shape or (1, 1)
            return topologies.get_topology_desc(
                GPUS[self.name], "cuda",
                target_config=_gpu_config(self.chip), topology=f"1x{hosts}x{gpus}",
            ).devices  # fmt: skip
        self._need("libtpu", "tpu")
        for key, value in _NO_HOST.items():
            os.environ.setdefault(key, value)
        smallest = TPUS[self.name][1]
        topology = "x".join(map(str, self.shape or smallest))
        try:
            found = topologies.get_topology_desc(f"{self.name}:{topology}", "tpu").devices
        except jax.errors.JaxRuntimeError as e:
            raise UserError(
                f"--target={self} is not a topology that the compiler knows; allowed are even "
                f"lengths, such as {self.name}:{'x'.join(map(str, smallest))}."
            ) from e
        return found if self.shape else found[:1]

    def _need(self, package: str, extra: str) -> None:
        if importlib.util.find_spec(package) is None:
            raise UserError(
                f"--target={self} needs that chip's compiler, which is not installed: "
                f"pip install 'jax[{extra}]=={jax.__version__}'."
            )


def parse(text: str, flag: str = "target") -> Target:
    """Returns the target of a flag's value; raises UserError if it is none."""
    name, colon, lengths = text.partition(":")
    if name not in NAMES:
        raise UserError(
            f"--{flag}={text} is not a chip; allowed are {listing(NAMES)}, or several of one kind, "
            f"such as {EXAMPLES}{nearest(name, NAMES)}."
        )
    shape = (
        tuple(map(int, lengths.split("x")))
        if re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", lengths)
        else ()
    )
    if name in GPUS and len(shape) == 1:
        shape = (1, *shape)
    axes = 2 if name in GPUS else len(TPUS[name][1])
    if colon and len(shape) != axes:
        kind = "one or two numbers, GPUs or hosts x GPUs" if name in GPUS else f"{axes} numbers"
        raise UserError(f"--{flag}={text} is not a topology; {name} has {kind}, as in {EXAMPLES}.")
    return Target(name, shape)


def one_host(name: str) -> Target:
    """Returns one host of a kind of chip."""
    return Target(name, (1, 8) if name in GPUS else TPUS[name][1])


def device() -> jax.Device:
    """Returns the one device to compile for.

    Raises:
      UserError: --target names several chips or none, or its compiler is not installed.
    """
    if TARGET.value is None:
        return jax.devices()[0]
    target = parse(TARGET.value)
    if target.shape:
        raise UserError(f"--target={target} is several chips; this program compiles for one.")
    return target.devices()[0]


def named(target: str) -> jax.Device:
    """Returns the first device of a target; raises UserError as parse() and devices()."""
    return parse(target).devices()[0]


# Without the first two, libtpu queries the network for this machine's TPU.
_NO_HOST = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # no chip is used, so several may compile
}


def _gpu_config(chip: Chip) -> str:
    """Returns XLA's GpuTargetConfigProto of a Hopper GPU, from the manufacturer's data."""
    return f"""
        platform_name: "CUDA"
        device_description_str: "{chip.kind}"
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
          device_memory_size: {chip.memory}
          memory_bandwidth: {round(chip.bandwidth * 1e9)}
        }}"""
