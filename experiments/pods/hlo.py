"""Reads the text of XLA's optimised program, which has one form on all platforms.

Sizes are those of memory. An array in a TPU's layout is padded to whole tiles, and one that the
compiler keeps on the chip (in VMEM, memory space 1) has none.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator


@dataclasses.dataclass(frozen=True)
class Array:
    """An array in a program.

    Attributes:
      dtype: XLA's name, for example "bf16" or "f32".
      shape: lengths of its axes.
      layout: the text between its layout's braces; "" if it has none.
    """

    dtype: str
    shape: tuple[int, ...]
    layout: str

    @property
    def size(self) -> int:
        """Bytes of the elements, without padding."""
        return _item_size(self.dtype) * math.prod(self.shape)

    @functools.cached_property
    def moved(self) -> int:
        """Bytes in the device's memory, with padding; 0 if it is kept elsewhere."""
        space = re.search(r"S\((\d+)\)", self.layout)
        if space and space[1] != "0":
            return 0
        tile = re.search(r"T\(([\d,]+)\)", self.layout)
        if not tile:
            return self.size
        order = [int(n) for n in self.layout.split(":")[0].split(",") if n]
        lengths = [self.shape[axis] for axis in order]  # the axis that is contiguous first
        for i, length in enumerate(reversed([int(n) for n in tile[1].split(",")])):
            if i < len(lengths):
                lengths[i] = -(-lengths[i] // length) * length
        return _item_size(self.dtype) * math.prod(lengths)


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a program.

    Attributes:
      name: its name.
      shape: the text of its result's type, an array or a tuple.
      opcode: "fusion", "convolution", "all-reduce" ...
      operands: names.
      attributes: the text after the operands.
      inside: the text of the operands: a parameter's number, a constant's value.
    """

    name: str
    shape: str
    opcode: str
    operands: tuple[str, ...]
    attributes: str
    inside: str

    @functools.cached_property
    def arrays(self) -> list[Array]:
        """The result's arrays."""
        return [
            Array(dtype, tuple(int(n) for n in axes.split(",") if n), layout)
            for dtype, axes, layout in _ARRAY.findall(self.shape)
        ]

    @functools.cached_property
    def moved(self) -> int:
        """Bytes of the result in the device's memory."""
        return sum(array.moved for array in self.arrays)

    def attribute(self, pattern: str) -> str:
        """Returns the first group of a pattern that is searched in the attributes, or ""."""
        found = re.search(pattern, self.attributes)
        return found[1] if found else ""


Computation = dict[str, Instruction]  # in the order of the text, the root last


@dataclasses.dataclass(frozen=True)
class Program:
    """A program's computations by name, and the name of the one that is run."""

    computations: dict[str, Computation]
    entry: str

    def executed(self) -> Iterator[tuple[Computation, Instruction, int]]:
        """Yields each instruction that is executed, outside fusions, in the order of execution.

        Yields:
          The computation it is in, the instruction, and how many times it is executed.

        Raises:
          ValueError: the number of a loop's iterations cannot be told.
        """
        yield from self._executed(self.entry, 1)

    def _executed(self, name: str, times: int) -> Iterator[tuple[Computation, Instruction, int]]:
        instructions = self.computations[name]
        for each in instructions.values():
            if each.opcode == "while":
                body = each.attribute(r"body=%?([\w.\-]+)")
                yield from self._executed(body, times * self._iterations(instructions, each))
            elif each.opcode in ("call", "async-start") and (
                callee := each.attribute(r"(?:to_apply|calls)=%?([\w.\-]+)")
            ):
                yield from self._executed(callee, times)
            else:
                yield instructions, each, times

    def _iterations(self, instructions: Computation, loop: Instruction) -> int:
        """Returns a loop's trip count: as noted, or of a counter that goes up by 1 from 0."""
        if known := loop.attribute(r'"known_trip_count":\{"n":"(\d+)"'):
            return int(known)
        condition, body = (
            self.computations[loop.attribute(rf"{part}=%?([\w.\-]+)")]
            for part in ("condition", "body")
        )
        test, result = (list(computation.values())[-1] for computation in (condition, body))
        if test.opcode == "compare" and "direction=LT" in test.attributes:
            counter, limit = (condition[name] for name in test.operands)
            number = int(counter.attribute(r"index=(\d+)") or -1)
            initial = instructions[loop.operands[0]]
            if number >= 0 and limit.opcode == "constant" and initial.opcode == "tuple":
                start = _origin(instructions, initial.operands[number])
                following = _origin(body, result.operands[number])
                added = {_origin(body, name).inside for name in following.operands}
                if start.inside == "0" and following.opcode == "add" and "1" in added:
                    return int(limit.inside)
        raise ValueError(f"the number of iterations of the loop {loop.name} cannot be told")


def _origin(computation: Computation, name: str) -> Instruction:
    """Returns the instruction whose value an instruction copies."""
    each = computation[name]
    while each.opcode in ("copy", "copy-start", "copy-done", "bitcast"):
        each = computation[each.operands[0]]
    return each


_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{$")
_LINE = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([a-z][a-z0-9\-]*)\((.*)$")
_NAME = re.compile(r"%([\w.\-]+)")
_ARRAY = re.compile(r"\b([a-z][a-z0-9]*)\[([0-9,]*)\](?:\{([^{}]*)\})?")


def parse(text: str) -> Program:
    """Returns the program of a text, from `compiled.as_text()`."""
    computations: dict[str, Computation] = {}
    current: Computation = {}
    entry = ""
    for line in text.splitlines():
        if head := _HEAD.match(line):
            current = computations[head[2]] = {}
            entry = head[2] if head[1] else entry
        elif found := _LINE.match(line):
            name, shape, opcode, rest = found.groups()
            inside, attributes = _split_at_bracket(rest)
            operands = tuple(_NAME.findall(inside))
            current[name] = Instruction(name, shape, opcode, operands, attributes, inside)
    return Program(computations, entry)


def _split_at_bracket(rest: str) -> tuple[str, str]:
    """Splits the text after an opening bracket at the matching closing one."""
    depth = 1
    for i, character in enumerate(rest):
        depth += (character == "(") - (character == ")")
        if not depth:
            return rest[:i], rest[i + 1 :]
    return rest, ""


def _item_size(dtype: str) -> int:
    bits = re.search(r"\d+", dtype)
    return max(1, int(bits[0]) // 8) if bits else int(dtype == "pred")
