"""Lists what the chips of a compiled program send each other."""

import dataclasses
import itertools
import re
from collections.abc import Iterable, Iterator

import numpy as np
from jax.sharding import Mesh

from experiments.pods.hlo import Array, Computation, Instruction, Program

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute",
         "collective-broadcast", "ragged-all-to-all")  # fmt: skip
_NOT_WORK = ("get-tuple-element", "bitcast", "tuple", "constant", "parameter")


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective operation of a program.

    Attributes:
      kind: one of KINDS.
      sizes: bytes per chip by dtype: of the result, or of the operands if these are larger.
      axes: the mesh's axes along which chips exchange data, for example ("data",); or a note such
        as ("groups of 2",) if the groups are not those of whole axes.
      chips: in each group.
      times: number of executions.
      is_overlapped: whether other work is scheduled while it runs.
      source: the operation in JAX.
    """

    kind: str
    sizes: dict[str, int]
    axes: tuple[str, ...]
    chips: int
    times: int
    is_overlapped: bool
    source: str

    @property
    def size(self) -> int:
        """Bytes per chip of one execution."""
        return sum(self.sizes.values())

    @property
    def sent(self) -> float:
        """The fewest bytes that a chip has to send, in all executions.

        An all-reduce is a reduce-scatter and an all-gather.
        """
        others = (self.chips - 1) / self.chips
        factor = {"all-reduce": 2 * others, "collective-permute": 1.0}.get(self.kind, others)
        return self.times * factor * self.size


def of_program(program: Program, mesh: Mesh) -> list[Collective]:
    """Returns the collectives of a program in the order in which they run.

    Those of groups of one chip, which send nothing, are left out.

    Args:
      program: compiled for the devices of `mesh`.
      mesh: the mesh.

    Raises:
      ValueError: the text names groups in an unknown form, or no trip count for a loop.
    """
    found: list[Collective] = []
    started: dict[tuple[int, str], int] = {}  # the numbers of those that fusions have started
    for computation, instruction, times in program.executed():
        for instructions, each in _inside(program, computation, instruction):
            groups = _groups(each, mesh.size)
            if len(groups[0]) == 1:
                continue
            if instruction.opcode == "fusion":
                # XLA for TPU starts one in a fusion, goes on in others, and ends it in another.
                piece = (id(computation), each.attribute(r'chain_id="(\d+)"'))
                if piece in started:
                    if "done" not in instruction.name:
                        number = started[piece]
                        found[number] = dataclasses.replace(found[number], is_overlapped=True)
                    continue
                started[piece] = len(found)
            kind = each.opcode.removesuffix("-start")
            operands = [array for name in each.operands for array in instructions[name].arrays]
            results = each.arrays if kind == each.opcode else _results(each)
            found.append(
                Collective(
                    kind=kind,
                    sizes=_sizes(max(operands, results, key=_total)),
                    axes=_axes(groups, mesh),
                    chips=len(groups[0]),
                    times=times,
                    is_overlapped=kind != each.opcode and _has_work_before_done(instructions, each),
                    source=each.attribute(r'op_name="([^"]+)"'),
                )
            )
    return found


def _total(arrays: Iterable[Array]) -> int:
    return sum(array.size for array in arrays)


def _inside(
    program: Program, computation: Computation, instruction: Instruction
) -> Iterator[tuple[Computation, Instruction]]:
    """Yields an instruction if it is a collective, or the collectives that it fuses."""
    if instruction.opcode.removesuffix("-start") in KINDS:
        yield computation, instruction
    elif instruction.opcode == "fusion":
        body = program.computations[instruction.attribute(r"calls=%?([\w.\-]+)")]
        for each in body.values():
            yield from _inside(program, body, each)


def _results(start: Instruction) -> list[Array]:
    """Returns the results among the arrays of an asynchronous start: operands come first."""
    return start.arrays[len(start.operands) :] or start.arrays


def _sizes(arrays: list[Array]) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for array in arrays:
        sizes[array.dtype] = sizes.get(array.dtype, 0) + array.size
    return sizes


def _has_work_before_done(instructions: Computation, start: Instruction) -> bool:
    after = itertools.dropwhile(lambda each: each is not start, instructions.values())
    for each in itertools.islice(after, 1, None):
        if start.name in each.operands and each.opcode.endswith("-done"):
            return False
        if each.opcode not in _NOT_WORK and not each.opcode.endswith(("-start", "-done")):
            return True
    return False


# ------------------------------------------------------------------------------------- groups

_EXPLICIT = re.compile(r"replica_groups=\{(\{[\d,{}]*\})\}")
_PAIRS = re.compile(r"source_target_pairs=\{(\{[\d,{}]*\})\}")
_IOTA = re.compile(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
_AXES = re.compile(r"replica_groups=mesh\[([^\]]*)\]\s*\{([^}]*)\}")


def _groups(each: Instruction, count: int) -> list[tuple[int, ...]]:
    """Returns the groups of chips, numbered in the order of the mesh, each sorted."""
    text = each.attributes
    rows: Iterable[Iterable[int]]
    if found := _AXES.search(text):
        lengths = {name: int(n) for name, n in re.findall(r"'(\w+)'=(\d+)", found[1])}
        names, chosen = [*lengths], re.findall(r"'(\w+)'", found[2])
        order = [names.index(name) for name in names if name not in chosen]
        order += [names.index(name) for name in chosen]
        numbers = np.arange(count).reshape([*lengths.values()]).transpose(order)
        rows = numbers.reshape(-1, int(np.prod([lengths[name] for name in chosen])))
    elif found := _IOTA.search(text):
        shape, lengths_, order_ = (
            [int(n) for n in part.split(",")] if part else [] for part in found.groups()
        )
        numbers = np.arange(count).reshape(lengths_)
        rows = (numbers.transpose(order_) if order_ else numbers).reshape(shape)
    elif found := _EXPLICIT.search(text) or _PAIRS.search(text):
        groups = re.findall(r"\{([\d,]*)\}", found[1])
        rows = [[int(n) for n in group.split(",")] for group in groups]
    elif "replica_groups={}" in text:
        rows = [range(count)]
    else:
        raise ValueError(f"the groups of {each.name} are in an unknown form: {text[:200]}")
    return sorted(tuple(sorted(int(n) for n in row)) for row in rows)


def _axes(groups: list[tuple[int, ...]], mesh: Mesh) -> tuple[str, ...]:
    """Returns the axes whose chips make up the groups, or a note of the groups' size."""
    for axes, of_axes in _groups_of_axes(mesh):
        if groups == of_axes:
            return axes
    return (f"groups of {len(groups[0])}",)


def _groups_of_axes(mesh: Mesh) -> Iterator[tuple[tuple[str, ...], list[tuple[int, ...]]]]:
    numbers = np.arange(mesh.size).reshape(mesh.devices.shape)
    longer = [axis for axis, length in mesh.shape.items() if length > 1]
    for count in range(1, len(longer) + 1):
        for axes in itertools.combinations(longer, count):
            places = [mesh.axis_names.index(axis) for axis in axes]
            rest = [i for i in range(numbers.ndim) if i not in places]
            chips = int(np.prod([mesh.shape[axis] for axis in axes]))
            rows = numbers.transpose(rest + places).reshape(-1, chips)
            yield axes, sorted(tuple(sorted(int(n) for n in row)) for row in rows)
