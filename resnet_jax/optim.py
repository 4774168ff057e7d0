"""Optimisers and learning-rate schedules.

The rate may depend on what has happened (the training error, the validation error), so it is a
function of a small state that is checkpointed with the rest, and optax is handed the number.
"""

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from resnet_jax.networks import layout

# ----------------------------------------------------------------------------- optimisers


def make_optimizer(config: ConfigDict) -> optax.GradientTransformation:
    """Builds the optimiser of a resolved config's `optimizer` section.

    SGD keeps the rate inside the velocity, v <- momentum * v - rate * g, as Krizhevsky et al. 2012
    write it and Caffe runs it; with a constant rate this is optax.sgd. LARS (You et al. 2017) is
    the same with a rate of its own for each kernel; BatchNorm's parameters and biases have SGD's.
    """

    def build(learning_rate: Any) -> optax.GradientTransformation:
        clip = [optax.clip_by_global_norm(config.clip_norm)] if config.clip_norm else []
        decay = optax.add_decayed_weights(
            config.weight_decay, mask=_kernels if config.decay_on == "kernels" else None
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


def _kernels(params: Any) -> Any:
    """Marks convolution and fully connected kernels: neither BatchNorm's parameters nor biases."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", params)


def _kernel_by_kernel(one: optax.GradientTransformation) -> optax.GradientTransformation:
    """Applies what keeps no state to the kernels that layout.py stacks as if they were alone."""

    def update(updates: Any, state: Any, params: Any) -> tuple[Any, Any]:
        def alone(update: Any, param: Any) -> Any:
            return one.update(update, state, param)[0]

        return {
            name: (jax.vmap(alone) if layout.is_stacked(name) else alone)(
                updates[name], params[name]
            )
            for name in updates
        }, state

    return optax.GradientTransformation(one.init, update)


def descend(
    optimizer: optax.GradientTransformation,
    rate: jax.Array,
    gradients: Any,
    state: Any,
    params: Any,
) -> tuple[Any, Any]:
    """Takes one step at the given learning rate; returns the new (params, optimiser state)."""
    state = state._replace(hyperparams=state.hyperparams | {"learning_rate": rate})
    updates, state = optimizer.update(gradients, state, params)
    return optax.apply_updates(params, updates), state


# ------------------------------------------------------------------------------ schedules


class ScheduleState(flax.struct.PyTreeNode):
    """What the rate depends on beside the step.

    Attributes:
      warming: bool; the paper's warm-up is still on.
      window_error: float32; sum of the training errors of the current warm-up window, percent.
      plateau: optax's reduce_on_plateau state; its `scale` multiplies the rate.
    """

    warming: jax.Array
    window_error: jax.Array
    plateau: optax.contrib.ReduceLROnPlateauState


class Schedule:
    """The learning rate, of a resolved config's `schedule` section.

    Step boundaries and the paper's warm-up are those of section 4.2: "we use 0.01 to warm up the
    training until the training error is below 80%, and then go back to 0.1".
    """

    def __init__(self, config: ConfigDict, steps: int):
        """Takes the section and the length of training in steps."""
        self._config = config
        self._base = _base_rate(config, steps)
        self._plateau = optax.contrib.reduce_on_plateau(
            factor=config.factor, patience=config.patience, rtol=0.0, atol=config.tolerance
        )

    def init(self) -> ScheduleState:
        """Returns the state before the first step."""
        return ScheduleState(
            warming=jnp.asarray(self._config.warmup == "until_error"),
            window_error=jnp.zeros((), jnp.float32),
            plateau=self._plateau.init({}),  # it watches a number, not parameters
        )

    def rate(self, state: ScheduleState, step: jax.Array) -> jax.Array:
        """Returns the learning rate of `step` (0 for the first), float32."""
        rate = self._base(step) * state.plateau.scale
        return jnp.where(state.warming, self._config.warmup_rate, rate).astype(jnp.float32)

    def after_step(self, state: ScheduleState, step: jax.Array, error: jax.Array) -> ScheduleState:
        """Takes in the training error (percent) of `step`'s batch."""
        window = self._config.warmup_window
        total = state.window_error + error
        is_over = (step + 1) % window == 0
        has_learnt = is_over & (total / window < self._config.warmup_error)
        return state.replace(
            warming=state.warming & ~has_learnt,
            window_error=jnp.where(is_over, 0.0, total),
        )

    def after_validation(self, state: ScheduleState, error: jax.Array) -> ScheduleState:
        """Takes in a validation error (percent)."""
        if self._config.name != "plateau":
            return state
        # The transformation scales updates by its state; we want the scale alone.
        _, plateau = self._plateau.update({}, state.plateau, value=error)
        return state.replace(plateau=plateau)


def make_schedule(config: ConfigDict) -> Schedule:
    """Builds the schedule of a resolved config."""
    return Schedule(config.schedule, config.steps)


def _base_rate(config: ConfigDict, steps: int) -> Callable[[jax.Array], jax.Array]:
    """Returns the rate as a function of the step alone."""
    warmup = config.warmup_length if config.warmup == "linear" else 0.0
    shape: Callable[[Any], Any]
    if config.name == "step":
        factors = {int(b): config.factor for b in config.boundaries}
        shape = optax.piecewise_constant_schedule(config.rate, factors)
    elif config.name == "cosine":
        floor = config.final_rate / config.rate if config.rate else 0.0
        cosine = optax.cosine_decay_schedule(config.rate, int(steps - warmup), alpha=floor)

        def shape(step: jax.Array) -> jax.Array:
            return cosine(jnp.maximum(step - warmup, 0))
    else:
        shape = optax.constant_schedule(config.rate)
    if not warmup:
        return shape
    return lambda step: shape(step) * jnp.minimum(1.0, (step + 1) / warmup)
