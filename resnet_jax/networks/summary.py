"""The layer table: shapes, parameters, mult-adds and projections per stage (Table 1)."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from resnet_jax.networks import layout
from resnet_jax.networks.blocks import BESIDE_THE_BRANCH, Block
from resnet_jax.networks.resnet import ResNet


@dataclasses.dataclass(frozen=True)
class StageSummary:
    """One row of the layer table: the stem, a stage or the head.

    Attributes:
      name: "stem", "stage1" ... or "head".
      output_shape: (H, W, C) after the stage; (classes,) after the head.
      blocks: in this stage; 0 for stem and head.
      convolutions: weighted layers, without projections, gates and squeeze and excitation.
      parameters: trainable numbers.
      mult_adds: multiply-adds per image, each counted once, of convolutions and the fully connected
        layer, as the paper counts them.
      projections: 1x1 convolutions on shortcuts.
    """

    name: str
    output_shape: tuple[int, ...]
    blocks: int
    convolutions: int
    parameters: int
    mult_adds: int
    projections: int


@dataclasses.dataclass(frozen=True)
class Summary:
    """The layer table and its totals."""

    layers: tuple[StageSummary, ...]

    @property
    def parameters(self) -> int:
        """Trainable numbers."""
        return sum(layer.parameters for layer in self.layers)

    @property
    def mult_adds(self) -> int:
        """Multiply-adds per image."""
        return sum(layer.mult_adds for layer in self.layers)

    @property
    def projections(self) -> int:
        """Shortcuts that are 1x1 convolutions."""
        return sum(layer.projections for layer in self.layers)


def summarize(model: ResNet, image_shape: tuple[int, ...]) -> Summary:
    """Traces a network on one image of `image_shape` (H, W, C), without computing anything."""
    stage_sizes = {f"stage{i}": n for i, n in enumerate(model.arch.stage_sizes, start=1)}
    params, shapes, mult_adds = _trace(dataclasses.replace(model, scan=True), image_shape)
    work: dict[str, int] = {}
    convolutions: dict[str, int] = {}
    for path, module_mult_adds in mult_adds.items():
        row = _row(path[0])
        # The stacked blocks are one module, traced as one block.
        repeats = stage_sizes[row] - 1 if layout.is_stacked(path[0]) else 1
        work[row] = work.get(row, 0) + repeats * module_mult_adds
        on_branch = path[-1] not in BESIDE_THE_BRANCH
        convolutions[row] = convolutions.get(row, 0) + repeats * on_branch
    parameters: dict[str, int] = {}
    projections: dict[str, int] = {}
    blocks: dict[str, int] = {}
    for name, node in jax.eval_shape(layout.by_block, params).items():
        row = _row(name)
        parameters[row] = parameters.get(row, 0) + sum(a.size for a in jax.tree.leaves(node))
        blocks[row] = blocks.get(row, 0) + name.startswith("stage")
        projections[row] = projections.get(row, 0) + ("shortcut_conv" in node)
    rows = ["stem", *sorted(r for r in parameters if r.startswith("stage")), "head"]
    return Summary(
        tuple(
            StageSummary(
                name=row,
                output_shape=shapes[row],
                blocks=blocks[row],
                convolutions=convolutions[row],
                parameters=parameters[row],
                mult_adds=work[row],
                projections=projections[row],
            )
            for row in rows
        )
    )


def _trace(
    model: ResNet, image_shape: tuple[int, ...]
) -> tuple[layout.Collection, dict[str, tuple[int, ...]], dict[tuple[str, ...], int]]:
    """Returns the parameters' shapes, each row's output shape and each module's mult-adds."""
    mult_adds: dict[tuple[str, ...], int] = {}
    shapes: dict[str, tuple[int, ...]] = {}

    def record(call: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        module = context.module
        if context.method_name != "__call__" or not module.path:
            return call(*args, **kwargs)
        if isinstance(module, Block) and module.path[0] == layout.block(1, 1):
            shapes["stem"] = args[0].shape[1:]  # after the max pool, if any
        out = call(*args, **kwargs)
        row = _row(module.path[0])
        if isinstance(module, Block) or row == "head":
            shapes[row] = out.shape[1:]
        if isinstance(module, (nn.Conv, nn.Dense)):
            kernel = module.variables["params"]["kernel"]
            # Every position of the output uses the kernel once. Assigned, not added: a module may
            # be traced twice.
            mult_adds[module.path] = math.prod(out.shape[1:-1]) * kernel.size
        return out

    with nn.intercept_methods(record):
        image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
        # A key made outside the trace would be an array and so start the accelerator.
        variables = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=True), image)
    return variables["params"], shapes, mult_adds


def _row(module_name: str) -> str:
    if module_name.startswith("stage"):
        return module_name.split("_")[0]
    return "stem" if module_name.startswith("stem") else "head"
