"""ONNX: a network is found in a graph by its structure, and written as one."""

import jax
import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from resnet_jax.errors import UserError
from resnet_jax.interop import weights
from resnet_jax.interop.onnx_export import to_onnx
from resnet_jax.networks.builders import resnet
from tests.interop.foreign import drawn

NETWORKS = {
    "A": ("cifar", 14, {}),
    "B": ("cifar", 8, {"shortcut": "B", "num_classes": 3, "bn_epsilon": 1e-3}),
    "C": ("cifar", 8, {"shortcut": "C", "same_padding": ("blocks",)}),
    "18": ("imagenet", 18, {"shortcut": "B", "width": 0.25}),
    "v1": ("imagenet", 50, {"width": 0.25}),
    "v1.5": ("imagenet", 50, {"width": 0.25, "bottleneck_stride": "v1.5"}),
    "Flax's": (
        "imagenet", 50,
        {"width": 0.25, "bottleneck_stride": "v1.5", "same_padding": ("pool", "blocks")},
    ),
    "ResNeXt": ("imagenet", 50, {"width": 0.25, "bottleneck_width": 2.0, "groups": 8}),
    "D": ("imagenet", 50, {"width": 0.25, "stem": "deep", "shortcut_downsampling": "mean"}),
    "means in A": ("cifar", 8, {"shortcut_downsampling": "mean"}),
    "folded": (
        "imagenet", 50,
        {"width": 0.25, "stem_filters": 24, "norm": "none", "same_padding": ("stem", "pool")},
    ),
}  # fmt: skip


def written(name="A"):
    family, depth, fields = NETWORKS[name]
    model = resnet(family, depth, **fields)
    variables = drawn(model)
    side = 32 if family == "cifar" else 64
    return model, variables, to_onnx(model, variables, (side, side, 3))


def load(graph, folder, **conventions):
    path = folder / "network.onnx"
    path.write_bytes(graph.SerializeToString())
    return weights.load(path, **conventions)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_written_network_is_found_again(name, tmp_path):
    model, variables, graph = written(name)
    for number, node in enumerate(graph.graph.node):
        node.name = f"node_{number}"  # names play no part
    found = load(graph, tmp_path)
    assert found.model == model
    assert jax.tree.all(
        jax.tree.map(lambda a, b: bool(np.array_equal(a, b)), found.variables, variables)
    )
    # The constants of slices and paddings are no weights.
    assert all(".conv" not in each and ".bn" not in each for each in found.elsewhere)


def test_a_flag_replaces_what_the_graph_shows(tmp_path):
    _, variables, graph = written("v1.5")
    found = load(graph, tmp_path, order="BGR", bottleneck_stride="v1")
    assert found.settings["bottleneck_stride"] == "v1"
    kernels = [tree["params"]["stem_conv"]["kernel"] for tree in (found.variables, variables)]
    np.testing.assert_array_equal(kernels[0], np.asarray(kernels[1])[:, :, ::-1])


# ------------------------------------------------------------------------- graphs that are refused


def changed(graph, kind, number=0, **attributes):
    """Replaces attributes of one node of a kind."""
    node = [each for each in graph.graph.node if each.op_type == kind][number]
    kept = [each for each in node.attribute if each.name not in attributes]
    del node.attribute[:]
    node.attribute.extend(kept)
    node.attribute.extend(helper.make_attribute(k, v) for k, v in attributes.items())
    return graph


def without_additions(graph):
    for node in graph.graph.node:
        if node.op_type == "Add":
            node.op_type = "Relu"
            del node.input[1:]
    return graph


def with_sigmoid(graph):
    node = next(each for each in graph.graph.node if each.op_type == "Relu")
    node.op_type = "Sigmoid"
    return graph


def without_relu(graph, number):
    """Removes a ReLU: of the stem, of a branch, or behind an addition."""
    node = [each for each in graph.graph.node if each.op_type == "Relu"][number]
    node.op_type = "Identity"
    return graph


def with_negative_logits(graph):
    """Multiplies the product of the classifier by -1."""
    (node,) = [each for each in graph.graph.node if each.op_type == "Gemm"]
    node.attribute.append(helper.make_attribute("alpha", -1.0))
    return graph


def without_inputs(graph, kind):
    """Removes all inputs but the activation of the third node of a kind."""
    node = [each for each in graph.graph.node if each.op_type == kind][2]
    del node.input[1:]
    return graph


def with_pads(graph, number, pads):
    """Replaces the padding of one shortcut."""
    constant = [each for each in graph.graph.initializer if each.name.endswith("pads")][number]
    constant.CopyFrom(numpy_helper.from_array(np.array(pads), constant.name))
    return graph


REFUSALS = {
    "no additions": ("A", without_additions, "adds no two activations, so it has no residual"),
    "an operation": ("A", with_sigmoid, "(Sigmoid) is not an operation of a network that is"),
    "channels before": (
        "A", lambda g: with_pads(g, 0, [0, 16, 0, 0, 0, 0, 0, 0]), "allowed are channels, after"
    ),
    "positions": (
        "A", lambda g: with_pads(g, 0, [0, 0, 1, 0, 0, 15, 0, 0]), "(Pad) pads [0, 0, 1, 0, 0, 15"
    ),
    "two kinds of shortcut A": (
        "A", lambda g: with_pads(g, 1, [0, 16, 0, 0, 0, 16, 0, 0]), "different shortcuts; allowed"
    ),
    "groups": ("B", lambda g: changed(g, "Conv", 1, group=4), "(Conv) has groups"),
    "groups in a 1x1": (
        "ResNeXt", lambda g: changed(g, "Conv", 1, group=4), "only the 3 x 3 convolution of a"
    ),
    "a pool in a block": (
        "D", lambda g: changed(g, "AveragePool", kernel_shape=[3, 3]), "by 2 x 2 positions"
    ),
    "a stem's strides": (
        "D", lambda g: changed(g, "Conv", 1, strides=[2, 2]), "with strides [2, 2, 1]; allowed"
    ),
    "padding": ("B", lambda g: changed(g, "Conv", 1, pads=[2] * 4), "pads (2, 2, 2, 2) for"),
    "strides": ("B", lambda g: changed(g, "Conv", 1, strides=[2, 1]), "windows of 3 and stride -1"),
    "epsilons": (
        "B", lambda g: changed(g, "BatchNormalization", 1, epsilon=0.5), "different epsilons"
    ),
    "no activation in the stem": ("B", lambda g: without_relu(g, 0), "differ first at 'stage1'"),
    "no activation in a branch": ("v1", lambda g: without_relu(g, 2), "differ first at 'stage1'"),
    "no activation behind a block": ("A", lambda g: without_relu(g, 4), "differ first at 'stage2'"),
    "negative logits": ("18", with_negative_logits, "differ first at 'logits', by"),
    "no weights of a convolution": ("A", lambda g: without_inputs(g, "Conv"), "graph lacks a part"),
    "no statistics of a norm": (
        "B", lambda g: without_inputs(g, "BatchNormalization"), "its graph lacks a part or is dam"
    ),
    "a transposed product": (
        "B", lambda g: changed(g, "Gemm", transA=1), "its graph cannot be computed ("
    ),
    "a pool": ("v1", lambda g: changed(g, "MaxPool", pads=[0] * 4), "(MaxPool) pads (0, 0, 0, 0)"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSALS)
def test_another_graph_is_refused_in_a_sentence(case, tmp_path):
    name, change, words = REFUSALS[case]
    _, _, graph = written(name)
    load(graph, tmp_path)
    with pytest.raises(UserError) as refused:
        load(change(graph), tmp_path)
    assert words in str(refused.value)
    assert str(refused.value).startswith(str(tmp_path))
    assert str(refused.value).endswith(".")


# --------------------------------------------------------------------------------------- writing


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"nonlinearity": "gelu"}, "model.nonlinearity='gelu' is not exported; allowed is 'relu'."),
        ({"branch_scale": 0.5}, "model.branch_scale=0.5 is not exported; allowed is 1.0."),
        (
            {"shortcut_scale_by": "1/L"},
            "model.shortcut_scale_by='1/L' is not exported; allowed is 'constant'.",
        ),
        (
            {"stochastic_depth": 0.2},
            "model.stochastic_depth=0.2 is not exported; allowed is 0.0.",
        ),
        ({"se_reduction": 4}, "model.se_reduction=4 is not exported; allowed is 0."),
        ({"preactivation": True}, "allowed are networks with model.activation='post'"),
    ],
)
def test_a_network_that_is_not_exported_says_so(fields, words):
    model = resnet("cifar", 8, **fields)
    with pytest.raises(UserError) as refused:
        to_onnx(model, drawn(model), (32, 32, 3))
    assert words in str(refused.value)


def test_the_model_has_a_free_batch_size_and_says_who_made_it():
    _, _, graph = written()
    onnx.checker.check_model(graph, full_check=True)
    assert graph.producer_name == "resnet_jax"
    for value, wanted in (
        (graph.graph.input[0], ("images", ["N", 3, 32, 32])),
        (graph.graph.output[0], ("logits", ["N", 10])),
    ):
        dims = [each.dim_param or each.dim_value for each in value.type.tensor_type.shape.dim]
        assert (value.name, dims) == wanted
