"""Looped or recomputed blocks give the same network; the two layouts convert into each other."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet_jax import losses
from resnet_jax.networks import layout
from resnet_jax.networks.architectures import Architecture, architecture
from resnet_jax.networks.normalization import MOMENTS
from resnet_jax.networks.resnet import ResNet

BASIC = Architecture("basic", (3, 1), (4, 8))
BOTTLENECK = Architecture("bottleneck", (3, 1), (4, 8))
EVERY = list(itertools.product((BASIC, BOTTLENECK), ("none", "A", "B", "C"), ("post", "pre")))
QUICK = [(BASIC, "none", "post"), (BASIC, "A", "post"), (BASIC, "C", "pre"),
         (BOTTLENECK, "B", "post")]  # fmt: skip
OPTIONS = [pytest.param(*each, marks=[] if each in QUICK else [pytest.mark.slow]) for each in EVERY]
DEPTHS = [("cifar", 20), ("cifar", 56), *(("imagenet", depth) for depth in (18, 34, 50, 101, 152))]


def network(arch, shortcut, **options):
    return ResNet(arch, num_classes=5, shortcut=shortcut, **options)


@functools.cache
def drawn(model, size=8):
    """Images, labels and initial variables, with scales and shifts that are not 1 and 0."""
    rng = np.random.default_rng(0)
    images = rng.normal(size=(4, size, size, 3)).astype(np.float32)
    variables = model.init(jax.random.key(1), images[:1], train=True)
    variables = {name: variables[name] for name in ("params", "batch_stats")}
    variables = jax.tree.map(
        lambda a: np.asarray(a) * (1 + 0.1 * rng.random(a.shape).astype(np.float32)), variables
    )
    return images, np.arange(4) % 5, variables


def lowered(model, images, labels, variables):
    """Lowers a training step: logits, updated collections and gradients."""

    def work(params, batch_stats, images):
        def loss(params):
            logits, kept = model.apply(
                {"params": params, "batch_stats": batch_stats},
                images,
                train=True,
                mutable=["batch_stats", MOMENTS],
            )
            return losses.cross_entropy(logits, labels, 0.0).mean(), (logits, kept)

        (_, (logits, kept)), gradients = jax.value_and_grad(loss, has_aux=True)(params)
        return {"logits": logits, **kept, "gradients": gradients}

    return jax.jit(work).lower(variables["params"], variables["batch_stats"], images)


def compute(model, images, labels, variables):
    """Returns the program's text and results; variables are block by block at both ends."""
    if model.scan:
        variables = layout.convert(variables, layout.stacked)
    program = lowered(model, images, labels, variables)
    results = program.compile()(variables["params"], variables["batch_stats"], images)
    return program.as_text(), layout.convert(jax.device_get(results), layout.by_block)


def loops(program):
    # Returns a number: pytest would take minutes to show the difference of two programs.
    return program.count("stablehlo.while")


def assert_close(results, expected, tolerance):
    leaves = jax.tree_util.tree_leaves_with_path(results)
    others = jax.tree.leaves(expected)
    assert len(leaves) == len(others) > 10
    for (path, a), b in zip(leaves, others, strict=True):
        where = jax.tree_util.keystr(path)
        assert a.shape == b.shape, where
        error = np.linalg.norm(a - b) / max(np.linalg.norm(b), 1e-3)
        assert error < tolerance, f"{where}: {error}"


@pytest.mark.parametrize(("arch", "shortcut", "activation"), OPTIONS)
def test_scanned_is_unrolled(arch, shortcut, activation):
    unrolled = network(arch, shortcut, preactivation=activation == "pre")
    scanned = network(arch, shortcut, preactivation=activation == "pre", scan=True)
    inputs = drawn(unrolled)
    text, expected = compute(unrolled, *inputs)
    looped, results = compute(scanned, *inputs)
    assert (loops(looped), loops(text)) == (2, 0)  # forward and backward through stage 1
    assert_close(results, expected, 1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(("family", "depth"), DEPTHS)
def test_every_depth_scanned_is_unrolled(family, depth):
    arch, shortcut = architecture(family, depth), {"cifar": "A", "imagenet": "B"}[family]
    options = {"stem": family, "width": 1 / 8}
    inputs = drawn(network(arch, shortcut, **options), size=32)
    text, expected = compute(network(arch, shortcut, **options), *inputs)
    looped, results = compute(network(arch, shortcut, **options, scan=True), *inputs)
    assert loops(looped) == 2 * sum(blocks > 2 for blocks in arch.stage_sizes)
    assert loops(text) == 0
    assert_close(results, expected, 1e-2)


def test_programs_of_scanned_networks_do_not_grow_with_depth():
    def operations(depth):
        model = network(architecture("cifar", depth), "A", scan=True)
        image = jax.ShapeDtypeStruct((4, 32, 32, 3), jnp.float32)
        init = functools.partial(model.init, train=True)
        variables = jax.eval_shape(init, jax.random.key(0), image)
        return lowered(model, image, np.zeros(4, int), variables).as_text().count("\n")

    assert operations(20) == operations(56) == operations(1202)


def test_initial_weights_differ_by_layer():
    model = network(Architecture("basic", (4,), (8,)), "A", scan=True)
    params = layout.by_block(drawn.__wrapped__(model)[2]["params"])
    kernels = [params[f"stage1_block{i}"]["conv1"]["kernel"] for i in (1, 2, 3, 4)]
    for i, kernel in enumerate(kernels):
        for another in kernels[:i]:
            assert abs(np.corrcoef(kernel.ravel(), another.ravel())[0, 1]) < 0.2


@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize("remat", [pytest.param((1,), marks=pytest.mark.slow), (1, 2)])
def test_recomputed_stages_give_the_same_results(remat, scan):
    usual = network(BASIC, "B", scan=scan)
    saving = network(BASIC, "B", scan=scan, remat=remat)
    inputs = drawn(network(BASIC, "B"))
    _, expected = compute(usual, *inputs)
    _, results = compute(saving, *inputs)
    assert_close(results, expected, 1e-4)


@pytest.mark.slow
def test_recomputed_activations_are_not_kept():
    def megabytes(remat):
        arch = Architecture("basic", (7, 7), (16, 16))
        # scan=True: outside loops, XLA for CPU undoes the recomputation.
        model = network(arch, "A", scan=True, remat=remat)
        images, labels, variables = drawn(model, size=16)
        program = lowered(model, np.repeat(images, 32, 0), np.repeat(labels, 32), variables)
        return program.compile().memory_analysis().temp_size_in_bytes / 1e6

    none, first, both = megabytes(()), megabytes((1,)), megabytes((1, 2))
    assert both < first < none
    assert both < 0.7 * none


def test_a_loop_computes_no_convolution_twice():
    def convolutions(**options):
        model = network(BASIC, "C", **options)
        return lowered(model, *drawn(model)).as_text().count("stablehlo.convolution(")

    # The loop merges two blocks: two layers and a shortcut, each forward and two gradients.
    assert convolutions(scan=True) == convolutions() - 3 * 3
    assert convolutions(scan=True, remat=(1,)) > convolutions(scan=True)


def test_layouts_convert_both_ways():
    _, _, variables = drawn(network(BOTTLENECK, "C", scan=True))
    params = variables["params"]
    blocks = layout.by_block(params)
    _, _, others = drawn(network(BOTTLENECK, "C"))
    assert jax.tree.map(np.shape, others["params"]) == jax.tree.map(np.shape, blocks)
    assert [name for name in blocks if name.startswith("stage")] == [
        "stage1_block1", "stage1_block2", "stage1_block3", "stage2_block1"
    ]  # fmt: skip
    np.testing.assert_array_equal(
        blocks["stage1_block3"]["conv2"]["kernel"], params["stage1_rest"]["conv2"]["kernel"][1]
    )
    again = layout.stacked(blocks)
    assert jax.tree.structure(again) == jax.tree.structure(params)
    jax.tree.map(np.testing.assert_array_equal, again, params)


def test_blocks_are_stacked_in_the_order_of_their_numbers():
    blocks = {layout.block(1, number): np.full(2, number) for number in range(1, 13)}
    by_name = jax.tree.map(lambda a: a, blocks)  # a tree.map sorts dicts by name
    assert list(by_name)[:3] == ["stage1_block1", "stage1_block10", "stage1_block11"]
    stacked = layout.stacked(by_name)
    assert stacked["stage1_rest"].tolist() == [[number] * 2 for number in range(2, 13)]
    assert stacked["stage1_block1"].tolist() == [1, 1]
