"""The trained weights that a run starts from (`init.from`): another run's, or those of a file."""

import dataclasses
import hashlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from resnet_jax import settings, trained
from resnet_jax.data import sets, sources
from resnet_jax.data.augment import Normalization
from resnet_jax.errors import UserError, listing
from resnet_jax.networks.architectures import architecture
from resnet_jax.runs import inventory, reader, records, storage
from resnet_jax.state import Variables

# Settings of the network that weights do not depend on, or that training may change.
_FREE = (
    "num_classes",
    "norm",  # checked by itself
    "init",
    "zero_init_residual",
    "gate_bias",
    "dropout",
    "bn_group",
    "bn_momentum",
    "dtype",
    "precision",
)
_CLASSIFIER = "logits"


@dataclasses.dataclass(frozen=True)
class Given:
    """The variables that replace drawn ones.

    Attributes:
      variables: {"params", "batch_stats"}, in the layout of checkpoints, with a leading axis of
        replicates; NumPy arrays.
      facts: their origin, for environment.json.
    """

    variables: Variables
    facts: storage.Json


def require(config: ConfigDict, run: storage.Path) -> None:
    """Checks `init.from` of a resolved config, without touching a device.

    A run with a checkpoint is not checked: it no longer needs the weights that it started from.

    Args:
      config: of the run.
      run: its folder.

    Raises:
      UserError: there is no such run or file, it cannot be read, or it holds another network.
    """
    if not config.init["from"] or _has_checkpoint(run):
        return
    path = _source(config)
    if storage.is_dir(path):
        source = reader.read(path).config
        model, seeds = source["model"], source["replicates"]
        channels = sets.DATA_SETS[source["data"]["name"]].image_shape[2]
        _refuse_other_sizes(config, source)
        _refuse_other_classes(config, source)
    else:
        model, channels = _of_file(path)
        seeds = 1
        if config.init.normalization == "kept":
            raise UserError(
                f"init.normalization='kept' needs a run in init.from, but {path} is a file with "
                "weights: convert it with experiments.convert, or give data.channel_mean and "
                "data.channel_std."
            )
    _refuse_other_network(config, model, channels)
    if seeds not in (1, config.replicates) and seeds < config.replicates:
        raise UserError(
            f"init.from={config.init['from']!r} has {seeds} seeds, but replicates="
            f"{config.replicates}; allowed are 1 to {seeds}, or weights of one seed."
        )


def read(config: ConfigDict, run: storage.Path) -> Given:
    """Reads the weights of `init.from`, without the classifier if `init.head` is "new".

    Args:
      config: of the run.
      run: its folder.

    Raises:
      UserError: see require(); or an earlier launch of the run started from other weights.
    """
    path = _source(config)
    facts: storage.Json = {"from": str(path)}
    if storage.is_dir(path):
        saved = trained.newest(path)
        variables = saved.variables
        facts |= {"step": saved.step, "is_tested": saved.is_tested}
    else:
        from resnet_jax.interop import run_folder, weights  # needs an extra

        variables = run_folder.as_saved(weights.load(str(path)).variables)
    kept = {
        collection: {
            name: jax.tree.map(lambda a: _by_replicate(a, config.replicates), node)
            for name, node in modules.items()
            if config.init.head == "kept" or name != _CLASSIFIER
        }
        for collection, modules in variables.items()
    }
    if not all(np.isfinite(array).all() for array in jax.tree.leaves(kept)):
        raise UserError(
            f"init.from={config.init['from']!r} has weights that are not finite: it has diverged."
        )
    content = _digest(kept)
    recorded = records.read_environment(run).get("init", {})
    if recorded.get("content", content) != content:
        raise UserError(
            f"{run} was started from other weights than init.from={config.init['from']!r} has now; "
            "give the original ones, or another --workdir."
        )
    return Given(kept, facts | {"content": content})


def normalization(config: ConfigDict) -> Normalization:
    """Returns the normalisation of the run in `init.from`.

    Raises:
      UserError: see require(); or its folder lacks it, and the run's data are not on this machine.
    """
    return trained.load(str(_source(config))).normalization


def _has_checkpoint(run: storage.Path) -> bool:
    checkpoints = run / "checkpoints"
    return storage.is_dir(checkpoints) and bool(inventory.complete_steps(checkpoints))


def _source(config: ConfigDict) -> storage.Path:
    path = storage.locate(config.init["from"], "init.from")
    if not storage.is_dir(path) and (storage.is_bucket(path) or not path.is_file()):
        raise UserError(
            f"init.from={config.init['from']!r} does not exist; allowed are a run folder and a "
            "file with weights."
        )
    return path


def _of_file(path: storage.Path) -> tuple[dict[str, Any], int]:
    """Returns the `model` settings of the network in a file, and the channels of its images."""
    from resnet_jax.interop import structure, weights  # needs an extra

    named, conventions = weights.find(str(path))
    implied = {key.removeprefix("model."): settings.SETTINGS[key].implied for key in settings.CURES}
    model = implied | {"activation": "post"} | structure.settings(named, conventions, str(path))
    return model, structure.image_channels(named, str(path))


def _refuse_other_network(config: ConfigDict, model: Mapping[str, Any], channels: int) -> None:
    where, own = config.init["from"], config.model
    if channels != (here := sets.image_shape(config.data)[2]):
        raise UserError(
            f"init.from={where!r} takes images of {channels} channels, but data.name="
            f"{config.data.name!r} has {here}."
        )
    differing = [
        key
        for key in model
        if _decides(config, key) and settings.show(model[key]) != settings.show(own[key])
    ]
    if own.norm != model["norm"] and (model["norm"], own.norm) != ("batch", "frozen"):
        differing.append("norm")
    if config.init.head == "kept" and model["num_classes"] != own.num_classes:
        differing.append("num_classes")
    if differing:
        pairs = [f"model.{key} ({model[key]!r} there, {own[key]!r} here)" for key in differing]
        raise UserError(
            f"init.from={where!r} is another network than this run's, which differs in "
            f"{listing(pairs, 'and')}; allowed are equal values."
        )


def _refuse_other_classes(config: ConfigDict, source: Mapping[str, Any]) -> None:
    """Refuses a classifier that is kept for other classes than the source's, if names tell."""
    then, now, logits = ConfigDict(source).data, config.data, config.model.num_classes
    if config.init.head != "kept" or source["model"]["num_classes"] != logits:
        return  # the latter is refused as another network
    have_names = {sources.has_names(each) for each in (then, now)}
    if have_names != {True} and (have_names != {False} or then.name != now.name):
        return
    names = [sources.class_names(each, logits) for each in (then, now)]
    if names[0] != names[1]:
        first, second = next((a, b) for a, b in zip(*names, strict=True) if a != b)
        raise UserError(
            f"init.head='kept' keeps the classifier of init.from={config.init['from']!r}, which is "
            f"for other classes ({first!r} there, {second!r} here); allowed is 'new'."
        )


def _refuse_other_sizes(config: ConfigDict, source: Mapping[str, Any]) -> None:
    """Refuses images of another size than the mean image that is kept."""
    then, now = (tuple(sets.image_shape(each)) for each in (ConfigDict(source).data, config.data))
    if config.init.normalization == "kept" and source["data"]["mean"] == "pixel" and then != now:
        raise UserError(
            f"init.normalization='kept' keeps the mean image of init.from="
            f"{config.init['from']!r}, whose images are of {then}, but those of data.name="
            f"{config.data.name!r} are of {now}; allowed is 'new'."
        )


def _decides(config: ConfigDict, key: str) -> bool:
    """Whether a setting of `model` changes what given weights compute."""
    setting = settings.SETTINGS.get(f"model.{key}")
    if setting is None or key in _FREE or not setting.changes_results:
        return False
    if key == "bottleneck_stride":
        return architecture(config.model.family, config.model.depth).block == "bottleneck"
    return setting.acts(config)


def _by_replicate(array: np.ndarray, replicates: int) -> np.ndarray:
    """Returns the array of the first seeds, or that of the only seed for each replicate."""
    return array[:replicates] if len(array) > 1 else np.repeat(array, replicates, axis=0)


def _digest(variables: Variables) -> str:
    """Returns 16 hex digits of the variables' SHA-256."""
    digest = hashlib.sha256()
    for path, array in jax.tree.leaves_with_path(variables):
        digest.update(jax.tree_util.keystr(path).encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()[:16]
