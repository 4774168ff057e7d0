"""Reads a pickle as data: no class is imported, and only the caller's functions are called.

pickle.Unpickler with a restricted find_class is not enough for a hostile file. A number in the file
decides how much memory it takes for its memo, a deep tuple as a key overflows the C stack, and the
opcode BUILD can alter the functions that find_class returned.
"""

import pickle
import pickletools
from collections.abc import Callable
from typing import IO, Any, NamedTuple

_OPCODES = 10_000_000  # a large checkpoint has a hundred thousand
_CONSTANTS = {
    "INT", "LONG", "LONG1", "LONG4", "BININT", "BININT1", "BININT2", "FLOAT", "BINFLOAT", "STRING",
    "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8",
    "BINBYTES", "SHORT_BINBYTES", "BINBYTES8",
}  # fmt: skip
_LITERALS: dict[str, object] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_KEYS = (str, int, float, bytes, bool, type(None))  # their hash needs no recursion


class Function(NamedTuple):
    """A function that a pickle may call with what it holds."""

    call: Callable[..., object]


class Stateful:
    """An object that takes the state that a pickle gives it; all others ignore theirs."""

    def set_state(self, state: object) -> None:
        """Keeps the state; it is not checked yet."""
        raise NotImplementedError


def load(
    file: IO[bytes], find: Callable[[str], object], persistent: Callable[[object], object]
) -> Any:
    """Reads one pickle; the file's position is then behind it.

    Args:
      file: the pickle begins at its position.
      find: returns what stands for a class or function of a dotted name: a Function if it may be
        called. It raises for names that are not allowed.
      persistent: returns what stands for a persistent id.

    Returns:
      Dicts, lists (sets become lists), tuples, numbers, strings and results of `find`'s functions.

    Raises:
      Exception: of any type, if the pickle is damaged or uses other opcodes.
    """
    machine = _Machine(find, persistent)
    for count, (opcode, argument, _) in enumerate(pickletools.genops(file)):
        if count >= _OPCODES:
            raise pickle.UnpicklingError(f"a pickle of more than {_OPCODES:,} opcodes")
        if opcode.name != "STOP":
            machine.execute(opcode.name, argument)
    return machine.stack.pop()


class _Machine:
    """The stack, the marks and the memo of a pickle."""

    def __init__(self, find: Callable[[str], object], persistent: Callable[[object], object]):
        self.stack: list[Any] = []
        self._below: list[list[Any]] = []  # the stacks under each mark
        self._memo: dict[int, Any] = {}
        self._find, self._persistent = find, persistent

    def execute(self, name: str, argument: Any) -> None:
        stack = self.stack
        if name in _CONSTANTS:
            stack.append(argument)
        elif name in _LITERALS:
            stack.append(_LITERALS[name])
        elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
            self._memo[argument] = stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(self._memo[argument])
        elif not self._build(name) and not self._refer(name, argument):
            raise pickle.UnpicklingError(f"the pickle opcode {name}, which no weights need")

    def _build(self, name: str) -> bool:
        """Executes an opcode that makes or fills a container; False: it is another one."""
        stack = self.stack
        match name:
            case "MARK":
                self._below.append(stack)
                self.stack = []
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                count = int(name[-1])
                stack[-count:] = [tuple(stack[-count:])]
            case "TUPLE":
                items = self._pop_mark()
                self.stack.append(tuple(items))
            case "EMPTY_DICT":
                stack.append({})
            case "EMPTY_LIST" | "EMPTY_SET":
                stack.append([])
            case "DICT":
                items = self._pop_mark()
                self.stack.append({})
                self._set_items(items)
            case "LIST" | "FROZENSET":
                items = self._pop_mark()
                self.stack.append(items)
            case "SETITEM":
                items = stack[-2:]
                del stack[-2:]
                self._set_items(items)
            case "SETITEMS":
                self._set_items(self._pop_mark())
            case "APPEND":
                self._extend([stack.pop()])
            case "APPENDS" | "ADDITEMS":
                self._extend(self._pop_mark())
            case _:
                return False
        return True

    def _refer(self, name: str, argument: Any) -> bool:
        """Executes an opcode about names, calls and the stack; False: it is another one."""
        stack = self.stack
        match name:
            case "PROTO" | "FRAME":
                pass
            case "MEMOIZE":
                self._memo[len(self._memo)] = stack[-1]
            case "POP":
                stack.pop()
            case "POP_MARK":
                self._pop_mark()
            case "GLOBAL":
                stack.append(self._find(argument.replace(" ", ".")))
            case "STACK_GLOBAL":
                module, attribute = stack[-2:]
                stack[-2:] = [self._find(f"{module}.{attribute}")]
            case "BINPERSID":
                stack[-1] = self._persistent(stack[-1])
            case "REDUCE" | "NEWOBJ":
                function, arguments = stack[-2:]
                if type(function) is not Function or type(arguments) is not tuple:
                    raise pickle.UnpicklingError("a call of what is no function")
                stack[-2:] = [function.call(*arguments)]
            case "BUILD":
                state = stack.pop()
                if isinstance(stack[-1], Stateful):
                    stack[-1].set_state(state)
            case _:
                return False
        return True

    def _pop_mark(self) -> list[Any]:
        items, self.stack = self.stack, self._below.pop()
        return items

    def _set_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is not dict:
            raise pickle.UnpicklingError("items that belong to no dict")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if not isinstance(key, _KEYS):
                raise pickle.UnpicklingError("a dict with a key that is no string or number")
            target[key] = value

    def _extend(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is not list:
            raise pickle.UnpicklingError("items that belong to no list")
        target.extend(items)
