"""Optimisers and learning-rate schedules.

The rate may depend on the training and validation errors so far. It is therefore a function of a
small checkpointed state, and optax receives the rate as a number at each step.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike
from ml_collections import ConfigDict

from resnet_jax.networks import layout
from resnet_jax.pytree import PyTree


class Numbers(NamedTuple):
    """Numbers of a run that its training program takes as arguments, float32.

    Runs that differ only in them, in seeds or in length share one compiled program.
    """

    rate: ArrayLike
    warmup_rate: ArrayLike
    weight_decay: ArrayLike
    shortcut_scale: ArrayLike
    branch_scale: ArrayLike


def numbers_of(config: ConfigDict) -> Numbers:
    """Returns the numbers of a resolved config."""
    schedule, optimizer, model = config.schedule, config.optimizer, config.model
    return Numbers(
        rate=np.float32(schedule.rate),
        warmup_rate=np.float32(schedule.warmup_rate),
        weight_decay=np.float32(optimizer.weight_decay),
        shortcut_scale=np.float32(model.shortcut_scale),
        branch_scale=np.float32(model.branch_scale),
    )


# ----------------------------------------------------------------------------- optimisers


def make_optimizer(
    config: ConfigDict, numbers: Numbers | None = None
) -> optax.GradientTransformation:
    """Builds the optimiser of a resolved config, with its own numbers by default.

    SGD keeps the rate inside the velocity, v <- momentum * v - rate * g, as in Krizhevsky et al.
    2012 and Caffe; with a constant rate this equals optax.sgd. LARS (You et al. 2017) additionally
    scales the rate of each kernel; BatchNorm's parameters and biases use SGD's rate.
    """
    weight_decay = (numbers or numbers_of(config)).weight_decay
    config = config.optimizer

    def build(learning_rate: optax.ScalarOrSchedule) -> optax.GradientTransformation:
        usual = of_all(learning_rate)
        return optax.chain(usual, _by_part(config.rate_factors)) if config.rate_factors else usual

    def of_all(learning_rate: optax.ScalarOrSchedule) -> optax.GradientTransformation:
        clip = [optax.clip_by_global_norm(config.clip_norm)] if config.clip_norm else []
        decay = optax.add_decayed_weights(
            weight_decay, mask=_kernels if config.decay_on == "kernels" else None
        )
        descend = optax.scale_by_learning_rate(learning_rate)
        velocity = optax.trace(config.momentum, config.nesterov)
        if config.name == "sgd":
            return optax.chain(*clip, decay, descend, velocity)
        if config.name == "lars":
            trust = _kernel_by_kernel(optax.scale_by_trust_ratio(trust_coefficient=config.trust))
            return optax.chain(*clip, decay, optax.masked(trust, _kernels), descend, velocity)
        adam = optax.scale_by_adam(config.b1, config.b2, config.epsilon)
        before, after = ([], [decay]) if config.name == "adamw" else ([decay], [])
        return optax.chain(*clip, *before, adam, *after, descend)

    return optax.inject_hyperparams(build)(learning_rate=0.0)


def frozen_parts(config: ConfigDict) -> tuple[str, ...]:
    """Returns the parts of a network that a resolved config does not train, see layout.parts."""
    factors = config.optimizer.rate_factors
    pairs = zip(_parts(factors), factors, strict=True)
    return tuple(part for part, factor in pairs if factor == 0)


def _parts(factors: Sequence[float]) -> tuple[str, ...]:
    return layout.parts(len(factors) - 2) if factors else ()


def _by_part(factors: Sequence[float]) -> optax.GradientTransformation:
    """Multiplies the updates of each part of a network by the factor on its learning rate."""
    of_part = dict(zip(_parts(factors), factors, strict=True))

    def update(updates: optax.Updates, _: optax.Params | None) -> optax.Updates:
        return {
            name: optax.tree.scale(of_part[layout.part_of(name, len(factors) - 2)], node)
            for name, node in updates.items()
        }

    return optax.stateless(update)


def _kernels(params: optax.Params) -> PyTree:
    """Returns a mask of the convolution and fully connected kernels."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", params)


def _kernel_by_kernel(transform: optax.GradientTransformation) -> optax.GradientTransformation:
    """Applies a stateless transformation to each kernel, including those that layout.py stacks."""

    def update(
        updates: optax.Updates, state: optax.OptState, params: optax.Params
    ) -> tuple[optax.Updates, optax.OptState]:
        def update_one(update: optax.Updates, param: optax.Params) -> optax.Updates:
            return transform.update(update, state, param)[0]

        return {
            name: (jax.vmap(update_one) if layout.is_stacked(name) else update_one)(
                updates[name], params[name]
            )
            for name in updates
        }, state

    return optax.GradientTransformation(transform.init, update)


def descend(
    optimizer: optax.GradientTransformation,
    rate: jax.Array,
    gradients: optax.Updates,
    state: optax.OptState,
    params: optax.Params,
) -> tuple[optax.Params, optax.OptState]:
    """Takes one step at the given learning rate; returns the new (params, optimiser state)."""
    state = state._replace(hyperparams=state.hyperparams | {"learning_rate": rate})
    updates, state = optimizer.update(gradients, state, params)
    return optax.apply_updates(params, updates), state


# ------------------------------------------------------------------------------ schedules


class ScheduleState(flax.struct.PyTreeNode):
    """The values, besides the step, that determine the rate.

    Attributes:
      warming: bool; whether warm-up by `until_error` is still on.
      window_error: float32; sum of the training errors in the current warm-up window, percent.
      plateau: state of optax's reduce_on_plateau; its `scale` multiplies the rate.
    """

    warming: jax.Array
    window_error: jax.Array
    plateau: optax.contrib.ReduceLROnPlateauState


class Schedule:
    """The learning-rate schedule of a resolved config.

    Step boundaries and warm-up until an error follow section 4.2: "we use 0.01 to warm up the
    training until the training error is below 80%, and then go back to 0.1".
    """

    def __init__(self, config: ConfigDict, numbers: Numbers | None = None):
        """Makes the schedule, with the config's own numbers by default."""
        self._config, self._numbers = config.schedule, numbers or numbers_of(config)
        self._base = _base_rate(config.schedule, self._numbers.rate, config.steps)
        self._plateau = optax.contrib.reduce_on_plateau(
            factor=self._config.factor,
            patience=self._config.patience,
            rtol=0.0,
            atol=self._config.tolerance,
        )

    def init(self) -> ScheduleState:
        """Returns the state before the first step."""
        return ScheduleState(
            warming=jnp.asarray(self._config.warmup == "until_error"),
            window_error=jnp.zeros((), jnp.float32),
            plateau=self._plateau.init({}),  # it needs no parameters
        )

    def rate(self, state: ScheduleState, step: jax.Array) -> jax.Array:
        """Returns the learning rate of `step` (0 for the first), float32."""
        rate = self._base(step) * state.plateau.scale
        return jnp.where(state.warming, self._numbers.warmup_rate, rate).astype(jnp.float32)

    def after_step(self, state: ScheduleState, step: jax.Array, error: jax.Array) -> ScheduleState:
        """Updates the state with the training error (percent) of `step`'s batch."""
        window = self._config.warmup_window
        total = state.window_error + error
        window_ends = (step + 1) % window == 0
        is_warm = window_ends & (total / window < self._config.warmup_error)
        return state.replace(
            warming=state.warming & ~is_warm,
            window_error=jnp.where(window_ends, 0.0, total),
        )

    def after_validation(self, state: ScheduleState, error: jax.Array) -> ScheduleState:
        """Updates the state with a validation error (percent)."""
        if self._config.name != "plateau":
            return state
        # Optax would scale updates; we need only the scale in its state.
        _, plateau = self._plateau.update({}, state.plateau, value=error)
        return state.replace(plateau=plateau)


def _base_rate(
    config: ConfigDict, highest: ArrayLike, steps: int
) -> Callable[[jax.Array], jax.Array]:
    """Returns the rate as a function of the step only."""
    warmup = config.warmup_length if config.warmup == "linear" else 0.0
    shape: Callable[[jax.Array], jax.Array]
    if config.name == "step":
        factors = {int(b): config.factor for b in config.boundaries}
        shape = optax.piecewise_constant_schedule(highest, factors)
    elif config.name == "cosine":
        floor = config.final_rate / config.rate if config.rate else 0.0
        cosine = optax.cosine_decay_schedule(highest, int(steps - warmup), alpha=floor)

        def shape(step: jax.Array) -> jax.Array:
            return cosine(jnp.maximum(step - warmup, 0))
    else:
        shape = optax.constant_schedule(highest)
    if not warmup:
        return shape
    return lambda step: shape(step) * jnp.minimum(1.0, (step + 1) / warmup)
