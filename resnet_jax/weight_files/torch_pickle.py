"""Which names a PyTorch pickle may use, and the tensors that they describe."""

import re
from collections.abc import Callable, Iterator
from typing import IO, Any, NamedTuple

import ml_dtypes
import numpy as np

from resnet_jax.weight_files import pickles
from resnet_jax.weight_files.refusals import Refusal, shown

_DEPTH = 32  # of containers; an optimizer's state is five deep
_WORK = 10_000_000  # values and characters of names; a large checkpoint has a million

_BYTES = np.dtype(np.uint8)
_STORAGES = {
    "torch.BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "torch.BoolStorage": np.dtype(np.bool_),
    "torch.ByteStorage": _BYTES,
    "torch.CharStorage": np.dtype(np.int8),
    "torch.ComplexDoubleStorage": np.dtype(np.complex128),
    "torch.ComplexFloatStorage": np.dtype(np.complex64),
    "torch.DoubleStorage": np.dtype(np.float64),
    "torch.FloatStorage": np.dtype(np.float32),
    "torch.HalfStorage": np.dtype(np.float16),
    "torch.IntStorage": np.dtype(np.int32),
    "torch.LongStorage": np.dtype(np.int64),
    "torch.ShortStorage": np.dtype(np.int16),
    "torch.UntypedStorage": _BYTES,
    "torch.storage.UntypedStorage": _BYTES,
}
_DTYPES = {
    f"torch.{name}": np.dtype(name)
    for name in (
        "bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64",
        "float16", "float32", "float64", "complex64", "complex128",
    )
} | {
    f"torch.{name}": np.dtype(getattr(ml_dtypes, name))
    for name in ("bfloat16", "float8_e4m3fn", "float8_e5m2")
}  # fmt: skip
# Values that checkpoints hold beside their weights; what they say is not read.
_IGNORED = (
    "argparse.Namespace", "builtins.bytearray", "builtins.complex", "builtins.frozenset",
    "builtins.set", "__builtin__.set", "pathlib.Path", "pathlib.PosixPath", "torch.device",
    "numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar",
)  # fmt: skip
# Parts of names that belong to tensors of other kinds.
_OTHER_TENSORS = {
    "qtensor": "quantised", "torch.Q": "quantised", "torch.q": "quantised", "sparse": "sparse",
    "nested": "nested", "meta_tensor": "data-less (meta)",
}  # fmt: skip


class Storage(NamedTuple):
    """Where a tensor's elements are: `length` elements from `start` of the storage `key`."""

    key: str
    dtype: np.dtype
    total: int  # elements of the whole storage
    start: int
    length: int


class Tensor(NamedTuple):
    """What a pickle says of a tensor; nothing of it is checked before `array`."""

    storage: Storage
    offset: Any
    size: Any
    stride: Any
    dtype: np.dtype

    def array(self, data: bytes) -> np.ndarray:
        """Returns a read-only view of `data`, the storage's bytes, in this machine's byte order."""
        storage, dtype = self.storage, self.dtype
        offset, size, stride = _integer(self.offset), _integers(self.size), _integers(self.stride)
        capacity = storage.length * storage.dtype.itemsize // dtype.itemsize
        last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        if storage.start + storage.length > storage.total or (0 not in size and last >= capacity):
            raise Refusal(
                f"is damaged: a tensor of shape {shown(size)} reaches element {shown(last)} of "
                f"storage {shown(storage.key)}, which has {capacity:,}"
            )
        if 0 in size:
            return np.empty(size, dtype)
        begin = storage.start * storage.dtype.itemsize + offset * dtype.itemsize
        # PyTorch gives any stride to an axis of length 1.
        steps = [step if n > 1 else 0 for n, step in zip(size, stride, strict=True)]
        return np.ndarray(size, dtype, data, begin, [step * dtype.itemsize for step in steps])


class _NumpyDtype(pickles.Stateful):
    def __init__(self, code: str, *flags: object):
        self._code = code
        self._order: Any = "="

    def set_state(self, state: Any) -> None:
        self._order = state[1]

    def dtype(self) -> np.dtype:
        if not re.fullmatch(r"b1|[iufc]\d\d?", self._code):
            raise Refusal(f"holds a NumPy array of dtype {shown(self._code)}, which are no numbers")
        return np.dtype(self._code).newbyteorder(self._order)


class NumpyArray(pickles.Stateful):
    """A pickled NumPy array."""

    def __init__(self, *arguments: object):
        self._state: Any = ()

    def set_state(self, state: object) -> None:
        """Keeps (version, shape, dtype, whether columns come first, data)."""
        self._state = state

    def array(self) -> np.ndarray:
        """Returns the array, which may be read-only."""
        _, shape, dtype, by_columns, data = self._state
        data = data.encode("latin1") if isinstance(data, str) else data  # written by Python 2
        flat = np.frombuffer(data, dtype.dtype())
        return flat.reshape(_integers(shape), order="F" if by_columns else "C")


class TorchPickle:
    """Reads one pickle of PyTorch.

    Attributes:
      storages: each storage that the pickle names, by its key.
    """

    def __init__(self, file: IO[bytes], size: int):
        """Takes a file, at the pickle's position, and the bytes that the pickle has at most."""
        self.storages: dict[str, Storage] = {}
        self._file = file
        self._left = size
        self._calls: dict[str, Callable[..., object]] = {
            **dict.fromkeys(_IGNORED, _ignore),
            "_codecs.encode": self._encode,
            "collections.Counter": self._dict,
            "collections.OrderedDict": self._dict,
            "numpy.core.multiarray._reconstruct": NumpyArray,
            "numpy._core.multiarray._reconstruct": NumpyArray,
            "numpy.dtype": _NumpyDtype,
            "numpy.ndarray": _ignore,
            "torch.Size": _first,
            "torch._utils._rebuild_parameter": _first,
            "torch._utils._rebuild_parameter_with_state": _first,
            "torch._utils._rebuild_tensor": _tensor,
            "torch._utils._rebuild_tensor_v2": _tensor,
            "torch._utils._rebuild_tensor_v3": _tensor_v3,
        }

    def load(self) -> Any:
        """Returns what the pickle holds, with a Tensor or NumpyArray for each array."""
        return pickles.load(self._file, self._find, self._persistent)

    def _find(self, name: str) -> object:
        if name in self._calls:
            return pickles.Function(self._calls[name])
        if name in _STORAGES:
            return _STORAGES[name]
        if name in _DTYPES:
            return _DTYPES[name]
        kinds = [kind for part, kind in _OTHER_TENSORS.items() if part in name]
        if name.startswith("torch.") and kinds:
            raise Refusal(
                f"holds a {kinds[0]} tensor ({shown(name)}); allowed are dense tensors of numbers"
            )
        raise Refusal(
            f"names {shown(name)}, but only tensors are read, never code; save the model's "
            "state_dict() instead"
        )

    def _persistent(self, name: Any) -> Storage:
        """Returns the storage of ("storage", its type, its key, a device, its length, a view)."""
        if type(name) is not tuple or len(name) not in (5, 6) or name[0] != "storage":
            raise Refusal("is damaged: it refers to data that are no storage of a tensor")
        dtype, key, total = name[1], name[2], _integer(name[4])
        if not isinstance(dtype, np.dtype) or not isinstance(key, str):
            raise Refusal("is damaged: it refers to a storage without a type or a name")
        start, length = 0, total
        if len(name) == 6 and name[5] is not None:  # by PyTorch before 0.4
            _, start, length = name[5]
        storage = Storage(key, dtype, total, _integer(start), _integer(length))
        self.storages.setdefault(key, storage)
        return storage

    def _encode(self, text: str, encoding: str) -> bytes:
        """Returns bytes as Python 3 pickles them; no more in all than the pickle has."""
        self._spend(len(text))
        if encoding != "latin1":
            raise Refusal(f"is damaged: it holds bytes in the encoding {shown(encoding)}")
        return text.encode("latin1")

    def _dict(self, items: Any = ()) -> dict:
        if type(items) is dict:
            return items
        self._spend(len(items))
        # Through the same check of keys as any other dict.
        pairs = [(key, value) for key, value in items if isinstance(key, str | int | float)]
        if len(pairs) < len(items):
            raise Refusal("is damaged: it holds a dict with a key that is no string or number")
        return dict(pairs)

    def _spend(self, count: int) -> None:
        self._left -= count
        if self._left < 0:
            raise Refusal("is damaged: its pickle repeats itself without end")


def named(root: Any) -> Iterator[tuple[str, Tensor | NumpyArray]]:
    """Yields each array in nested dicts, lists and tuples, with its dotted name.

    A single tensor is named "tensor". Values of other types are left out.
    """
    left = _WORK
    for name, value in _walk("", root, 0):
        left -= 1 + len(name)
        if left < 0:
            raise Refusal(f"holds more than {_WORK:,} values and characters of names")
        if isinstance(value, Tensor | NumpyArray):
            yield name or "tensor", value


def _walk(name: str, value: Any, depth: int) -> Iterator[tuple[str, Any]]:
    """Yields a value and those in it; only containers and arrays have names."""
    yield name, value
    if type(value) not in (dict, list, tuple):
        return
    if depth > _DEPTH:
        raise Refusal(f"nests its values deeper than {_DEPTH} levels")
    for key, item in value.items() if type(value) is dict else enumerate(value):
        has_name = type(item) in (dict, list, tuple, Tensor, NumpyArray)
        path = (f"{name}.{key}" if name else str(key)) if has_name else ""
        yield from _walk(path, item, depth + 1)


def _ignore(*arguments: object) -> None:
    """Stands for values that are not read."""


def _first(value: object, *arguments: object) -> object:
    return value


def _tensor(
    storage: Storage, offset: object, size: object, stride: object, grad: object = False,
    hooks: object = None, metadata: object = None,
) -> Tensor:  # fmt: skip
    return _tensor_v3(storage, offset, size, stride, grad, hooks, storage.dtype, metadata)


def _tensor_v3(
    storage: Storage, offset: object, size: object, stride: object, grad: object, hooks: object,
    dtype: np.dtype, metadata: object = None,
) -> Tensor:  # fmt: skip
    if metadata:
        raise Refusal("holds a lazily conjugated or negated tensor; save its resolve_conj() or "
                      "resolve_neg()")  # fmt: skip
    if type(storage) is not Storage or not isinstance(dtype, np.dtype):
        raise Refusal("is damaged: it holds a tensor without a storage or a type")
    return Tensor(storage, offset, size, stride, dtype)


def _integer(value: object) -> int:
    if type(value) is not int or value < 0:
        raise Refusal(f"is damaged: {shown(value)} is no length, offset or stride")
    return value


def _integers(values: object) -> tuple[int, ...]:
    if not isinstance(values, tuple | list):
        raise Refusal(f"is damaged: {shown(values)} is no shape")
    return tuple(_integer(value) for value in values)
