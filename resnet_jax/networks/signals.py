"""The signals inside a network in training: responses, dead units, gradients and updates.

The forward pass fills the collection SIGNALS if it is mutable. Metrics are named
`signals/<kind>/<layer>`, as in `signals/response_std/stage1_block1/norm1`:

    response_std        of a layer's output after its norm, before the nonlinearity and the
                        addition (He et al. 2015, Fig. 7)
    dead_units          percentage of a nonlinearity's channels that no example activates anywhere
    branch_std          of a residual block's branch, before the addition
    shortcut_std        of its shortcut
    branch_to_shortcut  the ratio of the two
    gradient_norm       of a kernel's gradient, in the Euclidean norm
    gradient_to_weight  divided by the norm of the kernel
    update_to_weight    the norm of the step's change, divided by the norm of the kernel
"""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict

from resnet_jax.networks import layout
from resnet_jax.pytree import PyTree, Tree

SIGNALS = "signals"
PREFIX = f"{SIGNALS}/"
_PEAK = "peak"
_SPREAD = {"mean", "square"}


def observed(module: nn.Module) -> bool:
    """Whether a module records its signals in this call."""
    return module.is_mutable_collection(SIGNALS) and not module.is_initializing()


def record_spread(module: nn.Module, name: str, x: jax.Array) -> None:
    """Records mean and mean square of all values of `x`."""
    if observed(module):
        x = x.astype(jnp.float32)
        spread = {"mean": x.mean(), "square": jnp.square(x).mean()}
        module.put_variable(SIGNALS, name, spread)


def record_units(module: nn.Module, x: jax.Array) -> None:
    """Records the highest input (..., C) of each channel of a nonlinearity."""
    if observed(module):
        module.put_variable(SIGNALS, _PEAK, x.max(axis=range(x.ndim - 1)).astype(jnp.float32))


def pool_parts(signals: Tree) -> Tree:
    """Pools the SIGNALS of equal parts of a batch; the arrays have a leading axis of parts."""
    return jax.tree_util.tree_map_with_path(
        lambda path, a: a.max(axis=0) if path[-1].key == _PEAK else a.mean(axis=0), signals
    )


def of_forward_pass(signals: layout.Collection) -> dict[str, jax.Array]:
    """Returns the metrics of a SIGNALS collection in either layout, float32 scalars."""
    metrics = {}
    leaves = jax.tree_util.tree_leaves_with_path(layout.by_block(signals), is_leaf=_is_spread)
    for path, value in leaves:
        *modules, kind = (key.key for key in path)
        layer = "/".join(modules)
        if kind == _PEAK:
            metrics[f"{PREFIX}dead_units/{layer}"] = 100 * jnp.mean(value <= 0)
        else:
            variance = value["square"] - jnp.square(value["mean"])
            metrics[f"{PREFIX}{kind}_std/{layer}"] = jnp.sqrt(jnp.maximum(variance, 0))
    for name in list(metrics):
        kind, layer = name.removeprefix(PREFIX).split("/", 1)
        if kind == "branch_std":
            ratio = metrics[name] / metrics[f"{PREFIX}shortcut_std/{layer}"]
            metrics[f"{PREFIX}branch_to_shortcut/{layer}"] = ratio
    return metrics


def of_update(
    params: optax.Params, gradients: optax.Updates, new_params: optax.Params
) -> dict[str, jax.Array]:
    """Returns the metrics of one step's gradients and update per kernel, float32 scalars."""
    update = jax.tree.map(jnp.subtract, new_params, params)
    weights, slopes, updates = map(dict, map(_kernel_norms, (params, gradients, update)))
    metrics = {}
    for layer, weight in weights.items():
        metrics[f"{PREFIX}gradient_norm/{layer}"] = slopes[layer]
        metrics[f"{PREFIX}gradient_to_weight/{layer}"] = slopes[layer] / weight
        metrics[f"{PREFIX}update_to_weight/{layer}"] = updates[layer] / weight
    return metrics


def _kernel_norms(tree: PyTree) -> Iterator[tuple[str, jax.Array]]:
    """Yields each kernel's layer and Euclidean norm, block by block."""
    norms = {
        path[:-1]: jnp.sqrt(jnp.square(a).sum(axis=range(layout.is_stacked(path[0]), a.ndim)))
        for path, a in flatten_dict(tree).items()
        if path[-1] == "kernel"
    }
    for path, norm in flatten_dict(layout.by_block(unflatten_dict(norms))).items():
        yield "/".join(path), norm


def _is_spread(node: object) -> bool:
    return isinstance(node, dict) and node.keys() == _SPREAD
