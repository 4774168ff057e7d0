"""Every way to compute seeds that share a device trains each as if alone."""

import functools
import importlib.util
import re
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.peers import ours
from experiments.pods import target
from experiments.pods.program import shapes
from resnet_jax.data.order import TRAIN, spans
from resnet_jax.execution import on_mesh
from resnet_jax.kernels.convolution import one_by_one
from resnet_jax.losses import cross_entropy
from resnet_jax.networks import summary
from resnet_jax.networks.architectures import Architecture
from resnet_jax.networks.resnet import ResNet
from resnet_jax.parallel import mesh as meshes
from resnet_jax.parallel.seeds import WAYS, convolution_and_product, over_seeds
from resnet_jax.resolve import resolve
from resnet_jax.runs import identity
from resnet_jax.runs.checkpoints import Checkpoints
from resnet_jax.state import NEVER
from tests import tiny
from tests.parallel.test_devices import relative_difference
from tests.parallel.test_mesh import SEEDS, Setup
from tests.test_execution import mesh_of

SAMPLED_WAYS = [
    pytest.param(way, marks=[] if way == "separate" else pytest.mark.slow) for way in WAYS
]
OPTIONS = {"data__pad": 1, "data__flip": "on", "model__bn_group": 4, "model__shortcut": "B"}


@functools.cache  # compile each once for all tests
def one_device(way, **overrides):
    return Setup(1, 1, 1, replicates_by=way, **(OPTIONS | overrides))


def program(setup):
    """Returns the lowered text of the training step."""
    state = setup.programs.start(SEEDS)
    return setup.programs.train_steps.lower(state, *setup.arguments(0)).as_text()


def features(text):
    """Counts what distinguishes the ways' programs; "grouped" must be 0 for all."""
    groups = re.findall(r"(?:feature|batch)_group_count = (\d+)", text)
    products_of_several = re.findall(r"dot_general.* batching_dims", text)
    return {
        "convolutions": text.count("stablehlo.convolution"),
        "grouped": sum(int(count) > 1 for count in groups) + len(products_of_several),
        "additions": text.count("stablehlo.add"),
        "loops": text.count("stablehlo.while"),
    }


def test_each_way_is_a_different_program():
    counts = {way: features(program(one_device(way))) for way in WAYS}
    alone = features(program(Setup(4, 4, 1, **OPTIONS)))  # one seed per device
    assert alone["convolutions"] > 20
    assert alone["grouped"] == 0
    for way in WAYS:
        assert counts[way]["grouped"] == 0
    assert counts["separate"]["convolutions"] >= 3 * alone["convolutions"]
    assert counts["separate"]["additions"] < 2 * alone["additions"]
    assert counts["unroll"]["convolutions"] == 4 * alone["convolutions"]
    assert counts["unroll"]["additions"] > 3 * alone["additions"]
    assert counts["loop"]["convolutions"] == alone["convolutions"]
    assert counts["loop"]["loops"] > alone["loops"]


@pytest.mark.slow
@pytest.mark.compiler
def test_on_a_tpu_no_product_sees_two_seeds():
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("libtpu is not installed")

    def products(seeds):
        config = ours.config(
            "cifar", 8, batch_size=8, precision="default", scan="off", replicates=seeds
        )
        config.replicates_by = "separate"
        programs, others = shapes(config, [target.named("v5e")])
        text = programs.train_steps.lower(programs.state, *others).compile().as_text()
        # XLA for TPU turns matrix products into convolutions. A layout follows each shape.
        return Counter(re.findall(r"= (\w+\[[0-9,]+\])\S* convolution\(", text))

    one = products(1)
    assert one.total() > 3 * 7
    assert products(3) == Counter({shape: 3 * count for shape, count in one.items()})


@functools.cache
def alone(steps):
    """Returns each seed's state and metrics, trained in a run of its own."""
    setup, states = one_device("unroll", replicates=1), []
    train = setup.data.train
    for seed in SEEDS:
        seeds = np.array([seed], np.int32)
        state = setup.programs.start(seeds)
        batches = train.batches(seeds, spans(range(steps)), setup.config.batch_size, 1, TRAIN)
        for _, batch in batches:
            state, metrics = setup.programs.train_steps(
                state, seeds, setup.programs.numbers, train.arrays, batch
            )
        states.append(jax.device_get((state, metrics)))
    return states


@pytest.mark.parametrize("way", SAMPLED_WAYS)
def test_every_way_trains_a_seed_as_if_alone(way):
    setup = one_device(way)
    state = setup.programs.start(SEEDS)
    for number in range(4):
        state, metrics = setup.programs.train_steps(state, *setup.arguments(number))
    together = jax.device_get((state, metrics))
    for r, theirs in enumerate(alone(4)):
        ours = jax.tree.map(lambda a, r=r: a[r], together)
        theirs = jax.tree.map(lambda a: a[0], theirs)
        assert jax.tree.structure(ours) == jax.tree.structure(theirs)
        assert relative_difference(ours[0].params, theirs[0].params) < 1e-4
        assert relative_difference(ours[0].batch_stats, theirs[0].batch_stats) < 1e-4
        np.testing.assert_allclose(ours[1]["train/loss"], theirs[1]["train/loss"], rtol=1e-4)
    first, second = (alone(4)[r][0].params for r in (0, 1))
    assert relative_difference(first, second) > 0.5


@pytest.mark.parametrize("way", WAYS)
def test_every_way_evaluates_equally(way):
    def evaluated(way):
        setup = one_device(way)
        return setup.evaluate(setup.programs.start(SEEDS))

    (their_statistics, theirs), (statistics, result) = evaluated("unroll"), evaluated(way)
    assert relative_difference(their_statistics, statistics) < 1e-5
    np.testing.assert_allclose(theirs["loss"], result["loss"], rtol=1e-5)
    np.testing.assert_allclose(theirs["error"], result["error"], atol=0.6)  # one of 180 images


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_a_run_may_be_resumed_in_another_way(tmp_path, way):
    there, here = one_device("unroll"), one_device(way)
    assert identity.of(here.config.to_dict()) == identity.of(there.config.to_dict())
    state = there.train(2)
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=1)
    checkpoints.save(2, there.programs.to_saved(state))
    checkpoints.wait()
    restored = here.programs.from_saved(checkpoints.restore(here.programs.saved_state))
    checkpoints.close()
    tiny.assert_bit_equal(jax.device_get(state), jax.device_get(restored))
    ours, _ = here.programs.train_steps(restored, *here.arguments(2))
    theirs, _ = there.programs.train_steps(state, *there.arguments(2))
    assert relative_difference(theirs.params, ours.params) < 1e-4


SHARED = {"model__width": 1.0, "model__bn_group": 4, "batch_size": 32, "data__pad": 1}


@functools.cache
def trained_on_one_device():
    return jax.device_get(Setup(1, 1, 1, replicates_by="unroll", **SHARED).train(2))


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_every_way_splits_batches_and_parameters(way):
    # Two seeds per group; batches split over the data and fsdp axes and in two parts.
    setup = Setup(8, 2, 2, replicates_by=way, accumulate=2, **SHARED)
    assert tuple(setup.mesh.shape.values()) == (2, 2, 2)
    state = setup.train(2)
    assert jax.tree.map(lambda a: a.sharding, state) == setup.programs.state_shardings
    assert relative_difference(trained_on_one_device().params, state.params) < 1e-4
    assert relative_difference(trained_on_one_device().batch_stats, state.batch_stats) < 1e-4


def test_a_seed_with_its_own_device_is_computed_the_same_in_every_way():
    texts = {program(Setup(4, 4, 1, replicates_by=way)) for way in ("auto", *WAYS)}
    assert len(texts) == 1
    assert len({program(Setup(4, 2, 1, replicates_by=way)) for way in WAYS}) == len(WAYS)


@pytest.mark.parametrize(
    ("way", "platform", "groups", "side", "chosen"),
    [
        ("auto", "cpu", 1, 32, "separate"),
        ("auto", "gpu", 1, 32, "separate"),
        ("auto", "tpu", 2, 32, "separate"),
        ("auto", "gpu", 1, 64, "separate"),
        ("auto", "gpu", 1, 65, "loop"),
        ("auto", "gpu", 1, 224, "loop"),
        ("auto", "gpu", 4, 32, "unroll"),
        ("loop", "gpu", 4, 32, "unroll"),
        ("unroll", "gpu", 1, 32, "unroll"),
        ("separate", "cpu", 1, 32, "separate"),
        ("loop", "cpu", 2, 32, "loop"),
    ],
)
def test_the_way_is_chosen(way, platform, groups, side, chosen):
    c = resolve(tiny.config(replicates=4, replicates_by=way))
    c.data.image_size = side
    assert on_mesh(c, mesh_of(platform, groups)).seeds_by == chosen


@pytest.mark.parametrize(
    ("steps", "side", "chosen"),
    [(1000, 8, "separate"), (1001, 8, "unroll"), (62, 32, "separate"), (63, 32, "unroll")],
)
def test_a_cpu_unrolls_only_for_long_training(steps, side, chosen):
    c = resolve(tiny.config(replicates=4, steps=steps))
    c.data.image_size = side
    assert on_mesh(c, mesh_of("cpu", 1)).seeds_by == chosen
    c.replicates_by = "separate"
    assert on_mesh(c, mesh_of("cpu", 1)).seeds_by == "separate"


def test_a_run_records_its_way():
    for way in ("loop", "auto"):
        programs = one_device(way).programs
        facts = programs.execution.facts()
        assert facts["seeds_by"] == ("separate" if way == "auto" else way)
        shape = (8, 8, 1)
        assert summary.summarize(programs.model, shape) == summary.summarize(
            programs.model.clone(convolution=one_by_one), shape
        )


def without_seed(tree, seed=1):
    return jax.tree.map(lambda a: np.delete(np.asarray(a), seed, axis=0), tree)


# Between them they have every kind of layer.
NETS = {
    "post": (Architecture("basic", (2, 1), (4, 8)), {"stem": "imagenet"}),
    "pre": (Architecture("bottleneck", (2, 1), (4, 8)), {"preactivation": True}),
    "variants": (
        Architecture("bottleneck", (2, 1), (4, 8)),
        {"groups": 2, "se_reduction": 4, "stem": "deep", "shortcut_downsampling": "mean"},
    ),
}


@functools.cache
def small_step(way, net):
    """Returns a compiled step(variables, images, logit factors) and its healthy arguments.

    It returns losses, logits, statistics and gradients. The way "alone" maps over a single seed.
    """
    seeds, way = (1, "unroll") if way == "alone" else (3, way)
    one_device = meshes.make_mesh(devices=jax.devices()[:1])
    convolution, product = convolution_and_product(way, one_device)
    arch, options = NETS[net]
    model = ResNet(
        arch, num_classes=3, shortcut="B", convolution=convolution, product=product, **options
    )
    images = jax.random.normal(jax.random.key(0), (3, 4, 16, 16, 3))
    init = jax.jit(jax.vmap(lambda key: dict(model.lazy_init(key, images[0], train=True))))
    variables = init(jax.random.split(jax.random.key(1), 3))

    def step(variables, images_BHWC, factor):
        def loss(params, images_BHWC):
            state = variables | {"params": params}
            logits, updated = model.apply(state, images_BHWC, train=True, mutable=["batch_stats"])
            labels = jnp.arange(len(images_BHWC)) % 3
            return cross_entropy(factor * logits, labels, 0.0).mean(), (logits, updated)

        return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(
            variables["params"], images_BHWC
        )

    arguments = (variables, images, jnp.ones(3))
    mesh = meshes.make_mesh(devices=jax.devices()[:1])
    mapped = jax.jit(over_seeds(step, seeds, (0, 0, 0), mesh, way))
    given = jax.tree.map(lambda a: a[:seeds], arguments)
    return mapped.lower(*given).compile(), arguments


@pytest.mark.parametrize("way", SAMPLED_WAYS)
def test_every_way_computes_grouped_convolutions_of_a_seed_as_if_alone(way):
    (step, arguments), (alone, _) = (small_step(each, "variants") for each in (way, "alone"))
    together = step(*arguments)
    for seed in range(3):
        single = alone(*jax.tree.map(lambda a, seed=seed: a[seed : seed + 1], arguments))
        ours = jax.tree.map(lambda a, seed=seed: a[seed : seed + 1], together)
        assert relative_difference(single, ours) < 1e-4
    assert relative_difference(single, jax.tree.map(lambda a: a[:1], together)) > 0.1


def test_a_grouped_convolution_never_has_the_groups_of_several_seeds():
    step, _ = small_step("separate", "variants")
    groups = re.findall(r"(?:feature|batch)_group_count=(\d+)", step.as_text())
    assert set(groups) == {"2"}


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e30], ids=str)
@pytest.mark.parametrize("place", ["weights", "images", "gradient"])
@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("way", SAMPLED_WAYS)
def test_non_finite_numbers_in_one_seed_leave_the_others_alone(way, net, place, value):
    step, (variables, images, factors) = small_step(way, net)
    healthy = step(variables, images, factors)
    assert all(np.isfinite(a).all() for a in jax.tree.leaves(healthy))
    if place == "weights":
        kernel = variables["params"]["stage1_block2"]["conv1"]["kernel"]
        broken = jax.tree.map(lambda a: a.at[1, ..., 0].set(value) if a is kernel else a, variables)
        sick = step(broken, images, factors)
    elif place == "images":
        sick = step(variables, images.at[1, 0, 3, 3, 0].set(value), factors)
    else:
        sick = step(variables, images, factors.at[1].set(value))
    tiny.assert_bit_equal(without_seed(healthy), without_seed(sick))
    assert any((np.asarray(a)[1] != np.asarray(b)[1]).any() for a, b in zip(
        jax.tree.leaves(healthy), jax.tree.leaves(sick), strict=True
    ))  # fmt: skip


@functools.cache
def three_steps(way, value=None):
    """Returns the state, metrics and evaluation after three steps.

    Unless `value` is None, all weights of seed 1 are set to it before the third step.
    """
    setup = one_device(way)
    state = setup.programs.start(SEEDS)
    for number in range(3):
        if number == 2 and value is not None:
            params = jax.tree.map(lambda a: a.at[1].set(value), state.params)
            state = state.replace(params=params)
        state, metrics = setup.programs.train_steps(state, *setup.arguments(number))
    return jax.device_get((state, metrics, setup.evaluate(state)))


@pytest.mark.parametrize("value", [np.nan, np.inf], ids=str)
@pytest.mark.parametrize("way", SAMPLED_WAYS)
def test_a_seed_that_breaks_in_mid_run_is_the_only_one_to_diverge(way, value):
    healthy, sick = three_steps(way), three_steps(way, value)
    tiny.assert_bit_equal(without_seed(healthy), without_seed(sick))
    assert sick[1]["diverged_at"].tolist() == [NEVER, 3, NEVER, NEVER]
    assert healthy[1]["diverged_at"].tolist() == [NEVER] * 4
