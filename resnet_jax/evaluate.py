"""Evaluation of every example exactly once, population statistics and signals of a step."""

import contextlib
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax.stages import Wrapped
from ml_collections import ConfigDict

from resnet_jax.data.order import STATISTICS, spans
from resnet_jax.data.splits import Split
from resnet_jax.data.views import Views
from resnet_jax.execution import Execution
from resnet_jax.networks.normalization import add_moments
from resnet_jax.parallel import mesh as meshes
from resnet_jax.parallel.processes import put
from resnet_jax.programs import Programs
from resnet_jax.pytree import PyTree
from resnet_jax.state import POPULATION, TRAINING, TrainState, Variables
from resnet_jax.step import Metrics


def evaluate(
    eval_steps: Mapping[bool, Wrapped],
    variables: Variables,
    split: Split,
    views: Views,
    execution: Execution,
) -> Metrics:
    """Returns the mean {"loss" (nats), "error" (percent)} over a split, one value per seed.

    The last batch is padded, and the padding is masked out. The call does not wait for the device.
    """
    totals: Metrics | None = None
    with contextlib.closing(split.views(views, execution.eval_batch_size)) as batches:
        for batch in batches:
            sums = eval_steps[views.mirrored](variables, *batch)
            execution.settle(sums)
            totals = sums if totals is None else jax.tree.map(jnp.add, totals, sums)
    return jax.tree.map(lambda total: total / len(split), totals)


def observe(
    programs: Programs,
    state: TrainState,
    seeds_R: jax.Array,
    step: int,
    arrays: PyTree,
    batches_R: PyTree,
) -> Metrics:
    """Returns the signals of the forward pass of the next step, see networks/signals.py.

    Args:
      programs: of the run.
      state: after `step` steps.
      seeds_R: int32 (R,), on the devices.
      step: the number of steps taken.
      arrays: see data.splits.Split.arrays.
      batches_R: of the next steps, beginning with the next one.
    """
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    _, signals = programs.observe_step(variables, seeds_R, TRAINING, step, arrays, batches_R)
    programs.execution.settle(signals)
    return signals


def population_statistics(
    observe_step: Wrapped,
    variables: Variables,
    train: Split,
    seeds: np.ndarray,
    config: ConfigDict,
    execution: Execution,
) -> Variables:
    """Returns `variables` with batch_stats set to exact averages over training data.

    As in the paper's notes, statistics are computed after training over many training examples,
    not as a moving average. Batches are drawn and augmented as in training, and only whole batches
    are used, so that BatchNorm sees groups as in training. The variance is taken about the common
    mean of all activations (Chan et al. 1979); it is not the mean of the batches' variances.
    Frozen parts keep theirs.

    Args:
      observe_step: see programs.Programs.
      variables: {"params", "batch_stats"} with a leading replicate axis.
      train: the training split.
      seeds: int32 (R,).
      config: resolved; `eval.population_examples` is the number of examples to average over,
        rounded down to whole batches.
      execution: how programs are computed.
    """
    batch_size = config.batch_size
    steps = range(max(1, (config.eval.population_examples or len(train)) // batch_size))
    seeds_R = put(seeds, meshes.by_replicate(execution.mesh))
    total: PyTree = None
    batches = train.batches(seeds, spans(steps), batch_size, config.accumulate, STATISTICS)
    with contextlib.closing(batches):
        for span, batch in batches:
            number = span.start
            moments, _ = observe_step(variables, seeds_R, POPULATION, number, train.arrays, batch)
            execution.settle(moments)
            total = moments if total is None else add_moments(total, moments, number)
    return {"params": variables["params"], "batch_stats": variables["batch_stats"] | total}
