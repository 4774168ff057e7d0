"""The mesh of devices, with three axes, and the sharding of a run's arrays over it.

    replicates   splits the seeds; devices at different indices never communicate
    data         splits batches
    fsdp         splits batches too, and large parameters and optimiser state

Results are the same on every mesh, up to the rounding of float32 sums.
"""

import math
from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from resnet_jax.errors import UserError, listing
from resnet_jax.parallel import processes
from resnet_jax.pytree import Tree

REPLICATES, DATA, FSDP = "replicates", "data", "fsdp"
BATCH_AXES = (DATA, FSDP)  # the axes that a batch is split over
# Smaller arrays are not split: gathering one costs more than splitting it saves.
_MIN_SPLIT_ELEMENTS = 1024


def make_mesh(
    replicates: int = 1,
    groups: int = 0,
    fsdp: int = 1,
    devices: Sequence[jax.Device] | None = None,
) -> Mesh:
    """Returns the mesh (replicates, data, fsdp); the data axis takes the remaining devices.

    Args:
      replicates: seeds trained side by side (config.replicates).
      groups: length of the replicates axis (config.mesh.replicates); 0 for the largest possible.
      fsdp: length of the fsdp axis (config.mesh.fsdp).
      devices: all devices by default.

    Raises:
      UserError: the lengths do not fit the devices, or JAX_PLATFORMS allows no device.
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
            f"{listing(allowed)}, or 0 for the largest of them."
        )
    shape = (groups, count // (groups * fsdp), fsdp)
    return Mesh(
        np.asarray(devices).reshape(shape),
        (REPLICATES, DATA, FSDP),
        axis_types=(AxisType.Auto,) * 3,
    )


def check_batch(mesh: Mesh, batch_size: int, parts: int) -> None:
    """Raises UserError unless each of a batch's parts splits evenly over a replicate's devices."""
    devices = batch_devices(mesh)
    divisor = devices * parts
    if batch_size % divisor:
        nearest = max(1, round(batch_size / divisor)) * divisor
        shares = f"{devices} devices" + (f" in accumulate={parts} parts" if parts > 1 else "")
        raise UserError(
            f"batch_size={batch_size} cannot be split evenly over {shares}; "
            f"allowed are multiples of {divisor} (nearest: {nearest})."
        )


def batch_devices(mesh: Mesh) -> int:
    """Returns the number of devices that share a batch."""
    return mesh.shape[DATA] * mesh.shape[FSDP]


def everywhere(mesh: Mesh) -> NamedSharding:
    """Replicates an array on every device."""
    return NamedSharding(mesh, P())


def by_replicate(mesh: Mesh) -> NamedSharding:
    """Places (R, ...): each replicate, unsplit, on each of its devices."""
    return NamedSharding(mesh, P(REPLICATES))


def split_batch(mesh: Mesh) -> NamedSharding:
    """Splits (B, ...) over the devices that share a batch."""
    return NamedSharding(mesh, P(BATCH_AXES))


def split_batches(mesh: Mesh) -> NamedSharding:
    """Splits (R, steps, parts, b, ...): each part of a replicate's batch over its devices."""
    return NamedSharding(mesh, P(REPLICATES, None, None, BATCH_AXES))


def place(shapes: Tree, mesh: Mesh) -> Tree:
    """Adds shardings to a state's shapes.

    Each replicate lies on its devices. A large array's largest divisible axis is split over the
    fsdp axis.

    Args:
      shapes: a pytree of ShapeDtypeStructs (R, ...).
      mesh: the mesh.
    """

    def one(a: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        sharding = NamedSharding(mesh, P(REPLICATES, *split_parameter(a.shape[1:], mesh)))
        return jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding)

    return jax.tree.map(one, shapes)


def split_parameter(shape: tuple[int, ...], mesh: Mesh) -> P:
    """Returns how a replicate's array is split: the largest divisible axis of a large one."""
    fsdp = mesh.shape[FSDP]
    divisible = [axis for axis, length in enumerate(shape) if length % fsdp == 0]
    if fsdp == 1 or not divisible or math.prod(shape) < _MIN_SPLIT_ELEMENTS:
        return P(*[None] * len(shape))
    longest = max(divisible, key=lambda axis: shape[axis])
    return P(*[FSDP if axis == longest else None for axis in range(len(shape))])


def constrain(tree: Tree, spec: P, mesh: Mesh) -> Tree:
    """Constrains the sharding of arrays inside a step to `spec`."""
    # Inside shard_map the current mesh differs: its axis of replicates is not available.
    current = jax.sharding.get_abstract_mesh()
    return jax.lax.with_sharding_constraint(
        tree, NamedSharding(mesh if current.empty else current, spec)
    )


def gather_shares(variables: Tree, mesh: Mesh) -> Tree:
    """Gathers parameters split over the fsdp axis; their gradients come back split.

    Without it the compiler may split the layers instead and exchange activations.
    """
    return variables if mesh.shape[FSDP] == 1 else constrain(variables, P(), mesh)


def _divisors(number: int) -> list[int]:
    return [d for d in range(1, number + 1) if number % d == 0]
