"""Writes a network of another code base as a run folder."""

import hashlib
import os
import pathlib

import jax
import numpy as np
from ml_collections import ConfigDict

from resnet_jax.data import sets
from resnet_jax.errors import RunError, UserError
from resnet_jax.interop.weights import Imported
from resnet_jax.networks import layout
from resnet_jax.networks.summary import summarize
from resnet_jax.runs import environment, storage
from resnet_jax.runs.checkpoints import Checkpoints
from resnet_jax.runs.writer import RunFolder
from resnet_jax.state import Variables


def write(
    imported: Imported,
    config: ConfigDict,
    to: str | os.PathLike[str] | storage.Path,
    source: str | os.PathLike[str],
) -> None:
    """Writes config.json, environment.json, status.json and the variables, in tested/0.

    Args:
      imported: the network.
      config: the resolved config of a run of it; `model` has its settings.
      to: the run folder; it must not exist yet.
      source: the file it was read from, which environment.json names with its SHA-256.

    Raises:
      UserError: there is a run in `to`, or it cannot be written.
      RunError: the disk is full.
    """
    path = storage.locate(to)
    if storage.read_json(path / "config.json"):
        raise UserError(f"{path} already holds a run; give a new folder.")
    folder = RunFolder(path, config.to_dict())
    try:
        facts = environment.launch_facts(
            summarize(imported.model, sets.image_shape(config.data)), {}, {}
        )
        converted = {
            "file": str(source),
            "sha256": hashlib.sha256(pathlib.Path(source).read_bytes()).hexdigest(),
            "scheme": imported.scheme,
            "conventions": vars(imported.conventions),
        }
        folder.record_launch(facts | {"converted": converted})
        with Checkpoints(folder.tested, keep=1) as checkpoints:
            checkpoints.save(0, as_saved(imported.variables))
            checkpoints.close()
        folder.set_status(
            "completed",
            step=0,
            steps=config.steps,
            device_seconds=0.0,
            reason=f"converted from {pathlib.Path(source).name}, not trained here",
        )
    except OSError as e:
        raise RunError(f"{path} cannot be written: {storage.reason(e)}.") from e
    finally:
        folder.close()


def as_saved(variables: Variables) -> Variables:
    """Returns variables in the layout of checkpoints, with one replicate."""
    stacked = layout.convert(variables, layout.stacked)
    return jax.tree.map(lambda array: np.asarray(array)[None], stacked)
