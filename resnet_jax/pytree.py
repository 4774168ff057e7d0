"""Types of pytrees: nested containers of arrays, of their shapes or of their shardings."""

from typing import Any, TypeAlias, TypeVar

PyTree: TypeAlias = Any
Tree = TypeVar("Tree")  # a PyTree whose structure the result of a function has too
