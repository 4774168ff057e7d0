"""Optimisers match their formulas, and schedules the paper's numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from resnet_jax.networks import layout
from resnet_jax.optim import Schedule, descend, make_optimizer
from tests import tiny


def tree(kernel, scale, bias):
    return {
        "conv": {"kernel": jnp.array(kernel)},
        "norm": {"scale": jnp.array([scale]), "bias": jnp.array([bias])},
    }


PARAMS = tree([1.0, -2.0], 3.0, -1.0)
GRADIENTS = [
    tree([0.5, 1.0], 0.25, 2.0),
    tree([-1.5, 0.5], 1.0, -0.5),
    tree([0.1, 0.2], 0.3, 0.4),
]
RATES = [0.1, 0.1, 0.01]


def run(**overrides):
    """Takes three steps; returns the parameters as one flat numpy vector (kernel, bias, scale)."""
    optimizer = make_optimizer(tiny.config(**overrides))
    params, state = PARAMS, optimizer.init(PARAMS)
    for gradient, rate in zip(GRADIENTS, RATES, strict=True):
        params, state = descend(optimizer, jnp.float32(rate), gradient, state, params)
    return flat(params)


def flat(tree):
    return np.concatenate([np.asarray(a, np.float64) for a in jax.tree.leaves(tree)])


def by_hand(step, decayed):
    """Runs step(w, g, rate, memory) -> (w, memory) over the same gradients in float64."""
    w, memory = flat(PARAMS), {}
    for t, (gradient, rate) in enumerate(zip(GRADIENTS, RATES, strict=True), start=1):
        w = step(w, flat(gradient), rate, memory, decayed, t)
    return w


ALL, KERNELS = np.ones(4), np.array([1.0, 1.0, 0.0, 0.0])  # kernel, kernel, bias, scale


def sgd(nesterov=False):
    def step(w, g, rate, memory, decayed, t):
        g = g + 0.01 * decayed * w
        v = 0.9 * memory.get("v", 0) - rate * g
        memory["v"] = v
        return w + (0.9 * v - rate * g if nesterov else v)

    return step


def adam(decoupled):
    def step(w, g, rate, memory, decayed, t):
        decay = 0.01 * decayed * w
        g = g if decoupled else g + decay
        m = memory["m"] = 0.9 * memory.get("m", 0) + 0.1 * g
        v = memory["v"] = 0.99 * memory.get("v", 0) + 0.01 * g**2
        direction = (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.99**t)) + 1e-8)
        return w - rate * (direction + (decay if decoupled else 0))

    return step


def lars(w, g, rate, memory, decayed, t):
    g = g + 0.01 * decayed * w
    # The first two are the kernel; bias and scale use SGD's rate.
    trust = 0.5 * np.linalg.norm(w[:2]) / np.linalg.norm(g[:2])
    v = memory["v"] = 0.9 * memory.get("v", 0) - rate * np.array([trust, trust, 1, 1]) * g
    return w + v


@pytest.mark.parametrize("decay_on", ["all", "kernels"])
@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("sgd", sgd()),
        ("nesterov", sgd(nesterov=True)),
        ("adam", adam(decoupled=False)),
        ("adamw", adam(decoupled=True)),
        ("lars", lars),
    ],
)
def test_three_steps_match_the_formula(name, step, decay_on):
    ours = run(
        optimizer__name="sgd" if name == "nesterov" else name,
        optimizer__nesterov=name == "nesterov",
        optimizer__b2=0.99,
        optimizer__trust=0.5,
        optimizer__weight_decay=0.01,
        optimizer__decay_on=decay_on,
    )
    wanted = by_hand(step, ALL if decay_on == "all" else KERNELS)
    other = by_hand(step, KERNELS if decay_on == "all" else ALL)
    assert np.abs(wanted - other).max() > 1e-4
    np.testing.assert_allclose(ours, wanted, rtol=2e-6)


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw", "lars"])
def test_stacked_blocks_are_updated_like_separate_ones(name):
    optimizer = make_optimizer(
        tiny.config(optimizer__name=name, optimizer__weight_decay=0.1, optimizer__trust=0.5)
    )

    def drawn(seed):
        rng = np.random.default_rng(seed)
        shapes = {"stem_conv": (3,), "stage1_block1": (2,), "stage1_rest": (3, 2)}
        return {
            key: {"kernel": rng.normal(size=shape, scale=10.0**seed).astype(np.float32)}
            for key, shape in shapes.items()
        }

    params = drawn(0)
    scales = np.float32([[1.0], [10.0], [100.0]])  # each kernel has a different norm
    params["stage1_rest"]["kernel"] *= scales

    def updated(convert):
        values, state = convert(params), optimizer.init(convert(params))
        for seed in (1, 2):
            gradients = convert(drawn(seed))
            values, state = descend(optimizer, jnp.float32(0.1), gradients, state, values)
        return values

    separate = updated(layout.by_block)
    assert set(separate) == {"stem_conv", *(f"stage1_block{i}" for i in (1, 2, 3, 4))}
    stacked = layout.by_block(updated(lambda tree: tree))
    for key, node in separate.items():
        assert np.abs(node["kernel"] - layout.by_block(params)[key]["kernel"]).max() > 1e-3
        np.testing.assert_allclose(stacked[key]["kernel"], node["kernel"], rtol=1e-5)


def test_sgd_equals_optax_sgd_until_the_rate_changes():
    # With the rate inside the velocity, a rate cut does not shrink the velocity so far.
    optimizer = make_optimizer(tiny.config(optimizer__weight_decay=0.0))
    theirs = optax.inject_hyperparams(optax.sgd)(learning_rate=0.0, momentum=0.9)
    paths = []
    for tx in (optimizer, theirs):
        params, state = PARAMS, tx.init(PARAMS)
        path = []
        for gradient, rate in zip(GRADIENTS, RATES, strict=True):
            params, state = descend(tx, jnp.float32(rate), gradient, state, params)
            path.append(flat(params))
        paths.append(path)
    np.testing.assert_allclose(paths[0][1], paths[1][1], rtol=1e-6)
    assert np.abs(paths[0][2] - paths[1][2]).max() > 1e-3


def test_clipping_cuts_the_global_norm():
    norm = float(optax.tree.norm(GRADIENTS[0]))
    without = run(optimizer__weight_decay=0.0)
    np.testing.assert_array_equal(
        run(optimizer__clip_norm=100.0, optimizer__weight_decay=0.0), without
    )
    optimizer = make_optimizer(
        tiny.config(optimizer__clip_norm=norm / 2, optimizer__weight_decay=0.0)
    )
    params, _ = descend(optimizer, jnp.float32(1.0), GRADIENTS[0], optimizer.init(PARAMS), PARAMS)
    np.testing.assert_allclose(flat(params), flat(PARAMS) - flat(GRADIENTS[0]) / 2, rtol=1e-6)


# ------------------------------------------------------------------------------ schedules


def rates(steps=100, at=range(100), **overrides):
    schedule = Schedule(tiny.config(steps=steps, **overrides))
    state = schedule.init()
    return np.array([float(schedule.rate(state, jnp.int32(step))) for step in at])


def test_the_papers_steps():
    at = [0, 31999, 32000, 47999, 48000, 63999]
    ours = rates(64000, at, schedule__name="step", schedule__rate=0.1)
    np.testing.assert_allclose(ours, [0.1, 0.1, 0.01, 0.01, 0.001, 0.001], rtol=1e-6)


def test_constant():
    assert set(rates(schedule__name="constant", schedule__rate=0.5)) == {0.5}


def test_linear_warmup_then_cosine():
    ours = rates(
        schedule__name="cosine",
        schedule__rate=0.4,
        schedule__final_rate=0.1,
        schedule__warmup="linear",
        schedule__warmup_length=20.0,
    )
    np.testing.assert_allclose(ours[:20], 0.4 * np.arange(1, 21) / 20, rtol=1e-6)
    progress = np.arange(80) / 80
    wanted = 0.1 + 0.3 * 0.5 * (1 + np.cos(np.pi * progress))
    np.testing.assert_allclose(ours[20:], wanted, rtol=1e-5)
    assert ours.argmax() in (19, 20)


def test_linear_warmup_does_not_shift_the_boundaries():
    ours = rates(
        schedule__name="step",
        schedule__rate=1.0,
        schedule__boundaries=(50.0,),
        schedule__warmup="linear",
        schedule__warmup_length=10.0,
    )
    np.testing.assert_allclose(ours[[0, 9, 10, 49, 50]], [0.1, 1, 1, 1, 0.1], rtol=1e-6)


def test_the_papers_warmup_ends_when_the_training_error_falls_below_the_bound():
    schedule = Schedule(
        tiny.config(
            schedule__name="constant",
            schedule__rate=0.1,
            schedule__warmup="until_error",
            schedule__warmup_window=2,
            steps=100,
        )
    )
    state = schedule.init()
    seen = []
    #  windows:          90        80.5        79         95
    for step, error in enumerate([95, 85, 61, 100, 78, 80, 95, 95]):
        seen.append(round(float(schedule.rate(state, jnp.int32(step))), 6))
        state = schedule.after_step(state, jnp.int32(step), jnp.float32(error))
    # One lucky batch (61) is not enough; after warm-up a bad window has no effect.
    assert seen == [0.01] * 6 + [0.1] * 2
    assert float(schedule.rate(state, jnp.int32(8))) == pytest.approx(0.1)


def test_plateau_drops_the_rate_after_patience_evaluations_without_a_better_error():
    schedule = Schedule(
        tiny.config(
            schedule__name="plateau",
            schedule__rate=1.0,
            schedule__patience=2,
            schedule__tolerance=0.5,
            steps=100,
        )
    )
    state = schedule.init()
    seen = []
    for error in [50.0, 40.0, 39.8, 39.7, 30.0, 30.0, 29.9, 35.0, 35.0]:
        state = schedule.after_validation(state, jnp.float32(error))
        seen.append(round(float(schedule.rate(state, jnp.int32(0))), 6))
    #               better better  -    - -> drop  better  -   - -> drop   -   - -> drop
    assert seen == [1.0, 1.0, 1.0, 0.1, 0.1, 0.1, 0.01, 0.01, 0.001]


def test_other_schedules_ignore_validation():
    schedule = Schedule(tiny.config(steps=100, schedule__name="step", schedule__patience=1))
    state = schedule.init()
    for _ in range(5):
        state = schedule.after_validation(state, jnp.float32(50.0))
    assert float(state.plateau.scale) == 1.0
