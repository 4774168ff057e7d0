"""The two layouts of a network's variables, and conversion between them.

Stacked, in checkpoints and in networks that loop over their blocks (`ResNet.scan`):

    stage1_block1    the first block of a stage; its stride and input channels differ
    stage1_rest      the other blocks, which have equal shapes: arrays (blocks - 1, ...)

Block by block, in networks without the loop: stage1_block1, stage1_block2, ...

Stacking keeps the number of arrays independent of the depth. A "collection" is the dict at the top
of params, batch_stats and the like, with or without an axis of replicates.
"""

from collections.abc import Callable, Iterable, Sequence

import jax
import jax.numpy as jnp

from resnet_jax.pytree import PyTree, Tree

Collection = dict[str, PyTree]
_BLOCK, _REST = "_block", "_rest"


def block(stage: int, number: int) -> str:
    """Returns the name of one block; stages and blocks count from 1."""
    return _block_name(f"stage{stage}", number)


def _block_name(stage: str, number: int) -> str:
    return f"{stage}{_BLOCK}{number}"


def rest(stage: int) -> str:
    """Returns the name of a stage's stacked blocks, all but the first."""
    return f"stage{stage}{_REST}"


def parts(stages: int) -> tuple[str, ...]:
    """Returns the parts of a network: ``("stem", "stage1", ..., "logits")``."""
    return ("stem", *(f"stage{number}" for number in range(1, stages + 1)), "logits")


def part_of(name: str, stages: int) -> str:
    """Returns the part with the module `name`, of a network of `stages` stages."""
    # A pre-activation network ends with a norm of the last stage's output.
    return f"stage{stages}" if name == "head_norm" else name.partition("_")[0]


def is_stacked(name: str) -> bool:
    """Whether the arrays under `name` have an axis of blocks."""
    return name.endswith(_REST)


def by_block(
    collection: Collection, unstack: Callable[[jax.Array], Iterable[jax.Array]] = list
) -> Collection:
    """Converts a stacked collection to block by block.

    Args:
      collection: stacked.
      unstack: splits an array along its axis of blocks, by default the first.
    """
    blocks: Collection = {}
    for name, node in collection.items():
        if not is_stacked(name):
            blocks[name] = node
            continue
        leaves, structure = jax.tree.flatten(node)
        for number, block_leaves in enumerate(zip(*map(unstack, leaves), strict=True), start=2):
            blocks[_block_name(name.removesuffix(_REST), number)] = jax.tree.unflatten(
                structure, block_leaves
            )
    return blocks


def stacked(
    collection: Collection, stack: Callable[[Sequence[jax.Array]], jax.Array] = jnp.stack
) -> Collection:
    """Inverts `by_block`; `stack` adds the axis of blocks, by default as the first."""
    result: Collection = {}
    numbered_blocks: dict[str, list[tuple[int, PyTree]]] = {}
    for name, node in collection.items():
        stage, _, number = name.partition(_BLOCK)
        if number in ("", "1"):
            result[name] = node
        else:
            numbered_blocks.setdefault(stage + _REST, []).append((int(number), node))
    for name, numbered in numbered_blocks.items():
        nodes = [node for _, node in sorted(numbered, key=lambda pair: pair[0])]
        result[name] = jax.tree.map(lambda *arrays: stack(arrays), *nodes)
    return result


def convert(tree: Tree, change: Callable[[Collection], Collection]) -> Tree:
    """Applies `change` (`by_block` or `stacked`) to every collection in `tree`."""
    return jax.tree.map(
        lambda node: change(node) if _is_collection(node) else node, tree, is_leaf=_is_collection
    )


def _is_collection(node: object) -> bool:
    return isinstance(node, dict) and block(1, 1) in node
