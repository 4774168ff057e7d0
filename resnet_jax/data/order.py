"""Which examples a step sees: a function of (seed, step) and nothing else.

So a resumed run sees the same ones, whatever the number of processes. Every random number about
data comes from `stream`.
"""

import functools
from collections.abc import Iterator

import numpy as np

# What random numbers are for; each has streams of its own. The first is zero because that is what
# the test split of digits has always been drawn from.
DIGITS_SPLIT, SPLIT, EPOCH, TRAIN, POPULATION = range(5)
# Raise it when a seed draws other numbers than before: runs that began on those are then refused.
STREAMS = 2


def stream(purpose: int, seed: int, number: int = 0) -> np.random.Generator:
    """Returns the random numbers of a purpose, a seed and a number (the epoch, or the step).

    NumPy pads seeds with zeros, so that (0,) and (0, 0) are one stream, and takes an integer from
    2**32 up for two. Hence three integers always, all below 2**32.
    """
    key = (purpose, seed, number)
    if not all(0 <= part < 2**32 for part in key):
        raise ValueError(f"(purpose, seed, number) = {key} must each be from 0 to 2**32 - 1")
    return np.random.default_rng(key)


def batch_indices(seed: int, step: int, batch_size: int, examples: int) -> np.ndarray:
    """Returns the examples of a step's batch, int32 (batch_size,).

    The batches are cut from an endless row of epochs, each a permutation of all examples: nothing
    is dropped at an epoch's end, and a batch may begin in one epoch and end in the next.

    Args:
      seed: the replicate's seed.
      step: 0 for the first step.
      batch_size: examples a step, over all devices.
      examples: examples in the training split.
    """
    position = step * batch_size
    pieces = []
    while batch_size > 0:
        epoch, start = divmod(position, examples)
        piece = _permutation(seed, epoch, examples)[start : start + batch_size]
        pieces.append(piece)
        position += len(piece)
        batch_size -= len(piece)
    return np.concatenate(pieces)


# Two epochs meet in a batch, and a dozen replicates train together.
@functools.lru_cache(maxsize=64)
def _permutation(seed: int, epoch: int, examples: int) -> np.ndarray:
    return stream(EPOCH, seed, epoch).permutation(examples).astype(np.int32)


def spans(steps: range, at_once: int = 1) -> Iterator[range]:
    """Cuts consecutive steps into those that are dispatched together.

    The cuts are at multiples of `at_once`, wherever `steps` begins: a resumed run dispatches the
    same steps together as one that was never stopped, and so repeats it bit for bit. Steps that do
    not fill a span are dispatched one by one, by the one program that this needs more.
    """
    step = steps.start
    while step < steps.stop:
        is_whole = step % at_once == 0 and step + at_once <= steps.stop
        span = range(step, step + (at_once if is_whole else 1))
        yield span
        step = span.stop
