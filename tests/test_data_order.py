"""The order of examples is a function of (seed, step); splits are disjoint and complete."""

import numpy as np
import pytest

from resnet_jax.data.datasets import split_indices
from resnet_jax.data.order import batch_indices


def endless(seed, steps, batch_size, examples):
    return np.concatenate([batch_indices(seed, s, batch_size, examples) for s in range(steps)])


@pytest.mark.parametrize("batch_size", [1, 7, 10, 25])
def test_every_epoch_is_another_permutation(batch_size):
    steps = -(-30 // batch_size)
    row = endless(3, steps, batch_size, 10)[:30].reshape(3, 10)
    np.testing.assert_array_equal(np.sort(row, axis=1), np.tile(np.arange(10), (3, 1)))
    assert len({tuple(epoch) for epoch in row}) == 3
    assert row.dtype == np.int32


def test_batches_go_across_the_end_of_an_epoch():
    row = endless(0, 5, 4, 10)
    third = batch_indices(0, 2, 4, 10)
    np.testing.assert_array_equal(third, row[8:12])
    assert set(third[:2]) == set(range(10)) - set(row[:8])
    np.testing.assert_array_equal(np.sort(row[10:20]), np.arange(10))


def test_batch_size_does_not_change_the_order():
    np.testing.assert_array_equal(endless(5, 12, 5, 30), endless(5, 4, 15, 30))


def test_function_of_seed_and_step_only():
    wanted = batch_indices(1, 40, 8, 100)
    for step in (0, 99, 3):  # whatever was asked before
        assert (batch_indices(1, step, 8, 100) != wanted).any()
    np.testing.assert_array_equal(batch_indices(1, 40, 8, 100), wanted)


def test_seeds_differ():
    assert (batch_indices(0, 0, 64, 1000) != batch_indices(1, 0, 64, 1000)).any()


def test_golden_order():
    # Recorded: were numpy's generator or our seeding to change, no old run could be resumed.
    assert batch_indices(0, 0, 5, 12).tolist() == [9, 2, 7, 4, 5]
    assert batch_indices(2, 3, 5, 12).tolist() == [1, 2, 3, 8, 4]


def test_splits_are_disjoint_and_complete():
    train, validation = split_indices(50_000, 5_000, seed=0)
    assert (len(train), len(validation)) == (45_000, 5_000)
    together = np.concatenate([train, validation])
    np.testing.assert_array_equal(np.sort(together), np.arange(50_000))
    # Drawn from everywhere, not the file's end.
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
