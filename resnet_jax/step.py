"""The pure steps: train, take moments, evaluate. Each is one `jax.jit` over the mesh.

Everything below works on one replicate; `over_replicates` gives it the leading axis.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jax.sharding import Mesh
from ml_collections import ConfigDict

from resnet_jax import objective
from resnet_jax.data.augment import Augmentation, Draws, Normalization
from resnet_jax.networks.normalization import MOMENTS, pool_moments
from resnet_jax.optim import Schedule, descend
from resnet_jax.parallel import mesh as meshes
from resnet_jax.parallel.seeds import over_replicates
from resnet_jax.runs.jax_flags import compiler_options
from resnet_jax.state import (
    NEVER,
    Best,
    TrainState,
    Window,
    augment_key,
    empty_window,
    population_key,
)

Select = Callable[[Any, Any], tuple[jax.Array, jax.Array]]  # see data.splits.Split.select
MANY_CLASSES = 100  # from so many on, the error of the best five guesses is told too


def make_train_steps(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    schedule: Schedule,
    normalization: Normalization,
    augmentation: Augmentation,
    select: Select,
    config: ConfigDict,
    state_shardings: Any,
    mesh: Mesh,
) -> Callable[..., tuple[TrainState, dict[str, jax.Array]]]:
    """Returns steps(state, seeds_R, arrays, batches_R) -> (state, metrics_R).

    It takes as many steps, one after another, as the second axis of `batches_R` is long.
    `select` finds images and labels in `arrays` and a part of a batch; see data.splits.Split.
    `state` is donated. A batch is computed in its parts, one after another; each moves the
    statistics of BatchNorm as the whole would, and their means are those of the whole. The metrics
    are means over the steps since the last line of metrics, but for the rate of the last step and
    `diverged_at` (see TrainState).
    """
    # Convolutions in a loop are over ten times slower on CPU.
    on_cpu = mesh.devices.flat[0].platform == "cpu"

    def train_step(
        state: TrainState,
        seed: jax.Array,
        arrays: Any,
        batch: Any,
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        def of_part(part: tuple[Any, Draws]) -> tuple[Any, ...]:
            selected, draws = part
            images_BHWC, labels_B = select(arrays, selected)
            images_BHWC = augmentation(draws, normalization(images_BHWC))

            def loss_fn(params: Any) -> tuple[jax.Array, tuple[jax.Array, Any]]:
                variables = {
                    "params": meshes.gather_shares(params, mesh),
                    "batch_stats": state.batch_stats,
                }
                logits_BK, updated = model.apply(
                    variables, images_BHWC, train=True, mutable=["batch_stats"]
                )
                losses_B = objective.cross_entropy(logits_BK, labels_B, config.label_smoothing)
                return losses_B.mean(), (logits_BK, updated["batch_stats"])

            (loss, (logits_BK, batch_stats)), gradients = jax.value_and_grad(loss_fn, has_aux=True)(
                state.params
            )
            return loss, objective.top1_error(logits_BK, labels_B).mean(), batch_stats, gradients

        # Drawn for the whole batch, so that its parts are augmented as the whole would be.
        parts = config.accumulate
        draws = augmentation.draw(augment_key(seed, state.step), config.batch_size)
        draws = jax.tree.map(lambda a: a.reshape(parts, -1, *a.shape[1:]), draws)
        loss, error, batch_stats, gradients = _mean_over_parts(
            of_part, (batch, draws), parts, unroll=on_cpu
        )
        rate = schedule.rate(state.schedule, state.step)
        params, opt_state = descend(optimizer, rate, gradients, state.opt_state, state.params)

        window = Window(
            state.window.loss + loss, state.window.error + error, state.window.steps + 1
        )
        # Emptied once its row is due, not when the next one begins: a run that is resumed with
        # another log.every must neither drop the steps since its last row nor count them twice.
        # The row of a last step is dropped when the run is made longer, and its steps count on.
        is_logged = (state.step + 1) % config.log.every == 0
        # The weights too: a finite loss with a gradient that is not leaves weights that no
        # checkpoint may hold, and only the next step's loss would tell.
        are_finite = jnp.stack([jnp.isfinite(p).all() for p in jax.tree.leaves(params)]).all()
        diverges = (state.diverged_at == NEVER) & ~(jnp.isfinite(loss) & are_finite)
        ema = state.ema
        if config.ema_decay:
            ema = _average(
                ema, {"params": params, "batch_stats": batch_stats}, state.step, config.ema_decay
            )
        state = state.replace(
            step=state.step + 1,
            params=params,
            batch_stats=batch_stats,
            opt_state=opt_state,
            schedule=schedule.after_step(state.schedule, state.step, error),
            ema=ema,
            window=jax.tree.map(
                lambda empty, sums: jnp.where(is_logged, empty, sums), empty_window(), window
            ),
            diverged_at=jnp.where(diverges, state.step + 1, state.diverged_at),
        )
        metrics = {
            "train/loss": window.loss / window.steps,
            "train/error": window.error / window.steps,
            "train/learning_rate": rate,
            "diverged_at": state.diverged_at,
        }
        return state, metrics

    def train_steps(
        state: TrainState, seed: jax.Array, arrays: Any, batches: Any
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        count = jax.tree.leaves(batches)[0].shape[0]
        if count == 1:
            return train_step(state, seed, arrays, _first(batches))
        state, metrics = jax.lax.scan(
            lambda state, batch: train_step(state, seed, arrays, batch),
            state,
            batches,
            unroll=count if on_cpu else 1,
        )
        return state, jax.tree.map(lambda of_steps: of_steps[-1], metrics)

    whole, by_replicate = meshes.everywhere(mesh), meshes.by_replicate(mesh)
    batches = meshes.split_batches(mesh)
    return jax.jit(
        over_replicates(
            train_steps, config.replicates, (0, 0, None, 0), mesh, config.replicates_by
        ),
        in_shardings=(state_shardings, by_replicate, whole, batches),
        out_shardings=(state_shardings, by_replicate),
        donate_argnums=0,
        compiler_options=compiler_options(config, mesh),
    )


def _mean_over_parts(f: Callable[[Any], Any], batch: Any, parts: int, unroll: bool) -> Any:
    """Returns the mean of f(part) over the parts of a batch, which its leading axis counts."""
    first = _first(batch)
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


def _first(tree: Any) -> Any:
    return jax.tree.map(lambda a: a[0], tree)


def _average(ema: Any, new: Any, step: jax.Array, decay: float) -> Any:
    # The ramp keeps the random initial weights from lingering (tf.train.ExponentialMovingAverage).
    keep = jnp.minimum(decay, (1.0 + step) / (10.0 + step))
    return jax.tree.map(lambda old, now: keep * old + (1 - keep) * now, ema, new)


def make_moments_step(
    model: nn.Module,
    normalization: Normalization,
    augmentation: Augmentation,
    select: Select,
    config: ConfigDict,
    mesh: Mesh,
) -> Callable[..., Any]:
    """Returns step(variables_R, seeds_R, number, arrays, batch_R) -> moments_R.

    The moments are the exact mean and variance of each BatchNorm's input over the batch, with the
    network as in training; `number` counts the batches. `batch_R` is a span of one step; its parts
    are computed one after another.
    """
    on_cpu = mesh.devices.flat[0].platform == "cpu"

    def moments_step(
        variables: Any,
        seed: jax.Array,
        number: jax.Array,
        arrays: Any,
        batch: Any,
    ) -> Any:
        def of_part(part: tuple[Any, Draws]) -> Any:
            selected, draws = part
            images_BHWC, _ = select(arrays, selected)
            images_BHWC = augmentation(draws, normalization(images_BHWC))
            _, updated = model.apply(
                meshes.gather_shares(variables, mesh), images_BHWC, train=True, mutable=[MOMENTS]
            )
            return updated[MOMENTS]

        parts = config.accumulate
        draws = augmentation.draw(population_key(seed, number), config.batch_size)
        draws = jax.tree.map(lambda a: a.reshape(parts, -1, *a.shape[1:]), draws)
        _, of_parts = jax.lax.scan(
            lambda _, part: (None, of_part(part)),
            None,
            (_first(batch), draws),
            unroll=True if on_cpu else 1,
        )
        return pool_moments(of_parts)

    whole, by_replicate = meshes.everywhere(mesh), meshes.by_replicate(mesh)
    batches = meshes.split_batches(mesh)
    return jax.jit(
        over_replicates(
            moments_step, config.replicates, (0, 0, None, None, 0), mesh, config.replicates_by
        ),
        in_shardings=(None, by_replicate, whole, whole, batches),
        out_shardings=by_replicate,
        compiler_options=compiler_options(config, mesh),
    )


def make_eval_step(
    model: nn.Module, normalization: Normalization, mirrored: bool, config: ConfigDict, mesh: Mesh
) -> Callable[..., dict[str, jax.Array]]:
    """Returns step(variables_R, groups, labels_B, mask_B) -> sums_R over the unmasked.

    `groups` holds the views of each picture, see data.splits.EvalBatch; the mirror image of each is
    one more where `mirrored`. Their predicted probabilities are averaged (section 3.4). The sums
    are {"loss" (nats), "error" (percent)}, float32; and "top5_error" of many classes.
    """
    has_top5 = config.model.num_classes >= MANY_CLASSES

    def eval_step(
        variables: Any, groups: tuple[jax.Array, ...], labels_B: jax.Array, mask_B: jax.Array
    ) -> dict[str, jax.Array]:
        whole = meshes.gather_shares(variables, mesh)
        predicted = []
        for images_BVHWC in groups:
            batch, views, *image = images_BVHWC.shape
            views_BHWC = normalization(images_BVHWC.reshape(batch * views, *image))
            for seen_BHWC in (views_BHWC, views_BHWC[:, :, ::-1])[: 1 + mirrored]:
                logits_BK: Any = model.apply(whole, seen_BHWC, train=False)
                predicted.append(jax.nn.log_softmax(logits_BK).reshape(batch, views, -1))
        logs_BVK = jnp.concatenate(predicted, axis=1)
        # The log of the mean probability, up to a constant that the losses do not see.
        logs_BK = jax.nn.logsumexp(logs_BVK, axis=1)
        # where, not a product: 0 times a padded example's NaN would be NaN.
        sums = {
            "loss": objective.cross_entropy(logs_BK, labels_B, smoothing=0.0),
            "error": objective.top1_error(logs_BK, labels_B),
        }
        if has_top5:
            sums["top5_error"] = objective.top5_error(logs_BK, labels_B)
        return {name: jnp.where(mask_B, each, 0.0).sum() for name, each in sums.items()}

    split = meshes.split_batch(mesh)
    return jax.jit(
        over_replicates(
            eval_step, config.replicates, (0, None, None, None), mesh, config.replicates_by
        ),
        in_shardings=(None, split, split, split),
        out_shardings=meshes.by_replicate(mesh),
        compiler_options=compiler_options(config, mesh),
    )


def make_after_validation(
    schedule: Schedule, replicates: int, state_shardings: Any, mesh: Mesh
) -> Callable[[TrainState, jax.Array], TrainState]:
    """Returns after_validation(state, error_R) -> state; the state is donated.

    It keeps the best weights so far and tells the schedule. An equal error is not better: the
    earlier weights stay.
    """

    def after_validation(state: TrainState, error: jax.Array) -> TrainState:
        is_better = (error < state.best.error) & (state.diverged_at == NEVER)
        candidate = Best(error=error, step=state.step, variables=state.evaluated)
        best = jax.tree.map(lambda new, old: jnp.where(is_better, new, old), candidate, state.best)
        return state.replace(best=best, schedule=schedule.after_validation(state.schedule, error))

    return jax.jit(
        over_replicates(after_validation, replicates, (0, 0), mesh, "separate"),
        in_shardings=(state_shardings, meshes.by_replicate(mesh)),
        out_shardings=state_shardings,
        donate_argnums=0,
    )
