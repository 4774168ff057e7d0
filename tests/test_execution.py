"""Several steps per dispatch give the results of single steps, and runs stop between dispatches."""

import dataclasses
import types

import jax
import numpy as np
import pytest

from resnet_jax import train as trainer
from resnet_jax.data.order import spans
from resnet_jax.errors import UserError
from resnet_jax.execution import on_mesh
from resnet_jax.networks.signals import SIGNALS
from resnet_jax.resolve import resolve
from resnet_jax.runs import reader
from tests import tiny
from tests.data import pictures
from tests.parallel.test_devices import relative_difference, train

# Rows, evaluations and checkpoints at multiples of 4, and one more step at the end.
EVERY = {"steps": 9, "log__every": 4, "eval__every": 8, "checkpoint__every": 4}
TWO = EVERY | {"train__steps_per_dispatch": "2"}


# ---------------------------------------------------------------------------------- the spans


@pytest.mark.parametrize(
    ("steps", "at_once", "starts"),
    [
        (range(4), 1, [0, 1, 2, 3]),
        (range(12), 4, [0, 4, 8]),
        (range(8, 14), 4, [8, 12, 13]),
        (range(3, 10), 4, [3, 4, 8, 9]),
        (range(3), 4, [0, 1, 2]),
        (range(5, 5), 4, []),
    ],
)
def test_spans(steps, at_once, starts):
    result = list(spans(steps, at_once))
    assert [span.start for span in result] == starts
    assert [number for span in result for number in span] == list(steps)


def test_a_resumed_run_has_the_spans_of_an_undisturbed_one():
    undisturbed = list(spans(range(103), 8))
    for i, span in enumerate(undisturbed):
        assert list(spans(range(span.stop, 103), 8)) == undisturbed[i + 1 :]


def mesh_of(platform, groups=1, size=1):
    device = types.SimpleNamespace(platform=platform, device_kind="of a test")
    return types.SimpleNamespace(
        devices=np.array([device]), size=size, shape={"replicates": groups, "data": 1, "fsdp": 1}
    )


@pytest.mark.parametrize(
    ("platform", "every", "chosen"),
    [
        ("gpu", (100, 1000, 1000), 25),
        ("tpu", (20, 40, 80), 20),
        ("gpu", (64, 1024, 256), 32),
        ("gpu", (3, 5, 4), 1),
        ("cpu", (100, 1000, 1000), 1),
    ],
)
def test_auto_is_the_largest_allowed_number_on_accelerators(platform, every, chosen):
    log, evaluation, checkpoint = every
    c = resolve(tiny.config(log__every=log, eval__every=evaluation, checkpoint__every=checkpoint))
    assert on_mesh(c, mesh_of(platform)).steps_per_dispatch == chosen


@pytest.mark.parametrize(
    ("platform", "size", "waits"), [("cpu", 1, False), ("cpu", 2, True), ("gpu", 2, False)]
)
def test_programs_wait_for_each_other_only_on_several_cpu_devices(platform, size, waits):
    execution = on_mesh(resolve(tiny.config()), mesh_of(platform, size=size))
    assert execution.waits == waits
    assert execution.unroll == (platform == "cpu")


def test_auto_is_one_step_for_streamed_pictures(tmp_path):
    pictures.prepare(tmp_path)
    c = resolve(pictures.config(tmp_path, log__every=4, eval__every=4))
    c.checkpoint.every = 4
    assert on_mesh(c, mesh_of("gpu")).steps_per_dispatch == 1
    c.train.steps_per_dispatch = "2"
    assert on_mesh(c, mesh_of("gpu")).steps_per_dispatch == 2


@pytest.mark.parametrize(
    ("value", "nearest"), [("3", "2"), ("7", "4"), ("0", "1"), ("-4", ""), ("aut", "auto")]
)
def test_a_number_that_does_not_divide_is_refused(value, nearest):
    with pytest.raises(UserError) as refused:
        resolve(tiny.config(**TWO | {"train__steps_per_dispatch": value}))
    text = str(refused.value)
    assert text.startswith(
        f"train.steps_per_dispatch={value!r} does not divide log.every=4, log.signals.every=0, "
        "eval.every=8 and checkpoint.every=4; allowed are auto, 1, 2, 4"
    )
    if nearest:
        assert text.endswith(f" (nearest: {nearest}).")


# ----------------------------------------------------------------------------------- training


@pytest.mark.parametrize(
    "on",
    [
        {"devices": 1, "accumulate": 2},
        pytest.param(
            {"devices": 8, "groups": 2, "fsdp": 2, "seeds": (0, 1)}, marks=pytest.mark.slow
        ),
    ],
    ids=str,
)
def test_two_steps_per_dispatch_equal_single_steps(on):
    on = on | {"model__bn_group": 4, "data__pad": 1, "ema_decay": 0.9, "log__signals__every": 2}
    before, _ = train(steps=0, **on)
    single, single_metrics = train(steps=3, **on)
    double, double_metrics = train(steps=3, at_once=2, **on)
    assert (len(single_metrics), len(double_metrics)) == (3, 2)
    single_change, double_change = (
        jax.tree.map(lambda a, b: b - a, (before.params, before.ema), (after.params, after.ema))
        for after in (single, double)
    )
    assert relative_difference(single_change, double_change) < 1e-3
    assert set(single.step.tolist()) == set(double.step.tolist()) == {3}
    # Rows are those of a dispatch's last step, signals those of its first.
    for ours, last, first in zip(
        double_metrics, single_metrics[1:], single_metrics[::2], strict=True
    ):
        flat = {**ours, **ours[SIGNALS]}
        assert len(ours[SIGNALS]) == 3 * 8  # of each kernel of an 8-layer network
        for name, value in {**last, **first[SIGNALS]}.items():
            if name != SIGNALS:
                np.testing.assert_allclose(flat[name], value, rtol=1e-3, err_msg=name)


@pytest.fixture
def dispatched(monkeypatch):
    """The number of steps in each dispatch of a run."""
    counts = []
    build = trainer.build

    def counted(*args):
        programs = build(*args)

        def call(*arguments):
            counts.append(arguments[-1].shape[1])
            return programs.train_steps(*arguments)

        return dataclasses.replace(programs, train_steps=call)

    monkeypatch.setattr(trainer, "build", counted)
    return counts


def run(folder, **overrides):
    return trainer.train(tiny.config(**overrides), str(folder))


@pytest.mark.slow
def test_a_run_of_two_steps_per_dispatch_equals_one_of_single_steps_and_can_be_stopped(
    tmp_path, monkeypatch, dispatched
):
    # It resumes with single steps, since steps_per_dispatch is not part of a run's identity.
    with monkeypatch.context() as patch:
        tiny.stop_when_asked(patch, 2)
        assert run(tmp_path / "one", **TWO) == "preempted"
    assert reader.read(tmp_path / "one").status["step"] == 4
    assert run(tmp_path / "one", **EVERY) == "completed"
    assert dispatched == [2, 2, 1, 1, 1, 1, 1]
    dispatched.clear()

    assert run(tmp_path / "two", **TWO) == "completed"
    assert dispatched == [2, 2, 2, 2, 1]
    one, two = reader.read(tmp_path / "one"), reader.read(tmp_path / "two")
    assert two.environment["execution"]["steps_per_dispatch"] == 2
    for ours, theirs in zip(tiny.lines(two.path), tiny.lines(one.path), strict=True):
        assert ours.keys() == theirs.keys()
        for key, value in ours.items():
            # One more error in 180 images is 0.6 points.
            np.testing.assert_allclose(value, theirs[key], rtol=0.02, atol=1.0, err_msg=key)

    with monkeypatch.context() as patch:
        tiny.stop_when_asked(patch, 3)
        assert run(tmp_path / "stopped", **TWO) == "preempted"
    assert reader.read(tmp_path / "stopped").status["step"] == 6
    assert run(tmp_path / "stopped", **TWO) == "completed"
    assert tiny.lines(tmp_path / "stopped") == tiny.lines(two.path)
    tiny.assert_bit_equal(tiny.final_state(tmp_path / "stopped"), tiny.final_state(two.path))


def test_divergence_inside_a_dispatch_is_reported_with_its_step(tmp_path):
    diverging = EVERY | {"schedule__rate": 1e30, "train__steps_per_dispatch": "4"}
    assert run(tmp_path / "run", **diverging) == "diverged"
    # With weights of 1e30 the first step's loss is still finite; a few squares later it is not.
    (at,) = reader.read(tmp_path / "run").status["diverged"].values()
    assert 1 <= at < 4
