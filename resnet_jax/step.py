"""The steps as pure functions for one seed: training, validation, evaluation, observation.

programs.py combines steps and seeds, spreads them over the devices and compiles them. Below, P is
the number of parts of a batch and B the number of examples in a part.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from resnet_jax.data.augment import Augmentation, Draws, Normalization
from resnet_jax.losses import MANY_CLASSES, cross_entropy, top1_error, top5_error
from resnet_jax.networks.layout import Collection
from resnet_jax.networks.normalization import MOMENTS, pool_moments
from resnet_jax.networks.per_block import NetworkDraws, Scales
from resnet_jax.networks.resnet import ResNet
from resnet_jax.networks.signals import SIGNALS, of_forward_pass, of_update, pool_parts
from resnet_jax.optim import Schedule, descend
from resnet_jax.parallel.mesh import gather_shares
from resnet_jax.pytree import PyTree, Tree
from resnet_jax.state import (
    NEVER,
    TRAINING,
    Best,
    TrainState,
    Variables,
    augment_key,
    empty_window,
    network_key,
)

Metrics = dict[str, Any]  # by name: an array, or a dict of arrays under SIGNALS
Stacked = TypeVar("Stacked")  # a pytree of arrays with a leading axis of parts


@dataclasses.dataclass(frozen=True)
class Task:
    """The part of a run's setup that its steps share.

    Attributes:
      scales: of shortcuts and branches, see ResNet.
      optimizer: see optim.make_optimizer.
      schedule: the learning rate.
      normalization: applied to pixels.
      augmentation: applied to normalised training images.
      label_smoothing: probability mass spread evenly over all classes.
      ema_decay: of the averaged weights; 0: no average.
      log_every: steps between rows of metrics.
      signals: whether steps return signals inside the network.
      unroll: whether the loop over the parts of a batch is unrolled.
      mesh: the devices, over which the parameters may be sharded.
    """

    model: ResNet
    scales: Scales
    optimizer: optax.GradientTransformation
    schedule: Schedule
    normalization: Normalization
    augmentation: Augmentation
    label_smoothing: float
    ema_decay: float
    log_every: int
    signals: bool
    unroll: bool
    mesh: Mesh


class Batch(NamedTuple):
    """A training batch in parts, which are computed one after another to save memory.

    Attributes:
      images: uint8 (P, B, H, W, C).
      labels: int32 (P, B).
    """

    images: jax.Array
    labels: jax.Array


def train_step(
    task: Task, state: TrainState, seed: jax.Array, batch: Batch
) -> tuple[TrainState, Metrics]:
    """Takes one training step.

    Returns:
      The next state, and the metrics: loss (nats) and top-1 error (percent) as means over the steps
      since the last row, the learning rate of this step, `diverged_at` (see TrainState), and under
      SIGNALS the signals of this step's gradients and update (see networks/signals.py).
    """
    draws = _draws_of_parts(task, augment_key(seed, TRAINING, state.step), batch)
    key = numbers = None
    if task.model.is_random:
        key = network_key(seed, state.step)
        numbers = jnp.arange(batch.labels.size).reshape(batch.labels.shape)
    loss, error, batch_stats, gradients = _mean_over_parts(
        functools.partial(_gradients, task, state, key), (batch, draws, numbers), task.unroll
    )
    rate = task.schedule.rate(state.schedule, state.step)
    params, opt_state = descend(task.optimizer, rate, gradients, state.opt_state, state.params)
    # Frozen parts keep their bits; means over the parts of a batch, or over steps, would round.
    params = _thawed(task, params, state.params)
    batch_stats = _thawed(task, batch_stats, state.batch_stats)
    ema = state.ema
    if task.ema_decay:
        averaged = {"params": params, "batch_stats": batch_stats}
        average = _moving_average(ema, averaged, state.step, task.ema_decay)
        ema = {name: _thawed(task, average[name], ema[name]) for name in ema}

    # Check the weights too: a finite loss with an infinite gradient spoils the weights, and a
    # checkpoint of them could be written before the next step's loss shows it.
    are_finite = jnp.stack([jnp.isfinite(p).all() for p in jax.tree.leaves(params)]).all()
    diverges = (state.diverged_at == NEVER) & ~(jnp.isfinite(loss) & are_finite)
    window = state.window.add(loss, error)
    # Only a multiple of log_every empties the window, so a run that is resumed with another
    # log.every neither drops nor repeats steps. The extra row of a last step does not empty it: if
    # the run is made longer, that row is dropped and its steps count towards the next one.
    is_logged = (state.step + 1) % task.log_every == 0
    observed = of_update(state.params, gradients, params) if task.signals else {}
    state = state.replace(
        step=state.step + 1,
        params=params,
        batch_stats=batch_stats,
        opt_state=opt_state,
        schedule=task.schedule.after_step(state.schedule, state.step, error),
        ema=ema,
        window=_where(is_logged, empty_window(), window),
        diverged_at=jnp.where(diverges, state.step + 1, state.diverged_at),
    )
    metrics = {
        "train/loss": window.loss / window.steps,
        "train/error": window.error / window.steps,
        "train/learning_rate": rate,
        "diverged_at": state.diverged_at,
        SIGNALS: observed,
    }
    return state, metrics


def _gradients(
    task: Task,
    state: TrainState,
    key: jax.Array | None,
    part: tuple[Batch, Draws, jax.Array | None],
) -> tuple[jax.Array, jax.Array, PyTree, optax.Updates]:
    """Returns loss, top-1 error, moving averages and gradients of one part of a batch.

    `key` and the examples' numbers are those of NetworkDraws, None if the network draws nothing.
    """
    (images_BHWC, labels_B), draws, numbers_B = part
    network_draws = None if key is None or numbers_B is None else NetworkDraws(key, numbers_B)
    images_BHWC = task.augmentation(draws, task.normalization(images_BHWC))

    def mean_loss(params: optax.Params) -> tuple[jax.Array, tuple[jax.Array, PyTree]]:
        if task.model.frozen:  # no backward pass through frozen parts before the first trained one
            params = _thawed(task, params, jax.lax.stop_gradient(params))
        variables = {"params": gather_shares(params, task.mesh), "batch_stats": state.batch_stats}
        logits_BK, updated = task.model.apply(
            variables,
            images_BHWC,
            train=True,
            scales=task.scales,
            draws=network_draws,
            mutable=["batch_stats"],
        )
        losses_B = cross_entropy(logits_BK, labels_B, task.label_smoothing)
        return losses_B.mean(), (logits_BK, updated.get("batch_stats", {}))

    (loss, (logits_BK, batch_stats)), gradients = jax.value_and_grad(mean_loss, has_aux=True)(
        state.params
    )
    return loss, top1_error(logits_BK, labels_B).mean(), batch_stats, gradients


def after_validation(schedule: Schedule, state: TrainState, error: jax.Array) -> TrainState:
    """Updates the best weights and the schedule from a validation error (percent).

    On a tie the earlier weights stay.
    """
    is_better = (error < state.best.error) & (state.diverged_at == NEVER)
    candidate = Best(error=error, step=state.step, variables=state.evaluated)
    return state.replace(
        best=_where(is_better, candidate, state.best),
        schedule=schedule.after_validation(state.schedule, error),
    )


def eval_step(
    task: Task,
    mirrored: bool,
    variables: Variables,
    groups: tuple[jax.Array, ...],
    labels_B: jax.Array,
    mask_B: jax.Array,
) -> Metrics:
    """Evaluates images by the mean predicted probability over their views (section 3.4).

    Args:
      task: of the run.
      mirrored: whether each view's mirror image is used as well.
      variables: {"params", "batch_stats"}.
      groups: one array per view shape, uint8 (B, V, H, W, C), see data.splits.EvalBatch.
      labels_B: int32.
      mask_B: bool; False for padding.

    Returns:
      float32 sums over the examples with mask True: "loss" (nats), "error" (percent) and, from
      MANY_CLASSES on, "top5_error" (percent).
    """
    gathered = gather_shares(variables, task.mesh)

    def logits_of(images_BHWC: jax.Array) -> Any:
        normalized = task.normalization(images_BHWC)
        return task.model.apply(gathered, normalized, train=False, scales=task.scales)

    logs_BK = mean_over_views(logits_of, groups, mirrored)
    sums = {
        "loss": cross_entropy(logs_BK, labels_B, smoothing=0.0),
        "error": top1_error(logs_BK, labels_B),
    }
    if logs_BK.shape[-1] >= MANY_CLASSES:
        sums["top5_error"] = top5_error(logs_BK, labels_B)
    # `where`, not a product: 0 times a NaN from padding would be NaN.
    return {name: jnp.where(mask_B, each, 0.0).sum() for name, each in sums.items()}


def mean_over_views(
    logits_of: Callable[[jax.Array], jax.Array], groups: tuple[jax.Array, ...], mirrored: bool
) -> jax.Array:
    """Returns the log of the mean predicted probability over the views of each image.

    Args:
      logits_of: maps uint8 images (B, H, W, C) to logits (B, K).
      groups: see eval_step.
      mirrored: see eval_step.

    Returns:
      float32 (B, K).
    """
    predicted = []
    for images_BVHWC in groups:
        batch, views, *image = images_BVHWC.shape
        views_BHWC = images_BVHWC.reshape(batch * views, *image)
        for images_BHWC in (views_BHWC, views_BHWC[:, :, ::-1])[: 1 + mirrored]:
            logs = jax.nn.log_softmax(logits_of(images_BHWC))
            predicted.append(logs.reshape(batch, views, -1))
    logs_BVK = jnp.concatenate(predicted, axis=1)
    return jax.nn.logsumexp(logs_BVK, axis=1) - jnp.log(logs_BVK.shape[1])


def observe_step(
    task: Task, variables: Variables, key: jax.Array, batch: Batch
) -> tuple[PyTree, Metrics]:
    """Runs the network as in training on a batch, without changing it.

    Args:
      task: of the run.
      variables: {"params", "batch_stats"}.
      key: for the augmentation, see state.augment_key.
      batch: any training examples.

    Returns:
      The exact mean and variance of each BatchNorm's input, and the signals of the forward pass
      (see networks/signals.py).
    """
    collections = [MOMENTS, SIGNALS] if task.signals else [MOMENTS]

    def observe(part: tuple[Batch, Draws]) -> PyTree:
        (images_BHWC, _), draws = part
        images_BHWC = task.augmentation(draws, task.normalization(images_BHWC))
        gathered = gather_shares(variables, task.mesh)
        return task.model.apply(
            gathered, images_BHWC, train=True, scales=task.scales, mutable=collections
        )[1]

    draws = _draws_of_parts(task, key, batch)
    _, observed = jax.lax.scan(
        lambda _, part: (None, observe(part)), None, (batch, draws), unroll=task.unroll or 1
    )
    signals = of_forward_pass(pool_parts(observed.get(SIGNALS, {})))
    return pool_moments(observed.get(MOMENTS, {})), signals


# ----------------------------------------------------------------------------------- helpers


def _thawed(task: Task, trained: Collection, frozen: Collection) -> Collection:
    """Returns the frozen modules of one collection and the other modules of another."""
    is_frozen = task.model.is_frozen
    return {name: frozen[name] if is_frozen(name) else node for name, node in trained.items()}


def _draws_of_parts(task: Task, key: jax.Array, batch: Batch) -> Draws:
    """Draws the augmentation of the whole batch at once, so it does not depend on `accumulate`."""
    parts = batch.labels.shape[0]
    draws = task.augmentation.draw(key, batch.labels.size)
    return jax.tree.map(lambda a: a.reshape(parts, -1, *a.shape[1:]), draws)


def _mean_over_parts(f: Callable[[Stacked], Tree], batch: Stacked, unroll: bool) -> Tree:
    """Returns the mean of f(part) over the parts of a batch, its leading axis.

    This holds for BatchNorm's moving averages too: each part updates them from the same old value,
    so the mean over parts equals the update by the whole batch.
    """
    first = jax.tree.map(lambda a: a[0], batch)
    parts = jax.tree.leaves(batch)[0].shape[0]
    if parts == 1:
        return f(first)
    shapes = jax.eval_shape(f, first)
    total, _ = jax.lax.scan(
        lambda total, part: (jax.tree.map(jnp.add, total, f(part)), None),
        jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shapes),
        batch,
        unroll=parts if unroll else 1,
    )
    return jax.tree.map(lambda a: a / parts, total)


def _moving_average(average: Tree, new: Tree, step: jax.Array, decay: float) -> Tree:
    # The ramp makes the average forget the initial weights (tf.train.ExponentialMovingAverage).
    keep = jnp.minimum(decay, (1.0 + step) / (10.0 + step))
    return jax.tree.map(lambda old, now: keep * old + (1 - keep) * now, average, new)


def _where(condition: jax.Array, one: Tree, other: Tree) -> Tree:
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), one, other)
