"""Gradients and runs are the same on one device and eight, for a seed alone and among three."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet_jax.data import datasets
from resnet_jax.data.order import TRAIN, spans
from resnet_jax.execution import decide
from resnet_jax.parallel import mesh as meshes
from resnet_jax.programs import build
from resnet_jax.resolve import resolve
from resnet_jax.state import POPULATION
from tests import tiny


def mesh_of(devices):
    return meshes.make_mesh(devices=jax.devices()[:devices])


def parts_of(c, devices):
    """Returns the data and the programs of a resolved config on `devices` devices."""
    execution = decide(c, jax.devices()[:devices])
    data = datasets.open_set(c.data, execution.mesh)
    return data, build(c, execution, data.normalization, data.train.select)


@functools.lru_cache(maxsize=4)  # so that tests share compiled programs
def made(devices, replicates, groups, fsdp, overrides):
    c = resolve(tiny.config(replicates=replicates, **dict(overrides)))
    c.mesh.replicates, c.mesh.fsdp = groups, fsdp
    return c, *parts_of(c, devices)


def train(devices, steps, seeds=(0,), groups=1, fsdp=1, at_once=1, resumed=None, **overrides):
    """Takes `steps` steps, from the state `resumed` if it is given.

    Returns the state and each span's metrics, on the host.
    """
    overrides = tuple(({"log__every": 1} | overrides).items())
    c, data, programs = made(devices, len(seeds), groups, fsdp, overrides)
    seeds = np.asarray(seeds, np.int32)
    state = programs.start(seeds) if resumed is None else resumed
    start = int(state.step[0])
    history = []
    steps_by_span = spans(range(start, start + steps), at_once)
    for _, batch in data.train.batches(seeds, steps_by_span, c.batch_size, c.accumulate, TRAIN):
        state, metrics = programs.train_steps(
            state, seeds, programs.numbers, data.train.arrays, batch
        )
        assert len(state.params["logits"]["kernel"].sharding.device_set) == devices
        history.append(jax.device_get(metrics))
    return jax.device_get(state), history


# One step of plain gradient descent at rate 1: the parameters change by minus the gradient.
GRADIENT = {
    "optimizer__momentum": 0.0,
    "optimizer__weight_decay": 0.0,
    "schedule__rate": 1.0,
    "data__pad": 1,
    "data__flip": "on",
}


def gradients(devices, group):
    after, _ = train(devices, 1, model__bn_group=group, **GRADIENT)
    before, _ = train(devices, 0, model__bn_group=group, **GRADIENT)
    return jax.tree.map(lambda a, b: b - a, after.params, before.params)


def relative_difference(a, b):
    a, b = (np.concatenate([x.ravel() for x in jax.tree.leaves(t)]) for t in (a, b))
    return np.linalg.norm(a - b) / np.linalg.norm(a)


def test_eight_devices_have_the_gradients_of_one():
    assert mesh_of(8).size == 8
    assert mesh_of(1).size == 1
    one, eight, other_group = gradients(1, 4), gradients(8, 4), gradients(1, 0)
    # The statistics group changes the gradient; the number of devices does not.
    assert relative_difference(one, other_group) > 1e-2
    assert relative_difference(one, eight) < 1e-5


def test_a_group_across_devices_has_the_gradients_of_one_device():
    assert relative_difference(gradients(1, 0), gradients(8, 0)) < 1e-5


@pytest.mark.slow
def test_a_run_on_eight_devices_equals_one_on_one():
    settings_ = {"model__bn_group": 4, "data__pad": 1, "ema_decay": 0.9}
    (one, rows_one), (eight, rows_eight) = (train(n, 6, **settings_) for n in (1, 8))
    assert relative_difference(one.params, eight.params) < 1e-4
    assert relative_difference(one.batch_stats, eight.batch_stats) < 1e-4
    assert relative_difference(one.ema, eight.ema) < 1e-4
    for a, b in zip(rows_one, rows_eight, strict=True):
        np.testing.assert_allclose(a["train/loss"], b["train/loss"], rtol=1e-4)


@pytest.mark.slow
def test_each_replicate_is_the_seed_trained_alone():
    settings_ = {"data__pad": 1, "data__flip": "on", "model__bn_group": 8}
    together, rows = train(1, 5, seeds=(3, 4, 5), **settings_)
    for r, seed in enumerate((3, 4, 5)):
        alone, rows_alone = train(1, 5, seeds=(seed,), **settings_)
        ours = jax.tree.map(lambda a, r=r: a[r], together)
        theirs = jax.tree.map(lambda a: a[0], alone)
        assert relative_difference(ours.params, theirs.params) < 1e-4
        assert relative_difference(ours.batch_stats, theirs.batch_stats) < 1e-4
        for a, b in zip(rows, rows_alone, strict=True):
            np.testing.assert_allclose(a["train/loss"][r], b["train/loss"][0], rtol=1e-4)
    params = [jax.tree.map(lambda a, r=r: a[r], together.params) for r in range(3)]
    assert relative_difference(params[0], params[1]) > 0.5
    assert relative_difference(params[1], params[2]) > 0.5


@pytest.mark.parametrize(
    ("devices", "parts", "seeds"),
    [pytest.param(1, 4, (0,), marks=pytest.mark.slow), (2, 2, (0, 1))],
)
def test_accumulating_parts_equals_one_step_of_the_whole_batch(devices, parts, seeds):
    settings_ = {"model__bn_group": 4, "data__pad": 1, "data__flip": "on", "ema_decay": 0.9}
    whole, rows_whole = train(1, 3, seeds, **settings_)
    split, rows_split = train(devices, 3, seeds, accumulate=parts, **settings_)
    assert relative_difference(whole.params, split.params) < 1e-5
    assert relative_difference(whole.batch_stats, split.batch_stats) < 1e-5
    assert relative_difference(whole.ema, split.ema) < 1e-5
    for a, b in zip(rows_whole, rows_split, strict=True):
        np.testing.assert_allclose(a["train/loss"], b["train/loss"], rtol=1e-5)
        assert a["train/error"].tolist() == b["train/error"].tolist()


@pytest.mark.parametrize(("parts", "rows"), [(1, {16}), (4, {4})])
def test_no_layer_sees_more_than_a_part(parts, rows):
    c = resolve(tiny.config(accumulate=parts, model__bn_group=4))
    data, programs = parts_of(c, 1)
    seeds = np.zeros(1, np.int32)
    _, batch = next(data.train.batches(seeds, spans(range(1)), c.batch_size, c.accumulate, TRAIN))
    lowered = programs.train_steps.lower(
        programs.start(seeds), seeds, programs.numbers, data.train.arrays, batch
    )
    moments = programs.observe_step.lower(
        programs.start(seeds).evaluated, seeds, POPULATION, 0, data.train.arrays, batch
    )
    for program in (lowered, moments):
        # The forward convolutions: [batch, height, width, in] times [3, 3, in, out].
        forward = re.findall(r"\[b, 0, 1, f\]x\[0, 1, i, o\].*: \(tensor<(\d+)x", program.as_text())
        assert {int(batch) for batch in forward} == rows


@pytest.mark.parametrize(
    "overrides",
    [
        {"label_smoothing": 0.2},
        {"optimizer__clip_norm": 0.01},
        {"optimizer__name": "adamw"},
        {"optimizer__name": "lars"},
        {"optimizer__decay_on": "kernels", "optimizer__weight_decay": 0.1},
        {"model__bn_group": 4},
        {"data__pad": 1},
        {"data__flip": "on"},
        {"data__mean": "channel"},
    ],
    ids=lambda o: next(iter(o)),
)
def test_every_setting_reaches_the_step(overrides, plain_run):
    other, _ = train(1, 2, **({"optimizer__weight_decay": 0.1} | overrides))
    assert relative_difference(plain_run.params, other.params) > 1e-6


@pytest.fixture(scope="module")
def plain_run():
    return train(1, 2, optimizer__weight_decay=0.1)[0]


def test_bfloat16_trains_and_keeps_its_state_in_float32(plain_run):
    half, rows = train(1, 2, model__dtype="bfloat16", optimizer__weight_decay=0.1)
    assert 1e-5 < relative_difference(plain_run.params, half.params) < 0.5
    assert {a.dtype for a in jax.tree.leaves((half.params, half.batch_stats))} == {
        np.dtype("float32")
    }
    assert np.isfinite(rows[-1]["train/loss"]).all()


def test_ema_is_the_average_of_weights_and_statistics():
    # The decay ramps up as 1/10, 2/11, 3/12 and is capped at 0.2, in the third step.
    states = [train(1, n, ema_decay=0.2)[0] for n in (0, 1, 2, 3)]
    averaged = [{"params": s.params, "batch_stats": s.batch_stats} for s in states]
    average = averaged[0]
    for decay, now in zip((1 / 10, 2 / 11, 0.2), averaged[1:], strict=True):
        average = jax.tree.map(lambda a, b, d=decay: d * a + (1 - d) * b, average, now)
    for part in ("params", "batch_stats"):
        assert relative_difference(averaged[-1][part], average[part]) > 1e-4
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        states[-1].ema,
        average,
    )
    assert states[-1].evaluated is states[-1].ema


METRICS = ("train/loss", "train/error")


def means(rows, *spans):
    """Returns, per metric, the means of `rows` over half-open spans of steps."""
    values = {name: [float(row[name][0]) for row in rows] for name in METRICS}
    return {name: [np.mean(v[first:last]) for first, last in spans] for name, v in values.items()}


def assert_metrics(rows, expected):
    for name in METRICS:
        np.testing.assert_allclose([row[name][0] for row in rows], expected[name], rtol=1e-5)


@pytest.mark.slow
def test_metrics_are_means_over_the_steps_since_the_last_row_even_if_log_every_changes():
    _, each = train(1, 5)
    assert all(len({float(row[name][0]) for row in each}) > 1 for name in METRICS)
    at_2, rows = train(1, 2, log__every=2)
    assert_metrics(rows, means(each, (0, 1), (0, 2)))
    # A row was due at 2, so the next one averages the steps after it.
    _, rows = train(1, 2, log__every=3, resumed=at_2)
    assert_metrics(rows, means(each, (2, 3), (3, 4)))
    # None was due at 3, so the next one includes step 3.
    at_3, _ = train(1, 1, log__every=2, resumed=at_2)
    _, rows = train(1, 2, log__every=3, resumed=at_3)
    assert_metrics(rows, means(each, (2, 4), (2, 5)))


def test_weights_that_are_not_finite_count_as_diverged_while_the_loss_still_is():
    _, (row,) = train(1, 1, schedule__rate=3e38, optimizer__weight_decay=1e6)
    assert np.isfinite(row["train/loss"]).all()
    assert row["diverged_at"].tolist() == [1]


def test_a_loss_that_is_not_finite_counts_as_diverged_while_the_weights_still_are():
    c = resolve(tiny.config(log__every=1))
    data, programs = parts_of(c, 1)
    seeds = np.zeros(1, np.int32)
    state, diverged_at = programs.start(seeds), []
    for span, batch in data.train.batches(seeds, spans(range(4)), c.batch_size, 1, TRAIN):
        number = span.start
        bias = np.zeros((1, 10), np.float32)
        if number in (1, 2):  # twice: the first is recorded
            bias[0, ::2], bias[0, 1::2] = 3e38, -3e38  # their difference overflows float32
        logits = state.params["logits"] | {"bias": jnp.asarray(bias)}
        state = state.replace(params=state.params | {"logits": logits})
        state, row = programs.train_steps(state, seeds, programs.numbers, data.train.arrays, batch)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.params))
        assert bool(np.isfinite(row["train/loss"][0])) == (number not in (1, 2))
        diverged_at += row["diverged_at"].tolist()
    assert diverged_at == [-1, 2, 2, 2]


def test_images_keep_their_labels():
    _, rows = train(1, 40, schedule__rate=0.1, model__width=0.5)
    errors = [float(row["train/error"][0]) for row in rows]
    assert np.mean(errors[:5]) > 60
    assert np.mean(errors[-5:]) < 40  # with shuffled labels it would stay near 90


def test_best_is_the_first_of_equal_errors_and_never_diverged():
    c = resolve(tiny.config(replicates=3))
    _, programs = parts_of(c, 1)
    state = programs.start(np.arange(3))
    state = state.replace(diverged_at=jnp.array([-1, -1, 2], jnp.int32))
    for step, errors in ((3, [20.0, 20.0, 20.0]), (6, [20.0, 19.0, 19.0]), (9, [21.0, 19.5, 1.0])):
        state = state.replace(step=jnp.full(3, step, jnp.int32))
        state = programs.after_validation(state, jnp.array(errors, jnp.float32))
    assert state.best.step.tolist() == [3, 6, -1]
    assert state.best.error.tolist() == [20.0, 19.0, float("inf")]


def test_the_warmup_reaches_the_step():
    warm = {"schedule__warmup": "until_error", "schedule__warmup_window": 2, "schedule__rate": 0.5}
    _, never = train(1, 4, schedule__warmup_error=1e-3, **warm)
    _, at_once = train(1, 4, schedule__warmup_error=100.0, **warm)
    rates = [[round(float(m["train/learning_rate"][0]), 6) for m in h] for h in (never, at_once)]
    assert rates == [[0.01] * 4, [0.01, 0.01, 0.5, 0.5]]


def test_label_smoothing_by_hand():
    from resnet_jax.losses import cross_entropy, top1_error

    logits, labels = jnp.array([[2.0, 0.0, -1.0], [0.0, 0.0, 3.0]]), jnp.array([0, 1])
    log_p = np.asarray(logits) - np.log(np.exp(np.asarray(logits)).sum(1, keepdims=True))
    plain = -log_p[[0, 1], [0, 1]]
    np.testing.assert_allclose(cross_entropy(logits, labels, 0.0), plain, rtol=1e-6)
    expected = 0.7 * plain + 0.3 * -log_p.mean(axis=1)
    np.testing.assert_allclose(cross_entropy(logits, labels, 0.3), expected, rtol=1e-6)
    assert top1_error(logits, labels).tolist() == [0.0, 100.0]
