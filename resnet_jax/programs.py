"""Builds the network and the compiled programs of a resolved config.

A program is jit(seeds(steps(step))): step.py has the steps of one seed; this file adds the outer
layers.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.stages import Wrapped
from ml_collections import ConfigDict

from resnet_jax import step
from resnet_jax.data import sets
from resnet_jax.data.augment import Augmentation, Normalization
from resnet_jax.execution import Execution
from resnet_jax.networks import builders, layout
from resnet_jax.networks.per_block import Scales
from resnet_jax.networks.resnet import ResNet
from resnet_jax.networks.signals import SIGNALS
from resnet_jax.optim import Numbers, Schedule, frozen_parts, make_optimizer, numbers_of
from resnet_jax.parallel import mesh as meshes
from resnet_jax.parallel import seeds
from resnet_jax.parallel.processes import put
from resnet_jax.pytree import PyTree, Tree
from resnet_jax.state import Initializer, TrainState, Variables, augment_key
from resnet_jax.step import Batch, Metrics, Task

Select = Callable[[PyTree, PyTree], tuple[jax.Array, jax.Array]]  # see data.splits.Split.select


@dataclasses.dataclass(frozen=True)
class Programs:
    """A run's network and programs, each compiled at its first call.

    Attributes:
      initialize: makes the state before the first step.
      state: shapes, dtypes and shardings of the state in training.
      saved_state: the same of the state in checkpoints.
      numbers: the argument of train_steps.
      train_steps: (state, seeds_R, numbers, arrays, batches_R) -> (state, metrics_R); donates the
        state.
      observe_step: (variables_R, seeds_R, purpose, number, arrays, batches_R) -> (moments_R,
        signals_R), of the batch of the first step; purpose and number are those of the
        augmentation, see state.augment_key.
      eval_steps: {mirrored: (variables_R, groups, labels_B, mask_B) -> sums_R}.
      after_validation: (state, error_R) -> state; donates the state.
    """

    execution: Execution
    task: Task
    initialize: Initializer
    state: TrainState
    saved_state: TrainState
    numbers: Numbers
    train_steps: Wrapped
    observe_step: Wrapped
    eval_steps: dict[bool, Wrapped]
    after_validation: Wrapped

    @property
    def model(self) -> ResNet:
        """The network."""
        return self.task.model

    def start(self, seeds_R: np.ndarray, given: Variables | None = None) -> TrainState:
        """Returns the state before the first step, on its devices; see state.Initializer."""
        saved = self.initialize(seeds_R, given)
        state = _in_training(self.model, saved, lambda a: np.moveaxis(np.asarray(a), 1, 0))
        return put(state, self.state_shardings)

    def to_saved(self, tree: Tree) -> Tree:
        """Converts a state, or variables, to the layout of checkpoints: see layout.py."""
        if self.model.scan:
            return tree
        return layout.convert(tree, lambda collection: layout.stacked(collection, _stack))

    def from_saved(self, state: TrainState) -> TrainState:
        """Converts a checkpoint's state to the layout and the devices of training."""
        return jax.device_put(_in_training(self.model, state, _unstack), self.state_shardings)

    @property
    def state_shardings(self) -> TrainState:
        """The sharding of each array of the state."""
        return jax.tree.map(lambda a: a.sharding, self.state)


def build(
    config: ConfigDict, execution: Execution, normalization: Normalization, select: Select
) -> Programs:
    """Builds the programs of a resolved config.

    Args:
      config: resolved.
      execution: see execution.decide.
      normalization: of the data set.
      select: of the training split, see data.splits.Split.
    """
    initialize = initializer(config, execution)
    convolution, product = seeds.convolution_and_product(execution.seeds_by, execution.mesh)
    model = dataclasses.replace(
        builders.from_config(config.model, execution.scan),
        frozen=frozen_parts(config),
        convolution=convolution,
        product=product,
    )
    augmentation = Augmentation(
        config.data.pad, config.data.flip == "on", config.data.color, normalization.std
    )

    def task_with(numbers: Numbers) -> Task:
        return Task(
            model=model,
            scales=Scales(numbers.shortcut_scale, numbers.branch_scale),
            optimizer=make_optimizer(config, numbers),
            schedule=Schedule(config, numbers),
            normalization=normalization,
            augmentation=augmentation,
            label_smoothing=config.label_smoothing,
            ema_decay=config.ema_decay,
            log_every=config.log.every,
            signals=config.log.signals.every > 0,
            unroll=execution.unroll,
            mesh=execution.mesh,
        )

    numbers = numbers_of(config)
    task = task_with(numbers)
    saved_state = initialize.shapes(config.replicates)
    shapes = jax.eval_shape(lambda saved: _in_training(model, saved, _unstack), saved_state)
    state = meshes.place(shapes, execution.mesh)
    compiler = Compiler(execution, config.replicates)
    shardings = jax.tree.map(lambda a: a.sharding, state)
    return Programs(
        execution=execution,
        task=task,
        initialize=initialize,
        state=state,
        saved_state=meshes.place(saved_state, execution.mesh),
        numbers=numbers,
        train_steps=compiler.train_steps(task_with, select, shardings),
        observe_step=compiler.observe_step(task, select),
        eval_steps={mirrored: compiler.eval_step(task, mirrored) for mirrored in (False, True)},
        after_validation=compiler.after_validation(task, shardings),
    )


def initializer(config: ConfigDict, execution: Execution | None = None) -> Initializer:
    """Returns the initializer of a resolved config; `execution` is needed only to draw weights."""
    return Initializer(
        # It only draws kernels, and a loop over blocks compiles fastest on every platform.
        model=dataclasses.replace(builders.from_config(config.model), scan=True, remat=()),
        optimizer=make_optimizer(config),
        schedule=Schedule(config),
        image_shape=sets.image_shape(config.data),
        use_ema=bool(config.ema_decay),
        compiler_options=tuple(execution.init_options.items()) if execution else (),
    )


@dataclasses.dataclass(frozen=True)
class Compiler:
    """Compiles the steps of one seed into programs for all seeds, spread over the devices."""

    execution: Execution
    replicates: int

    def train_steps(
        self, task_with: Callable[[Numbers], Task], select: Select, state_shardings: TrainState
    ) -> Wrapped:
        """Returns Programs.train_steps: one step per entry of the second axis of `batches_R`."""

        def train_steps(
            state: TrainState,
            seed: jax.Array,
            numbers: Numbers,
            arrays: PyTree,
            batches: PyTree,
        ) -> tuple[TrainState, Metrics]:
            task = task_with(numbers)

            def one_step(state: TrainState, batch: PyTree) -> tuple[TrainState, Metrics]:
                return step.train_step(task, state, seed, Batch(*select(arrays, batch)))

            count = jax.tree.leaves(batches)[0].shape[0]
            if count == 1:
                return one_step(state, _first(batches))
            state, metrics = jax.lax.scan(
                one_step, state, batches, unroll=count if task.unroll else 1
            )
            # Signals are those of the step whose forward pass observe_step sees.
            observed = jax.tree.map(lambda each_step: each_step[0], metrics.pop(SIGNALS))
            last = jax.tree.map(lambda each_step: each_step[-1], metrics)
            return state, last | {SIGNALS: observed}

        mesh = self.execution.mesh
        everywhere, by_replicate = meshes.everywhere(mesh), meshes.by_replicate(mesh)
        return jax.jit(
            self._over_seeds(train_steps, (0, 0, None, None, 0)),
            in_shardings=(
                state_shardings,
                by_replicate,
                everywhere,
                everywhere,
                meshes.split_batches(mesh),
            ),
            out_shardings=(state_shardings, by_replicate),
            donate_argnums=0,
            compiler_options=dict(self.execution.compiler_options),
        )

    def observe_step(self, task: Task, select: Select) -> Wrapped:
        """Returns Programs.observe_step."""

        def observe_step(
            variables: PyTree,
            seed: jax.Array,
            purpose: jax.Array,
            number: jax.Array,
            arrays: PyTree,
            batches: PyTree,
        ) -> tuple[PyTree, Metrics]:
            batch = Batch(*select(arrays, _first(batches)))
            key = augment_key(seed, purpose, number)
            return step.observe_step(task, variables, key, batch)

        mesh = self.execution.mesh
        everywhere, by_replicate = meshes.everywhere(mesh), meshes.by_replicate(mesh)
        return jax.jit(
            self._over_seeds(observe_step, (0, 0, None, None, None, 0)),
            in_shardings=(
                None,
                by_replicate,
                everywhere,
                everywhere,
                everywhere,
                meshes.split_batches(mesh),
            ),
            out_shardings=by_replicate,
            compiler_options=dict(self.execution.compiler_options),
        )

    def eval_step(self, task: Task, mirrored: bool) -> Wrapped:
        """Returns Programs.eval_steps[mirrored]."""
        mesh = self.execution.mesh
        split = meshes.split_batch(mesh)
        eval_step = functools.partial(step.eval_step, task, mirrored)
        functools.update_wrapper(eval_step, step.eval_step)  # the program's name
        return jax.jit(
            self._over_seeds(eval_step, (0, None, None, None)),
            in_shardings=(None, split, split, split),
            out_shardings=meshes.by_replicate(mesh),
            compiler_options=dict(self.execution.compiler_options),
        )

    def after_validation(self, task: Task, state_shardings: TrainState) -> Wrapped:
        """Returns Programs.after_validation."""
        after = functools.partial(step.after_validation, task.schedule)
        functools.update_wrapper(after, step.after_validation)
        mesh = self.execution.mesh
        return jax.jit(
            seeds.over_seeds(after, self.replicates, (0, 0), mesh, "separate"),
            in_shardings=(state_shardings, meshes.by_replicate(mesh)),
            out_shardings=state_shardings,
            donate_argnums=0,
        )

    def _over_seeds(self, f: Callable[..., Tree], in_axes: seeds.Axes) -> Callable[..., Tree]:
        execution = self.execution
        return seeds.over_seeds(f, self.replicates, in_axes, execution.mesh, execution.seeds_by)


def _first(tree: Tree) -> Tree:
    return jax.tree.map(lambda a: a[0], tree)


def _in_training(
    model: ResNet, saved: TrainState, unstack: Callable[[jax.Array], Iterable[jax.Array]]
) -> TrainState:
    """Converts a state from the stacked layout of checkpoints to the layout of `model`."""
    if model.scan:
        return saved
    return layout.convert(saved, lambda collection: layout.by_block(collection, unstack))


# The block axis follows the replicate axis. Each is compiled once per shape, and blocks share
# shapes.


@jax.jit
def _stack(arrays: Sequence[jax.Array]) -> jax.Array:
    return jnp.stack(arrays, axis=1)


@jax.jit
def _unstack(array: jax.Array) -> list[jax.Array]:
    return [array[:, i] for i in range(array.shape[1])]
