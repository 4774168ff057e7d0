"""The XLA flag that the pinned compiler needs to be right on a CPU."""

import importlib.util
import mmap
import os
import pathlib
import re
from importlib import metadata

# From jaxlib 0.10.2 on, XLA gives sums and products on a CPU to a library, YNN, that in 0.10.2 got
# some wrong and died of some (jax issues 39103, 39257 and 40412). 0.12 has these mended, but sums
# products of bfloat16 too coarsely: a convolution's gradient written as a product was 1.9 % off,
# without YNN below 1 %. Without it sums in float32 are right up to 5e-6, where XLA sums one by one.
# (0.11 needs Python 3.12; 0.10.1 writes pages to the log for every program it finds in a cache.)
_PINNED, _SINCE = "0.10.2", (0, 10, 2)
_FUSIONS = "xla_cpu_experimental_ynn_fusion_type"


def is_known_to_xla(flag: str) -> bool:
    """Whether a flag's name is in jaxlib's libraries; XLA dies of one that it does not know."""
    spec = importlib.util.find_spec("jaxlib")
    for folder in spec.submodule_search_locations or () if spec else ():
        for path in (p for p in pathlib.Path(folder).iterdir() if p.suffix in (".so", ".dylib")):
            with open(path, "rb") as f, mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ) as text:
                if text.find(flag.encode()) >= 0:
                    return True
    return False


def without_ynn(flags: str, version: str) -> str:
    """Returns XLA_FLAGS with YNN switched off, unless they say something about it themselves."""
    numbers = tuple(map(int, re.findall(r"\d+", version)[:3]))
    if _FUSIONS in flags or numbers < _SINCE:
        return flags
    if version != _PINNED and not is_known_to_xla(_FUSIONS):
        return flags
    return f"{flags} --{_FUSIONS}=".strip()


def set_flags() -> None:
    """Switches YNN off in this process; XLA reads its flags when it is first used."""
    if flags := without_ynn(os.environ.get("XLA_FLAGS", ""), metadata.version("jaxlib")):
        os.environ["XLA_FLAGS"] = flags
