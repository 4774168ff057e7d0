"""Rewrites a Keras model, as its file describes it, as an ONNX graph, which onnx_graph.py reads.

The file of a whole model, .h5 or .keras, has the options of all layers and their connections.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from resnet_jax.errors import UserError, require_packages
from resnet_jax.weight_files.refusals import shown

if TYPE_CHECKING:
    import onnx

_OPSET = 17
MODELS = ("Functional", "Model", "Sequential")
# Layers that do nothing when a network is evaluated.
_IDENTITY = {
    "Dropout", "SpatialDropout2D", "GaussianDropout", "GaussianNoise", "RandomFlip",
    "RandomTranslation", "RandomRotation", "RandomZoom", "RandomContrast", "RandomBrightness",
}  # fmt: skip
_PLAIN = dict.fromkeys(_IDENTITY, "Identity") | {
    "Add": "Add", "ReLU": "Relu", "Relu": "Relu", "Softmax": "Softmax", "Flatten": "Flatten",
}  # fmt: skip
_POOLS = {"MaxPooling2D": "MaxPool", "AveragePooling2D": "AveragePool"}
_ACTIVATIONS = {"relu": "Relu", "softmax": "Softmax"}
# Keras 2's names of operations that a program writes as x + y or tf.nn.relu(x).
_FUNCTIONS = {"math.add": "Add", "__operators__.add": "Add", "nn.relu": "Relu"}
# Options of which our layers have one value.
_ALLOWED: dict[str, tuple[Any, ...]] = {
    "data_format": ("channels_last", None),
    "dilation_rate": ([1, 1], 1),
    "axis": ([3], [-1], 3, -1),
    "max_value": (None,),
    "negative_slope": (0,),
    "threshold": (0,),
}


def to_onnx(
    config: Mapping[str, Any], tensors: Mapping[str, np.ndarray], path: str
) -> tuple["onnx.ModelProto", dict[str, np.ndarray]]:
    """Returns a model that computes in (N, C, H, W) what a Keras model computes, and its constants.

    Args:
      config: of the model, {"class_name", "config"}, as Keras 2 and 3 write it.
      tensors: see weight_files.keras_file.
      path: of the file, for messages.

    Raises:
      UserError: a layer is in no network that is known here, or lacks a tensor. The sentence names
        the layer.
    """
    require_packages(["onnx"], f"Reading {path}")
    writer = _Writer(tensors, path)
    try:
        return writer.model(config), writer.constants
    except (AttributeError, LookupError, TypeError, ValueError) as e:  # the JSON may be anything
        raise UserError(
            f"{path} describes its model in a way that is not known here ({type(e).__name__}: "
            f"{shown(e)})."
        ) from e


class _Writer:
    """The nodes and the constants of a model that is being rewritten."""

    def __init__(self, tensors: Mapping[str, np.ndarray], path: str):
        self.constants: dict[str, np.ndarray] = {}
        self._tensors, self._path = tensors, path
        self._nodes: list[Any] = []
        self._padded: dict[str, tuple[str, list[int]]] = {}  # output -> input, [top, left, ...]
        self._shape: list[int | None] = []  # (N, H, W, C) of the input
        # (layer, weight) -> name of the tensor. Keras writes "conv1/conv1/kernel", in a model that
        # is a layer "resnet50/conv1/kernel", and after a layer's name was changed "conv1/x/kernel".
        self._names: dict[tuple[str, str], str] = {}
        for layer in (0, -2):
            for name in tensors:
                parts = name.split(".")
                if len(parts) > 1:
                    self._names.setdefault((parts[layer], parts[-1]), name)

    def model(self, config: Mapping[str, Any]) -> "onnx.ModelProto":
        from onnx import TensorProto, helper, numpy_helper

        output = self._model(config["class_name"], config["config"], "images", "")
        if len(self._shape) != 4:
            raise UserError(f"{self._path} does not tell the shape (N, H, W, C) of its input.")
        _, height, width, channels = self._shape
        shape = ["N", channels, height or "H", width or "W"]
        graph = helper.make_graph(
            self._nodes,
            "keras",
            [helper.make_tensor_value_info("images", TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)],
            [numpy_helper.from_array(array, name) for name, array in self.constants.items()],
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)])

    def _model(self, kind: str, config: Mapping[str, Any], source: str, prefix: str) -> str:
        """Adds the layers of a model, which may be a layer itself; returns its output."""
        self._shape = self._shape or config.get("build_input_shape") or []
        outputs: dict[str, str] = {}
        output = source
        for layer in config["layers"]:
            options = layer["config"]
            name = options.get("name") or layer["name"]
            shape = options.get("batch_shape") or options.get("batch_input_shape")
            self._shape = self._shape or shape or []
            if layer["class_name"] == "InputLayer":
                outputs[name] = source
                continue
            inputs = [output]
            if kind != "Sequential":
                calls = layer["inbound_nodes"]
                if len(calls) != 1:
                    self._refuse(name, f"is called {len(calls)} times; allowed is once")
                inputs = [outputs[each] for each in _sources(calls)]
            output = self._layer(layer["class_name"], options, name, inputs, prefix + name)
            outputs[name] = output
        if kind == "Sequential":
            return output
        (last,) = _sources(config["output_layers"]) or config["output_layers"][:1]
        return outputs[last]

    def _layer(
        self, kind: str, options: Mapping[str, Any], name: str, inputs: list[str], label: str
    ) -> str:
        """Adds one layer; returns its output."""
        for option, allowed in _ALLOWED.items():
            if option in options and options[option] not in allowed:
                self._refuse(name, f"has {option}={options[option]!r}; allowed is {allowed[0]!r}")
        kind = _FUNCTIONS.get(options.get("function", ""), kind)
        if kind in _PLAIN:
            return self._node(_PLAIN[kind], inputs, label)
        (source,) = inputs
        if kind in MODELS:
            return self._model(kind, options, source, f"{label}/")
        if kind == "Activation":
            return self._activation(options, name, source)
        if kind == "ZeroPadding2D":
            (top, bottom), (left, right) = options["padding"]
            self._padded[label] = (source, [top, left, bottom, right])
            return label
        if kind in _POOLS:
            size = options["pool_size"]
            source, padding = self._padding(options, name, source)
            strides = options["strides"] or size
            return self._node(
                _POOLS[kind], [source], label, kernel_shape=size, strides=strides, **padding
            )
        if kind == "GlobalAveragePooling2D":
            pooled = self._node("GlobalAveragePool", [source], f"{label}/mean")
            return self._node("Flatten", [pooled], label)
        if kind == "Conv2D":
            source, padding = self._padding(options, name, source)
            weights = self._weights(name, ["kernel"] + ["bias"] * options["use_bias"])
            self.constants[weights[0]] = self.constants[weights[0]].transpose(3, 2, 0, 1)
            attributes = {"strides": options["strides"], "group": options.get("groups", 1)}
            made = self._node("Conv", [source, *weights], label, **attributes, **padding)
            return self._activation(options, name, made)
        if kind == "BatchNormalization":
            return self._norm(options, name, source, label)
        if kind == "Dense":
            weights = self._weights(name, ["kernel"] + ["bias"] * options["use_bias"])
            return self._activation(options, name, self._node("Gemm", [source, *weights], label))
        return self._refuse(name, f"is of the kind {kind!r}, which no network known here has")

    def _norm(self, options: Mapping[str, Any], name: str, source: str, label: str) -> str:
        has = {"gamma": options["scale"], "beta": options["center"]}
        leaves = [leaf for leaf in has if has[leaf]]
        leaves += ["moving_mean", "moving_variance"]
        weights = dict(zip(leaves, self._weights(name, leaves), strict=True))
        for leaf in has.keys() - weights.keys():
            weights[leaf] = f"{label}/{leaf}"
            like = self.constants[weights["moving_mean"]]
            self.constants[weights[leaf]] = np.full_like(like, leaf == "gamma")
        inputs = [weights[leaf] for leaf in ("gamma", "beta", "moving_mean", "moving_variance")]
        return self._node(
            "BatchNormalization", [source, *inputs], label, epsilon=float(options["epsilon"])
        )

    def _activation(self, options: Mapping[str, Any], name: str, source: str) -> str:
        chosen = options["activation"]
        if chosen in (None, "linear"):
            return source
        if chosen not in _ACTIVATIONS:
            self._refuse(name, f"has activation={shown(chosen)!r}; allowed are relu and softmax")
        return self._node(_ACTIVATIONS[chosen], [source], f"{source}/{name}/{chosen}")

    def _padding(
        self, options: Mapping[str, Any], name: str, source: str
    ) -> tuple[str, dict[str, Any]]:
        """Returns a layer's padding with that of a ZeroPadding2D before it, and their input."""
        is_padded = source in self._padded
        source, zeros = self._padded.get(source, (source, [0] * 4))
        if options["padding"] == "valid":
            return source, {"pads": zeros}
        if options["padding"] == "same" and not is_padded:
            return source, {"auto_pad": "SAME_UPPER"}
        return self._refuse(name, f"pads {options['padding']!r} what may be padded already")

    def _weights(self, layer: str, leaves: list[str]) -> list[str]:
        """Returns the names of a layer's constants. Keras 3 numbers them in their order."""
        found = []
        for number, leaf in enumerate(leaves):
            name = self._names.get((layer, leaf), self._names.get((layer, str(number))))
            if name is None:
                self._refuse(layer, f"has no {leaf} in this file")
            if name in self.constants:
                self._refuse(layer, f"has the {leaf} of another layer, {shown(name)}")
            self.constants[name] = np.asarray(self._tensors[name], np.float32)
            found.append(name)
        return found

    def _node(self, kind: str, inputs: list[str], label: str, **attributes: Any) -> str:
        from onnx import helper

        for name in inputs:
            if name in self._padded:
                self._refuse(name, "pads for a layer that is neither a convolution nor a pool")
        self._nodes.append(helper.make_node(kind, inputs, [label], name=label, **attributes))
        return label

    def _refuse(self, name: str, why: str) -> NoReturn:
        raise UserError(f"{self._path}: the layer {shown(name)!r} {why}.")


def _sources(calls: Any) -> list[str]:
    """Returns the layers whose outputs a layer is called with, in order.

    Keras 2 writes an output as [layer, 0, 0, ...], and Keras 3 in a dict as "keras_history".
    """
    if isinstance(calls, dict):
        if "keras_history" in calls:
            return [str(calls["keras_history"][0])]
        return [source for value in calls.values() for source in _sources(value)]
    if not isinstance(calls, list):
        return []
    if len(calls) >= 3 and isinstance(calls[0], str) and isinstance(calls[1], int):
        return [calls[0], *_sources(calls[3:])]
    return [source for value in calls for source in _sources(value)]
