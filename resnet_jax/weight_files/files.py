"""Reads the tensors of a weight file of any known format, and never runs code from it."""

import dataclasses
import os
import pathlib
import zipfile
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from resnet_jax.errors import UserError, require_packages
from resnet_jax.weight_files import flat_files, keras_file, onnx_file, torch_file
from resnet_jax.weight_files.refusals import Refusal, reason, shown

if TYPE_CHECKING:
    import onnx

_READERS = {
    "safetensors": flat_files.read_safetensors,
    "pytorch": torch_file.read,
    "npz": flat_files.read_npz,
    "keras": keras_file.read,
}
_PACKAGES = {"safetensors": ["safetensors"], "keras": ["h5py"], "onnx": ["onnx"]}
_HEAD = 32  # bytes
_ALLOWED = (
    "allowed are safetensors, PyTorch (.pth, .pt), NumPy's .npz, Keras (.h5, .keras) and ONNX files"
)


@dataclasses.dataclass(frozen=True, eq=False)
class WeightFile:
    """The tensors of a weight file.

    Attributes:
      tensors: by their dotted names. Each has the file's own shape, dtype (bfloat16 is ml_dtypes')
        and layout, and may be a read-only view of memory that others share.
      format: "safetensors", "pytorch", "npz", "keras" or "onnx".
      graph: the model whose initializers the tensors are; only of an ONNX file.
      config: of the model whose weights the tensors are, {"class_name", "config"}; only of a whole
        model of Keras.
    """

    tensors: dict[str, np.ndarray]
    format: str
    graph: "onnx.ModelProto | None" = None
    config: dict[str, Any] | None = None


def read(path: str | os.PathLike[str]) -> WeightFile:
    """Reads every tensor of a file, whose content tells its format, whatever its name ends with.

    Names of nested dicts and lists are joined with "."; prefixes such as "module." are kept.

    Raises:
      UserError: the file cannot be opened, is of another format, is damaged, holds no tensors,
        holds anything but numbers, would run code, or needs a package that is not installed.
    """
    path = pathlib.Path(path)
    graph = config = None
    try:
        file_format = _format(path)
    except OSError as e:
        raise UserError(f"{path} cannot be read: {e.strerror or reason(e)}.") from e
    except Refusal as e:
        raise UserError(f"{path} {e}.") from e
    require_packages(_PACKAGES.get(file_format, []), f"Reading {path}")
    try:
        if file_format == "onnx":
            graph = onnx_file.load(path)
            tensors = _collected(onnx_file.tensors(graph))
        else:
            tensors = _collected(_READERS[file_format](path))
            config = keras_file.config(path) if file_format == "keras" else None
    except Refusal as e:
        raise UserError(f"{path} {e}.") from e
    except ImportError:
        raise
    except Exception as e:  # the libraries raise errors of any type about damaged files
        raise UserError(
            f"{path} is damaged, cut short or no {file_format} file ({reason(e)})."
        ) from e
    return WeightFile(tensors, file_format, graph, config)


def _format(path: pathlib.Path) -> str:
    """Returns the format that a file's content shows; raises Refusal or OSError."""
    if path.is_dir():
        raise Refusal(f"is a folder; {_ALLOWED}")
    with open(path, "rb") as file:
        head = file.read(_HEAD)
    if head.startswith(b"PK\x03\x04"):
        return _zip_format(path)
    if head.startswith(b"\x89HDF\r\n\x1a\n"):
        return "keras"
    if head.startswith(b"\x80") and torch_file.LEGACY_MAGIC in head:
        return "pytorch"
    if head[8:9] == b"{":  # after the length of the header
        return "safetensors"
    if head.startswith(b"\x08"):  # the first field, the version; ONNX has no magic number
        return "onnx"
    content = f"begins with {head[:12]!r}" if head else "is empty"
    raise Refusal(f"is of no known format (it {content}); {_ALLOWED}")


def _zip_format(path: pathlib.Path) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError) as e:
        raise Refusal(f"is damaged or cut short ({reason(e)})") from e
    if any(name.endswith("/data.pkl") for name in names):
        return "pytorch"
    if keras_file.WEIGHTS in names:
        return "keras"
    if names and all(name.endswith(".npy") for name in names):
        return "npz"
    raise Refusal(f"is a zip file of no known format; {_ALLOWED}")


def _collected(named: Iterable[tuple[str, np.ndarray]]) -> dict[str, np.ndarray]:
    tensors: dict[str, np.ndarray] = {}
    for name, array in named:
        if name in tensors:
            raise Refusal(f"holds two tensors of the name {shown(name)}")
        # ml_dtypes' numbers are of NumPy's kind V, as bare bytes and records are.
        if array.dtype.kind not in "biufcV" or issubclass(array.dtype.type, np.void):
            raise Refusal(
                f"holds {shown(name)} of dtype {shown(array.dtype)}; allowed are numbers and bools"
            )
        tensors[name] = array
    if not tensors:
        raise Refusal("holds no tensors")
    return tensors
