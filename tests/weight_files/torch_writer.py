"""Writes what torch.save writes, with Python's own pickler and stand-ins for PyTorch's names."""

import collections
import io
import itertools
import pickle
import pkgutil
import sys
import types
import zipfile
from unittest import mock

import ml_dtypes
import numpy as np

MAGIC = 0x1950A86A20F9469CFC6C
STORAGES = {
    "BFloat16Storage": ml_dtypes.bfloat16, "BoolStorage": np.bool_, "ByteStorage": np.uint8,
    "CharStorage": np.int8, "ComplexDoubleStorage": np.complex128,
    "ComplexFloatStorage": np.complex64, "DoubleStorage": np.float64, "FloatStorage": np.float32,
    "HalfStorage": np.float16, "IntStorage": np.int32, "LongStorage": np.int64,
    "ShortStorage": np.int16,
}  # fmt: skip
_modules = {"torch": types.ModuleType("torch")}


def name(dotted):
    """Returns a function that is pickled as a global of this name."""
    module, _, attribute = dotted.rpartition(".")
    if not module.startswith("torch"):
        return pkgutil.resolve_name(dotted)

    def stub():
        raise AssertionError("a stand-in was called")

    stub.__module__, stub.__qualname__ = module, attribute
    owner = _modules.setdefault(module, types.ModuleType(module))
    if not hasattr(owner, attribute):
        setattr(owner, attribute, stub)
    return getattr(owner, attribute)


class Storage:
    """Elements in memory, under a key; `claim` is the count that the pickle tells."""

    _keys = itertools.count()

    def __init__(self, array, kind=None, claim=None, view=None):
        kinds = [k for k, dtype in STORAGES.items() if array.dtype == dtype]
        self.kind = name(kind or f"torch.{kinds[0]}")
        self.data, self.itemsize = array.tobytes(), array.itemsize
        self.claim = array.size if claim is None else claim
        self.view, self.key = view, str(next(self._keys))


class Call:
    """Pickled as a call of a named function, with a state for BUILD if there is one."""

    def __init__(self, dotted, *arguments, state=None):
        self.call = (name(dotted), arguments) + ((state,) if state is not None else ())

    def __reduce__(self):
        return self.call


def tensor(storage, offset, size, stride, rebuild="_rebuild_tensor_v2", *more):
    hooks = collections.OrderedDict()
    return Call(f"torch._utils.{rebuild}", storage, offset, size, stride, False, hooks, *more)


def dense(array):
    """A contiguous tensor in a storage of its own."""
    stride = tuple(step // array.itemsize for step in array.strides)
    return tensor(Storage(array), 0, array.shape, stride)


class _Pickler(pickle.Pickler):
    def __init__(self, file, is_legacy, protocol):
        super().__init__(file, protocol)
        self.is_legacy, self.storages = is_legacy, {}

    def persistent_id(self, obj):
        if not isinstance(obj, Storage):
            return None
        self.storages[obj.key] = obj
        told = ("storage", obj.kind, obj.key, "cpu", obj.claim)
        return (*told, obj.view) if self.is_legacy else told


def pickled(value, is_legacy=False, protocol=2):
    """Returns the pickle, and the storages in it by their keys."""
    file = io.BytesIO()
    pickler = _Pickler(file, is_legacy, protocol)
    with mock.patch.dict(sys.modules, _modules):
        pickler.dump(value)
    return file.getvalue(), pickler.storages


def save(path, value=None, *, legacy=False, **keywords):
    (save_legacy if legacy else save_zip)(path, value, **keywords)
    return path


def save_zip(path, value=None, *, pickle=None, protocol=2, order="little", compression=0):
    """Writes the format since PyTorch 1.6; `pickle` stands for the pickle of a value."""
    content, storages = pickled(value, protocol=protocol)
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("model/data.pkl", pickle or content)
        archive.writestr("model/byteorder", order)
        for key, storage in storages.items():
            archive.writestr(f"model/data/{key}", storage.data)
        archive.writestr("model/version", "3\n")
    return path


def save_legacy(path, value=None, *, pickle=None, protocol=2, version=1001):
    """Writes the format before PyTorch 1.6."""
    content, storages = pickled(value, is_legacy=True, protocol=protocol)
    about = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"int": 4}}
    parts = [pickled(header, protocol=protocol)[0] for header in (MAGIC, version, about)]
    parts += [pickle or content, pickled([*storages], protocol=protocol)[0]]
    for storage in storages.values():
        count = len(storage.data) // storage.itemsize
        parts += [count.to_bytes(8, "little"), storage.data]
    path.write_bytes(b"".join(parts))
    return path
