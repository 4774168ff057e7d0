"""All that a run carries from step to step, and all that a checkpoint holds."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, TypeVar

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

from resnet_jax.networks.resnet import ResNet
from resnet_jax.optim import Schedule, ScheduleState

NEVER = -1
Variables = dict[str, Any]  # {"params", "batch_stats"}


class Window(flax.struct.PyTreeNode):
    """Sums over the steps since the last line of metrics, float32 scalars."""

    loss: jax.Array
    error: jax.Array
    steps: jax.Array

    def add(self, loss: jax.Array, error: jax.Array) -> "Window":
        """Returns the sums with one more step's."""
        return Window(self.loss + loss, self.error + error, self.steps + 1)


class Best(flax.struct.PyTreeNode):
    """The evaluated weights with the lowest validation error so far."""

    error: jax.Array  # percent
    step: jax.Array
    variables: dict[str, Any]


class TrainState(flax.struct.PyTreeNode):
    """One replicate's state. In a run every leaf has a leading axis of replicates.

    Attributes:
      step: int32; steps taken.
      params: float32.
      batch_stats: BatchNorm's moving averages, float32.
      opt_state: optax's.
      schedule: what the learning rate depends on.
      ema: {"params", "batch_stats"} averaged exponentially, or {} where that is off.
      window: for the next line of metrics; here, so that a resumed run writes the same line.
      best: for `eval.weights`.
      diverged_at: int32; the first step whose loss or weights were not finite, or NEVER.
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: Any
    schedule: ScheduleState
    ema: dict[str, Any]
    window: Window
    best: Best
    diverged_at: jax.Array

    @property
    def evaluated(self) -> dict[str, Any]:
        """The variables that evaluation uses: the averaged ones where there are any."""
        return self.ema or {"params": self.params, "batch_stats": self.batch_stats}


S = TypeVar("S", bound=TrainState | Variables)  # what a checkpoint holds


def empty_window() -> Window:
    """Returns a window without steps."""
    zero = jnp.zeros((), jnp.float32)
    return Window(loss=zero, error=zero, steps=zero)


@dataclasses.dataclass(frozen=True)
class Initializer:
    """Makes the state before the first step, as checkpoints have it: stacked, see layout.py.

    Attributes:
      model: with `scan`.
      optimizer, schedule: of the run.
      image_shape: (H, W, C).
      use_ema: whether weights are averaged.
      compiler_options: of the program that draws the weights, see Execution.init_options.
    """

    model: ResNet
    optimizer: optax.GradientTransformation
    schedule: Schedule
    image_shape: tuple[int, ...]
    use_ema: bool
    compiler_options: tuple[tuple[str, str], ...] = ()

    def __call__(self, seeds_R: np.ndarray) -> TrainState:
        """Initialises the replicates of these seeds, in host memory.

        Each by the same program, so that a seed begins alike, alone or among others.
        """
        draw = _draw(self.model, self.image_shape, self.compiler_options)
        alone = [jax.device_get(self._around(draw(jnp.int32(seed)))) for seed in seeds_R]
        return jax.tree.map(lambda *leaves: np.stack(leaves), *alone)

    def shapes(self, replicates: int) -> TrainState:
        """Returns the state's shapes and dtypes, without making it."""
        variables = jax.eval_shape(
            _draw(self.model, self.image_shape, self.compiler_options), jnp.int32(0)
        )
        return jax.tree.map(
            lambda a: jax.ShapeDtypeStruct((replicates, *a.shape), a.dtype),
            jax.eval_shape(self._around, variables),
        )

    def _around(self, variables: dict[str, Any]) -> TrainState:
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=variables["params"],
            batch_stats=variables["batch_stats"],
            opt_state=self.optimizer.init(variables["params"]),
            schedule=self.schedule.init(),
            ema=variables if self.use_ema else {},
            window=empty_window(),
            best=Best(
                error=jnp.full((), jnp.inf, jnp.float32),
                step=jnp.full((), NEVER, jnp.int32),
                variables=variables,
            ),
            diverged_at=jnp.full((), NEVER, jnp.int32),
        )


@functools.lru_cache
def _draw(
    model: ResNet, image_shape: tuple[int, ...], compiler_options: tuple[tuple[str, str], ...]
) -> Callable[[jax.Array], dict[str, Any]]:
    """Returns the compiled f(seed) -> initial variables; a process compiles it once."""
    images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)

    def draw(seed: jax.Array) -> dict[str, Any]:
        made = model.lazy_init(init_key(seed), images, train=True)
        return {name: made[name] for name in ("params", "batch_stats")}

    return jax.jit(draw, compiler_options=dict(compiler_options))


# Randomness is fold_in(fold_in(key(seed), what for), step): no key is ever carried or used twice.
_INIT, _AUGMENT, _POPULATION = range(3)


def init_key(seed: jax.Array) -> jax.Array:
    """The key of the initial parameters."""
    return jax.random.fold_in(jax.random.key(seed), _INIT)


def augment_key(seed: jax.Array, step: jax.Array) -> jax.Array:
    """The key of a training batch's crops and flips."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), _AUGMENT), step)


def population_key(seed: jax.Array, step: jax.Array) -> jax.Array:
    """The key of the crops and flips of a batch that population statistics are taken over."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), _POPULATION), step)
