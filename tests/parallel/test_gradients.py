"""Kernels' gradients are summed over devices in float32."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from resnet_jax.kernels.convolution import one_by_one
from resnet_jax.parallel import mesh as meshes
from resnet_jax.parallel.gradients import summed_in_float32
from resnet_jax.parallel.seeds import WAYS, convolution_and_product, over_seeds

OPTIONS = {"dimension_numbers": ("NHWC", "HWIO", "NHWC")}
SEEDS, DEVICES = 2, 4
CONVOLVES = {"lax": jax.lax.conv_general_dilated, "one by one": one_by_one}


def gradient(convolution, dtype):
    """Returns f(kernel, x, weights): the gradient of a weighted sum w.r.t. the kernel, and to x."""

    def weighed(kernel, x_BHWC, weights_BHWC):
        y = convolution(x_BHWC.astype(dtype), kernel, (2, 2), ((1, 1), (1, 1)), **OPTIONS)
        return (weights_BHWC * y.astype(jnp.float32)).sum()

    return jax.grad(weighed, argnums=(0, 1))


def inputs(seed, batch=DEVICES * 2):
    keys = jax.random.split(jax.random.key(seed), 3)
    shapes = ((3, 3, 5, 6), (batch, 8, 8, 5), (batch, 4, 4, 6))
    return [jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True)]


def expected(kernel, x, weights, dtype):
    """Returns the exact sum of the shares, each as one device computes it, and dx."""
    one = gradient(summed_in_float32(jax.lax.conv_general_dilated, mesh(1)), dtype)
    shares = [
        one(kernel, *each)
        for each in zip(np.split(x, DEVICES), np.split(weights, DEVICES), strict=True)
    ]
    dk = sum(np.asarray(share[0], np.float64) for share in shares)
    return dk, np.concatenate([share[1] for share in shares])


def mesh(devices=DEVICES, fsdp=1, replicates=1):
    return meshes.make_mesh(replicates, fsdp=fsdp, devices=jax.devices()[:devices])


@pytest.mark.parametrize("fsdp", [1, 2, 4])
@pytest.mark.parametrize("convolve", CONVOLVES)
def test_shares_in_bfloat16_are_added_in_float32(convolve, fsdp):
    here = mesh(fsdp=fsdp)
    convolution = summed_in_float32(CONVOLVES[convolve], here)
    split = NamedSharding(here, P(meshes.BATCH_AXES))
    kernel, x, weights = inputs(0)
    program = jax.jit(gradient(convolution, "bfloat16"), in_shardings=(None, split, split))
    dk, dx = program(kernel, x, weights)
    exact, each_dx = expected(kernel, x, weights, "bfloat16")
    assert dk.dtype == jnp.float32
    np.testing.assert_allclose(dk, exact, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(dx, each_dx, rtol=0.02, atol=0.02)
    # Numbers with bfloat16's 8 bits would not do.
    assert np.abs(dk - np.asarray(dk, jnp.bfloat16)).max() > 1e-3


@pytest.mark.parametrize("way", WAYS)
def test_so_are_those_of_several_seeds_on_several_groups_of_devices(way):
    here = mesh(devices=8, replicates=2)
    assert dict(here.shape) == {"replicates": 2, "data": DEVICES, "fsdp": 1}
    convolution, _ = convolution_and_product(way, here)
    every = [np.stack(each) for each in zip(*map(inputs, range(2 * SEEDS)), strict=True)]
    split = NamedSharding(here, P("replicates", meshes.BATCH_AXES))
    program = jax.jit(
        over_seeds(gradient(convolution, "bfloat16"), 2 * SEEDS, (0, 0, 0), here, way),
        in_shardings=(meshes.by_replicate(here), split, split),
    )
    dk, dx = program(*every)
    for seed in range(2 * SEEDS):
        exact, each_dx = expected(*inputs(seed), "bfloat16")
        # The compiler may leave out the rounding of the shares, but it must not round their sum.
        np.testing.assert_allclose(dk[seed], exact, rtol=0.02, atol=0.1)
        assert np.abs(dk[seed] - np.asarray(dk[seed], jnp.bfloat16)).max() > 1e-3
        np.testing.assert_allclose(dx[seed], each_dx, rtol=0.02, atol=0.02)


@pytest.mark.parametrize(("devices", "dtype"), [(1, "bfloat16"), (1, "float32"), (4, "float32")])
def test_a_single_device_and_float32_keep_their_program(devices, dtype):
    def plain(x, kernel, *args, **options):
        return jax.lax.conv_general_dilated(x, kernel.astype(x.dtype), *args, **options)

    ours = summed_in_float32(jax.lax.conv_general_dilated, mesh(devices))
    arguments = inputs(0)
    texts = [
        str(jax.make_jaxpr(gradient(convolution, dtype))(*arguments))
        for convolution in (plain, ours)
    ]
    assert texts[0] == texts[1]
    assert "psum" not in texts[1]
