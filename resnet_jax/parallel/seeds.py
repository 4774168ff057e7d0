"""From one seed to several, trained side by side."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from resnet_jax.kernels.convolution import one_by_one, product_one_by_one
from resnet_jax.parallel import mesh as meshes


def convolution_and_product(
    by: str,
) -> tuple[Callable[..., jax.Array], Callable[..., jax.Array]]:
    """Returns the ResNet.convolution and ResNet.product that go with one of WAYS."""
    if by == "separate":
        return one_by_one, product_one_by_one
    return jax.lax.conv_general_dilated, jax.lax.dot_general


def over_seeds(
    f: Callable[..., Any], replicates: int, in_axes: tuple[int | None, ...], mesh: Mesh, by: str
) -> Callable[..., Any]:
    """Gives `f` a leading axis of replicates on its results and the arguments whose axis is 0.

    Each place on the mesh's axis of replicates computes its own, by shard_map: no compiler can
    then make them communicate. Those that share a place are computed `by` one of WAYS.
    """
    groups = mesh.shape[meshes.REPLICATES]
    mapped = _ON_ONE_DEVICE[by](f, replicates // groups, in_axes)
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


def _vmapped(
    f: Callable[..., Any], replicates: int, in_axes: tuple[int | None, ...]
) -> Callable[..., Any]:
    del replicates
    return jax.vmap(f, in_axes=in_axes)


def _unrolled(
    f: Callable[..., Any], replicates: int, in_axes: tuple[int | None, ...]
) -> Callable[..., Any]:
    @functools.wraps(f)  # programs keep their names in logs and profiles
    def one_after_another(*args: Any) -> Any:
        results = [f(*_of_one(args, in_axes, r)) for r in range(replicates)]
        return jax.tree.map(lambda *each: jnp.stack(each), *results)

    return one_after_another


def _looped(
    f: Callable[..., Any], replicates: int, in_axes: tuple[int | None, ...]
) -> Callable[..., Any]:
    @functools.wraps(f)
    def in_a_loop(*args: Any) -> Any:
        # Closed over, what all replicates share is not copied for each.
        return jax.lax.map(lambda r: f(*_of_one(args, in_axes, r)), jnp.arange(replicates))

    return in_a_loop


def _of_one(args: tuple[Any, ...], in_axes: tuple[int | None, ...], replicate: Any) -> list[Any]:
    return [
        arg if axis is None else jax.tree.map(lambda a: a[replicate], arg)
        for arg, axis in zip(args, in_axes, strict=True)
    ]


_ON_ONE_DEVICE = {"separate": _vmapped, "unroll": _unrolled, "loop": _looped}
WAYS = tuple(_ON_ONE_DEVICE)  # see config.replicates_by
