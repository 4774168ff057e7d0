"""Whole Keras models: a network is found by its layers, whatever their names."""

import copy
import json

import h5py
import numpy as np
import pytest

from resnet_jax.errors import UserError
from resnet_jax.interop import weights
from resnet_jax.networks.builders import resnet
from tests import tiny
from tests.interop.foreign import drawn
from tests.interop.keras_writer import save, save_archive, write_network

MODEL = resnet("cifar", 14, shortcut="B", same_padding=("blocks",), bn_epsilon=1e-3, num_classes=11)
VARIABLES = drawn(MODEL)


def written():
    """Returns the config and the weights of the network."""
    writer = write_network(MODEL, VARIABLES)
    return copy.deepcopy(writer.config), writer.weights


def layers(config, kind):
    return [each for each in config["config"]["layers"] if each["class_name"] == kind]


def load(config, arrays, folder):
    save(folder / "model.h5", config, arrays)
    return weights.load(folder / "model.h5")


def test_a_network_is_found_with_its_conventions(tmp_path):
    found = load(*written(), tmp_path)
    assert found.model == MODEL
    tiny.assert_bit_equal(found.variables, VARIABLES)
    assert (found.scheme, found.without_norm, found.elsewhere) == ("graph", (), ())
    assert found.conventions.order == "RGB"


def as_keras_3(config):
    """Describes connections as Keras 3 does, with an addition that a program wrote as x + y."""
    for layer in config["config"]["layers"]:
        tensors = [
            {"class_name": "__keras_tensor__", "config": {"keras_history": each[:3]}}
            for call in layer["inbound_nodes"]
            for each in call
        ]
        arguments = [tensors] if layer["class_name"] == "Add" else tensors
        layer["inbound_nodes"] = [{"args": arguments, "kwargs": {}}] if tensors else []
    (shape,) = (each["config"] for each in layers(config, "InputLayer"))
    shape["batch_shape"] = shape.pop("batch_input_shape")
    config["config"]["output_layers"] = config["config"]["output_layers"][0]
    return config


def in_a_model(config):
    """Makes the network the only layer of a sequential model."""
    return {"class_name": "Sequential", "config": {"layers": [config]}}


def with_operations(config):
    """Describes additions and ReLUs as Keras 2 does if a program calls TensorFlow's functions."""
    for layer in layers(config, "Add"):
        first, second = layer["inbound_nodes"][0]
        layer["inbound_nodes"] = [[[*first[:3], {"y": second[:3], "name": None}]]]
        layer["class_name"], layer["config"]["function"] = "TFOpLambda", "math.add"
    for layer in layers(config, "Activation"):
        layer["class_name"] = "TFOpLambda"
        layer["config"] = {"name": layer["name"], "function": "nn.relu"}
    return config


def with_zero_padding(config):
    """Pads the convolution of the stem in a layer of its own."""
    stem = layers(config, "Conv2D")[0]
    pad = copy.deepcopy(stem) | {"class_name": "ZeroPadding2D", "name": "pad"}
    pad["config"] = {"name": "pad", "padding": [[1, 1], [1, 1]], "data_format": "channels_last"}
    stem["inbound_nodes"] = [[["pad", 0, 0, {}]]]
    stem["config"]["padding"] = "valid"
    config["config"]["layers"].insert(1, pad)
    return config


def with_other_layers(config):
    """Uses other layers for the same: a fused ReLU, dropout, a global mean."""
    dense = layers(config, "Dense")[0]
    pool, flatten = layers(config, "AveragePooling2D")[0], layers(config, "Flatten")[0]
    flatten["class_name"], flatten["config"] = "Dropout", {"name": flatten["name"], "rate": 0.5}
    pool["class_name"] = "GlobalAveragePooling2D"
    pool["config"] = {"name": pool["name"], "data_format": "channels_last", "keepdims": False}
    relu = layers(config, "Activation")[0]
    relu["class_name"] = "ReLU"
    relu["config"] = {
        "name": relu["name"], "max_value": None, "negative_slope": 0.0, "threshold": 0.0
    }  # fmt: skip
    dense["config"]["activation"] = "linear"
    return config


@pytest.mark.parametrize(
    "change", [as_keras_3, in_a_model, with_operations, with_zero_padding, with_other_layers]
)
@pytest.mark.parametrize("write", [save, save_archive])
def test_other_descriptions_are_the_same_network(change, write, tmp_path):
    config, arrays = written()
    write(tmp_path / "x", change(config), arrays)
    found = weights.load(tmp_path / "x")
    assert found.model == MODEL
    tiny.assert_bit_equal(found.variables, VARIABLES)


@pytest.mark.parametrize("path", ["model/{layer}/{weight}:0", "{layer}/renamed_7/{weight}:0"])
def test_weights_are_found_where_keras_2_writes_them(path, tmp_path):
    """Those of a model that is a layer are in its group; a renamed layer's keep their old name."""
    config, arrays = written()
    with h5py.File(tmp_path / "x", "w") as file:
        file.attrs["model_config"] = json.dumps(in_a_model(config) if "model" in path else config)
        for layer, own in arrays.items():
            for weight, array in own.items():
                file[f"model_weights/{path.format(layer=layer, weight=weight)}"] = array
    tiny.assert_bit_equal(weights.load(tmp_path / "x").variables, VARIABLES)


def test_names_of_keras_applications_tell_the_order_of_colours(tmp_path):
    config, arrays = written()
    old, new = next(iter(arrays)), "conv1_conv"
    config = json.loads(json.dumps(config).replace(f'"{old}"', f'"{new}"'))
    found = load(config, {new if k == old else k: v for k, v in arrays.items()}, tmp_path)
    assert found.conventions.order == "BGR"
    kernels = [tree["params"]["stem_conv"]["kernel"] for tree in (found.variables, VARIABLES)]
    np.testing.assert_array_equal(kernels[0], np.asarray(kernels[1])[:, :, ::-1])


def without_a_norm():
    """Returns a network whose last convolution has a bias and no norm.

    So are the projections of the reference network of MLPerf Tiny.
    """
    config, arrays = written()
    norm = layers(config, "BatchNormalization")[-1]  # of stage 3's second block
    after, before = norm["name"], norm["inbound_nodes"][0][0][0]
    config["config"]["layers"].remove(norm)
    config = json.loads(json.dumps(config).replace(f'"{after}"', f'"{before}"'))
    conv = next(each for each in layers(config, "Conv2D") if each["name"] == before)
    conv["config"]["use_bias"] = True
    del arrays[after]
    arrays[before]["bias"] = np.arange(64, dtype=np.float32)
    return config, arrays


def test_a_convolution_without_a_norm_gets_one_that_changes_nothing(tmp_path):
    config, arrays = without_a_norm()
    found = load(config, arrays, tmp_path)  # which computes both
    assert found.without_norm == ("stage3_block2/conv2",)
    added = found.variables["batch_stats"]["stage3_block2"]["norm2"]
    np.testing.assert_array_equal(added["mean"], -np.arange(64))
    np.testing.assert_array_equal(added["var"], np.ones(64))


def test_a_norm_without_scale_and_offset_has_ones_and_zeros(tmp_path):
    config, arrays = written()
    norm = layers(config, "BatchNormalization")[2]
    norm["config"] |= {"scale": False, "center": False}
    for name in ("gamma", "beta"):
        del arrays[norm["name"]][name]
    found = load(config, arrays, tmp_path)
    params = found.variables["params"]["stage1_block1"]["norm2"]
    np.testing.assert_array_equal(params["scale"], np.ones(16))
    np.testing.assert_array_equal(params["bias"], np.zeros(16))


def change_one(kind, number=0, **options):
    def change(config, arrays):
        layers(config, kind)[number]["config"].update(options)

    return change


def call_twice(config, arrays):
    conv = layers(config, "Conv2D")[1]
    conv["inbound_nodes"] *= 2


def without_a_kernel(config, arrays):
    del arrays[layers(config, "Conv2D")[1]["name"]]["kernel"]


def with_another_layers_kernel(config, arrays):
    first, second = layers(config, "Conv2D")[1:3]
    second["config"]["name"] = first["name"]


def without_a_shape(config, arrays):
    del layers(config, "InputLayer")[0]["config"]["batch_input_shape"]


def without_connections(config, arrays):
    del layers(config, "Conv2D")[1]["inbound_nodes"]


def padding_for_a_norm(config, arrays):
    conv = layers(config, "Conv2D")[1]
    conv["class_name"], conv["config"]["padding"] = "ZeroPadding2D", [[1, 1], [1, 1]]


def padded_twice(config, arrays):
    with_zero_padding(config)
    layers(config, "Conv2D")[0]["config"]["padding"] = "same"


REFUSALS = {
    "activation": (change_one("Activation", activation="gelu"), "has activation='gelu'; allowed"),
    "missing activation": (
        change_one("Activation", 1, activation="linear"), "differ first at 'stage1', by"
    ),
    "layout": (
        change_one("Conv2D", data_format="channels_first"),
        "the layer 'conv2d_1' has data_format='channels_first'; allowed is 'channels_last'.",
    ),
    "dilation": (change_one("Conv2D", 2, dilation_rate=[2, 2]), "has dilation_rate=[2, 2]"),
    "axis": (change_one("BatchNormalization", axis=[1]), "has axis=[1]; allowed is [3]."),
    "epsilon": (change_one("BatchNormalization", epsilon="x"), "is not known here (ValueError: co"),
    "causal": (change_one("Conv2D", padding="causal"), "pads 'causal'"),
    "called twice": (call_twice, "is called 2 times; allowed is once."),
    "no kernel": (without_a_kernel, "has no kernel in this file."),
    "two layers of a name": (with_another_layers_kernel, "has the kernel of another layer"),
    "no shape": (without_a_shape, "does not tell the shape (N, H, W, C) of its input."),
    "no connections": (without_connections, "in a way that is not known here (KeyError"),
    "padding": (padding_for_a_norm, "pads for a layer that is neither a convolution nor a pool."),
    "padded twice": (padded_twice, "pads 'same' what may be padded already."),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSALS)
def test_another_model_is_refused_in_a_sentence(case, tmp_path):
    change, words = REFUSALS[case]
    config, arrays = written()
    change(config, arrays)
    with pytest.raises(UserError) as refused:
        load(config, arrays, tmp_path)
    assert words in str(refused.value)
    assert str(refused.value).startswith(str(tmp_path))
    assert str(refused.value).endswith(".")


def test_a_layer_of_another_kind_is_named(tmp_path):
    config, arrays = written()
    layers(config, "Activation")[0]["class_name"] = "Lambda"
    with pytest.raises(UserError, match=r"the layer '.*' is of the kind 'Lambda', which no"):
        load(config, arrays, tmp_path)


@pytest.mark.parametrize("config", [None, {}, {"class_name": "MyModel"}, ["text"]], ids=str)
def test_without_a_known_description_names_tell_the_network(config, tmp_path):
    _, arrays = written()
    with pytest.raises(UserError, match="holds no network whose names are known"):
        load(config, arrays, tmp_path)
