"""Lists the kernels of a compiled program, with the bytes that each moves.

A kernel is an instruction that accesses memory: a fusion, a convolution, a copy. Its bytes are
those of the arrays that it reads and writes, each once; if it reads a slice of an array, or writes
a slice in place, those of the slice. Caches and a library's scratch memory do not count.
"""

import dataclasses

from experiments.pods import hlo
from experiments.pods.hlo import Computation, Instruction, Program


@dataclasses.dataclass(frozen=True)
class Kernel:
    """One kernel of a program.

    Attributes:
      name: its name in the program's text.
      opcode: "fusion", "convolution", "copy" ...; for a library call the library's name.
      size: bytes that it reads and writes in one execution.
      times: number of executions, from the trip counts of its loops.
      source: the operation in JAX, for example "jit(f)/conv_general_dilated".
    """

    name: str
    opcode: str
    size: int
    times: int
    source: str

    @property
    def total(self) -> int:
        """The bytes of all executions."""
        return self.size * self.times


# Instructions that only name memory.
_NOT_KERNELS = {
    "parameter", "constant", "get-tuple-element", "tuple", "bitcast", "after-all", "partition-id",
    "replica-id", "optimization-barrier",
}  # fmt: skip
_NOT_CALLS = {"AllocateBuffer", "ConcatBitcast"}
_SLICES = {"slice", "dynamic-slice", "gather"}
_VIEWS = {"bitcast", "convert", "reshape"}


def of_text(text: str) -> list[Kernel]:
    """Returns the kernels of a program's text in the order in which they run.

    Raises:
      ValueError: the number of a loop's iterations cannot be told.
    """
    return of_program(hlo.parse(text))


def of_program(program: Program) -> list[Kernel]:
    """Returns the kernels of a program in the order in which they run; raises as of_text()."""
    found = []
    for instructions, each, times in program.executed():
        opcode = each.attribute(r'custom_call_target="([^"]+)"') or each.opcode
        if opcode in _NOT_KERNELS | _NOT_CALLS or opcode.endswith("-done"):
            continue
        size = _size(program, instructions, each)
        found.append(Kernel(each.name, opcode, size, times, each.attribute(r'op_name="([^"]+)"')))
    return found


def _size(program: Program, instructions: Computation, each: Instruction) -> int:
    operands = [instructions[name] for name in each.operands if name in instructions]
    body = program.computations.get(each.attribute(r"calls=%?([\w.\-]+)"), {})
    if each.opcode == "fusion" and body:
        read = sum(_read(body, i, operand) for i, operand in enumerate(operands))
        return read + _written(body, each)
    if each.opcode in _SLICES:
        return 2 * each.moved
    if each.opcode == "dynamic-update-slice":
        return 2 * operands[1].moved
    if each.opcode == "copy-start":  # (destination, source, context)
        return sum(array.moved for array in each.arrays[:2])
    if each.opcode == "slice-start":  # ((source), destination, context)
        source, destination, *_ = each.arrays
        slice_there = dataclasses.replace(destination, layout=source.layout)
        return slice_there.moved + destination.moved
    return each.moved + sum(operand.moved for operand in operands)


def _read(body: Computation, number: int, operand: Instruction) -> int:
    """Returns the bytes that a fusion reads of one of its operands."""
    (parameter,) = (i for i in body.values() if i.opcode == "parameter" and i.inside == str(number))
    users = _users(body, parameter)
    if users and all(user.opcode in _SLICES for user, _ in users):
        return min(operand.moved, sum(user.moved for user, _ in users))
    if users and all(
        user.opcode == "dynamic-update-slice" and user.operands[0] == source
        for user, source in users
    ):
        return 0  # written in place
    return operand.moved


def _users(body: Computation, instruction: Instruction) -> list[tuple[Instruction, str]]:
    """Returns the users of an array or a view of it, each with the operand's name."""
    users = []
    for user in body.values():
        if instruction.name in user.operands:
            if user.opcode in _VIEWS:
                users += _users(body, user)
            else:
                users.append((user, instruction.name))
    return users


def _written(body: Computation, fusion: Instruction) -> int:
    """Returns the bytes that a fusion writes."""
    root = list(body.values())[-1]
    results = [body[name] for name in root.operands] if root.opcode == "tuple" else [root]
    if len(results) != len(fusion.arrays):  # one operation with several results
        return fusion.moved
    # The arrays of the fusion itself say where they are kept.
    return sum(
        min(array.moved, _result_size(body, result))
        for array, result in zip(fusion.arrays, results, strict=True)
    )


def _result_size(body: Computation, result: Instruction) -> int:
    source = result
    while source.opcode in _VIEWS and source.operands[0] in body:
        source = body[source.operands[0]]
    is_in_place = source.opcode == "dynamic-update-slice"
    return body[source.operands[1]].moved if is_in_place else result.moved
