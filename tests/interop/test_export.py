"""What leaves: a function as StableHLO, and what torchvision would compute otherwise."""

import dataclasses
import re

import jax
import numpy as np
import pytest

from resnet_jax.data.augment import Normalization
from resnet_jax.errors import UserError
from resnet_jax.interop import export
from resnet_jax.interop.stablehlo import PLATFORMS, to_stablehlo
from resnet_jax.networks.builders import resnet
from resnet_jax.networks.resnet import ResNet
from tests.interop.foreign import drawn

NETWORKS = {
    "per pixel": ("cifar", 8, (8, 8, 1), {"width": 0.25}),
    "max pool": (
        "imagenet", 18, (32, 32, 3),
        {"width": 0.0625, "num_classes": 7, "space_to_depth": True, "branch_scale_by": "1/L"},
    ),
    "bfloat16": ("cifar", 8, (8, 8, 3), {"width": 0.25, "dtype": "bfloat16", "precision": "high"}),
}  # fmt: skip


def network(name):
    """Returns the model, its variables, the shape of images and their normalisation."""
    family, depth, shape, fields = NETWORKS[name]
    model = resnet(family, depth, **fields)
    draw = np.random.default_rng(1)
    mean = draw.uniform(90, 150, shape if name == "per pixel" else shape[2:]).astype(np.float32)
    std = draw.uniform(40, 80, shape[2:]).astype(np.float32)
    normalization = Normalization(np.array(mean, ndmin=4), np.array(std, ndmin=4))
    return model, drawn(model, channels=shape[2]), shape, normalization


@pytest.mark.parametrize("name", NETWORKS)
def test_stablehlo_computes_the_same_bits_for_any_batch(name):
    model, variables, shape, normalization = network(name)
    content = to_stablehlo(model, variables, shape, normalization).serialize()
    exported = jax.export.deserialize(content)
    assert jax.tree.map(str, (exported.in_avals, exported.out_avals)) == (
        (f"uint8[b,{','.join(map(str, shape))}]",), (f"float32[b,{model.num_classes}]",)
    )  # fmt: skip
    pixels = np.random.default_rng(2).integers(0, 256, (3, *shape), np.uint8)
    logits = np.asarray(exported.call(pixels))
    assert np.ptp(logits, axis=0).min() > 0
    together = jax.jit(lambda x: model.apply(variables, normalization(x), train=False))
    np.testing.assert_array_equal(logits, together(pixels))
    # Other programs, which XLA may round otherwise: one image, and images normalised outside.
    tolerance = (2e-2 if name == "bfloat16" else 1e-5) * np.abs(logits).max()
    np.testing.assert_allclose(exported.call(pixels[1:2])[0], logits[1], atol=tolerance)
    images = (pixels.astype(np.float32) - normalization.mean) / normalization.std
    wanted = jax.jit(model.apply, static_argnames="train")(variables, images, train=False)
    np.testing.assert_allclose(logits, wanted, atol=tolerance)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_program_is_portable_and_keeps_its_precision(name):
    model, *rest = network(name)
    exported = to_stablehlo(model, *rest)
    assert exported.platforms == PLATFORMS == ("cpu", "cuda", "tpu")
    text = exported.mlir_module()
    # Of JAX itself: it checks the batch size, and is gone when the program is compiled.
    assert set(re.findall(r"custom_call @(\w+)", text)) == {"shape_assertion"}
    assert set(re.findall(r"^ +(?:%\S+ = )?\"?(\w+)\.\w+", text, re.MULTILINE)) == {
        "stablehlo", "func"
    }  # fmt: skip
    convolutions = re.findall(r"stablehlo\.convolution.*", text)
    wanted = f"precision_config = [#stablehlo<precision {model.precision.upper()}>"
    assert len(convolutions) >= 7
    assert all(wanted in each for each in convolutions), convolutions[0]


def test_the_package_that_writes_stablehlo_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"^Writing StableHLO needs flatbuffers, .*\[interop\]'\.$"):
        to_stablehlo(*network("per pixel"))


def test_what_torchvision_computes_otherwise_is_listed():
    assert export.unlike_torchvision(resnet("imagenet", 18, shortcut="B")) == {}
    assert export.unlike_torchvision(resnet("imagenet", 50)) == {
        "bottleneck_stride": ("v1", "v1.5")
    }
    model = resnet("imagenet", 50, bottleneck_stride="v1.5", norm="none", bn_epsilon=1e-3)
    assert export.unlike_torchvision(model) == {}  # it has no BatchNorm
    fields = {"same_padding": ("blocks",), "stochastic_depth": 0.2, "branch_scale_by": "1/L"}
    assert export.unlike_torchvision(resnet("cifar", 8, **fields)) == {
        "same_padding": (("blocks",), ()),
        "branch_scale_by": ("1/L", "constant"),
        "stochastic_depth": (0.2, 0.0),
    }


def test_every_attribute_of_a_network_is_in_its_tensors_or_listed():
    listed = export.CONVENTIONS.keys() | export.BLOCKS.keys()
    in_tensors = {"arch", "num_classes", "shortcut", "stem", "width", "stem_filters"}
    in_tensors |= {"groups", "bottleneck_width", "shortcut_downsampling"}
    refused = {"preactivation", "gate", "norm"}
    of_refused = {"norm_groups", "gate_bias"}
    of_listed = {"tailored_eta"}
    of_training = {"zero_init_residual", "kernel_init", "dropout", "bn_group", "bn_momentum"}
    of_training |= {"frozen"}
    rounding = {"dtype", "precision", "scan", "space_to_depth", "remat", "convolution", "product"}
    known = [listed, in_tensors, refused, of_refused, of_listed, of_training, rounding]
    fields = {field.name for field in dataclasses.fields(ResNet)} - {"parent", "name"}
    assert set().union(*known) == fields
    assert sum(map(len, known)) == len(fields)
