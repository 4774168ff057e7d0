"""Sums a kernel's gradient over devices in float32, whatever the activations' dtype.

The gradient of a convolution in bfloat16 is itself bfloat16, and the compiler sums what the devices
computed in that dtype: every partial sum is rounded to 8 bits. Here each device's share is rounded
once, as on a single device, and float32 numbers are added, which takes twice the bytes.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from resnet_jax.parallel import mesh as meshes

Convolve = Callable[..., jax.Array]  # jax.lax.conv_general_dilated or an equivalent


def summed_in_float32(convolve: Convolve, mesh: Mesh) -> Convolve:
    """Returns a convolution that takes its kernel in float32 and computes in the input's dtype.

    Args:
      convolve: computes it; input and kernel have the same dtype.
      mesh: the devices; a batch is split over its BATCH_AXES.
    """

    def convolution(x_BHWC: jax.Array, kernel: jax.Array, *args: Any, **options: Any) -> jax.Array:
        def compute(x_BHWC: jax.Array, kernel: jax.Array) -> jax.Array:
            return convolve(x_BHWC, kernel.astype(x_BHWC.dtype), *args, **options)

        # One device has nothing to add, and float32 is added in float32.
        if meshes.batch_devices(mesh) == 1 or x_BHWC.dtype == kernel.dtype:
            return compute(x_BHWC, kernel)

        def backward(
            saved: tuple[jax.Array, jax.Array], dy_BHWC: jax.Array
        ) -> tuple[jax.Array, jax.Array]:
            x_BHWC, kernel = saved
            split = meshes.split_parameter(kernel.shape, mesh)

            def of_kernel(kernel: jax.Array, x_BHWC: jax.Array, dy_BHWC: jax.Array) -> jax.Array:
                (share,) = jax.vjp(lambda kernel: compute(x_BHWC, kernel), kernel)[1](dy_BHWC)
                if meshes.FSDP not in split:
                    return jax.lax.psum(share, meshes.BATCH_AXES)
                # Each device gets the part of the sum that its parameters need.
                part = jax.lax.psum_scatter(
                    share, meshes.FSDP, scatter_dimension=split.index(meshes.FSDP), tiled=True
                )
                return jax.lax.psum(part, meshes.DATA)

            (dx_BHWC,) = jax.vjp(lambda x_BHWC: compute(x_BHWC, kernel), x_BHWC)[1](dy_BHWC)
            return dx_BHWC, _on_each_device(of_kernel, split, mesh)(kernel, x_BHWC, dy_BHWC)

        computed = jax.custom_vjp(compute)
        computed.defvjp(
            lambda x_BHWC, kernel: (compute(x_BHWC, kernel), (x_BHWC, kernel)), backward
        )
        return computed(x_BHWC, kernel)

    return convolution


def _on_each_device(f: Callable[..., jax.Array], split: P, mesh: Mesh) -> Callable[..., jax.Array]:
    """Maps f(kernel, x, dy) over the devices' shares of a batch; its result is split as `split`."""
    current = jax.sharding.get_abstract_mesh()  # that of the seeds' shard_map, inside of it
    return jax.shard_map(
        f,
        mesh=mesh if current.empty else current,
        in_specs=(P(), P(meshes.BATCH_AXES), P(meshes.BATCH_AXES)),
        out_specs=split,
        axis_names=set(meshes.BATCH_AXES),
        check_vma=False,  # it does not know the rules of custom_vmap
    )
