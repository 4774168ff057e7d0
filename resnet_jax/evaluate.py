"""Evaluation: every example exactly once; and BatchNorm's exact population statistics."""

import contextlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from resnet_jax.data import sets
from resnet_jax.data.order import POPULATION
from resnet_jax.data.splits import Split
from resnet_jax.data.views import Views
from resnet_jax.dispatch import spans
from resnet_jax.networks.normalization import add_moments
from resnet_jax.parallel import mesh as meshes
from resnet_jax.parallel.processes import put


def images_per_batch(config: ConfigDict) -> int:
    """Returns the batch size that a resolved config is evaluated with; see Split.views.

    Of a streamed set at most what a training step computes at once: full-size pictures fill a
    device's memory, and the step's part of a batch is known to fit it.
    """
    if sets.KNOWN[config.data.name].resident:
        return config.eval.batch_size
    return min(config.eval.batch_size, config.batch_size // config.accumulate)


def evaluate(
    eval_steps: Mapping[bool, Callable[..., dict[str, jax.Array]]],
    variables: Any,
    split: Split,
    views: Views,
    batch_size: int,
    mesh: Mesh,
) -> dict[str, jax.Array]:
    """Returns the mean {"loss" (nats), "error" (percent)} over a split, a value a replicate.

    The last batch is filled up, and what fills it is masked out. Nothing waits for the device.
    """
    totals: Any = None
    with contextlib.closing(split.views(views, batch_size)) as batches:
        for batch in batches:
            sums = eval_steps[views.mirrored](variables, *batch)
            meshes.settle(sums, mesh)
            totals = sums if totals is None else jax.tree.map(jnp.add, totals, sums)
    return jax.tree.map(lambda total: total / len(split), totals)


def population_statistics(
    moments_step: Callable[..., Any],
    variables: Any,
    train: Split,
    seeds: np.ndarray,
    batch_size: int,
    parts: int,
    examples: int,
    mesh: Mesh,
) -> dict[str, Any]:
    """Returns `variables` with batch_stats set to exact averages over training data.

    The paper's notes: statistics are computed after training over a large training batch, not a
    moving average. Batches are drawn and augmented as in training; whole batches only, so that the
    statistics groups are those of training. The variance is that of all activations about their
    common mean (Chan et al. 1979), not the mean of the batches' variances.

    Args:
      moments_step: see step.make_moments_step.
      variables: {"params", "batch_stats"} with a leading axis of replicates.
      train: the training split.
      seeds: int32 (R,).
      batch_size: examples a batch.
      parts: that a batch is computed in, to save memory.
      examples: how many to average over, rounded down to whole batches; 0 for the whole split.
      mesh: the devices.
    """
    steps = range(max(1, (examples or len(train)) // batch_size))
    seeds_R = put(seeds, meshes.by_replicate(mesh))
    total: Any = None
    found = train.batches(seeds, spans(steps), batch_size, parts, POPULATION)
    with contextlib.closing(found) as batches:
        for number, batch in zip(steps, batches, strict=True):
            moments = moments_step(variables, seeds_R, number, train.arrays, batch)
            meshes.settle(moments, mesh)
            total = moments if total is None else add_moments(total, moments, number)
    return {"params": variables["params"], "batch_stats": total}
