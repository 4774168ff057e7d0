"""Lists the kernels of a compiled program, with the bytes that each moves.

It parses the text of XLA's optimised program, which has one form on all platforms. A kernel is an
instruction that accesses memory: a fusion, a convolution, a copy. Its bytes are those of the arrays
that it reads and writes, each once; if it reads a slice of an array, or writes a slice in place,
those of the slice. Caches and a library's scratch memory do not count.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator


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


@dataclasses.dataclass(frozen=True)
class _Instruction:
    name: str
    shape: str
    opcode: str
    operands: tuple[str, ...]
    attributes: str  # the text after the operands
    number: str  # a parameter's number

    @functools.cached_property
    def size(self) -> int:
        return _bytes(self.shape)


_Computation = dict[str, _Instruction]  # in the order of the text, the root last

_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{$")
_LINE = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([a-z][a-z0-9\-]*)\((.*)$")
_NAME = re.compile(r"%([\w.\-]+)")
_ARRAY = re.compile(r"\b([a-z][a-z0-9]*)\[([0-9,]*)\]")
# Instructions that only name memory.
_NOT_KERNELS = {
    "parameter", "constant", "get-tuple-element", "tuple", "bitcast", "after-all", "partition-id",
    "replica-id", "copy-start", "optimization-barrier",
}  # fmt: skip
_SLICES = {"slice", "dynamic-slice"}
_VIEWS = {"bitcast", "convert", "reshape"}


def kernels(text: str) -> list[Kernel]:
    """Returns the kernels of a compiled program in the order in which they run.

    Args:
      text: the program's text, from `compiled.as_text()`.

    Raises:
      ValueError: the text lacks the trip count of a loop.
    """
    computations, entry = _parse(text)
    return list(_kernels(computations, entry, 1))


def _parse(text: str) -> tuple[dict[str, _Computation], str]:
    computations: dict[str, _Computation] = {}
    current: _Computation = {}
    entry = ""
    for line in text.splitlines():
        if head := _HEAD.match(line):
            current = computations[head[2]] = {}
            entry = head[2] if head[1] else entry
        elif found := _LINE.match(line):
            name, shape, opcode, rest = found.groups()
            inside, attributes = _split_at_bracket(rest)
            operands = tuple(_NAME.findall(inside))
            current[name] = _Instruction(name, shape, opcode, operands, attributes, inside)
    return computations, entry


def _split_at_bracket(rest: str) -> tuple[str, str]:
    """Splits the text after an opening bracket at the matching closing one."""
    depth = 1
    for i, character in enumerate(rest):
        depth += (character == "(") - (character == ")")
        if not depth:
            return rest[:i], rest[i + 1 :]
    return rest, ""


def _kernels(computations: dict[str, _Computation], name: str, times: int) -> Iterator[Kernel]:
    instructions = computations[name]
    for each in instructions.values():
        if each.opcode == "while":
            body = _attribute(each, r"body=%?([\w.\-]+)")
            count = _attribute(each, r'"known_trip_count":\{"n":"(\d+)"')
            if not count:
                raise ValueError(f"the loop {each.name} has no known trip count")
            yield from _kernels(computations, body, times * int(count))
        elif each.opcode in ("call", "async-start") and (
            callee := _attribute(each, r"(?:to_apply|calls)=%?([\w.\-]+)")
        ):
            yield from _kernels(computations, callee, times)
        elif each.opcode not in _NOT_KERNELS and not each.opcode.endswith("-done"):
            yield Kernel(
                name=each.name,
                opcode=_attribute(each, r'custom_call_target="([^"]+)"') or each.opcode,
                size=_size(computations, instructions, each),
                times=times,
                source=_attribute(each, r'op_name="([^"]+)"'),
            )


def _attribute(instruction: _Instruction, pattern: str) -> str:
    found = re.search(pattern, instruction.attributes)
    return found[1] if found else ""


def _bytes(shape: str) -> int:
    """Returns the bytes of an array, or of all arrays of a tuple."""
    return sum(
        _item_size(dtype) * math.prod(int(n) for n in axes.split(",") if n)
        for dtype, axes in _ARRAY.findall(shape)
    )


def _item_size(dtype: str) -> int:
    bits = re.search(r"\d+", dtype)
    return max(1, int(bits[0]) // 8) if bits else int(dtype == "pred")


def _size(
    computations: dict[str, _Computation], instructions: _Computation, each: _Instruction
) -> int:
    operands = [instructions[name] for name in each.operands if name in instructions]
    body = computations.get(_attribute(each, r"calls=%?([\w.\-]+)"), {})
    if each.opcode == "fusion" and body:
        read = sum(_read(body, i, operand) for i, operand in enumerate(operands))
        return read + _written(body)
    if each.opcode in _SLICES:
        return 2 * each.size
    if each.opcode == "dynamic-update-slice":
        return 2 * operands[1].size
    return each.size + sum(operand.size for operand in operands)


def _read(body: _Computation, number: int, operand: _Instruction) -> int:
    """Returns the bytes that a fusion reads of one of its operands."""
    (parameter,) = (i for i in body.values() if i.opcode == "parameter" and i.number == str(number))
    users = _users(body, parameter)
    if users and all(user.opcode in _SLICES for user, _ in users):
        return sum(user.size for user, _ in users)
    if users and all(
        user.opcode == "dynamic-update-slice" and user.operands[0] == source
        for user, source in users
    ):
        return 0  # written in place
    return operand.size


def _users(body: _Computation, instruction: _Instruction) -> list[tuple[_Instruction, str]]:
    """Returns the users of an array or a view of it, each with the operand's name."""
    users = []
    for user in body.values():
        if instruction.name in user.operands:
            if user.opcode in _VIEWS:
                users += _users(body, user)
            else:
                users.append((user, instruction.name))
    return users


def _written(body: _Computation) -> int:
    """Returns the bytes that a fusion writes."""
    root = list(body.values())[-1]
    results = [body[name] for name in root.operands] if root.opcode == "tuple" else [root]
    return sum(_result_size(body, result) for result in results)


def _result_size(body: _Computation, result: _Instruction) -> int:
    source = result
    while source.opcode in _VIEWS and source.operands[0] in body:
        source = body[source.operands[0]]
    is_in_place = source.opcode == "dynamic-update-slice"
    return body[source.operands[1]].size if is_in_place else result.size
