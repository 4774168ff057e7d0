"""Which examples a step sees: a function of (seed, step) and nothing else.

A resumed run needs the step to go on exactly, whatever the number of processes.
"""

import functools

import numpy as np


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


# Two epochs meet in a batch; a dozen replicates go side by side.
@functools.lru_cache(maxsize=64)
def _permutation(seed: int, epoch: int, examples: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(examples).astype(np.int32)
