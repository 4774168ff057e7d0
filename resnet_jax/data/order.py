"""The examples of each step, and the random numbers about data.

Both depend only on the seed and the step, so a resumed run sees the same examples with any number
of processes. Every random number about data comes from `stream`.
"""

import functools
from collections.abc import Iterator

import numpy as np

# Purposes of random numbers; each has its own streams. DIGITS_SPLIT must stay 0, so that the test
# split of digits stays the same.
DIGITS_SPLIT, SPLIT, EPOCH, TRAIN, STATISTICS = range(5)
# Raise it if a seed draws different numbers than before: older runs then refuse to resume.
STREAMS = 2


def stream(purpose: int, seed: int, number: int = 0) -> np.random.Generator:
    """Returns the random numbers of a purpose, a seed and a number (the epoch, or the step).

    The key is always three integers below 2**32: NumPy pads seeds with zeros, so (0,) and (0, 0)
    are the same stream, and splits larger integers in two.
    """
    key = (purpose, seed, number)
    if not all(0 <= part < 2**32 for part in key):
        raise ValueError(f"(purpose, seed, number) = {key} must each be from 0 to 2**32 - 1")
    return np.random.default_rng(key)


def batch_indices(seed: int, step: int, batch_size: int, examples: int) -> np.ndarray:
    """Returns the examples of a step's batch, int32 (batch_size,).

    Batches are consecutive pieces of an endless sequence of epochs, each a permutation of all
    examples: nothing is dropped at an epoch's end, and a batch may span two epochs.

    Args:
      seed: the replicate's seed.
      step: 0 for the first step.
      batch_size: examples per step, over all devices.
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


# Enough for a batch that spans two epochs, for many replicates.
@functools.lru_cache(maxsize=64)
def _permutation(seed: int, epoch: int, examples: int) -> np.ndarray:
    return stream(EPOCH, seed, epoch).permutation(examples).astype(np.int32)


def spans(steps: range, at_once: int = 1) -> Iterator[range]:
    """Groups consecutive steps into spans that are dispatched together.

    Spans begin at multiples of `at_once`, wherever `steps` begins, so that a resumed run groups
    its steps as an uninterrupted one and repeats it bit for bit. Steps that do not fill a span
    are dispatched one by one, by a second program.
    """
    step = steps.start
    while step < steps.stop:
        is_whole = step % at_once == 0 and step + at_once <= steps.stop
        span = range(step, step + (at_once if is_whole else 1))
        yield span
        step = span.stop
