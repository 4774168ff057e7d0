"""The signals of a step: against captured activations, over parts and blocks, and per kernel."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax.traverse_util import flatten_dict

from resnet_jax.networks import layout, signals
from resnet_jax.networks.architectures import Architecture
from resnet_jax.networks.resnet import ResNet

ARCH = Architecture("basic", (3, 1), (4, 8))
BATCH, GROUP = 8, 4
NETWORKS = [("none", False), ("A", False), ("B", False), ("none", True), ("B", True)]


def network(shortcut, preactivation, **options):
    return ResNet(
        ARCH, 5, shortcut=shortcut, preactivation=preactivation, bn_group=GROUP, **options
    )


@functools.cache
def drawn(model):
    """Returns images and variables with scales and shifts that are not 1 and 0."""
    rng = np.random.default_rng(0)
    images = rng.normal(size=(BATCH, 8, 8, 3)).astype(np.float32)
    variables = model.init(jax.random.key(1), images[:1], train=True)
    variables = jax.tree.map(
        lambda a: np.asarray(a) + 0.3 * rng.normal(size=a.shape).astype(np.float32),
        {name: variables[name] for name in ("params", "batch_stats")},
    )
    # One dead channel out of four: its shift is far below zero.
    norm = "norm1" if model.preactivation else "norm2"
    if model.shortcut == "none":
        variables["params"]["stage1_block2"][norm]["bias"][1] = -100
    return images, variables


def observe(model, variables, images):
    apply = jax.jit(
        lambda v, x: model.apply(v, x, train=True, mutable=[signals.SIGNALS])[1][signals.SIGNALS]
    )
    return apply(variables, images)


def captured(model, variables, images):
    """Returns the output and the input of every convolution, BatchNorm and block."""

    @jax.jit
    def run(variables, images):
        outputs = {}

        def record(call, args, kwargs, context):
            output = call(*args, **kwargs)
            if context.method_name == "__call__" and context.module.path:
                name = "/".join(context.module.path)
                outputs[name], outputs[f"{name}, input"] = output, args[0]
            return output

        with nn.intercept_methods(record):
            model.apply(variables, images, train=True, mutable=["batch_stats"])
        return outputs

    return jax.tree.map(np.float64, run(variables, images))


def normalised(x_BHWC, params):
    """Returns BatchNorm's output before the nonlinearity, group by group."""
    x = x_BHWC.reshape(BATCH // GROUP, GROUP, *x_BHWC.shape[1:])
    mean, var = (f(axis=(1, 2, 3), keepdims=True) for f in (x.mean, x.var))
    y = (x - mean) / np.sqrt(var + 1e-5) * params["scale"] + params["bias"]
    return y.reshape(x_BHWC.shape)


@pytest.mark.parametrize(("shortcut", "preactivation"), NETWORKS)
def test_signals_of_the_forward_pass_are_those_of_the_captured_activations(shortcut, preactivation):
    model = network(shortcut, preactivation)
    images, variables = drawn(model)
    outputs = captured(model, variables, images)
    params = flatten_dict(variables["params"], sep="/")

    expected = {}
    norms = [name.removesuffix("/scale") for name in params if name.endswith("/scale")]
    for name in norms:
        own = {kind: params[f"{name}/{kind}"] for kind in ("scale", "bias")}
        y = normalised(outputs[f"{name}, input"], own)
        expected[f"signals/response_std/{name}"] = y.std()
        last = name.endswith("norm2") or "shortcut" in name
        if preactivation or shortcut == "none" or not last:
            expected[f"signals/dead_units/{name}"] = 100 * np.mean(y.max(axis=(0, 1, 2)) <= 0)
    for block in ("stage1_block1", "stage1_block2", "stage1_block3", "stage2_block1"):
        if shortcut == "none":
            continue
        if preactivation:
            branch = outputs[f"{block}/conv2"]
            start = outputs.get(f"{block}/shortcut_conv", outputs[f"{block}, input"])
        else:
            branch = outputs[f"{block}/norm2"]
            start = outputs[f"{block}, input"]
            if f"{block}/shortcut_norm" in outputs:
                start = outputs[f"{block}/shortcut_norm"]
            elif block == "stage2_block1":  # option A
                start = np.pad(start[:, ::2, ::2], ((0, 0),) * 3 + ((0, 4),))
            total = (branch + start).max(axis=(0, 1, 2))
            expected[f"signals/dead_units/{block}"] = 100 * np.mean(total <= 0)
        expected[f"signals/branch_std/{block}"] = branch.std()
        expected[f"signals/shortcut_std/{block}"] = start.std()
        expected[f"signals/branch_to_shortcut/{block}"] = branch.std() / start.std()

    found = signals.of_forward_pass(observe(model, variables, images))
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=2e-4, err_msg=name)
    if shortcut == "none":
        norm = "norm1" if preactivation else "norm2"
        assert found[f"signals/dead_units/stage1_block2/{norm}"] >= 25


def test_observing_changes_neither_the_output_nor_the_statistics():
    model = network("A", preactivation=False)
    images, variables = drawn(model)
    plain, observed = (
        jax.jit(lambda v, x, c=collections: model.apply(v, x, train=True, mutable=c))(
            variables, images
        )
        for collections in (["batch_stats"], ["batch_stats", signals.SIGNALS])
    )
    assert signals.SIGNALS in observed[1]
    np.testing.assert_allclose(plain[0], observed[0], rtol=1e-5)
    for a, b in zip(*map(jax.tree.leaves, (plain[1], observed[1]["batch_stats"])), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_parts_and_looped_blocks_give_the_signals_of_the_whole_batch_block_by_block():
    model = network("A", preactivation=False)
    images, variables = drawn(model)
    whole = signals.of_forward_pass(observe(model, variables, images))
    parts = [observe(model, variables, images[i : i + GROUP]) for i in (0, GROUP)]
    assert parts[0]["stage1_block1"]["peak"].tolist() != parts[1]["stage1_block1"]["peak"].tolist()
    pooled = signals.of_forward_pass(
        signals.pool_parts(jax.tree.map(lambda *each: jnp.stack(each), *parts))
    )
    looped = signals.of_forward_pass(
        observe(
            network("A", preactivation=False, scan=True),
            {name: layout.stacked(collection) for name, collection in variables.items()},
            images,
        )
    )
    for other in (pooled, looped):
        assert other.keys() == whole.keys()
        for name in whole:
            np.testing.assert_allclose(other[name], whole[name], rtol=1e-4, err_msg=name)


def test_gradients_and_updates_are_measured_per_kernel():
    rng = np.random.default_rng(0)

    def kernels():
        blocks = {f"stage1_block{k}": {"conv1": rng.normal(size=(3, 3, 2, 2))} for k in (1, 2, 3)}
        norm = {"stem_norm": {"scale": rng.normal(size=2)}}
        return jax.tree.map(np.float32, {n: {"conv1": {"kernel": a["conv1"]}} for n, a in
                            blocks.items()} | norm)  # fmt: skip

    params, gradients, changed = kernels(), kernels(), kernels()
    found = signals.of_update(params, gradients, changed)
    assert len(found) == 9  # three kernels; no norm
    for block in ("stage1_block1", "stage1_block2", "stage1_block3"):
        weight, gradient, new = (
            tree[block]["conv1"]["kernel"] for tree in (params, gradients, changed)
        )
        norm = np.linalg.norm
        expected = {
            "gradient_norm": norm(gradient),
            "gradient_to_weight": norm(gradient) / norm(weight),
            "update_to_weight": norm(new - weight) / norm(weight),
        }
        for kind, value in expected.items():
            name = f"signals/{kind}/{block}/conv1"
            np.testing.assert_allclose(found[name], value, rtol=1e-5, err_msg=name)
    looped = signals.of_update(*map(layout.stacked, (params, gradients, changed)))
    assert looped.keys() == found.keys()
    for name in found:
        np.testing.assert_allclose(looped[name], found[name], rtol=1e-6, err_msg=name)
