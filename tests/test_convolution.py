"""A convolution by patches is XLA's convolution, in value, gradients and what it keeps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from resnet_jax.architectures import Architecture
from resnet_jax.convolution import by_patches
from resnet_jax.resnet import ResNet
from resnet_jax.summary import summarize
from tests import tiny

# Of every kernel and stride in the networks.
GEOMETRIES = [(1, 1), (1, 2), (3, 1), (3, 2), (7, 2)]
TOLERANCES = {"float32": 1e-5, "bfloat16": 1e-2}


def layer(size, stride, dtype, **options):
    return nn.Conv(
        6,
        (size, size),
        (stride, stride),
        padding=[(size // 2, size // 2)] * 2,
        use_bias=False,
        dtype=dtype,
        **options,
    )


def difference(a, b):
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return np.linalg.norm(a - b) / np.linalg.norm(a)


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("side", [8, 9])  # a stride of 2 ends at, or before, the edge
@pytest.mark.parametrize(("size", "stride"), GEOMETRIES)
def test_values_and_gradients_are_those_of_xla(size, stride, side, dtype):
    ours = layer(size, stride, dtype, conv_general_dilated=by_patches)
    theirs = layer(size, stride, dtype)
    x_BHWC = jax.random.normal(jax.random.key(0), (2, side, side + 3, 5))
    variables = theirs.init(jax.random.key(1), x_BHWC)
    tiny.assert_bit_equal(variables, ours.init(jax.random.key(1), x_BHWC))
    weights = jax.random.normal(jax.random.key(2), theirs.apply(variables, x_BHWC).shape)

    def value_and_gradients(conv):
        def weighed(variables, x_BHWC):
            y = conv.apply(variables, x_BHWC)
            return (weights * y.astype(jnp.float32)).sum(), y

        (_, y), gradients = jax.value_and_grad(weighed, argnums=(0, 1), has_aux=True)(
            variables, x_BHWC
        )
        return y, gradients

    ours_lowered, theirs_lowered = (
        jax.jit(lambda v, x, conv=conv: conv.apply(v, x)).lower(variables, x_BHWC).as_text()
        for conv in (ours, theirs)
    )
    assert "stablehlo.convolution" in theirs_lowered
    assert "stablehlo.convolution" not in ours_lowered
    a, b = value_and_gradients(ours), value_and_gradients(theirs)
    for mine, other in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert mine.shape == other.shape
        assert mine.dtype == other.dtype
        assert difference(other, mine) < TOLERANCES[dtype]
    assert a[0].dtype == dtype


def test_bfloat16_is_told_from_float32():
    x = jax.random.normal(jax.random.key(0), (2, 8, 8, 5))
    single, half = (
        layer(3, 1, dtype, conv_general_dilated=by_patches) for dtype in ("float32", "bfloat16")
    )
    variables = single.init(jax.random.key(1), x)
    assert difference(single.apply(variables, x), half.apply(variables, x)) > 1e-3


def test_patches_are_not_kept_for_the_gradient():
    x, kernel = jnp.ones((2, 8, 8, 5)), jnp.ones((3, 3, 5, 6))

    def kept(conv):
        _, pullback = jax.vjp(lambda x, k: conv(x, k, (1, 1), [(1, 1), (1, 1)]), x, kernel)
        return max(a.size for a in jax.tree.leaves(pullback))

    def without_checkpoint(x, kernel, strides, padding):
        padded = jnp.pad(x, ((0, 0), *padding, (0, 0)))
        slices = [padded[:, i : i + 8, j : j + 8] for i in range(3) for j in range(3)]
        return jnp.concatenate(slices, axis=-1) @ kernel.reshape(-1, 6)

    assert kept(without_checkpoint) == 9 * x.size  # the measure sees what is kept
    assert kept(by_patches) == x.size


@pytest.mark.parametrize(
    "wrong",
    [{"feature_group_count": 2}, {"lhs_dilation": (2, 2)}, {"rhs_dilation": (1, 2)}],
    ids=lambda w: next(iter(w)),
)
def test_what_it_cannot_compute_is_refused(wrong):
    with pytest.raises(ValueError, match="neither groups nor dilation"):
        by_patches(jnp.ones((1, 4, 4, 2)), jnp.ones((3, 3, 2, 2)), (1, 1), [(1, 1)] * 2, **wrong)


def test_the_network_is_the_same():
    options = {"num_classes": 3, "shortcut": "B", "stem": "imagenet"}
    xla, patches = (
        ResNet(Architecture("bottleneck", (1, 1), (4, 8)), **options, convolution=convolution)
        for convolution in ("xla", "patches")
    )
    assert summarize(xla, (32, 32, 3)) == summarize(patches, (32, 32, 3))
    x = jax.random.normal(jax.random.key(0), (4, 32, 32, 3))
    variables = xla.init(jax.random.key(1), x, train=True)
    tiny.assert_bit_equal(variables, patches.init(jax.random.key(1), x, train=True))
    logits = [model.apply(variables, x, train=False) for model in (xla, patches)]
    assert difference(*logits) < 1e-5
