"""The training state: everything that a run carries from step to step and a checkpoint holds."""

import dataclasses
import functools
from collections.abc import Callable
from typing import TypeVar

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike

from resnet_jax.networks.resnet import ResNet
from resnet_jax.optim import Schedule, ScheduleState
from resnet_jax.pytree import PyTree

NEVER = -1
Variables = dict[str, PyTree]  # {"params", "batch_stats"}


class Window(flax.struct.PyTreeNode):
    """Sums over the steps since the last row of metrics, float32 scalars."""

    loss: jax.Array
    error: jax.Array
    steps: jax.Array

    def add(self, loss: jax.Array, error: jax.Array) -> "Window":
        """Returns the sums with one more step added."""
        return Window(self.loss + loss, self.error + error, self.steps + 1)


class Best(flax.struct.PyTreeNode):
    """The evaluated weights with the lowest validation error so far."""

    error: jax.Array  # percent
    step: jax.Array
    variables: Variables


class TrainState(flax.struct.PyTreeNode):
    """The state of one replicate. In a run every leaf has a leading replicate axis.

    Attributes:
      step: int32; steps taken.
      params: float32.
      batch_stats: BatchNorm's moving averages, float32; {} without BatchNorm.
      opt_state: optax's state.
      schedule: the state of the learning-rate schedule.
      ema: {"params", "batch_stats"} averaged exponentially, or {} without averaging.
      window: sums for the next row of metrics, saved so that a resumed run logs the same row.
      best: the weights for `eval.weights="best"`.
      diverged_at: int32; the first step after which loss or weights were not finite, or NEVER.
    """

    step: jax.Array
    params: optax.Params
    batch_stats: PyTree
    opt_state: optax.OptState
    schedule: ScheduleState
    ema: Variables
    window: Window
    best: Best
    diverged_at: jax.Array

    @property
    def evaluated(self) -> Variables:
        """The variables to evaluate: the averaged ones if there are any."""
        return self.ema or {"params": self.params, "batch_stats": self.batch_stats}


S = TypeVar("S", bound=TrainState | Variables)  # the content of a checkpoint


def empty_window() -> Window:
    """Returns a window without steps."""
    zero = jnp.zeros((), jnp.float32)
    return Window(loss=zero, error=zero, steps=zero)


@dataclasses.dataclass(frozen=True)
class Initializer:
    """Makes the state before the first step, in the stacked layout of checkpoints: see layout.py.

    Attributes:
      model: with `scan` set.
      optimizer, schedule: of the run.
      image_shape: (H, W, C).
      use_ema: whether weights are averaged.
      compiler_options: for drawing the weights, see Execution.init_options.
    """

    model: ResNet
    optimizer: optax.GradientTransformation
    schedule: Schedule
    image_shape: tuple[int, ...]
    use_ema: bool
    compiler_options: tuple[tuple[str, str], ...] = ()

    def __call__(self, seeds_R: np.ndarray, given: Variables | None = None) -> TrainState:
        """Initialises one replicate per seed, in host memory.

        One program serves every seed, so a seed's weights do not depend on the other seeds.

        Args:
          seeds_R: of the replicates.
          given: replaces the modules that it has; with a leading axis of replicates.
        """
        draw = _draw(self.model, self.image_shape, self.compiler_options)
        states = []
        for replicate, seed in enumerate(seeds_R):
            variables = draw(jnp.int32(seed))
            for name, collection in (given or {}).items():
                variables[name] |= jax.tree.map(lambda a, r=replicate: a[r], collection)
            states.append(jax.device_get(self._state_of(variables)))
        return jax.tree.map(lambda *leaves: np.stack(leaves), *states)

    def shapes(self, replicates: int) -> TrainState:
        """Returns the state's shapes and dtypes without computing it."""
        variables = jax.eval_shape(
            _draw(self.model, self.image_shape, self.compiler_options), jnp.int32(0)
        )
        return jax.tree.map(
            lambda a: jax.ShapeDtypeStruct((replicates, *a.shape), a.dtype),
            jax.eval_shape(self._state_of, variables),
        )

    def _state_of(self, variables: Variables) -> TrainState:
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
) -> Callable[[jax.Array], Variables]:
    """Returns a compiled f(seed) -> initial variables, cached so that it is compiled once."""
    images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)

    def draw(seed: jax.Array) -> Variables:
        variables = model.lazy_init(init_key(seed), images, train=True)
        # Only BatchNorm has statistics.
        return {"params": variables["params"], "batch_stats": variables.get("batch_stats", {})}

    return jax.jit(draw, compiler_options=dict(compiler_options))


# Every key is fold_in(fold_in(key(seed), purpose), step): none is carried over or used twice.
# The augmentation of training batches and of batches for population statistics differs.
_INIT, TRAINING, POPULATION, _NETWORK = range(4)


def init_key(seed: jax.Array) -> jax.Array:
    """The key for the initial parameters."""
    return jax.random.fold_in(jax.random.key(seed), _INIT)


def augment_key(seed: jax.Array, purpose: ArrayLike, step: ArrayLike) -> jax.Array:
    """The key for the augmentation of a step's batch; `purpose` is TRAINING or POPULATION."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), purpose), step)


def network_key(seed: jax.Array, step: jax.Array) -> jax.Array:
    """The key for stochastic depth and dropout in a training step."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), _NETWORK), step)
