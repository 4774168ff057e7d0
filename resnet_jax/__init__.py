"""ResNets and their plain twins in JAX/Flax, and how to train them.

    model = resnet_jax.resnet("cifar", 20)            # a Flax module, built as the paper builds it
    trained = resnet_jax.load("runs/plain-56")        # a run's network and its tested variables
    resnet_jax.features(model, variables, images)     # {"stem": ..., "stage1": ..., "pooled": ...}

Each name is imported when it is first used: `import resnet_jax` itself imports no JAX.
"""

import importlib
import pathlib
from typing import TYPE_CHECKING, Any

from resnet_jax.runs import flags

if TYPE_CHECKING:
    from resnet_jax.errors import RunError, UserError
    from resnet_jax.networks.builders import resnet
    from resnet_jax.networks.features import endpoints, features
    from resnet_jax.networks.resnet import ResNet
    from resnet_jax.shipped import config, train_run
    from resnet_jax.trained import Trained, load

    __version__: str

flags.switch_ynn_off()  # before anything imports JAX

__all__ = [
    "ResNet",
    "RunError",
    "Trained",
    "UserError",
    "__version__",
    "config",
    "endpoints",
    "features",
    "load",
    "resnet",
    "train_run",
]

_MODULES = {
    "ResNet": "resnet_jax.networks.resnet",
    "RunError": "resnet_jax.errors",
    "Trained": "resnet_jax.trained",
    "UserError": "resnet_jax.errors",
    "config": "resnet_jax.shipped",
    "endpoints": "resnet_jax.networks.features",
    "features": "resnet_jax.networks.features",
    "load": "resnet_jax.trained",
    "resnet": "resnet_jax.networks.builders",
    "train_run": "resnet_jax.shipped",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return _version()
    if name not in _MODULES:
        raise AttributeError(f"module 'resnet_jax' has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _version() -> str:
    from importlib import metadata

    try:
        return metadata.version("resnet_jax")
    except metadata.PackageNotFoundError:  # a checkout that is not installed
        import tomllib

        project = pathlib.Path(__file__).parents[1] / "pyproject.toml"
        return tomllib.loads(project.read_text(encoding="utf-8"))["project"]["version"]
