"""Reads what torch.save wrote, without PyTorch: a zip file, or a row of pickles before PyTorch 1.6.

Both hold a pickle that describes the tensors, and the bytes of their storages.
"""

import pathlib
import zipfile
from collections.abc import Callable, Iterator
from typing import IO, Any

import numpy as np

from resnet_jax.weight_files.refusals import Refusal, shown
from resnet_jax.weight_files.torch_pickle import NumpyArray, Storage, TorchPickle, named

# The number that begins the older format, as a pickle has it after its protocol.
LEGACY_MAGIC = b"\x8a\x0a" + (0x1950A86A20F9469CFC6C).to_bytes(10, "little")
_LEGACY_PROTOCOL = 1001
_PICKLE = "data.pkl"


def read(path: pathlib.Path) -> Iterator[tuple[str, np.ndarray]]:
    """Yields each tensor's dotted name and a read-only array in the file's dtype.

    Tensors that share a storage share its memory.

    Raises:
      Refusal: the file holds code, tensors of other kinds, or extents beyond its data.
      Exception: of any type, if it is damaged otherwise.
    """
    size = path.stat().st_size
    with open(path, "rb") as file:
        is_zip = file.read(2) == b"PK"
        file.seek(0)
        if not is_zip:
            yield from _read_legacy(file, size)
            return
        with zipfile.ZipFile(file) as archive:
            yield from _read_zip(archive, size)


def _read_zip(archive: zipfile.ZipFile, size: int) -> Iterator[tuple[str, np.ndarray]]:
    records = {record.filename: record for record in archive.infolist()}
    roots = [name.split("/")[0] for name in records if name.count("/") == 1
             and name.endswith(f"/{_PICKLE}")]  # fmt: skip
    if len(roots) != 1 or len(records) < len(archive.infolist()):
        raise Refusal(f"is damaged: it must hold one NAME/{_PICKLE}, and each record once")
    root = roots[0]
    if f"{root}/constants.pkl" in records:
        raise Refusal("is a TorchScript program; save its state_dict() with torch.save")
    if any(record.compress_type != zipfile.ZIP_STORED for record in records.values()):
        raise Refusal("has compressed records, which torch.save never writes")
    if sum(record.file_size for record in records.values()) > size:
        raise Refusal("is damaged: its records are larger than the file")
    order = archive.read(f"{root}/byteorder") if f"{root}/byteorder" in records else b"little"
    if order not in (b"little", b"big"):
        raise Refusal(f"is damaged: its byte order is {shown(order)}; allowed are little and big")

    def storage_bytes(storage: Storage) -> bytes:
        return archive.read(f"{root}/data/{storage.key}")

    with archive.open(f"{root}/{_PICKLE}") as file:
        pickle = TorchPickle(file, records[f"{root}/{_PICKLE}"].file_size)
        value = pickle.load()
    yield from _arrays(value, storage_bytes, is_big=order == b"big")


def _read_legacy(file: IO[bytes], size: int) -> Iterator[tuple[str, np.ndarray]]:
    header = TorchPickle(file, size)
    header.load()  # the magic number
    if (protocol := header.load()) != _LEGACY_PROTOCOL:
        raise Refusal(f"is of protocol {shown(protocol)}; allowed is {_LEGACY_PROTOCOL}")
    header.load()  # about the machine that wrote it; the storages are little-endian on all
    pickle = TorchPickle(file, size)
    value, keys = pickle.load(), header.load()
    contents: dict[str, bytes] = {}
    for key in keys:
        storage = pickle.storages[key]
        length = int.from_bytes(file.read(8), "little") * storage.dtype.itemsize
        if length > size - file.tell():
            raise Refusal(f"is cut short within storage {shown(key)}")
        contents[key] = file.read(length)
    yield from _arrays(value, lambda storage: contents[storage.key], is_big=False)


def _arrays(
    value: Any, storage_bytes: Callable[[Storage], bytes], is_big: bool
) -> Iterator[tuple[str, np.ndarray]]:
    """Yields the arrays in a pickle's value; each storage is read once."""
    contents: dict[tuple[str, int], bytes] = {}
    for name, tensor in named(value):
        if isinstance(tensor, NumpyArray):
            yield name, tensor.array()
            continue
        storage, word = tensor.storage, _word(tensor.dtype) if is_big else 1
        if (storage.key, word) not in contents:
            data = storage_bytes(storage)
            contents[storage.key, word] = data if word == 1 else _swapped(data, word)
        data = contents[storage.key, word]
        if len(data) != (declared := storage.total * storage.dtype.itemsize):
            raise Refusal(
                f"is damaged: storage {shown(storage.key)} has {len(data):,} bytes, but {name} "
                f"expects {declared:,}"
            )
        yield name, tensor.array(data)


def _word(dtype: np.dtype) -> int:
    """Returns how many bytes of a dtype are swapped between byte orders."""
    return dtype.itemsize // 2 if dtype.kind == "c" else dtype.itemsize


def _swapped(data: bytes, word: int) -> bytes:
    return np.frombuffer(data, f"u{word}").byteswap().tobytes()
