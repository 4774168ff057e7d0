"""Sets the XLA flag that the pinned compiler needs for correct results on a CPU."""

import importlib.util
import mmap
import os
import pathlib
import re
from importlib import metadata

# Since jaxlib 0.10.2, XLA computes sums and products on a CPU with a library, YNN. In 0.10.2 it
# gives wrong results for some and crashes on others (jax issues 39103, 39257 and 40412). 0.12 fixes
# these, but accumulates bfloat16 products too coarsely: a convolution's gradient written as a
# product was 1.9 % off, and below 1 % without YNN. Without YNN XLA adds float32 sums one by one,
# with errors up to 5e-6. (0.11 needs Python 3.12; 0.10.1 logs pages for each cached program.)
_PINNED, _SINCE = "0.10.2", (0, 10, 2)
_FUSIONS = "xla_cpu_experimental_ynn_fusion_type"


def is_known_to_xla(flag: str) -> bool:
    """Whether a flag's name occurs in jaxlib's libraries; XLA aborts on unknown flags."""
    spec = importlib.util.find_spec("jaxlib")
    for folder in spec.submodule_search_locations or () if spec else ():
        for path in (p for p in pathlib.Path(folder).iterdir() if p.suffix in (".so", ".dylib")):
            with open(path, "rb") as f, mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ) as text:
                if text.find(flag.encode()) >= 0:
                    return True
    return False


def without_ynn(flags: str, version: str) -> str:
    """Returns XLA_FLAGS with YNN switched off, unless they already set it."""
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
