"""Several steps in one program are those steps one after another, and a run may stop between."""

import dataclasses
import types

import jax
import numpy as np
import pytest

from resnet_jax import train as trainer
from resnet_jax.data.order import spans
from resnet_jax.errors import UserError
from resnet_jax.execution import on_mesh
from resnet_jax.resolve import resolve
from resnet_jax.runs import reader
from tests import tiny
from tests.data import pictures
from tests.parallel.test_devices import relative_difference, train

# Lines, evaluations and checkpoints at multiples of 4; one step is left over at the end.
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
    found = list(spans(steps, at_once))
    assert [span.start for span in found] == starts
    assert [number for span in found for number in span] == list(steps)


def test_a_run_that_goes_on_has_the_spans_of_one_that_was_not_stopped():
    whole = list(spans(range(103), 8))
    for span in whole:
        assert list(spans(range(span.stop, 103), 8)) == whole[whole.index(span) + 1 :]


def mesh_of(platform, places=1):
    device = types.SimpleNamespace(platform=platform)
    return types.SimpleNamespace(
        devices=np.array([device]), size=1, shape={"replicates": places, "data": 1, "fsdp": 1}
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
def test_what_is_chosen(platform, every, chosen):
    log, evaluation, checkpoint = every
    c = resolve(tiny.config(log__every=log, eval__every=evaluation, checkpoint__every=checkpoint))
    assert on_mesh(c, mesh_of(platform)).steps_per_dispatch == chosen


def test_streamed_pictures_come_a_step_at_a_time(tmp_path):
    pictures.prepare(tmp_path)
    c = resolve(pictures.config(tmp_path, log__every=4, eval__every=4))
    c.checkpoint.every = 4
    assert on_mesh(c, mesh_of("gpu")).steps_per_dispatch == 1
    c.train.steps_per_dispatch = "2"
    assert on_mesh(c, mesh_of("gpu")).steps_per_dispatch == 2


@pytest.mark.parametrize(
    ("value", "nearest"), [("3", "2"), ("7", "4"), ("0", "1"), ("-4", ""), ("aut", "auto")]
)
def test_what_does_not_divide_is_one_sentence(value, nearest):
    with pytest.raises(UserError) as refused:
        resolve(tiny.config(**TWO | {"train__steps_per_dispatch": value}))
    text = str(refused.value)
    assert text.startswith(
        f"train.steps_per_dispatch={value!r} does not divide log.every=4, eval.every=8 and "
        "checkpoint.every=4; allowed are auto, 1, 2, 4"
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
def test_steps_together_are_the_steps_one_by_one(on):
    on = on | {"model__bn_group": 4, "data__pad": 1, "ema_decay": 0.9}
    before, _ = train(steps=0, **on)
    alone, each = train(steps=3, **on)
    together, last = train(steps=3, at_once=2, **on)
    assert (len(each), len(last)) == (3, 2)
    moved, moved_together = (
        jax.tree.map(lambda a, b: b - a, (before.params, before.ema), (after.params, after.ema))
        for after in (alone, together)
    )
    assert relative_difference(moved, moved_together) < 1e-3
    assert set(alone.step.tolist()) == set(together.step.tolist()) == {3}
    for ours, theirs in zip(last, each[1:], strict=True):
        for name, value in theirs.items():
            np.testing.assert_allclose(ours[name], value, rtol=1e-3, err_msg=name)


@pytest.fixture
def handed_over(monkeypatch):
    """The steps that each call of a run's program was handed."""
    found = []
    build = trainer.build

    def counted(*args):
        programs = build(*args)

        def call(state, seeds, arrays, batches):
            found.append(batches.shape[1])
            return programs.train_steps(state, seeds, arrays, batches)

        return dataclasses.replace(programs, train_steps=call)

    monkeypatch.setattr(trainer, "build", counted)
    return found


def run(folder, **overrides):
    return trainer.train(tiny.config(**overrides), str(folder))


@pytest.mark.slow
def test_a_run_in_spans_is_the_run_step_by_step_and_stops_between_them(
    tmp_path, monkeypatch, handed_over
):
    # On the way it goes on step by step: how many go together is no part of a run's identity.
    with monkeypatch.context() as patch:
        tiny.stop_when_asked(patch, 2)
        assert run(tmp_path / "one", **TWO) == "preempted"
    assert reader.read(tmp_path / "one").status["step"] == 4
    assert run(tmp_path / "one", **EVERY) == "completed"
    assert handed_over == [2, 2, 1, 1, 1, 1, 1]
    handed_over.clear()

    assert run(tmp_path / "two", **TWO) == "completed"
    assert handed_over == [2, 2, 2, 2, 1]
    one, two = reader.read(tmp_path / "one"), reader.read(tmp_path / "two")
    assert two.environment["execution"]["steps_per_dispatch"] == 2
    for ours, theirs in zip(tiny.lines(two.path), tiny.lines(one.path), strict=True):
        assert ours.keys() == theirs.keys()
        for key, value in ours.items():
            # One more picture of 180 misclassified is 0.6 points.
            np.testing.assert_allclose(value, theirs[key], rtol=0.02, atol=1.0, err_msg=key)

    with monkeypatch.context() as patch:
        tiny.stop_when_asked(patch, 3)
        assert run(tmp_path / "stopped", **TWO) == "preempted"
    assert reader.read(tmp_path / "stopped").status["step"] == 6
    assert run(tmp_path / "stopped", **TWO) == "completed"
    assert tiny.lines(tmp_path / "stopped") == tiny.lines(two.path)
    tiny.assert_bit_equal(tiny.final_state(tmp_path / "stopped"), tiny.final_state(two.path))


def test_a_loss_that_is_not_finite_inside_a_span_is_said_of_its_step(tmp_path):
    diverging = EVERY | {"schedule__rate": 1e30, "train__steps_per_dispatch": "4"}
    assert run(tmp_path / "run", **diverging) == "diverged"
    # With weights of 1e30 the first step's loss is still finite; a few squares later it is not.
    (at,) = reader.read(tmp_path / "run").status["diverged"].values()
    assert 1 <= at < 4
