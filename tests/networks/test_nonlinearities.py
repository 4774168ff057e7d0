"""The nonlinearities' moments, leaky TAT's slope, and the channels of crelu."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet_jax.errors import UserError
from resnet_jax.networks import nonlinearities
from resnet_jax.networks.architectures import NONLINEARITIES, architecture
from resnet_jax.networks.nonlinearities import cosine_map, nonlinearity, similarity, tailored_slope
from tests.networks import small
from tests.networks.small import network

DEEP = architecture("cifar", 56)


def leaky(slope, x):
    return np.where(x > 0, x, slope * x)


@pytest.mark.parametrize("name", NONLINEARITIES)
def test_moments_of_a_normal_variable(name):
    f = nonlinearity(name, DEEP, 0.9)
    z, width = np.linspace(-9, 9, 200_001, retstep=True)
    density = np.exp(-(z**2) / 2) / np.sqrt(2 * np.pi) * width
    values = np.asarray(f.apply(jnp.asarray(z, jnp.float32)[:, None]), np.float64).T
    assert len(values) == 1 + f.doubles
    for channel in values:
        second, mean = (channel**2 * density).sum(), (channel * density).sum()
        assert f.second_moment == pytest.approx(second, rel=1e-5)
        assert f.variance == pytest.approx(second - mean**2, rel=1e-5)


def test_values():
    x = np.array([[-2.0, 0.0, 3.0]], np.float32)
    slope = tailored_slope(DEEP, 0.9)
    wanted = {
        "relu": [0, 0, 3], "leaky_relu": [-0.02, 0, 3], "crelu": [0, 0, 3, 2, 0, 0],
        "linear": [-2, 0, 3], "tailored": [-2 * slope, 0, 3], "gelu": [-0.0455003, 0, 2.9959503],
    }  # fmt: skip
    assert wanted.keys() == set(NONLINEARITIES)
    for name, values in wanted.items():
        np.testing.assert_allclose(
            nonlinearity(name, DEEP, 0.9).apply(jnp.asarray(x))[0], values, rtol=1e-6
        )


@pytest.mark.parametrize("slope", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("c", [-0.5, 0.0, 0.7, 1.0])
def test_the_cosine_map_is_the_similarity_after_a_wide_layer(c, slope):
    u, v = np.random.default_rng(0).normal(size=(2, 2_000_000))
    v = c * u + np.sqrt(1 - c**2) * v
    a, b = leaky(slope, u), leaky(slope, v)
    assert cosine_map(c, slope) == pytest.approx((a * b).mean() / (a**2).mean(), abs=3e-3)


@pytest.mark.parametrize(
    ("arch", "layers"),
    [(architecture("cifar", 20), 19), (DEEP, 55), (architecture("imagenet", 50), 49)],
)
def test_orthogonal_inputs_end_with_the_similarity_eta(arch, layers):
    assert arch.nonlinear_layers == layers
    for eta in (0.3, 0.9):
        slope = tailored_slope(arch, eta)
        assert 0 < slope < 1
        c = 0.0
        for _ in range(layers):
            c = cosine_map(c, slope)
        assert c == pytest.approx(eta, abs=1e-9)
    assert tailored_slope(arch, 0.3) > tailored_slope(arch, 0.9)


def test_a_wide_network_keeps_its_inputs_apart():
    def final(slope, width=600):
        rng = np.random.default_rng(0)
        x = np.linalg.qr(rng.normal(size=(width, 2)))[0].T
        for _ in range(DEEP.nonlinear_layers):
            x = leaky(slope, x @ rng.normal(size=(width, width)))
            x /= np.linalg.norm(x, axis=1, keepdims=True)
        return x[0] @ x[1]

    assert final(tailored_slope(DEEP, 0.9)) == pytest.approx(0.9, abs=0.05)
    assert final(0.0) > 0.97


def test_an_eta_beyond_relu_is_refused():
    shallow = architecture("cifar", 8)
    assert similarity(shallow, 0.0) < 0.9
    with pytest.raises(UserError, match=r"eta=0\.9 is not reached in 7 layers"):
        tailored_slope(shallow, 0.9)


@pytest.mark.parametrize(
    ("shortcut", "preactivation"), [("none", False), ("none", True), ("A", True), ("B", True)]
)
def test_crelu_doubles_the_inputs_of_all_but_the_stem(shortcut, preactivation):
    usual = small.parameters(network(shortcut, preactivation=preactivation))
    doubled = small.parameters(network(shortcut, preactivation=preactivation, nonlinearity="crelu"))
    assert usual.keys() == doubled.keys()
    for name, shape in usual.items():
        *positions, channels, filters = shape if len(shape) > 1 else (0, *shape)
        if name.endswith("kernel") and not name.startswith("stem"):
            assert doubled[name] == (*positions, 2 * channels, filters), name
        else:
            assert doubled[name] == shape, name


def test_every_nonlinearity_acts_and_a_linear_net_is_linear():
    outputs = {}
    for name in set(NONLINEARITIES) - {"crelu"}:
        model = network(nonlinearity=name, tailored_eta=0.5)
        variables = small.variables(model)
        apply = jax.jit(lambda x, m=model, v=variables: m.apply(v, x, train=False))
        zero, one, two = (apply(scale * small.IMAGES) for scale in (0, 1, 2))
        linear = np.allclose(two - one, one - zero, rtol=1e-3, atol=1e-4)
        assert linear == (name == "linear"), name
        outputs[name] = np.asarray(one)
    for name, output in outputs.items():
        assert all(np.abs(output - o).max() > 1e-4 for n, o in outputs.items() if n != name), name


def test_the_default_is_the_fused_relu():
    assert nonlinearities.nonlinearity("relu", DEEP, 0.9).apply is nonlinearities.relu
