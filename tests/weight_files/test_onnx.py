"""Initializers and Constant tensors of ONNX models are read; other files are never opened."""

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from resnet_jax.weight_files.files import read
from tests.weight_files.refused import refusal

KERNEL = np.arange(6, dtype=np.float32).reshape(2, 3)


def model(initializers=(), nodes=(), **keywords):
    """A model of a convolution, with these initializers and nodes."""
    conv = helper.make_node("Conv", ["x", "w"], ["y"], strides=[2, 2], pads=[1, 1, 1, 1])
    graph = helper.make_graph([*nodes, conv], "net", [], [], initializer=initializers, **keywords)
    return helper.make_model(graph)


def save(proto, path):
    path.write_bytes(proto.SerializeToString())
    return path


def constant(**attribute):
    return helper.make_node("Constant", [], ["c"], **attribute)


def test_initializers_and_the_graph_are_read(tmp_path):
    dtypes = ["float32", "float64", "float16", "int64", "int32", "int8", "uint8", "bool"]
    arrays = {dtype: KERNEL.astype(dtype) for dtype in dtypes}
    arrays |= {"bf16": KERNEL.astype(ml_dtypes.bfloat16), "scalar": np.float32(2).reshape(())}
    proto = model([numpy_helper.from_array(array, name) for name, array in arrays.items()])
    file = read(save(proto, tmp_path / "x.pth"))
    assert file.format == "onnx"
    assert [*file.tensors] == [*arrays]
    for name, array in arrays.items():
        assert file.tensors[name].dtype == array.dtype
        assert np.array_equal(file.tensors[name], array)
    assert helper.get_node_attr_value(file.graph.graph.node[0], "strides") == [2, 2]


@pytest.mark.parametrize(
    "kind", ["FLOAT", "DOUBLE", "FLOAT16", "BFLOAT16", "INT64", "INT32", "INT8", "UINT8", "BOOL"]
)
def test_typed_fields_are_read(kind, tmp_path):
    proto = helper.make_tensor("a", getattr(TensorProto, kind), [2, 2], [0, 1, 1, 0])
    assert not proto.raw_data
    tensor = read(save(model([proto]), tmp_path / "x")).tensors["a"]
    assert tensor.dtype == helper.tensor_dtype_to_np_dtype(getattr(TensorProto, kind))
    assert np.array_equal(tensor, [[0, 1], [1, 0]])


def test_tensors_of_constant_nodes_are_read(tmp_path):
    nodes = [constant(value=numpy_helper.from_array(KERNEL)), constant(value_float=1.5)]
    tensors = read(save(model(nodes=nodes), tmp_path / "x")).tensors
    assert [*tensors] == ["c"]
    assert np.array_equal(tensors["c"], KERNEL)


def test_strings_are_left_out(tmp_path):
    text = helper.make_tensor("names", TensorProto.STRING, [1], [b"cat"])
    proto = model([text, numpy_helper.from_array(KERNEL, "w")])
    assert [*read(save(proto, tmp_path / "x")).tensors] == ["w"]


def outside(location):
    proto = numpy_helper.from_array(KERNEL, "w")
    proto.ClearField("raw_data")
    proto.data_location = TensorProto.EXTERNAL
    proto.external_data.add(key="location", value=location)
    return proto


@pytest.mark.parametrize("location", ["secret", "../secret", "/etc/hostname"])
def test_external_data_are_refused(location, tmp_path):
    (tmp_path / "secret").write_bytes(bytes(24))
    words = "has the data of w in another file; save the model with its weights inside."
    assert refusal(save(model([outside(location)]), tmp_path / "x")) == words
    nodes = [constant(value=outside(location))]
    assert refusal(save(model(nodes=nodes), tmp_path / "x")) == words.replace(" w ", " c ")


def test_external_data_without_the_mark_are_refused(tmp_path):
    proto = outside("secret")
    proto.data_location = TensorProto.DEFAULT
    assert "in another file" in refusal(save(model([proto]), tmp_path / "x"))


def test_sparse_tensors_are_refused(tmp_path):
    sparse = helper.make_sparse_tensor(
        numpy_helper.from_array(KERNEL[0], "w"), numpy_helper.from_array(np.arange(3)), [9]
    )
    proto = model(sparse_initializer=[sparse])
    assert refusal(save(proto, tmp_path / "x")).startswith("holds a sparse tensor (w)")


@pytest.mark.parametrize(
    "change",
    [{"dims": [7]}, {"dims": [-1, 3]}, {"dims": [2**40, 2**40]}, {"dims": [2**62, 0, 4]},
     {"data_type": 0}, {"data_type": 99}, {"raw_data": b"abc"}],
)  # fmt: skip
def test_damaged_tensors_are_refused(change, tmp_path):
    proto = numpy_helper.from_array(KERNEL, "w")
    for field, value in change.items():
        proto.ClearField(field)
        if isinstance(value, list):
            getattr(proto, field).extend(value)
        else:
            setattr(proto, field, value)
    refusal(save(model([proto]), tmp_path / "x"))


def test_two_tensors_of_one_name_are_refused(tmp_path):
    proto = model([numpy_helper.from_array(KERNEL, "w")] * 2)
    assert refusal(save(proto, tmp_path / "x")) == "holds two tensors of the name w."


def test_a_model_without_a_graph_is_refused(tmp_path):
    path = save(onnx.ModelProto(ir_version=8), tmp_path / "x")
    assert refusal(path).startswith("is no ONNX model, or is cut short")
