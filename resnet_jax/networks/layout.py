"""Where the variables of a network's blocks lie.

In checkpoints, and in the memory of a network whose blocks run in a loop, they are stacked:

    stage1_block1    the first block of a stage, alone: its stride and input differ
    stage1_rest      the other blocks, alike, each array with an axis of blocks (blocks - 1, ...)

So a network of any depth has as few arrays as one of 20 layers. A network whose blocks follow one
another has stage1_block1, stage1_block2, ... in memory. What holds the variables of one replicate
or of several, such as params, is called a collection here.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

_BLOCK, _REST = "_block", "_rest"


def block(stage: int, number: int) -> str:
    """Returns the name of a block alone; the first stage is 1, and so is its first block."""
    return _block_of(f"stage{stage}", number)


def _block_of(stage: str, number: int) -> str:
    return f"{stage}{_BLOCK}{number}"


def rest(stage: int) -> str:
    """Returns the name of a stage's other blocks, stacked."""
    return f"stage{stage}{_REST}"


def is_stacked(name: str) -> bool:
    """Whether what a collection keeps under `name` has an axis of blocks."""
    return name.endswith(_REST)


def by_block(
    collection: dict[str, Any], unstack: Callable[[Any], Sequence[Any]] = list
) -> dict[str, Any]:
    """Gives each block an entry of its own: stage1_block1, stage1_block2, ...

    Args:
      collection: stacked.
      unstack: takes an array apart along the axis of blocks, by default the first.
    """
    apart: dict[str, Any] = {}
    for name, node in collection.items():
        if not is_stacked(name):
            apart[name] = node
            continue
        leaves, structure = jax.tree.flatten(node)
        for number, of_block in enumerate(zip(*map(unstack, leaves), strict=True), start=2):
            apart[_block_of(name.removesuffix(_REST), number)] = jax.tree.unflatten(
                structure, of_block
            )
    return apart


def stacked(
    collection: dict[str, Any], stack: Callable[[Sequence[Any]], Any] = jnp.stack
) -> dict[str, Any]:
    """Undoes `by_block`; `stack` makes the axis of blocks, by default the first."""
    together: dict[str, Any] = {}
    alike: dict[str, list[Any]] = {}
    for name, node in collection.items():
        stage, _, number = name.partition(_BLOCK)
        if number in ("", "1"):
            together[name] = node
        else:
            alike.setdefault(stage + _REST, []).append((int(number), node))
    for name, numbered in alike.items():
        nodes = [node for _, node in sorted(numbered, key=lambda pair: pair[0])]
        together[name] = jax.tree.map(lambda *arrays: stack(arrays), *nodes)
    return together


def convert(tree: Any, change: Callable[[dict[str, Any]], dict[str, Any]]) -> Any:
    """Changes, by `by_block` or `stacked`, all collections that a state or the like contains."""
    return jax.tree.map(
        lambda node: change(node) if _is_collection(node) else node, tree, is_leaf=_is_collection
    )


def _is_collection(node: Any) -> bool:
    return isinstance(node, dict) and block(1, 1) in node
