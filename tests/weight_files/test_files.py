"""A file's content tells its format; every file that is no weight file is refused in a sentence."""

import json
import struct
import sys
import zipfile

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from resnet_jax.errors import UserError
from resnet_jax.weight_files.files import read
from tests.weight_files.refused import refusal

ARRAY = np.arange(6, dtype=np.float32).reshape(2, 3)
DTYPES = ["bool", "uint8", "int8", "uint16", "int16", "int32", "int64", "float16", "float64"]


def safetensors_of(path, header, data=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def test_safetensors_are_read(tmp_path):
    arrays = {f"a.{dtype}": ARRAY.astype(dtype) for dtype in [*DTYPES, "complex64"]}
    arrays |= {"scalar": np.array(3.0), "empty": np.empty((0, 2), np.float32)}
    safetensors.numpy.save_file(arrays, tmp_path / "x.pth", metadata={"format": "pt"})
    file = read(str(tmp_path / "x.pth"))  # the suffix tells nothing
    assert (file.format, file.graph) == ("safetensors", None)
    assert file.tensors.keys() == arrays.keys()
    for name, array in arrays.items():
        assert file.tensors[name].dtype == array.dtype
        assert np.array_equal(file.tensors[name], array)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("BF16", ml_dtypes.bfloat16), ("F8_E4M3", ml_dtypes.float8_e4m3fn),
     ("F8_E5M2", ml_dtypes.float8_e5m2)],
)  # fmt: skip
def test_short_floats_of_safetensors_are_read(name, dtype, tmp_path):
    array = ARRAY.astype(dtype)
    header = {"a": {"dtype": name, "shape": [2, 3], "data_offsets": [0, array.nbytes]}}
    tensor = read(safetensors_of(tmp_path / "x", header, array.tobytes())).tensors["a"]
    assert tensor.dtype == dtype
    assert np.array_equal(tensor, array)


@pytest.mark.parametrize(
    "header",
    [{"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}},
     {"a": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]}},
     {"a": {"dtype": "F32", "shape": [2**62, 4], "data_offsets": [0, 8]}},
     {"a": {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}},
     {"a": {"dtype": "F99", "shape": [2], "data_offsets": [0, 8]}},
     {"a": {"shape": [2]}}, {}, b'{"a":' * 10_000, b"{"],
)  # fmt: skip
def test_damaged_safetensors_are_refused(header, tmp_path):
    refusal(safetensors_of(tmp_path / "x", header, bytes(8)))


def test_a_header_longer_than_the_file_is_refused(tmp_path):
    refusal(safetensors_of(tmp_path / "x", {}, length=2**62))


def test_an_unknown_dtype_of_safetensors_is_named(tmp_path):
    header = {"a": {"dtype": "F8_E8M0", "shape": [2], "data_offsets": [0, 2]}}
    text = refusal(safetensors_of(tmp_path / "x", header, bytes(2)))
    assert text.startswith("holds a of dtype F8_E8M0; allowed are BF16, BOOL, ")


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_is_read(save, tmp_path):
    arrays = {dtype: ARRAY.astype(dtype) for dtype in DTYPES} | {"block/unit/kernel": ARRAY.T}
    with open(tmp_path / "x", "wb") as path:
        save(path, **arrays)
    file = read(tmp_path / "x")
    assert file.format == "npz"
    assert [*file.tensors] == [*DTYPES, "block.unit.kernel"]
    for name, array in arrays.items():
        assert np.array_equal(file.tensors[name.replace("/", ".")], array)


@pytest.mark.parametrize(
    ("array", "words"),
    [(np.array([1, None], dtype=object), "holds a as an array of Python objects"),
     (np.array(["a", "b"]), "holds a of dtype <U1; allowed are numbers and bools."),
     (np.zeros(2, "i4,f4"), "holds a of dtype [('f0', '<i4'), ('f1', '<f4')]; allowed are"),
     (np.zeros(2, "V2"), "holds a of dtype |V2; allowed are numbers")],
)  # fmt: skip
def test_npz_with_anything_but_numbers_is_refused(array, words, tmp_path):
    np.savez(tmp_path / "x.npz", a=array)
    assert refusal(tmp_path / "x.npz").startswith(words)


def npy(header, data=bytes(8)):
    text = header.encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + data


@pytest.mark.parametrize(
    "content",
    [npy("{'descr': '<f4', 'fortran_order': False, 'shape': (3,)}"),
     npy("{'descr': '<f4', 'fortran_order': False, 'shape': (-2,)}"),
     npy("{'descr': '<f4', 'fortran_order': False, 'shape': (2**40,)}"),
     npy("{'descr': '<f4', 'fortran_order': False, 'shape': (4294967296, 4294967296)}"),
     npy("{'descr': '<f4'}"), npy("(" * 5000), npy("__import__('os')"), b"", b"abc"],
)  # fmt: skip
def test_damaged_npz_is_refused(content, tmp_path):
    with zipfile.ZipFile(tmp_path / "x", "w") as archive:
        archive.writestr("a.npy", content)
    refusal(tmp_path / "x")


def test_an_npz_that_would_fill_the_memory_is_refused(tmp_path):
    np.savez_compressed(tmp_path / "x.npz", a=np.zeros(4))
    content = bytearray((tmp_path / "x.npz").read_bytes())
    at = content.index(b"PK\x01\x02") + 24
    content[at : at + 4] = struct.pack("<I", 2**32 - 2)
    (tmp_path / "x.npz").write_bytes(content)
    assert refusal(tmp_path / "x.npz").startswith("declares 4,294,967,294 bytes in a file of ")


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"", "is of no known format (it is empty); allowed are safetensors, PyTorch (.pth, .pt), "
      "NumPy's .npz, Keras (.h5, .keras) and ONNX files."),
     (b"version https://git-lfs.github.com/spec/v1\n", "is of no known format (it begins with "
      "b'version http'); allowed are"),
     (b"<!DOCTYPE html>", "is of no known format"), (b"\x80\x04]\x94.", "is of no known format"),
     (b"PK\x05\x06" + bytes(18), "is of no known format"),
     (b"PK\x03\x04", "is damaged or cut short (File is not a zip file)"),
     (b"\x89HDF\r\n\x1a\n", "is damaged, cut short or no keras file ("),
     (b"\x08\x07\x12", "is damaged, cut short or no onnx file (")],
)  # fmt: skip
def test_unknown_content_is_refused(content, words, tmp_path):
    (tmp_path / "x.pth").write_bytes(content)
    assert refusal(tmp_path / "x.pth").startswith(words)


def test_what_is_no_file_is_refused(tmp_path):
    assert refusal(tmp_path / "x") == "cannot be read: No such file or directory."
    assert refusal(tmp_path).startswith("is a folder; allowed are safetensors")


def test_a_file_without_tensors_is_refused(tmp_path):
    assert refusal(safetensors_of(tmp_path / "x", {})) == "holds no tensors."


@pytest.mark.parametrize(
    ("content", "package"),
    [(bytes(8) + b"{", "safetensors"), (b"\x89HDF\r\n\x1a\n", "h5py"), (b"\x08", "onnx")],
)
def test_a_missing_package_names_the_extra(content, package, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(UserError) as refused:
        read(tmp_path / "x")
    assert str(refused.value) == (
        f"Reading {tmp_path / 'x'} needs {package}, which is missing; install it with: pip install "
        "'resnet_jax[interop]'."
    )
