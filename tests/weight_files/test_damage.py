"""A damaged file of any format is refused in a sentence, or read, and raises nothing else."""

import contextlib

import h5py
import numpy as np
import onnx
import pytest
import safetensors.numpy

from resnet_jax.errors import UserError
from resnet_jax.weight_files.files import read
from tests.weight_files import torch_writer
from tests.weight_files.refused import refusal

ARRAY = np.arange(6, dtype=np.float32).reshape(2, 3)
TENSORS = {"a": torch_writer.dense(ARRAY), "b": np.ones(2), "c": torch_writer.dense(ARRAY[0])}


def keras(path):
    with h5py.File(path, "w") as file:
        file["layers/conv2d/vars/0"] = ARRAY
        # Of a fixed length: HDF5 itself may hang in other damaged strings.
        file["layers/conv2d/vars"].attrs["name"] = np.bytes_("stem")


def onnx_model(path):
    tensor = onnx.numpy_helper.from_array(ARRAY, "w")
    node = onnx.helper.make_node("Conv", ["x", "w"], ["y"], strides=[2, 2])
    graph = onnx.helper.make_graph([node], "net", [], [], [tensor])
    path.write_bytes(onnx.helper.make_model(graph).SerializeToString())


# How a file is written, and the steps between the bytes at which it is cut and altered.
FORMATS = {
    "safetensors": (
        lambda path: path.write_bytes(safetensors.numpy.save({"a": ARRAY, "b": ARRAY})), 5, 1
    ),
    "npz": (lambda path: np.savez(path, a=ARRAY), 5, 1),
    "torch": (lambda path: torch_writer.save(path, TENSORS), 7, 1),
    "legacy torch": (lambda path: torch_writer.save(path, TENSORS, legacy=True), 7, 1),
    "keras": (keras, 97, 17),
    "onnx": (onnx_model, 1, 1),
}  # fmt: skip


@pytest.mark.parametrize("name", FORMATS)
def test_truncated_and_altered_files_raise_no_other_errors(name, tmp_path):
    write, cut, alter = FORMATS[name]
    path = tmp_path / "whole.npz"  # np.savez adds the suffix otherwise; it tells nothing
    write(path)
    assert read(path).tensors
    whole, path = path.read_bytes(), tmp_path / "x"
    for length in (*range(0, len(whole), cut), len(whole) - 1):
        path.write_bytes(whole[:length])
        refusal(path)
    for position in range(0, len(whole), alter):
        altered = bytearray(whole)
        altered[position] ^= 1 << position % 8
        path.write_bytes(altered)
        with contextlib.suppress(UserError):
            read(path)
