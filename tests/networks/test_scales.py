"""Scales of shortcut and branch: their limits are the plain and the residual net, bit for bit."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet_jax.losses import cross_entropy
from resnet_jax.networks import layout
from resnet_jax.networks.architectures import architecture
from resnet_jax.networks.per_block import Scales
from resnet_jax.networks.resnet import ResNet
from resnet_jax.networks.summary import summarize
from tests import tiny
from tests.networks import small
from tests.networks.small import BLOCKS, IMAGES, network

PREACTIVATION = pytest.mark.parametrize("preactivation", [False, True])
LEARNED = {"shortcut_scale_by": "learned", "branch_scale_by": "learned"}


def initial(**options):
    return small.variables(network(**options))


@functools.cache
def _step(model):
    def work(params, batch_stats, scales):
        def loss(params):
            variables = {"params": params, "batch_stats": batch_stats}
            logits, kept = model.apply(
                variables, IMAGES, train=True, scales=scales, mutable=["batch_stats"]
            )
            return cross_entropy(logits, jnp.arange(4), 0.0).mean(), (logits, kept)

        return jax.grad(loss, has_aux=True)(params)

    return jax.jit(work)


def step(model, variables, *scales):
    """Returns (gradients, (logits, moving averages)) of a training step."""
    scales = Scales(*map(np.float32, scales))
    return jax.device_get(_step(model)(variables["params"], variables["batch_stats"], scales))


@PREACTIVATION
def test_the_limits_are_the_plain_and_the_residual_net(preactivation):
    variables = initial(preactivation=preactivation)
    scaled = network(preactivation=preactivation, shortcut_scale=0.5, branch_scale=0.5)
    plain, residual = (network(kind, preactivation=preactivation) for kind in ("none", "A"))
    tiny.assert_bit_equal(step(scaled, variables, 0.0, 1.0), step(plain, variables))
    tiny.assert_bit_equal(step(scaled, variables, 1.0, 1.0), step(residual, variables))
    between, (logits, _) = step(scaled, variables, 0.5, 1.0)
    for other in (plain, residual):
        gradients, (others, _) = step(other, variables)
        assert np.abs(logits - others).max() > 1e-3
        assert np.abs(between["stem_conv"]["kernel"] - gradients["stem_conv"]["kernel"]).max() > 0


@PREACTIVATION
def test_without_a_branch_a_block_is_its_shortcut(preactivation):
    model = network(preactivation=preactivation, branch_scale=0.0, shortcut_scale=0.5)
    _, kept = model.apply(
        initial(preactivation=preactivation), IMAGES, train=False, capture_intermediates=True,
        mutable=["intermediates"],
    )  # fmt: skip
    outputs = kept["intermediates"]
    first, second = (outputs[f"stage1_block{i}"]["__call__"][0] for i in (1, 2))
    assert np.abs(first).max() > 0.1
    np.testing.assert_array_equal(second, 0.5 * first)


@pytest.mark.parametrize(("by", "factor"), [("1/sqrt(L)", 0.5), ("1/L", 0.25)])
def test_a_factor_counts_the_blocks(by, factor):
    variables = initial()
    numbers = {"shortcut_scale": 0.6, "branch_scale": 0.4}

    def logits(**options):
        # Compiled without its numbers, so both networks share the program.
        return jax.jit(functools.partial(network(**options).apply, train=False))(variables, IMAGES)

    for name, number in numbers.items():
        by_depth = logits(**numbers, **{f"{name}_by": by})
        expected = logits(**numbers | {name: factor * number})
        np.testing.assert_allclose(by_depth, expected, rtol=1e-5)
        assert np.abs(by_depth - logits(**numbers)).max() > 1e-3


def test_blocks_are_counted_over_all_stages():
    assert architecture("cifar", 56).blocks == 27
    assert architecture("imagenet", 50).blocks == 16


def test_learned_scales_start_at_their_numbers_and_learn():
    numbers = {"shortcut_scale": 0.5, "branch_scale": 0.25}
    learned = network(**numbers, **LEARNED)

    @jax.jit
    def start():
        params = learned.init(jax.random.key(0), IMAGES[:1], train=True)["params"]
        return [{name: params[block][name] for name in numbers} for block in BLOCKS]

    assert start() == [numbers] * 4
    variables = initial(**LEARNED)
    same = {**variables, "params": dict(variables["params"])}
    for block in BLOCKS:
        same["params"][block] = variables["params"][block] | {
            k: jnp.float32(v) for k, v in numbers.items()
        }
    gradients, outcome = step(learned, same)
    tiny.assert_bit_equal(outcome, step(network(**numbers), same, *numbers.values())[1])
    for block in BLOCKS:
        assert all(gradients[block][name] != 0 for name in numbers)


def test_learned_scales_are_one_parameter_per_block():
    for depth in (20, 56):

        def parameters(depth=depth, **options):
            net = ResNet(architecture("cifar", depth), num_classes=10, shortcut="A", **options)
            return summarize(net, (32, 32, 3)).parameters

        blocks = (depth - 2) // 2
        assert parameters(branch_scale=0.0, branch_scale_by="learned") == parameters() + blocks
        assert parameters(**LEARNED) == parameters() + 2 * blocks
        assert parameters(branch_scale_by="1/L", shortcut_scale=0.5) == parameters()


@pytest.mark.parametrize(("by", "remat"), [("constant", ()), ("learned", (1,))])
def test_scanned_is_unrolled(by, remat):
    options = {"shortcut_scale_by": by, "branch_scale_by": by, "shortcut_scale": 0.6}
    options |= {"branch_scale": 0.3}
    variables = initial(**options)  # every block has its own
    stacked = layout.convert(variables, layout.stacked)
    unrolled = step(network(**options), variables, 0.6, 0.3)
    scanned = step(network(**options, scan=True, remat=remat), stacked, 0.6, 0.3)
    expected, results = jax.tree.leaves(unrolled), layout.convert(scanned, layout.by_block)
    for a, b in zip(jax.tree.leaves(results), expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)


def test_scales_are_not_rounded_to_bfloat16():
    variables = initial()
    half = network(dtype=jnp.bfloat16, branch_scale=0.5)

    def logits(scale):
        return half.apply(variables, IMAGES, train=False, scales=Scales(None, jnp.float32(scale)))

    assert jnp.bfloat16(0.7) == jnp.bfloat16(0.701)
    assert np.abs(logits(0.7) - logits(0.701)).max() > 0
