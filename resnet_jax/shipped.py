"""For a user's own program: the configs that come with the package, and training by one."""

import contextlib
import importlib
import os
import pathlib
import sys
from collections.abc import Iterator

from ml_collections import ConfigDict

from resnet_jax.allowed import check_choice

_HERE = pathlib.Path(__file__).parent


def programs() -> pathlib.Path:
    """Returns the folder that has experiments/ and configs/."""
    folder = _HERE / "_programs"
    return folder if folder.is_dir() else _HERE.parent  # the latter in a checkout


def config(name: str, *arguments: str) -> ConfigDict:
    """Returns a new config of configs/, to change and to train by.

    Args:
      name: of its file, such as "cifar10".
      *arguments: what follows the colon in --config=configs/NAME.py:ARGUMENT.

    Raises:
      UserError: there is no such file, or the argument is not allowed.
    """
    files = (programs() / "configs").glob("[!_]*.py")
    check_choice("name", name, sorted(file.stem for file in files))
    with _our_configs():
        made: ConfigDict = importlib.import_module(f"configs.{name}").get_config(*arguments)
    return made


def train_run(config: ConfigDict, workdir: str | os.PathLike[str]) -> str:
    """Trains by a config, or resumes the run in `workdir`; see train.train.

    Returns:
      The run's final status.
    """
    from resnet_jax import train  # here: `import resnet_jax` imports no JAX

    return train.train(config, os.fspath(workdir))


@contextlib.contextmanager
def _our_configs() -> Iterator[None]:
    """Makes our package `configs` importable; a user's own one is back afterwards."""
    path, folder = list(sys.path), str(programs())
    theirs = {name: sys.modules.pop(name) for name in list(sys.modules) if _is_configs(name)}
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path[:] = path
        for name in [name for name in sys.modules if _is_configs(name)]:
            del sys.modules[name]
        sys.modules |= theirs


def _is_configs(name: str) -> bool:
    return name == "configs" or name.startswith("configs.")
