"""From one seed to several, trained side by side."""

import functools
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from resnet_jax import mesh as meshes


def over_replicates(
    f: Callable[..., Any], replicates: int, in_axes: tuple[int | None, ...], mesh: Mesh
) -> Callable[..., Any]:
    """Gives `f` a leading axis of replicates on its results and the arguments whose axis is 0.

    Each place on the mesh's axis of replicates computes its own, by shard_map: no compiler can
    then make them communicate.
    """
    groups = mesh.shape[meshes.REPLICATES]
    mapped = _on_one_device(f, replicates // groups, in_axes)
    if groups == 1:
        return mapped
    spread = jax.shard_map(
        mapped,
        mesh=mesh,
        in_specs=tuple(P() if axis is None else P(meshes.REPLICATES) for axis in in_axes),
        out_specs=P(meshes.REPLICATES),
        axis_names={meshes.REPLICATES},
        # What the check would tell apart, sums over replicates, no step has.
        check_vma=False,
    )
    return functools.wraps(f)(lambda *args: spread(*args))


def _on_one_device(
    f: Callable[..., Any], replicates: int, in_axes: tuple[int | None, ...]
) -> Callable[..., Any]:
    # One replicate is not vmapped: batched convolutions of one are slower than plain ones.
    if replicates > 1:
        return jax.vmap(f, in_axes=in_axes)

    @functools.wraps(f)  # programs keep their names in logs and profiles
    def alone(*args: Any) -> Any:
        first = [
            arg if axis is None else jax.tree.map(lambda a: a[0], arg)
            for arg, axis in zip(args, in_axes, strict=True)
        ]
        return jax.tree.map(lambda a: a[None], f(*first))

    return alone
