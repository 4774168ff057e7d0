"""From a resolved config to the network and the compiled programs that work on it."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from resnet_jax import step as steps
from resnet_jax.data import sets
from resnet_jax.data.augment import Augmentation, Normalization
from resnet_jax.networks import layout, resnet
from resnet_jax.optim import Schedule, make_optimizer
from resnet_jax.parallel import mesh as meshes
from resnet_jax.parallel import seeds
from resnet_jax.parallel.processes import put
from resnet_jax.state import Initializer, TrainState


@dataclasses.dataclass(frozen=True)
class Programs:
    """See step.py for what each takes and returns; nothing is compiled before it is called."""

    model: resnet.ResNet
    initialize: Initializer
    state: TrainState  # the shapes, and where on the mesh each array lies
    saved_state: TrainState  # the same as checkpoints have it
    train_steps: Callable[..., tuple[TrainState, dict[str, jax.Array]]]
    moments_step: Callable[..., Any]
    eval_steps: dict[bool, Callable[..., dict[str, jax.Array]]]  # by whether views are mirrored
    after_validation: Callable[[TrainState, jax.Array], TrainState]

    def start(self, seeds_R: np.ndarray) -> TrainState:
        """Returns the state before the first step, on its devices."""
        state = self.initialize(seeds_R)
        of_blocks = _in_memory(self.model, state, lambda a: np.moveaxis(a, 1, 0))
        return put(of_blocks, self.state_shardings)

    def to_saved(self, tree: Any) -> Any:
        """Turns a state, or variables of one, into what checkpoints have of it: see layout.py."""
        if self.model.scan:
            return tree
        return layout.convert(tree, lambda collection: layout.stacked(collection, _stack))

    def from_saved(self, state: TrainState) -> TrainState:
        """Turns a state that a checkpoint had, of the shapes `saved_state`, into the run's."""
        return jax.device_put(_in_memory(self.model, state, _unstack), self.state_shardings)

    @property
    def state_shardings(self) -> Any:
        """Where on the mesh each array of the state lies."""
        return jax.tree.map(lambda a: a.sharding, self.state)


def _in_memory(
    model: resnet.ResNet, state: TrainState, unstack: Callable[[Any], Sequence[Any]]
) -> TrainState:
    """Turns a state that is stacked, as checkpoints have it, into what `model` computes with."""
    if model.scan:
        return state
    return layout.convert(state, lambda collection: layout.by_block(collection, unstack))


# The axis of blocks follows that of replicates. Compiled once for each shape: blocks share theirs.


@jax.jit
def _stack(arrays: Sequence[jax.Array]) -> jax.Array:
    return jnp.stack(arrays, axis=1)


@jax.jit
def _unstack(array: jax.Array) -> list[jax.Array]:
    return [array[:, i] for i in range(array.shape[1])]


def initializer(config: ConfigDict) -> Initializer:
    """Returns what makes the state of a resolved config's run."""
    return Initializer(
        # Nothing but kernels are drawn: compiled soonest as a loop, wherever the network will run.
        model=dataclasses.replace(resnet.from_config(config.model), scan=True, remat=()),
        optimizer=make_optimizer(config.optimizer),
        schedule=Schedule(config.schedule, config.steps),
        image_shape=sets.image_shape(config.data),
        use_ema=bool(config.ema_decay),
    )


def build(
    config: ConfigDict,
    normalization: Normalization,
    select: steps.Select,
    mesh: jax.sharding.Mesh,
) -> Programs:
    """Builds everything for a resolved config and the devices of `mesh`.

    `select` is that of the split to train on, see data.splits.Split.
    """
    initialize = initializer(config)
    config = config.copy_and_resolve_references()
    config.replicates_by = seeds.choose(config, mesh)
    convolution, product = seeds.convolution_and_product(config.replicates_by)
    model = dataclasses.replace(
        resnet.from_config(config.model, mesh.devices.flat[0].platform),
        convolution=convolution,
        product=product,
    )
    schedule = initialize.schedule
    augmentation = Augmentation(
        config.data.pad, config.data.flip == "on", config.data.color, normalization.std
    )
    saved_state = initialize.shapes(config.replicates)
    in_memory = jax.eval_shape(lambda saved: _in_memory(model, saved, _unstack), saved_state)
    state = meshes.place(in_memory, mesh)
    shardings = jax.tree.map(lambda a: a.sharding, state)
    return Programs(
        model=model,
        initialize=initialize,
        state=state,
        saved_state=meshes.place(saved_state, mesh),
        train_steps=steps.make_train_steps(
            model,
            initialize.optimizer,
            schedule,
            normalization,
            augmentation,
            select,
            config,
            shardings,
            mesh,
        ),
        moments_step=steps.make_moments_step(
            model, normalization, augmentation, select, config, mesh
        ),
        eval_steps={
            mirrored: steps.make_eval_step(model, normalization, mirrored, config, mesh)
            for mirrored in (False, True)
        },
        after_validation=steps.make_after_validation(schedule, config.replicates, shardings, mesh),
    )
