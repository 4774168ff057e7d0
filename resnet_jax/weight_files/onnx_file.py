"""Reads ONNX models: their initializers, and the tensors of their Constant nodes."""

import pathlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from resnet_jax.weight_files.refusals import Refusal, shown

if TYPE_CHECKING:
    import onnx


def load(path: pathlib.Path) -> "onnx.ModelProto":
    """Returns the model, and opens no other file; needs onnx.

    Raises:
      Refusal: it has no graph or no operator set.
      Exception: of any type, if it is damaged otherwise.
    """
    import onnx

    model = onnx.load_model_from_string(path.read_bytes())
    # A file that is cut short between two of its fields still parses.
    if not model.HasField("graph") or not model.opset_import:
        raise Refusal("is no ONNX model, or is cut short: it lacks a graph or an operator set")
    return model


def tensors(model: "onnx.ModelProto") -> Iterator[tuple[str, np.ndarray]]:
    """Yields the name and the array of each initializer and each Constant node's tensor.

    A Constant's name is that of its output. Tensors of strings are left out.
    """
    import onnx

    graph = model.graph
    if graph.sparse_initializer:
        name = graph.sparse_initializer[0].values.name
        raise Refusal(f"holds a sparse tensor ({shown(name)}); allowed are dense tensors")
    named = [(tensor.name, tensor) for tensor in graph.initializer]
    named += [
        (node.output[0], attribute.t)
        for node in graph.node
        if node.op_type == "Constant"
        for attribute in node.attribute
        if attribute.name == "value"
    ]
    for name, tensor in named:
        if tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.external_data:
            raise Refusal(
                f"has the data of {shown(name)} in another file; save the model with its weights "
                "inside"
            )
        if min(tensor.dims, default=0) < 0:
            raise Refusal(f"is damaged: {shown(name)} has the shape {shown([*tensor.dims])}")
        if tensor.data_type != onnx.TensorProto.STRING:
            yield name, onnx.numpy_helper.to_array(tensor)
