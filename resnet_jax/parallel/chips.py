"""What the manufacturers say about the chips that programs are compiled for."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Chip:
    """A chip and its links.

    Attributes:
      kind: JAX's device_kind.
      memory: bytes.
      bandwidth: of the memory, in GB/s.
      peaks: TFLOP/s of dense matrix products, by the activations' dtype; float32 in the default
        precision of JAX and PyTorch (TensorFloat-32 on NVIDIA, bfloat16 on TPUs).
      sends: GB/s that a chip sends to the others, over all its links.
      links: of a TPU chip, two for each axis of its torus; 0 if all chips share a switch.
      network: GB/s that a chip sends to another host, where that takes another way; 0 if not.
      source: where the numbers are published.
      devices: that the compiler offers for a chip.
    """

    kind: str
    memory: int
    bandwidth: float
    peaks: dict[str, float]
    sends: float = 0.0
    links: int = 0
    network: float = 0.0
    source: str = ""
    devices: int = 1

    def per_device(self) -> "Chip":
        """Returns a device's part of the numbers; a chip's devices can share all of its links."""
        return dataclasses.replace(
            self,
            memory=self.memory // self.devices,
            bandwidth=self.bandwidth / self.devices,
            peaks={dtype: peak / self.devices for dtype, peak in self.peaks.items()},
        )


_NVIDIA = "nvidia.com/en-us/data-center"
_CLOUD = "cloud.google.com/tpu/docs"
# H100 and H200: 18 NVLinks of 25 GB/s in each direction. Other hosts are reached as in NVIDIA's
# DGX, by a network card of 400 Gbit/s for each GPU. Google gives the bandwidth of a TPU chip's
# links in both directions together, or, for v4, in bits.
_HOPPER = {"bfloat16": 989.4, "float32": 494.7}
_ALL = [
    Chip("NVIDIA H200", 141 << 30, 4800, _HOPPER, 450, network=50, source=f"{_NVIDIA}/h200"),
    Chip("NVIDIA H100 80GB HBM3", 80 << 30, 3350, _HOPPER, 450, network=50,
         source=f"{_NVIDIA}/h100"),
    Chip("NVIDIA H100 PCIe", 80 << 30, 2039, {"bfloat16": 756.0, "float32": 378.0}),
    Chip("NVIDIA A100-SXM4-80GB", 80 << 30, 2039, {"bfloat16": 312.0, "float32": 156.0}),
    Chip("NVIDIA A100-SXM4-40GB", 40 << 30, 1555, {"bfloat16": 312.0, "float32": 156.0}),
    Chip("TPU v4", 32 << 30, 1228, {"bfloat16": 275.0}, 300, 6, source=f"{_CLOUD}/v4",
         devices=2),
    Chip("TPU v5 lite", 16 << 30, 819, {"bfloat16": 197.0}, 200, 4, source=f"{_CLOUD}/v5e"),
    Chip("TPU v5", 95 << 30, 2765, {"bfloat16": 459.0}, 600, 6, source=f"{_CLOUD}/v5p"),
    Chip("TPU v6 lite", 32 << 30, 1638, {"bfloat16": 918.0}, 400, 4, source=f"{_CLOUD}/v6e"),
]  # fmt: skip
CHIPS = {chip.kind: chip for chip in _ALL}
