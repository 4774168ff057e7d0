"""Writes networks of the cifar family as Keras writes whole models, without Keras."""

import io
import json
import zipfile

import h5py
import numpy as np

OPTIONS = {
    "Conv2D": {
        "strides": [1, 1], "padding": "same", "data_format": "channels_last", "groups": 1,
        "dilation_rate": [1, 1], "activation": "linear", "use_bias": True,
    },
    "BatchNormalization": {"axis": [3], "epsilon": 1e-3, "center": True, "scale": True},
    "Activation": {"activation": "relu"},
    "Dense": {"activation": "softmax", "use_bias": True},
    "AveragePooling2D": {"pool_size": [8, 8], "strides": [8, 8], "padding": "valid"},
}  # fmt: skip
NORM = ("scale", "bias", "mean", "var")
KERAS_NORM = ("gamma", "beta", "moving_mean", "moving_variance")


class Writer:
    """A model under construction.

    Attributes:
      layers: its layers, as Keras 2 describes them.
      weights: layer -> {name: array}, in Keras's order.
    """

    def __init__(self):
        self.layers, self.weights = [], {}
        self._count = 0
        shape = {"batch_input_shape": [None, 32, 32, 3], "name": "input_1"}
        self.layers.append(
            {"class_name": "InputLayer", "config": shape, "name": "input_1", "inbound_nodes": []}
        )

    def add(self, kind, *inputs, weights=(), **options):
        """Adds a layer and returns its name."""
        self._count += 1
        name = f"{kind.lower()}_{self._count}"
        self.layers.append({
            "class_name": kind,
            "config": {**OPTIONS.get(kind, {}), **options, "name": name},
            "name": name,
            "inbound_nodes": [[[each, 0, 0, {}] for each in inputs]],
        })  # fmt: skip
        if weights:
            self.weights[name] = {key: np.asarray(array) for key, array in dict(weights).items()}
        return name

    def convolution(self, x, conv, norm=None, statistics=None, **options):
        """Adds a convolution without a bias, and its norm."""
        kernel = {"kernel": conv["kernel"]}
        x = self.add("Conv2D", x, weights=kernel, use_bias=False, **options)
        if norm is None:
            return x
        arrays = {**norm, **statistics}
        named = {theirs: arrays[ours] for theirs, ours in zip(KERAS_NORM, NORM, strict=True)}
        return self.add("BatchNormalization", x, weights=named)

    @property
    def config(self):
        """The model's config."""
        return {
            "class_name": "Functional",
            "config": {
                "name": "model",
                "layers": self.layers,
                "input_layers": [["input_1", 0, 0]],
                "output_layers": [[self.layers[-1]["name"], 0, 0]],
            },
        }


def write_network(model, variables):
    """Returns the writer of a network of the cifar family with shortcut B, padded as "SAME"."""
    params, statistics = variables["params"], variables["batch_stats"]
    writer = Writer()

    def layer(x, tree, stats, conv, **options):
        norm = conv.replace("conv", "norm")
        return writer.convolution(x, tree[conv], tree[norm], stats[norm], **options)

    x = writer.add("Activation", layer("input_1", params, statistics, "stem_conv"))
    for block in sorted(name for name in params if "block" in name):
        tree, stats = params[block], statistics[block]
        strides = [2, 2] if "shortcut_conv" in tree and not block.startswith("stage1") else [1, 1]
        y = writer.add("Activation", layer(x, tree, stats, "conv1", strides=strides))
        y = layer(y, tree, stats, "conv2")
        if "shortcut_conv" in tree:
            x = layer(x, tree, stats, "shortcut_conv", strides=strides)
        x = writer.add("Activation", writer.add("Add", x, y))
    x = writer.add("Flatten", writer.add("AveragePooling2D", x))
    writer.add("Dense", x, weights={key: params["logits"][key] for key in ("kernel", "bias")})
    return writer


def save(path, config, weights):
    """Writes a whole model as Keras 2 does: HDF5 with lists of names."""
    with h5py.File(path, "w") as file:
        file.attrs["model_config"] = json.dumps(config)
        group = file.create_group("model_weights")
        group.attrs["layer_names"] = [*weights]
        for layer, arrays in weights.items():
            inside = group.create_group(layer)
            inside.attrs["weight_names"] = [f"{layer}/{name}:0" for name in arrays]
            for name, array in arrays.items():
                inside[f"{layer}/{name}:0"] = array
        file["optimizer_weights/Adam/iter:0"] = 5


def save_archive(path, config, weights):
    """Writes a whole model as Keras 3 does: a .keras archive, whose weights have numbers."""
    content = io.BytesIO()
    with h5py.File(content, "w") as file:
        for number, (layer, arrays) in enumerate(weights.items()):
            inside = file.create_group(f"layers/layer_{number}/vars")
            inside.attrs["name"] = layer
            for index, array in enumerate(arrays.values()):
                inside[str(index)] = array
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("metadata.json", "{}")
        archive.writestr("config.json", json.dumps(config))
        archive.writestr("model.weights.h5", content.getvalue())
