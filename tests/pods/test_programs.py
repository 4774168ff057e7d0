"""What the chips of compiled pods send each other, with TPU's own compiler; nothing runs."""

import importlib.util

import pytest

from benchmarks.peers import ours
from experiments.pods import program, target
from resnet_jax.data import sets
from resnet_jax.networks import summary
from resnet_jax.resolve import resolve

pytestmark = [
    pytest.mark.slow,
    pytest.mark.compiler,
    pytest.mark.skipif(
        importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed"
    ),
]


def config(family="cifar", depth=8, *, replicates=1, fsdp=1, **changes):
    found = ours.config(family, depth, precision="default", replicates=replicates, **changes)
    found.mesh.fsdp = fsdp
    return resolve(found)


def needs(chips, **changes):
    return program.Compiler(target.parse(chips).devices()).needs(config(**changes))


def parameters(**changes):
    found = config(**changes)
    programs, _ = program.shapes(found, [target.named("v5e")])
    return summary.summarize(programs.model, sets.image_shape(found.data)).parameters


def test_seeds_on_separate_chips_send_nothing():
    alone = needs("v5e:2x2", replicates=4, batch_size=32)
    assert alone.collectives == ()
    # The split of 45,000 images lies in the program's memory once, in the layout it is given.
    assert alone.temporaries < 45_000 * 3072 < alone.memory
    shared = needs("v5e:2x2", replicates=2, batch_size=32, bn_group=16)
    assert {each.axes for each in shared.collectives} == {("data",)}


def test_groups_of_a_chip_with_a_seed_of_its_own_are_not_padded():
    """TPUs round the last dimension of an array up to 128: 64 images would take twice the bytes."""
    settings = {"bn_group": 64, "dtype": "bfloat16", "scan": "off"}
    alone = needs("v5e:2x2", replicates=4, batch_size=128, **settings)
    shared = needs("v5e:2x2", batch_size=512, **settings)
    assert alone.moved <= 1.1 * shared.moved
    assert alone.temporaries <= shared.temporaries


@pytest.mark.parametrize(("dtype", "scan"), [("bfloat16", "on"), ("float32", "off")])
def test_data_parallelism_sends_every_gradient_once_in_float32(dtype, scan):
    # 20 layers: a loop over two blocks in each stage, if blocks run in loops.
    settings = {"batch_size": 64, "bn_group": 16, "dtype": dtype, "depth": 20, "scan": scan}
    found = needs("v5e:2x2", **settings)
    steps = found.steps
    assert {each.kind for each in found.collectives} == {"all-reduce"}
    # With statistics of groups that each lie on one chip, only gradients and metrics are sent.
    assert {each.axes for each in found.collectives} == {("data",)}
    assert {dtype for each in found.collectives for dtype in each.sizes} == {"f32"}
    sent = sum(each.size * each.times for each in found.collectives) / steps
    assert 4 * parameters(**settings) <= sent < 4 * parameters(**settings) + 10_000


def test_batchnorms_of_several_chips_send_their_statistics():
    found = needs("v5e:2x2", batch_size=64, bn_group=32)
    assert {each.axes for each in found.collectives} == {("data",), ("groups of 2",)}
    of_groups = [each for each in found.collectives if each.axes == ("groups of 2",)]
    assert {dtype for each in of_groups for dtype in each.sizes} == {"f32"}
    assert all("norm" in each.source for each in of_groups)
    # A few sums per channel, of which seven norms have 3 x 16 + 2 x 32 + 2 x 64.
    assert sum(each.size * each.times for each in of_groups) / found.steps <= 8 * 4 * 240


def test_fsdp_sends_parameters_and_gradients_and_no_activations():
    settings = {"batch_size": 64, "bn_group": 16, "dtype": "bfloat16", "depth": 14}
    found = needs("v5e:2x2", fsdp=4, **settings)
    kinds = {each.kind for each in found.collectives}
    assert kinds == {"all-gather", "all-reduce", "reduce-scatter"}
    count = parameters(**settings)
    gathered = sum(e.size * e.times for e in found.collectives if e.kind == "all-gather")
    # Each kernel is gathered for the forward pass and perhaps again for the backward pass.
    assert gathered / found.steps <= 2 * 4 * count
    added = sum(e.size * e.times for e in found.collectives if e.kind != "all-gather")
    assert added / found.steps < 4 * count + 10_000
    # An activation of stage 1 is 16 images x 32 x 32 x 16 channels x 2 bytes = 524 kB.
    assert max(each.size for each in found.collectives) < 4 * count


def test_more_chips_change_only_the_groups():
    few, many = (
        needs(chips, batch_size=8 * count, bn_group=8)
        for chips, count in (("v5e:2x2", 4), ("v5e:4x4", 16))
    )
    as_sent = [
        [(each.kind, each.sizes, each.axes, each.times, each.source) for each in found.collectives]
        for found in (few, many)
    ]
    assert as_sent[0] == as_sent[1]
    assert (few.flops, few.moved) == (many.flops, many.moved)
    assert few.memory == pytest.approx(many.memory, rel=1e-3)  # the program's own code is longer
    assert {each.chips for each in many.collectives} == {16}
