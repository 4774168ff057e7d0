"""Meshes of eight devices give the same run as one device, with no needless communication."""

import re

import jax
import numpy as np
import pytest

from resnet_jax import train as trainer
from resnet_jax.data import datasets
from resnet_jax.data.order import TRAIN, spans
from resnet_jax.data.views import make_views
from resnet_jax.errors import UserError
from resnet_jax.evaluate import evaluate, population_statistics
from resnet_jax.execution import decide
from resnet_jax.parallel import mesh as meshes
from resnet_jax.programs import build
from resnet_jax.resolve import resolve
from resnet_jax.runs import identity, reader
from resnet_jax.runs.checkpoints import Checkpoints
from resnet_jax.state import POPULATION
from tests import tiny
from tests.parallel.test_devices import relative_difference

SEEDS = np.arange(4, dtype=np.int32)
COLLECTIVE = re.compile(r"(all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute)")


class Setup:
    """A run's parts on one mesh."""

    def __init__(self, devices, groups, fsdp, **overrides):
        overrides = {"replicates": len(SEEDS), "log__every": 1} | overrides
        c = resolve(tiny.config(**overrides))
        c.mesh.replicates, c.mesh.fsdp = groups, fsdp
        c.eval.population_examples, c.eval.batch_size = 32, 64
        execution = decide(c, jax.devices()[:devices])
        self.mesh = execution.mesh
        self.data = datasets.open_set(c.data, self.mesh)
        self.programs = build(c, execution, self.data.normalization, self.data.train.select)
        self.config = c

    def arguments(self, number):
        train, steps = self.data.train, spans(range(number, number + 1))
        parts = self.config.accumulate
        ((_, batch),) = train.batches(SEEDS, steps, self.config.batch_size, parts, TRAIN)
        return SEEDS, self.programs.numbers, train.arrays, batch

    def train(self, steps):
        state = self.programs.start(SEEDS)
        for number in range(steps):
            state, _ = self.programs.train_steps(state, *self.arguments(number))
        return state

    def evaluate(self, state):
        """Returns population statistics and the validation result that uses them."""
        variables = population_statistics(
            self.programs.observe_step,
            state.evaluated,
            self.data.train,
            SEEDS,
            self.config,
            self.programs.execution,
        )
        views = make_views("center", self.config.data, self.config.eval)
        result = evaluate(
            self.programs.eval_steps,
            variables,
            self.data.validation,
            views,
            self.programs.execution,
        )
        return jax.device_get((variables["batch_stats"], result))


# Wide enough that most parameters are split over the fsdp axis.
OPTIONS = {"model__width": 1.0, "model__bn_group": 4, "data__pad": 1, "ema_decay": 0.9}


@pytest.fixture(scope="module")
def one_device():
    setup = Setup(1, 1, 1, **OPTIONS)
    state = setup.train(2)
    evaluated = setup.evaluate(state)
    return jax.device_get(state), evaluated


@pytest.mark.parametrize(
    ("groups", "fsdp", "shape"),
    [
        (1, 1, (1, 8, 1)),
        pytest.param(4, 1, (4, 2, 1), marks=pytest.mark.slow),
        pytest.param(1, 4, (1, 2, 4), marks=pytest.mark.slow),
        pytest.param(2, 2, (2, 2, 2), marks=pytest.mark.slow),
        pytest.param(4, 2, (4, 1, 2), marks=pytest.mark.slow),
    ],
)
def test_every_mesh_gives_the_run_of_one_device(one_device, groups, fsdp, shape):
    setup = Setup(8, groups, fsdp, **OPTIONS)
    assert tuple(setup.mesh.shape.values()) == shape
    state = setup.train(2)
    assert len(state.params["logits"]["kernel"].sharding.device_set) == 8
    statistics, result = setup.evaluate(state)
    (ours, (their_statistics, theirs)) = one_device
    state = setup.programs.after_validation(state, result["error"])
    assert relative_difference(ours.params, state.params) < 1e-4
    assert relative_difference(ours.batch_stats, state.batch_stats) < 1e-4
    assert relative_difference(ours.ema, state.ema) < 1e-4
    assert relative_difference(their_statistics, statistics) < 1e-4
    np.testing.assert_allclose(theirs["loss"], result["loss"], rtol=1e-4)
    assert state.best.step.tolist() == [2] * 4
    assert jax.tree.map(lambda a: a.sharding, state) == setup.programs.state_shardings


@pytest.mark.slow
def test_stacked_blocks_on_every_axis_train_as_on_one_device():
    options = OPTIONS | {"model__depth": 20, "model__scan": "on", "optimizer__name": "lars"}
    one, eight = (Setup(*shape, **options).train(1) for shape in ((1, 1, 1), (8, 2, 2)))
    stack = eight.params["stage3_rest"]["conv1"]["kernel"]
    assert stack.shape[:2] == (4, 2)  # replicates, blocks
    assert stack.addressable_shards[0].data.size == stack.size / 4  # replicates and fsdp
    assert relative_difference(one.params, eight.params) < 1e-4


def bytes_on_first_device(tree):
    shards = [a.addressable_shards[0].data for a in jax.tree.leaves(tree)]
    return sum(shard.nbytes for shard in shards)


def test_fsdp_splits_parameters_and_optimiser_state():
    replicated, shared = (Setup(8, 1, fsdp, **OPTIONS).train(1) for fsdp in (1, 8))
    for part in (lambda s: s.params, lambda s: s.opt_state, lambda s: s.best.variables["params"]):
        whole, share = bytes_on_first_device(part(replicated)), bytes_on_first_device(part(shared))
        # An eighth of each large array and all of each small one.
        assert whole / 8 < share < whole / 6
    stem = shared.params["stem_conv"]["kernel"]
    assert stem[0].size < 1024  # too few to split
    assert stem.sharding.is_fully_replicated


def compiled(setup):
    state = setup.programs.start(SEEDS)
    return {
        "train_steps": setup.programs.train_steps.lower(state, *setup.arguments(0)),
        "after_validation": setup.programs.after_validation.lower(
            state, jax.device_put(np.zeros(4, np.float32), meshes.by_replicate(setup.mesh))
        ),
        "observe_step": setup.programs.observe_step.lower(
            state.evaluated, SEEDS, POPULATION, 0, *setup.arguments(0)[2:]
        ),
    }


def collectives(lowered):
    return set(COLLECTIVE.findall(lowered.compile().as_text()))


@pytest.mark.slow
def test_seeds_on_devices_of_their_own_never_communicate():
    options = OPTIONS | {"optimizer__clip_norm": 1.0}
    for name, lowered in compiled(Setup(4, 4, 1, **options)).items():
        assert not collectives(lowered), name
    # With batches split over the devices, the same programs do.
    for name, lowered in compiled(Setup(4, 1, 1, **options)).items():
        assert bool(collectives(lowered)) == (name != "after_validation"), name


def test_groups_communicate_only_within_themselves():
    text = compiled(Setup(8, 4, 1, **OPTIONS))["train_steps"].compile().as_text()
    groups = re.findall(r"replica_groups=(\S+?),? ", text)
    assert groups
    for group in groups:
        # Devices 2r and 2r+1 train seed r: {{0,1},{2,3},...}, abbreviated [4,2]<=[8].
        assert group.rstrip(",") in ("{{0,1},{2,3},{4,5},{6,7}}", "[4,2]<=[8]"), group


@pytest.mark.parametrize(
    ("devices", "groups", "fsdp"),
    [
        (4, 2, 2),
        (1, 1, 1),
        (8, 4, 1),
    ],
)
@pytest.mark.slow
def test_a_checkpoint_can_be_resumed_on_another_mesh(tmp_path, devices, groups, fsdp):
    options = OPTIONS | {"model__depth": 14}  # deep enough that checkpoints stack blocks
    there = Setup(8, 1, 8, **options)
    state = there.train(2)
    saved = jax.device_get(state)
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=1)
    checkpoints.save(2, there.programs.to_saved(state))
    checkpoints.wait()
    here = Setup(devices, groups, fsdp, **options)
    restored = here.programs.from_saved(checkpoints.restore(here.programs.saved_state))
    checkpoints.close()
    tiny.assert_bit_equal(saved, jax.device_get(restored))
    assert jax.tree.map(lambda a: a.sharding, restored) == here.programs.state_shardings
    assert here.programs.state_shardings != there.programs.state_shardings
    here.programs.train_steps(restored, *here.arguments(2))


@pytest.mark.parametrize("devices", [(1, 1, 1), (8, 2, 2)])
def test_looped_and_unrolled_runs_save_equal_checkpoints(devices):
    options = OPTIONS | {"model__depth": 20}
    looped, unrolled = (Setup(*devices, model__scan=scan, **options) for scan in ("on", "off"))
    setups = (looped, unrolled)
    states = [setup.programs.start(SEEDS) for setup in setups]
    assert "stage1_rest" in states[0].params
    assert "stage1_block3" in states[1].params
    saved = [setup.programs.to_saved(state) for setup, state in zip(setups, states, strict=True)]
    tiny.assert_bit_equal(*jax.device_get(saved))
    shapes = jax.tree.map(lambda a: (a.shape, a.dtype), unrolled.programs.saved_state)
    assert shapes == jax.tree.map(lambda a: (a.shape, a.dtype), saved[1])
    again = unrolled.programs.from_saved(saved[0])
    tiny.assert_bit_equal(*jax.device_get((again, states[1])))
    assert jax.tree.map(lambda a: a.sharding, again) == unrolled.programs.state_shardings


@pytest.mark.slow
def test_a_run_may_be_resumed_on_another_mesh(tmp_path):
    def run(folder, steps, **mesh):
        return trainer.train(tiny.config(replicates=2, steps=steps, **mesh), str(folder))

    folder = tmp_path / "run"
    assert run(folder, 12, mesh__fsdp=2, mesh__replicates=1) == "completed"
    assert reader.read(folder).environment["execution"]["mesh"] == {
        "replicates": 1,
        "data": 4,
        "fsdp": 2,
    }
    identity.refuse_other(folder, resolve(tiny.config(replicates=2, steps=12)).to_dict())
    with pytest.raises(UserError, match="steps"):
        identity.refuse_other(folder, resolve(tiny.config(replicates=2, steps=8)).to_dict())
    # By default a run spreads its seeds over as many groups as possible.
    assert run(tmp_path / "auto", 12) == "completed"
    facts = reader.read(tmp_path / "auto")
    assert facts.environment["execution"]["mesh"] == {"replicates": 2, "data": 4, "fsdp": 1}
    for a, b in zip(tiny.lines(folder), tiny.lines(tmp_path / "auto"), strict=True):
        assert a.keys() == b.keys()
        if "train/loss" in a:
            np.testing.assert_allclose(a["train/loss"], b["train/loss"], rtol=1e-3)


@pytest.mark.parametrize(
    ("mesh", "words"),
    [
        (
            {"mesh__fsdp": 3},
            r"mesh\.fsdp=3 does not divide the 8 devices; allowed are 1, 2, 4 or 8",
        ),
        ({"mesh__replicates": 4}, r"mesh\.replicates=4 .* replicates=6 .* allowed are 1 or 2"),
        (
            {"batch_size": 24, "accumulate": 2, "model__bn_group": 4, "mesh__replicates": 1},
            r"batch_size=24 .* 8 devices in accumulate=2 parts; .* multiples of 16 \(nearest: 32\)",
        ),
        ({"batch_size": 10}, r"batch_size=10 .* 4 devices; .* multiples of 4 \(nearest: 8\)"),
    ],
)
def test_a_mesh_that_does_not_fit_is_refused(tmp_path, mesh, words):
    with pytest.raises(UserError, match=words):
        trainer.train(tiny.config(replicates=6, **mesh), str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()
