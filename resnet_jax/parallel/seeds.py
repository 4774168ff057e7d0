"""Maps a function of one seed over several seeds, trained side by side."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jax.typing import ArrayLike

from resnet_jax.kernels.convolution import one_by_one, product_one_by_one
from resnet_jax.parallel import mesh as meshes
from resnet_jax.parallel.gradients import summed_in_float32
from resnet_jax.pytree import PyTree, Tree

Axes = tuple[int | None, ...]  # 0 for an argument with an axis of replicates, else None


def convolution_and_product(
    way: str, mesh: Mesh
) -> tuple[Callable[..., jax.Array], Callable[..., jax.Array]]:
    """Returns the ResNet.convolution and ResNet.product for one of WAYS on a mesh."""
    if way == "separate":
        return summed_in_float32(one_by_one, mesh), product_one_by_one
    return summed_in_float32(jax.lax.conv_general_dilated, mesh), jax.lax.dot_general


def over_seeds(
    f: Callable[..., Tree], replicates: int, in_axes: Axes, mesh: Mesh, way: str
) -> Callable[..., Tree]:
    """Adds a leading axis of replicates to f's results and to its arguments whose axis is 0.

    shard_map splits the replicates over the mesh's axis, so that no compiler can make the groups
    communicate. The replicates of one group are computed by `way`, one of WAYS.
    """
    groups = mesh.shape[meshes.REPLICATES]
    mapped = _MAPPERS[way](f, replicates // groups, in_axes)
    if groups == 1:
        return mapped
    sharded = jax.shard_map(
        mapped,
        mesh=mesh,
        in_specs=tuple(P() if axis is None else P(meshes.REPLICATES) for axis in in_axes),
        out_specs=P(meshes.REPLICATES),
        axis_names={meshes.REPLICATES},
        check_vma=False,  # it checks sums over replicates, which no step has
    )
    return functools.wraps(f)(lambda *args: sharded(*args))


def _vmapped(f: Callable[..., Tree], replicates: int, in_axes: Axes) -> Callable[..., Tree]:
    del replicates
    return jax.vmap(f, in_axes=in_axes)


def _unrolled(f: Callable[..., Tree], replicates: int, in_axes: Axes) -> Callable[..., Tree]:
    @functools.wraps(f)  # programs keep their names in logs and profiles
    def one_after_another(*args: PyTree) -> Tree:
        results = [f(*_select(args, in_axes, r)) for r in range(replicates)]
        return jax.tree.map(lambda *each: jnp.stack(each), *results)

    return one_after_another


def _looped(f: Callable[..., Tree], replicates: int, in_axes: Axes) -> Callable[..., Tree]:
    @functools.wraps(f)
    def in_a_loop(*args: PyTree) -> Tree:
        # The arguments are closed over, so that shared ones are not copied per replicate.
        return jax.lax.map(lambda r: f(*_select(args, in_axes, r)), jnp.arange(replicates))

    return in_a_loop


def _select(args: tuple[PyTree, ...], in_axes: Axes, replicate: ArrayLike) -> list[PyTree]:
    return [
        arg if axis is None else jax.tree.map(lambda a: a[replicate], arg)
        for arg, axis in zip(args, in_axes, strict=True)
    ]


_MAPPERS = {"separate": _vmapped, "unroll": _unrolled, "loop": _looped}
WAYS = tuple(_MAPPERS)  # see config.replicates_by
