"""The order of examples is a function of (seed, step); splits are disjoint and complete."""

import itertools
import pathlib

import numpy as np
import pytest

from resnet_jax.data import order
from resnet_jax.data.datasets import split_indices
from resnet_jax.data.order import batch_indices


def endless(seed, steps, batch_size, examples):
    return np.concatenate([batch_indices(seed, s, batch_size, examples) for s in range(steps)])


@pytest.mark.parametrize("batch_size", [1, 7, 10, 25])
def test_every_epoch_is_another_permutation(batch_size):
    steps = -(-30 // batch_size)
    epochs = endless(3, steps, batch_size, 10)[:30].reshape(3, 10)
    np.testing.assert_array_equal(np.sort(epochs, axis=1), np.tile(np.arange(10), (3, 1)))
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert epochs.dtype == np.int32


def test_a_batch_may_span_two_epochs():
    indices = endless(0, 5, 4, 10)
    third = batch_indices(0, 2, 4, 10)
    np.testing.assert_array_equal(third, indices[8:12])
    assert set(third[:2]) == set(range(10)) - set(indices[:8])
    np.testing.assert_array_equal(np.sort(indices[10:20]), np.arange(10))


def test_batch_size_does_not_change_the_order():
    np.testing.assert_array_equal(endless(5, 12, 5, 30), endless(5, 4, 15, 30))


def test_function_of_seed_and_step_only():
    wanted = batch_indices(1, 40, 8, 100)
    for step in (0, 99, 3):  # earlier calls must not matter
        assert (batch_indices(1, step, 8, 100) != wanted).any()
    np.testing.assert_array_equal(batch_indices(1, 40, 8, 100), wanted)


def test_seeds_differ():
    assert (batch_indices(0, 0, 64, 1000) != batch_indices(1, 0, 64, 1000)).any()


def test_golden_order():
    # If these change, raise order.STREAMS, so that no older run resumes with different examples.
    assert batch_indices(0, 0, 5, 12).tolist() == [2, 0, 9, 10, 11]
    assert batch_indices(2, 3, 5, 12).tolist() == [2, 3, 0, 9, 7]


def test_splits_are_disjoint_and_complete():
    train, validation = split_indices(50_000, 5_000, seed=0)
    assert (len(train), len(validation)) == (45_000, 5_000)
    together = np.concatenate([train, validation])
    np.testing.assert_array_equal(np.sort(together), np.arange(50_000))
    # Drawn from everywhere, not from one end of the file.
    assert 2_400 < validation.mean() / 10 < 2_600
    for part in (train, validation):
        assert (np.diff(part) > 0).all()


def test_split_seeds_differ():
    (_, first), (_, other), (_, again) = (split_indices(1000, 100, seed) for seed in (0, 1, 0))
    assert set(first) != set(other)
    np.testing.assert_array_equal(first, again)


def test_no_validation():
    train, validation = split_indices(10, 0, seed=0)
    np.testing.assert_array_equal(train, np.arange(10))
    assert len(validation) == 0


# -------------------------------------------------------------------------- random streams

PURPOSES = (order.DIGITS_SPLIT, order.SPLIT, order.EPOCH, order.TRAIN, order.STATISTICS)


def test_no_two_purposes_seeds_or_numbers_share_a_stream():
    keys = list(itertools.product(PURPOSES, range(8), range(8)))
    first = {key: order.stream(*key).random() for key in keys}
    assert len(set(first.values())) == len(keys) == 320
    # A missing number is the number 0.
    assert order.stream(order.SPLIT, 3).random() == first[order.SPLIT, 3, 0]


@pytest.mark.parametrize("key", [(1, 2**32, 0), (1, 0, 2**32), (1, -1, 0)])
def test_a_number_that_numpy_would_split_is_refused(key):
    with pytest.raises(ValueError, match="must each be from 0"):
        order.stream(*key)


def test_digits_test_split_stays_as_it_was():
    np.testing.assert_array_equal(
        order.stream(order.DIGITS_SPLIT, 0).permutation(1797),
        np.random.default_rng(0).permutation(1797),
    )


def test_only_order_py_uses_np_random():
    package = pathlib.Path(order.__file__).parents[1]
    users = [p.name for p in package.rglob("*.py") if "np.random" in p.read_text()]
    assert users == ["order.py"]
