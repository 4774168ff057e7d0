"""A run's training step, compiled for chips that may be absent, and what one of them needs for it.

Nothing is computed, and no data are read.
"""

import dataclasses
import math
import re
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.typing import DTypeLike
from ml_collections import ConfigDict

from experiments.pods import collectives, flops, hlo, kernels
from experiments.pods.collectives import Collective
from experiments.pods.hlo import Program
from resnet_jax.data import sets
from resnet_jax.data.augment import Normalization
from resnet_jax.data.resident import ResidentSplit
from resnet_jax.data.streaming import StreamedSplit
from resnet_jax.execution import Execution, decide
from resnet_jax.parallel import mesh as meshes
from resnet_jax.programs import Programs, build
from resnet_jax.pytree import PyTree


@dataclasses.dataclass(frozen=True)
class Needs:
    """What one chip needs for a training step of a run, from the compiled program.

    Attributes:
      mesh: the chips.
      steps: of one program; the other numbers are of one step.
      images: that one chip computes.
      memory: bytes that the program takes: the state, the data it is given, temporaries.
      temporaries: bytes of these.
      flops: operations of convolutions and products, see flops.py.
      moved: bytes between the chip and its memory, see kernels.py.
      collectives: of all steps of the program.
    """

    mesh: Mesh
    steps: int
    images: int
    memory: int
    temporaries: int
    flops: float
    moved: float
    collectives: tuple[Collective, ...]


class TooLargeError(Exception):
    """The compiler refuses a program that does not fit into a chip's memory.

    Attributes:
      memory: bytes that it would take.
    """

    def __init__(self, message: str):
        """Reads the number in the compiler's message; 0 if there is none."""
        super().__init__(message)
        found = re.search(r"\(([\d.]+)([KMGT])\)", message)
        self.memory = int(float(found[1]) * 1024 ** "_KMGT".index(found[2])) if found else 0


class Compiler:
    """Compiles training steps for some devices, each distinct program once."""

    def __init__(self, devices: Sequence[jax.Device]):
        """Compiles for `devices`, all of them for every run."""
        self._devices = devices
        self._compiled: dict[str, tuple[Any, Program]] = {}  # by the text that is compiled

    def needs(self, config: ConfigDict) -> Needs:
        """Returns what a chip needs for the training step of a resolved config.

        Raises:
          UserError: the devices cannot share the run, see execution.decide.
          TooLargeError: it does not fit, and the compiler refuses it, as TPU's does.
        """
        programs, arguments = shapes(config, self._devices)
        execution = programs.execution
        traced = programs.train_steps.trace(programs.state, *arguments)
        lowered = traced.lower()
        text = lowered.as_text()
        if text not in self._compiled:
            try:
                compiled = lowered.compile()
            except jax.errors.JaxRuntimeError as e:
                if "RESOURCE_EXHAUSTED" not in str(e):
                    raise
                raise TooLargeError(str(e)) from e
            self._compiled[text] = compiled.memory_analysis(), hlo.parse(compiled.as_text())
        sizes, program = self._compiled[text]
        held = sizes.argument_size_in_bytes + sizes.output_size_in_bytes - sizes.alias_size_in_bytes
        steps = execution.steps_per_dispatch
        return Needs(
            mesh=execution.mesh,
            steps=steps,
            images=config.replicates * config.batch_size // execution.mesh.size,
            memory=held + sizes.temp_size_in_bytes + sizes.generated_code_size_in_bytes,
            temporaries=sizes.temp_size_in_bytes,
            flops=flops.of_jaxpr(traced.jaxpr.jaxpr) / steps / execution.mesh.size,
            moved=sum(kernel.total for kernel in kernels.of_program(program)) / steps,
            collectives=tuple(collectives.of_program(program, execution.mesh)),
        )


def shapes(
    config: ConfigDict, devices: Sequence[jax.Device]
) -> tuple[Programs, tuple[PyTree, ...]]:
    """Returns a run's programs, and the shapes of train_steps's arguments after the state.

    Args:
      config: resolved.
      devices: those of the run.

    Raises:
      UserError: see Compiler.needs().
    """
    execution = decide(config, devices)
    arrays, batches, select = _data(config, execution)
    image = sets.image_shape(config.data)
    mean_shape = image if config.data.mean == "pixel" else (1, 1, image[-1])
    mean, std = np.zeros((1, *mean_shape), np.float32), np.ones((1, 1, 1, image[-1]), np.float32)
    seeds = _array((config.replicates,), jnp.int32, meshes.by_replicate(execution.mesh))
    programs = build(config, execution, Normalization(mean, std), select)
    return programs, (seeds, programs.numbers, arrays, batches)


def _data(config: ConfigDict, execution: Execution) -> tuple[PyTree, PyTree, Any]:
    """Returns the shapes of a training split's arrays and batches, and its `select`."""
    mesh, facts = execution.mesh, sets.DATA_SETS[config.data.name]
    image = sets.image_shape(config.data)
    parts = (config.accumulate, config.batch_size // config.accumulate)
    shape = (config.replicates, execution.steps_per_dispatch, *parts)
    split = meshes.split_batches(mesh)
    numbers = _array(shape, jnp.int32, split)
    if not facts.resident:
        images = _array((*shape, *image), jnp.uint8, split)
        return (), {"images": images, "labels": numbers}, StreamedSplit.select
    count, everywhere = facts.train - config.data.validation, meshes.everywhere(mesh)
    pixels = _array((count, math.prod(image)), jnp.uint8, everywhere)
    resident = ResidentSplit(pixels, _array((count,), jnp.int32, everywhere), image, mesh)
    return resident.arrays, numbers, resident.select


def _array(shape: tuple[int, ...], dtype: DTypeLike, sharding: jax.sharding.Sharding) -> Any:
    return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)
