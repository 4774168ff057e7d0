"""The devices as a mesh, and how arrays lie on it."""

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from resnet_jax.errors import UserError

DATA = "data"  # the axis that batches are split over


def make_mesh() -> Mesh:
    """Returns all devices on the data axis."""
    return Mesh(np.asarray(jax.devices()), (DATA,), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    """Whole on every device."""
    return NamedSharding(mesh, P())


def split_batch(mesh: Mesh, leading: int = 0) -> NamedSharding:
    """Split over the data axis at dimension `leading`; the dimensions before it are whole."""
    return NamedSharding(mesh, P(*[None] * leading, DATA))


def check_batch(mesh: Mesh, batch_size: int) -> None:
    """Raises UserError unless the devices can share a batch evenly."""
    devices = mesh.shape[DATA]
    if batch_size % devices:
        near = max(1, round(batch_size / devices)) * devices
        raise UserError(
            f"batch_size={batch_size} cannot be split evenly over {devices} devices; "
            f"allowed are multiples of {devices} (nearest: {near})."
        )
