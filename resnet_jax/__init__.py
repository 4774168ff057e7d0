"""ResNets and their plain twins in JAX/Flax, and how to train them."""

import os
from importlib import metadata

# jaxlib 0.10.2 gives sums and products on a CPU to a library that gets some wrong, and dies of some
# (jax issues 39103 and 39257, found after its release). Without it they are right: up to 5e-6 where
# XLA sums in float32 one by one. Newer versions need Python 3.12; 0.10.1 writes pages to the log
# for every program that it finds in a cache. XLA reads its flags when it is first used, and dies of
# one that it does not know.
_FUSIONS = "--xla_cpu_experimental_ynn_fusion_type"
_flags = os.environ.get("XLA_FLAGS", "")
if metadata.version("jaxlib") == "0.10.2" and _FUSIONS not in _flags:
    os.environ["XLA_FLAGS"] = f"{_flags} {_FUSIONS}=".strip()
