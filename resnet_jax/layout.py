"""Where the variables of a network's blocks lie, in memory and in checkpoints.

    stage1_block1    the first block of a stage, alone: its stride and input differ
    stage1_rest      the other blocks, alike, each array stacked on a leading axis (blocks - 1, ...)

So a network of any depth has as few arrays as one of 20 layers, for compilers and optimisers. Who
wants to look at single blocks asks `by_block`.
"""

from typing import Any

import jax
import jax.numpy as jnp

_REST = "_rest"


def first(stage: int) -> str:
    """Returns the name of a stage's first block; the first stage is 1."""
    return f"stage{stage}_block1"


def rest(stage: int) -> str:
    """Returns the name of a stage's other blocks."""
    return f"stage{stage}{_REST}"


def is_stacked(name: str) -> bool:
    """Whether what a network keeps under `name` has a leading axis of blocks."""
    return name.endswith(_REST)


def by_block(variables: dict[str, Any]) -> dict[str, Any]:
    """Gives each block an entry of its own: stage1_block1, stage1_block2, ...

    Args:
      variables: one collection of one replicate, such as its params.
    """
    taken_apart: dict[str, Any] = {}
    for name, node in variables.items():
        if not is_stacked(name):
            taken_apart[name] = node
            continue
        blocks = jax.tree.leaves(node)[0].shape[0]
        for i in range(blocks):
            key = f"{name.removesuffix(_REST)}_block{i + 2}"
            taken_apart[key] = jax.tree.map(lambda a, i=i: a[i], node)
    return taken_apart


def stacked(blocks: dict[str, Any]) -> dict[str, Any]:
    """Undoes `by_block`."""
    together: dict[str, Any] = {}
    alike: dict[str, list[Any]] = {}
    for name, node in blocks.items():
        stage, _, number = name.partition("_block")
        if number in ("", "1"):
            together[name] = node
        else:
            alike.setdefault(stage + _REST, []).append((int(number), node))
    for name, numbered in alike.items():
        nodes = [node for _, node in sorted(numbered, key=lambda pair: pair[0])]
        together[name] = jax.tree.map(lambda *arrays: jnp.stack(arrays), *nodes)
    return together
