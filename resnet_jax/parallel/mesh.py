"""The devices as a mesh of three axes, and how a run's arrays lie on it.

    replicates   seeds are spread over it; what lies on different places never communicates
    data         batches are split over it
    fsdp         batches too, and parameters and optimiser state: each device holds a share of them

What is computed is the same on every mesh, up to the rounding of float32 sums.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from resnet_jax.errors import UserError, listing
from resnet_jax.parallel import processes

REPLICATES, DATA, FSDP = "replicates", "data", "fsdp"
BATCH = (DATA, FSDP)  # the axes that a batch is split over
# Smaller arrays stay whole: to gather one costs more than it saves.
_SHARED_ELEMENTS = 1024


def make_mesh(
    replicates: int = 1,
    groups: int = 0,
    fsdp: int = 1,
    devices: Sequence[jax.Device] | None = None,
) -> Mesh:
    """Returns the devices as (replicates, data, fsdp); the data axis takes what the others leave.

    Args:
      replicates: seeds trained side by side (config.replicates).
      groups: places on the replicates axis (config.mesh.replicates); 0: as many as go.
      fsdp: places on the fsdp axis (config.mesh.fsdp).
      devices: all of them by default.

    Raises:
      UserError: the devices cannot be laid out so, or JAX_PLATFORMS allows none.
    """
    devices = processes.devices() if devices is None else devices
    count = len(devices)
    if count % fsdp:
        raise UserError(
            f"mesh.fsdp={fsdp} does not divide the {count} devices; allowed are "
            f"{listing(_divisors(count))}."
        )
    allowed = _divisors(math.gcd(count // fsdp, replicates))
    groups = groups or allowed[-1]
    if groups not in allowed:
        raise UserError(
            f"mesh.replicates={groups} does not divide both replicates={replicates} and the "
            f"{count // fsdp} devices that mesh.fsdp={fsdp} leaves; allowed are "
            f"{listing(allowed)}, or 0 for {allowed[-1]}."
        )
    shape = (groups, count // (groups * fsdp), fsdp)
    return Mesh(
        np.asarray(devices).reshape(shape),
        (REPLICATES, DATA, FSDP),
        axis_types=(AxisType.Auto,) * 3,
    )


def check_batch(mesh: Mesh, batch_size: int, parts: int) -> None:
    """Raises UserError unless the devices of a replicate can share the parts of a batch evenly."""
    devices = batch_devices(mesh)
    allowed = devices * parts
    if batch_size % allowed:
        near = max(1, round(batch_size / allowed)) * allowed
        over = f"{devices} devices" + (f" in accumulate={parts} parts" if parts > 1 else "")
        raise UserError(
            f"batch_size={batch_size} cannot be split evenly over {over}; "
            f"allowed are multiples of {allowed} (nearest: {near})."
        )


def batch_devices(mesh: Mesh) -> int:
    """Returns how many devices share a batch."""
    return mesh.shape[DATA] * mesh.shape[FSDP]


def everywhere(mesh: Mesh) -> NamedSharding:
    """Whole on every device."""
    return NamedSharding(mesh, P())


def by_replicate(mesh: Mesh) -> NamedSharding:
    """Of (R, ...): each replicate on its devices, whole on each."""
    return NamedSharding(mesh, P(REPLICATES))


def split_batch(mesh: Mesh) -> NamedSharding:
    """Of (B, ...): split over all devices that share a batch."""
    return NamedSharding(mesh, P(BATCH))


def split_batches(mesh: Mesh) -> NamedSharding:
    """Of (R, steps, parts, b, ...): each part of a replicate's batch split over its devices."""
    return NamedSharding(mesh, P(REPLICATES, None, None, BATCH))


def place(shapes: Any, mesh: Mesh) -> Any:
    """Gives a state's shapes their places on the mesh.

    Args:
      shapes: a pytree of ShapeDtypeStructs (R, ...).
      mesh: where to.

    Returns:
      The same with shardings: each replicate on its devices, and of large arrays the largest axis
      that can be split evenly over the fsdp axis.
    """
    fsdp = mesh.shape[FSDP]

    def one(a: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        spec: list[str | None] = [REPLICATES] + [None] * (len(a.shape) - 1)
        can_be_split = [axis for axis in range(1, len(a.shape)) if a.shape[axis] % fsdp == 0]
        if fsdp > 1 and can_be_split and math.prod(a.shape[1:]) >= _SHARED_ELEMENTS:
            spec[max(can_be_split, key=lambda axis: a.shape[axis])] = FSDP
        sharding = NamedSharding(mesh, P(*spec))
        return jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding)

    return jax.tree.map(one, shapes)


def constrain(tree: Any, spec: P, mesh: Mesh) -> Any:
    """Lays arrays inside a step out by `spec`; the axes it does not name are whole."""
    # Inside shard_map the mesh is another one, on which the axis of replicates cannot be named.
    inside = jax.sharding.get_abstract_mesh()
    return jax.lax.with_sharding_constraint(
        tree, NamedSharding(mesh if inside.empty else inside, spec)
    )


def gather_shares(variables: Any, mesh: Mesh) -> Any:
    """Makes parameters whole for the layers that use them; their gradients are shared out again.

    Without it the compiler may split the layers instead, and send activations around.
    """
    return variables if mesh.shape[FSDP] == 1 else constrain(variables, P(), mesh)


def _divisors(number: int) -> list[int]:
    return [d for d in range(1, number + 1) if number % d == 0]
