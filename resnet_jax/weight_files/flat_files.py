"""Reads the formats that are a list of named arrays: safetensors and NumPy's npz."""

import pathlib
import zipfile
from collections.abc import Iterator

import ml_dtypes
import numpy as np

from resnet_jax.errors import listing
from resnet_jax.weight_files.refusals import Refusal, check_expansion, shown

_SAFETENSORS = {
    "BF16": ml_dtypes.bfloat16, "BOOL": np.bool_, "C64": np.complex64,
    "F8_E4M3": ml_dtypes.float8_e4m3fn, "F8_E5M2": ml_dtypes.float8_e5m2,
    "F16": np.float16, "F32": np.float32, "F64": np.float64,
    "I8": np.int8, "I16": np.int16, "I32": np.int32, "I64": np.int64,
    "U8": np.uint8, "U16": np.uint16, "U32": np.uint32, "U64": np.uint64,
}  # fmt: skip


def read_safetensors(path: pathlib.Path) -> Iterator[tuple[str, np.ndarray]]:
    """Yields each tensor's name and array; needs safetensors."""
    import safetensors

    # safetensors.numpy fails on 8-bit floats, which NumPy lacks.
    for name, tensor in sorted(safetensors.deserialize(path.read_bytes())):
        if tensor["dtype"] not in _SAFETENSORS:
            raise Refusal(
                f"holds {shown(name)} of dtype {tensor['dtype']}; allowed are "
                f"{listing(_SAFETENSORS, 'and')}"
            )
        array = np.frombuffer(tensor["data"], _SAFETENSORS[tensor["dtype"]])
        yield name, array.reshape(tensor["shape"])


def read_npz(path: pathlib.Path) -> Iterator[tuple[str, np.ndarray]]:
    """Yields each array and its name, in which "." replaces "/"; never loads a pickle."""
    with zipfile.ZipFile(path) as archive:
        check_expansion(path, sum(member.file_size for member in archive.infolist()))
        for member in archive.infolist():
            name = member.filename.removesuffix(".npy").replace("/", ".")
            with archive.open(member) as file:
                try:
                    yield name, np.lib.format.read_array(file, allow_pickle=False)
                except ValueError as e:
                    if "allow_pickle" not in str(e):
                        raise
                    raise Refusal(
                        f"holds {shown(name)} as an array of Python objects, which would need a "
                        "pickle; save it as an array of numbers"
                    ) from e
