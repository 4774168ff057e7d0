"""Gates, stochastic depth and dropout: limits, counts, and draws per step, block and example."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from resnet_jax.networks import layout
from resnet_jax.networks.architectures import architecture
from resnet_jax.networks.per_block import UNSCALED, NetworkDraws, Scales, Variation
from resnet_jax.networks.resnet import ResNet
from resnet_jax.networks.summary import summarize
from tests.networks import small
from tests.networks.small import IMAGES, network
from tests.parallel.test_devices import relative_difference, train

# ------------------------------------------------------------------------------------ gates


def logits(model, variables, **options):
    return jax.jit(lambda v: model.apply(v, IMAGES, train=False, **options))(variables)


def gate_set_to(variables, bias):
    """Returns the variables with gates that ignore their input."""
    params = {
        block: node
        if "gate_conv" not in node
        else node
        | {"gate_conv": {"kernel": 0 * node["gate_conv"]["kernel"],
                         "bias": np.full_like(node["gate_conv"]["bias"], bias)}}
        for block, node in variables["params"].items()
    }  # fmt: skip
    return variables | {"params": params}


@pytest.mark.parametrize("preactivation", [False, True])
def test_a_constant_gate_is_a_pair_of_scales(preactivation):
    usual = network(preactivation=preactivation)
    variables = small.variables(network(preactivation=preactivation, gate="exclusive"))
    half = 1 / (1 + np.exp(-0.4))
    for gate, branch in (("exclusive", half), ("shortcut_only", 1.0)):
        gated = network(preactivation=preactivation, gate=gate)
        scaled = network(preactivation=preactivation, shortcut_scale=1 - half, branch_scale=branch)
        constant = logits(gated, gate_set_to(variables, 0.4))
        np.testing.assert_allclose(constant, logits(scaled, variables), rtol=1e-4, atol=1e-5)
        open_ = logits(gated, gate_set_to(variables, -200.0 if gate != "exclusive" else 200.0))
        limit = usual if gate == "shortcut_only" else network("none", preactivation=preactivation)
        np.testing.assert_allclose(open_, logits(limit, variables), rtol=1e-5, atol=1e-6)
        assert np.abs(logits(gated, variables) - constant).max() > 1e-3  # it sees its input


def test_a_gate_is_a_1x1_convolution_with_a_bias_per_block():
    def count(depth, **options):
        net = ResNet(architecture("cifar", depth), num_classes=10, **options)
        return summarize(net, (32, 32, 3))

    n = 9
    weights = (16 * 16 * n) + (16 * 32 + 32 * 32 * (n - 1)) + (32 * 64 + 64 * 64 * (n - 1))
    biases = n * (16 + 32 + 64)
    usual = count(56)
    for gate in ("exclusive", "shortcut_only"):
        gated = count(56, gate=gate)
        assert gated.parameters == usual.parameters + weights + biases
        assert sum(layer.convolutions for layer in gated.layers) == 56
        assert gated.projections == 0


def test_gates_start_at_their_bias():
    model = network(gate="exclusive", gate_bias=-6.0)

    @jax.jit
    def start():
        params = model.init(jax.random.key(0), IMAGES[:1], train=True)["params"]
        return [params[block]["gate_conv"]["bias"] for block in small.BLOCKS]

    assert all((np.asarray(bias) == -6).all() for bias in start())


# -------------------------------------------------------------------------- stochastic depth


def variation(**options):
    usual = {"numbers": (1.0, 1.0), "factors": ("constant", "constant"), "dropout": 0.0}
    return Variation(**usual | {"blocks": 4, "stochastic_depth": 0.0} | options)


def drawn(seed, examples=4):
    return NetworkDraws(jax.random.key(seed), jnp.arange(examples))


def test_a_branch_is_kept_less_often_the_deeper_it_is():
    kept = variation(stochastic_depth=0.8)
    wanted = [0.8, 0.6, 0.4, 0.2]
    (shortcut, expected), keys = kept.of_blocks(UNSCALED, None)
    assert shortcut is None
    assert keys is None
    np.testing.assert_allclose(expected, wanted, rtol=1e-6)
    draw = jax.jit(jax.vmap(lambda key: kept.of_blocks(UNSCALED, NetworkDraws(key, 0))[0].branch))
    branches = np.asarray(draw(jax.random.split(jax.random.key(0), 4000)))
    assert set(branches.ravel().tolist()) == {0.0, 1.0}
    np.testing.assert_allclose(branches.mean(axis=0), wanted, atol=0.03)
    assert abs(np.corrcoef(branches[:, 0], branches[:, 1])[0, 1]) < 0.1
    scaled = variation(stochastic_depth=0.8, numbers=(1.0, 0.5))
    np.testing.assert_allclose(
        scaled.of_blocks(Scales(None, 0.25), None)[0].branch, 0.25 * np.array(wanted), rtol=1e-6
    )


def test_without_draws_and_probabilities_nothing_varies():
    assert variation().of_blocks(UNSCALED, drawn(0)) == (UNSCALED, None)
    assert variation(dropout=0.5).of_blocks(UNSCALED, None) == (UNSCALED, None)


def test_a_dropped_block_is_its_shortcut():
    model = network(preactivation=True, stochastic_depth=0.9)
    variables = small.variables(model)
    seen = set()
    for seed in range(3):
        _, kept = model.apply(
            variables, IMAGES, train=False, draws=drawn(seed), capture_intermediates=True,
            mutable=["intermediates"],
        )  # fmt: skip
        outputs = [kept["intermediates"][b]["__call__"][0] for b in small.BLOCKS[:3]]
        branches = model._variation().of_blocks(UNSCALED, drawn(seed))[0].branch
        for before, after, branch in zip(outputs, outputs[1:], branches[1:3], strict=False):
            assert bool((before == after).all()) == (branch == 0)
            seen.add(float(branch))
    assert seen == {0.0, 1.0}


# ---------------------------------------------------------------------------------- dropout


def test_dropout_zeroes_a_share_before_the_last_convolution():
    model = network(norm="none", dropout=0.25)
    variables = small.variables(model)

    def inputs(**options):
        """Returns what enters conv2 of the first block."""
        received = []

        def record(call, args, kwargs, context):
            if context.module.path == ("stage1_block1", "conv2"):
                received.append(np.asarray(args[0]))
            return call(*args, **kwargs)

        with nn.intercept_methods(record):
            model.apply(variables, IMAGES, train=True, **options)
        return received[0]

    usual, one, other = inputs(), inputs(draws=drawn(0)), inputs(draws=drawn(1))
    assert np.abs(one - other).max() > 0
    was_on = usual != 0
    share = (one == 0)[was_on].mean()
    assert share == pytest.approx(0.25, abs=0.05)


def test_the_draw_of_an_example_does_not_depend_on_the_others():
    model = network(norm="none", dropout=0.5)
    variables = small.variables(model)

    def apply(rows):
        draws = NetworkDraws(jax.random.key(0), jnp.asarray(rows))
        return model.apply(variables, IMAGES[jnp.asarray(rows)], train=True, draws=draws)

    np.testing.assert_allclose(apply([0, 1, 2, 3])[2:], apply([2, 3]), rtol=1e-5)


def test_scanned_blocks_draw_as_unrolled_ones():
    options = {"norm": "none", "dropout": 0.5, "stochastic_depth": 0.5}
    model, scanned = network(**options), network(**options, scan=True, remat=(1,))
    variables = small.variables(model)
    stacked = {"params": layout.stacked(variables["params"])}

    def compute(model, variables):
        def loss(params, key):
            draws = NetworkDraws(key, jnp.arange(4))
            return model.apply({"params": params}, IMAGES, train=True, draws=draws).sum()

        return jax.jit(jax.grad(loss))(variables["params"], jax.random.key(5))

    expected, results = compute(model, variables), layout.by_block(compute(scanned, stacked))
    assert relative_difference(expected, results) < 1e-4


RANDOM = {"model__norm": "none", "model__dropout": 0.5, "model__stochastic_depth": 0.5}


def test_a_step_draws_the_same_in_parts_and_on_several_devices():
    whole, _ = train(1, 2, **RANDOM)
    parts, _ = train(2, 2, accumulate=2, **RANDOM)
    assert relative_difference(whole.params, parts.params) < 1e-5
