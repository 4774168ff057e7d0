"""The machine of a benchmark: its processor, package versions and accelerator's limits."""

import importlib.metadata
import pathlib
import platform
import time
from collections.abc import Iterable

import jax
import jax.numpy as jnp

from resnet_jax.parallel.chips import CHIPS

_TRIAD_ELEMENTS = 2**26  # 256 MB of float32: larger than any cache
_TRIAD_ROUNDS = 7


def bandwidth(device: jax.Device, given: float) -> tuple[float, str]:
    """Returns a device's memory bandwidth in GB/s, and the number's source.

    Args:
      device: the device.
      given: the user's number; 0: the manufacturer's, or a measured one if it is unknown.
    """
    if given:
        return given, "--bandwidth"
    if device.device_kind in CHIPS:
        return CHIPS[device.device_kind].bandwidth, "the maker"
    return _triad(device), f"a += 2 b over 2 x {4 * _TRIAD_ELEMENTS / 1e6:.0f} MB, the best round"


def peak(device: jax.Device, dtype: str, given: float) -> tuple[float, str] | None:
    """Returns a device's peak TFLOP/s and the number's source, or None if it is unknown."""
    if given:
        return given, "--peak"
    known = CHIPS.get(device.device_kind)
    return (known.peaks[dtype], "the maker") if known and dtype in known.peaks else None


def _triad(device: jax.Device) -> float:
    # In place: newly allocated memory would add the cost of page faults.
    add = jax.jit(lambda a, b: a + 2 * b, donate_argnums=0)
    a, b = (jax.device_put(jnp.zeros(_TRIAD_ELEMENTS, jnp.float32), device) for _ in range(2))
    a = jax.block_until_ready(add(a, b))
    best = float("inf")
    for _ in range(_TRIAD_ROUNDS):
        began = time.perf_counter()
        a = jax.block_until_ready(add(a, b))
        best = min(best, time.perf_counter() - began)
    return 3 * a.nbytes / best / 1e9  # two arrays are read, one is written


def processor() -> str:
    """Returns the name of the CPU."""
    path = pathlib.Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def versions(names: Iterable[str]) -> dict[str, str]:
    """Returns the versions of packages; "absent" if one is not installed."""
    installed = {}
    for name in names:
        try:
            installed[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            installed[name] = "absent"
    return installed
