"""Weights of other code bases: their names, structure and conventions."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet_jax.errors import UserError
from resnet_jax.interop import export, weights
from resnet_jax.networks import blocks
from resnet_jax.networks.builders import resnet
from tests.interop.foreign import drawn


def exported(family="cifar", depth=8, **fields):
    model = resnet(family, depth, **fields)
    variables = drawn(model)
    return model, variables, export.to_torchvision(model, variables)


def equal(a, b):
    return jax.tree.all(jax.tree.map(lambda x, y: bool(np.array_equal(x, y)), a, b))


@pytest.mark.parametrize(
    ("family", "depth", "fields"),
    [
        ("cifar", 8, {}),
        ("cifar", 20, {"shortcut": "none"}),
        ("cifar", 14, {"shortcut": "B", "num_classes": 100}),
        ("cifar", 8, {"shortcut": "C", "width": 2.0}),
        ("cifar", 8, {"norm": "none"}),
        ("imagenet", 18, {"shortcut": "B"}),
        ("imagenet", 34, {"shortcut": "B", "stem": "cifar", "width": 0.5, "num_classes": 10}),
        ("imagenet", 50, {"width": 0.5, "stem_filters": 64, "norm": "none", "num_classes": 2}),
        ("imagenet", 50, {"bottleneck_stride": "v1.5", "same_padding": ("pool",)}),
        ("imagenet", 101, {"width": 0.25}),
        ("imagenet", 152, {"width": 0.125, "bn_epsilon": 1e-3}),
        ("imagenet", 50, {"bottleneck_width": 2.0, "groups": 32, "num_classes": 3}),
        ("imagenet", 50, {"width": 0.25, "bottleneck_width": 2.0, "se_reduction": 8}),
        ("cifar_bottleneck", 20, {"width": 2.0, "bottleneck_width": 0.5, "groups": 4}),
        ("imagenet", 18, {"shortcut": "B", "width": 0.25, "stem": "deep", "se_reduction": 4}),
        ("cifar", 8, {"width": 0.5, "se_reduction": 16}),  # hidden layers of 8 / 16 and 16 / 16
        ("cifar_bottleneck", 11, {"shortcut": "B"}),  # of the same blocks as with C
    ],
)
def test_an_exported_network_comes_back_bit_for_bit(family, depth, fields):
    model, variables, tensors = exported(family, depth, **fields)
    conventions = {
        "shortcut": "none" if fields.get("shortcut") == "none" else "A",
        "bottleneck_stride": model.bottleneck_stride,
        "same_padding": model.same_padding,
        "epsilon": model.bn_epsilon,
    }
    found = weights.convert(tensors, "file", **conventions)
    assert found.scheme == "torchvision"
    assert found.model == model
    assert equal(found.variables, variables)


@pytest.mark.parametrize("fields", [{}, {"stem": "deep", "stem_filters": 24}])
def test_shortcuts_with_means_have_the_names_of_resnet_d(fields):
    fields = {"width": 0.25, "shortcut_downsampling": "mean"} | fields
    model, variables, tensors = exported("imagenet", 50, **fields)
    assert "layer2.0.downsample.1.weight" in tensors
    assert "layer2.0.downsample.2.running_mean" in tensors
    assert "layer2.0.downsample.0.weight" not in tensors
    found = weights.convert(tensors, "file", bottleneck_stride="v1", order="BGR")
    assert (found.scheme, found.model) == ("resnet-d", model)
    first = "stem_conv1" if fields.get("stem") else "stem_conv"
    kernels = [v["params"].pop(first)["kernel"] for v in (found.variables, variables)]
    np.testing.assert_array_equal(kernels[0], np.asarray(kernels[1])[:, :, ::-1])
    assert equal(found.variables, variables)


def test_a_norm_with_fixed_averages_has_the_names_of_batch_norm():
    frozen, ours = (resnet("cifar", 8, norm=norm, bn_epsilon=1e-3) for norm in ("frozen", "batch"))
    variables = drawn(frozen)
    found = weights.convert(export.to_torchvision(frozen, variables), "file", epsilon=1e-3)
    assert found.model == ours
    assert equal(found.variables, variables)
    assert export.unlike_torchvision(frozen)["bn_epsilon"] == (1e-3, 1e-5)


def test_new_channels_are_reordered_in_squeeze_and_excitation_too():
    model, variables, tensors = exported("cifar", 14, se_reduction=4)
    found = weights.convert(tensors, "file", new_channels="around")
    images = np.random.default_rng(2).normal(size=(2, 16, 16, 3)).astype(np.float32)

    # The same function with A's zeros around the old channels: permute ours by hand.
    def around(x_BHWC, kind, channels, stride, conv, norm, downsampling):
        del kind, conv, norm, downsampling
        half = (channels - x_BHWC.shape[-1]) // 2
        return jnp.pad(x_BHWC[:, ::stride, ::stride], ((0, 0),) * 3 + ((half, half),))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "shortcut", around)
        wanted = np.asarray(model.apply(variables, images, train=False))
    ours = found.model.apply(found.variables, images, train=False)
    np.testing.assert_allclose(ours, wanted, atol=1e-5 * np.abs(wanted).max())
    after = model.apply(variables, images, train=False)
    assert np.abs(after - wanted).max() > 1e-2 * np.abs(wanted).max()


def test_a_stem_of_stride_1_has_no_padding_of_stride_2():
    _, _, tensors = exported()
    found = weights.convert(tensors, "file", same_padding=("stem", "pool", "blocks"))
    assert found.settings["same_padding"] == found.model.same_padding == ("blocks",)


# --------------------------------------------------------------------- names of other code bases


def in_torchs_names(tensors, *rules):
    """Renames torchvision's tensors by (old, new) parts of names."""
    result = {}
    for name, array in tensors.items():
        for old, new in rules:
            name = name.replace(old, new)
        result[name] = array
    return result


def in_cifars_names(tensors):
    return in_torchs_names(tensors, ("fc.", "linear."), ("downsample", "shortcut"))


def in_hugging_faces_names(tensors):
    result = {}
    for name, array in tensors.items():
        *parts, leaf = name.split(".")
        if parts[0].startswith("layer"):
            stage, block, layer = int(parts[0][5:]) - 1, parts[1], parts[2]
            if layer == "downsample":
                place = "shortcut." + ("convolution", "normalization")[int(parts[3])]
            else:
                kind = "convolution" if layer.startswith("conv") else "normalization"
                place = f"layer.{int(layer[-1]) - 1}.{kind}"
            new = f"resnet.encoder.stages.{stage}.layers.{block}.{place}"
        else:
            new = {
                "conv1": "resnet.embedder.embedder.convolution",
                "bn1": "resnet.embedder.embedder.normalization",
                "fc": "classifier.1",
            }[parts[0]]
        result[f"{new}.{leaf}"] = array
    return result


@pytest.mark.parametrize(
    ("change", "scheme"),
    [
        (in_cifars_names, "cifar"),
        (lambda t: {f"module.{k}": v for k, v in in_cifars_names(t).items()}, "cifar"),
        (lambda t: {f"state_dict.module.{k}": v for k, v in t.items()} | {"optimizer.0.mu": 0},
         "torchvision"),
        (in_hugging_faces_names, "huggingface"),
        (lambda t: {k.removeprefix("resnet."): v for k, v in in_hugging_faces_names(t).items()},
         "huggingface"),
    ],
    ids=["cifar", "data-parallel", "in-a-checkpoint", "huggingface", "huggingface-backbone"],
)  # fmt: skip
def test_names_with_pytorchs_layout(change, scheme):
    model, variables, tensors = exported("imagenet", 18, shortcut="B")
    found = weights.convert(change(tensors), "file")
    assert (found.scheme, found.settings["depth"]) == (scheme, 18)
    assert equal(found.variables, variables)
    assert len(found.elsewhere) == (scheme == "torchvision")
    assert found.model == dataclasses.replace(model, bottleneck_stride="v1")


def of_blocks(variables):
    """Yields (stage, block, layer, {leaf: array}) of each layer of each block."""
    params, stats = variables["params"], variables["batch_stats"]
    for name, block in params.items():
        if name.startswith("stage"):
            stage, number = name.removeprefix("stage").split("_block")
            for layer, leaves in block.items():
                yield int(stage), int(number), layer, leaves | stats.get(name, {}).get(layer, {})


def of_ends(variables):
    """Yields (layer, {leaf: array}) of the stem and the classifier."""
    for layer in ("stem_conv", "stem_norm", "logits"):
        yield layer, variables["params"][layer] | variables["batch_stats"].get(layer, {})


def in_kerass_names(variables, draw):
    leaves = {"scale": "gamma", "bias": "beta", "mean": "moving_mean", "var": "moving_variance"}
    ends = {"stem_conv": "conv1_conv", "stem_norm": "conv1_bn", "logits": "predictions"}
    layers = [(ends[layer], layer, arrays) for layer, arrays in of_ends(variables)]
    for stage, block, layer, arrays in of_blocks(variables):
        number = 0 if "shortcut" in layer else int(layer[-1])
        kind = "bn" if "norm" in layer else "conv"
        layers.append((f"conv{stage + 1}_block{block}_{number}_{kind}", layer, arrays))
    tensors, biases = {}, {}
    for name, layer, arrays in layers:
        for leaf, array in arrays.items():
            new = leaves[leaf] if "norm" in layer else leaf
            tensors[f"{name}.{name}.{new}:0"] = np.asarray(array)
        if "conv" in layer:
            filters = arrays["kernel"].shape[-1]
            biases[name] = draw.normal(size=filters).astype(np.float32)
            tensors[f"{name}.{name}.bias:0"] = biases[name]
    return tensors, biases


def test_kerass_names_biases_and_order_of_colours():
    model = resnet("imagenet", 50, num_classes=7)
    variables = drawn(model)
    tensors, biases = in_kerass_names(variables, np.random.default_rng(1))
    found = weights.convert(tensors, "file")
    assert found.scheme == "keras"
    assert found.model == dataclasses.replace(model, bn_epsilon=1.001e-5)
    kernel = found.variables["params"]["stem_conv"]["kernel"]
    np.testing.assert_array_equal(kernel, variables["params"]["stem_conv"]["kernel"][:, :, ::-1])
    for name, layer in (("conv1", "stem_norm"), ("conv3_block1_0", "stage2_block1/shortcut_norm")):
        ours, theirs = found.variables["batch_stats"], variables["batch_stats"]
        for part in layer.split("/"):
            ours, theirs = ours[part], theirs[part]
        np.testing.assert_array_equal(ours["mean"], theirs["mean"] - biases[f"{name}_conv"])
        np.testing.assert_array_equal(ours["var"], theirs["var"])
    assert equal(found.variables["params"]["logits"], variables["params"]["logits"])
    # Keras 3 numbers the weights of a layer.
    order = ("kernel", "bias", "gamma", "beta", "moving_mean", "moving_variance")
    numbered = {}
    for name, array in tensors.items():
        layer, leaf = name.removesuffix(":0").split(".")[1:]
        number = order.index(leaf) - (2 if layer.endswith("_bn") else 0)
        numbered[f"{layer}.{number}"] = array
    found_again = weights.convert(numbered, "file")
    assert (found_again.model, found_again.elsewhere) == (found.model, ())
    assert equal(found_again.variables, found.variables)


def in_flaxs_names(model, variables):
    tensors = {}
    ends = {"stem_conv": "conv_init", "stem_norm": "bn_init", "logits": "Dense_0"}
    layers = [(ends[layer], layer, arrays) for layer, arrays in of_ends(variables)]
    sizes = model.arch.stage_sizes
    for stage, block, layer, arrays in of_blocks(variables):
        number = sum(sizes[: stage - 1]) + block - 1
        name = {"shortcut_conv": "conv_proj", "shortcut_norm": "norm_proj"}.get(layer)
        kind = "BatchNorm" if "norm" in layer else "Conv"
        name = name or f"{kind}_{int(layer[-1]) - 1}"
        layers.append((f"BottleneckResNetBlock_{number}/{name}", layer, arrays))
    for name, _, arrays in layers:
        for leaf, array in arrays.items():
            collection = "batch_stats" if leaf in ("mean", "var") else "params"
            tensors[f"{collection}/{name}/{leaf}"] = np.asarray(array)
    return tensors


def test_flaxs_names_count_blocks_through_the_network():
    model = resnet("imagenet", 50, width=0.25)
    variables = drawn(model)
    found = weights.convert(in_flaxs_names(model, variables), "file")
    assert found.scheme == "flax"
    wanted = {"bottleneck_stride": "v1.5", "same_padding": ("pool", "blocks")}
    assert found.model == dataclasses.replace(model, **wanted)
    assert equal(found.variables, variables)


# ------------------------------------------------------------------------ shortcut A, "around"


def reference(tensors, images_BCHW):
    """The CIFAR network of akamaster/pytorch_resnet_cifar10, in jax.lax; returns the logits."""

    def conv(x, name, stride=1):
        kernel = jnp.asarray(tensors[f"{name}.weight"])
        return jax.lax.conv_general_dilated(x, kernel, (stride, stride), ((1, 1), (1, 1)))

    def norm(x, name):
        weight, bias, mean, var = (
            jnp.asarray(tensors[f"{name}.{leaf}"]).reshape(1, -1, 1, 1)
            for leaf in ("weight", "bias", "running_mean", "running_var")
        )
        return (x - mean) / jnp.sqrt(var + 1e-5) * weight + bias

    x = jax.nn.relu(norm(conv(images_BCHW, "conv1"), "bn1"))
    names = sorted({tuple(name.split(".")[:2]) for name in tensors if name.startswith("layer")})
    for layer, block in names:
        stride = 2 if block == "0" and layer != "layer1" else 1
        y = jax.nn.relu(norm(conv(x, f"{layer}.{block}.conv1", stride), f"{layer}.{block}.bn1"))
        y = norm(conv(y, f"{layer}.{block}.conv2"), f"{layer}.{block}.bn2")
        if stride == 2:
            half = (y.shape[1] - x.shape[1]) // 2
            x = jnp.pad(x[:, :, ::2, ::2], ((0, 0), (half, half), (0, 0), (0, 0)))
        x = jax.nn.relu(y + x)
    pooled = x.mean((2, 3))
    return pooled @ tensors["linear.weight"].T + tensors["linear.bias"][None]


def test_channels_that_shortcut_a_adds_around_the_old_ones_are_reordered():
    _, _, tensors = exported("cifar", 14)
    tensors = in_torchs_names(tensors, ("fc.", "linear."))
    images = np.random.default_rng(2).normal(size=(2, 3, 16, 16)).astype(np.float32)
    wanted = reference(tensors, images)
    logits = {}
    for new_channels in ("around", "after"):
        found = weights.convert(tensors, "file", new_channels=new_channels)
        images_BHWC = images.transpose(0, 2, 3, 1)
        logits[new_channels] = found.model.apply(found.variables, images_BHWC, train=False)
    scale = np.abs(wanted).max()
    np.testing.assert_allclose(logits["around"], wanted, atol=1e-5 * scale)
    assert np.abs(logits["after"] - wanted).max() > 1e-2 * scale


# ------------------------------------------------------------------------------ files that refuse


def without(tensors, *names):
    return {name: array for name, array in tensors.items() if name not in names}


def with_shape(tensors, name, *shape):
    return tensors | {name: np.zeros(shape, np.float32)}


REFUSALS = {
    "no names": (lambda t: {"a": np.zeros(3)}, "known are the names of torchvision and timm;"),
    "nothing": (lambda t: {}, "it has no tensors"),
    "a stranger": (
        lambda t: t | {"layer1.0.conv9x.weight": np.zeros(3)},
        "'layer1.0.conv9x.weight' (nearest: layer1.0.conv",
    ),
    "a missing kernel": (
        lambda t: without(t, "layer2.0.conv2.weight"), "no kernel for stage2_block1/conv2"
    ),
    "a missing mean": (lambda t: without(t, "bn1.running_mean"), "no mean for stem_norm"),
    "a missing block": (
        lambda t: {k: v for k, v in t.items() if not k.startswith("layer2.0.")},
        "lacks block 1 of stage 2",
    ),
    "a missing classifier": (
        lambda t: without(t, "fc.weight", "fc.bias"), "holds no network whose names are known"
    ),
    "a wrong shape": (
        lambda t: with_shape(t, "layer1.0.bn1.weight", 5),
        "'layer1.0.bn1.weight' has, in our layout, the shape (5,); this network's is (16,)",
    ),
    "grouped convolutions": (
        lambda t: with_shape(t, "layer1.0.conv2.weight", 16, 4, 3, 3),
        "the shape (3, 3, 4, 16); this network's is (3, 3, 16, 16)",
    ),
    "another stem": (lambda t: with_shape(t, "conv1.weight", 16, 3, 5, 5), "is 5 x 5; known"),
    "a flat kernel": (
        lambda t: with_shape(t, "layer1.0.conv1.weight", 16, 16), "has the shape (16, 16)"
    ),
    "uneven filters": (
        lambda t: with_shape(t, "layer2.0.conv1.weight", 40, 16, 3, 3),
        "(16, 40, 64) filters, which are not a multiple of (16, 32, 64), those of cifar 8",
    ),
    "uneven stages": (
        lambda t: t | {k.replace("layer2.0", "layer2.1"): v for k, v in t.items()},
        "stages of (1, 2, 1) basic blocks are in no family",
    ),
    "not a number": (
        lambda t: t | {"fc.bias": np.full(10, np.nan, np.float32)}, "'fc.bias' has numbers that"
    ),
    "one projection of two": (
        lambda t: t | {"layer2.0.downsample.0.weight": np.zeros((32, 16, 1, 1))},
        "block 1 of stage 3 has no projection, but other blocks tell otherwise",
    ),
    "two networks": (
        lambda t: {f"{p}.{k}": v for k, v in t.items() for p in ("model", "ema")},
        "several networks, under 'ema.' and 'model.'; choose one with prefix='ema.'",
    ),
}  # fmt: skip


BOTTLENECK_REFUSALS = {
    "uneven groups": (
        lambda t: with_shape(t, "layer1.0.conv2.weight", 16, 5, 3, 3),
        "'layer1.0.conv2.weight' has 5 channels, which do not divide its 16 filters into groups",
    ),
    "groups in one block only": (
        lambda t: with_shape(t, "layer2.0.conv2.weight", 32, 16, 3, 3),
        "the shape (3, 3, 16, 32); this network's is (3, 3, 32, 32)",
    ),
    "no multiple of 4": (
        lambda t: with_shape(t, "layer1.0.conv3.weight", 66, 16, 1, 1),
        "'layer1.0.conv3.weight' has 66 filters; allowed are multiples of 4",
    ),
    "another reduction": (
        lambda t: with_shape(t, "layer2.0.se.fc1.weight", 7, 128, 1, 1),
        "the shape (1, 1, 128, 7); this network's is (1, 1, 128, 8)",
    ),
    "another name": (
        lambda t: t | {"layer1.0.se_module.fc1.weight": np.zeros(3)},
        "'layer1.0.se_module.fc1.weight' (nearest: layer1.0.se.fc1.weight)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BOTTLENECK_REFUSALS)
def test_another_network_with_bottlenecks_is_refused(case):
    change, words = BOTTLENECK_REFUSALS[case]
    _, _, tensors = exported("cifar_bottleneck", 11, se_reduction=16)
    weights.convert(tensors, "some/file.pth")
    with pytest.raises(UserError) as refused:
        weights.convert(change(tensors), "some/file.pth")
    assert words in str(refused.value)


@pytest.mark.parametrize("case", REFUSALS)
def test_another_network_is_refused_in_a_sentence(case):
    change, words = REFUSALS[case]
    _, _, tensors = exported()
    with pytest.raises(UserError) as refused:
        weights.convert(change(tensors), "some/file.pth")
    text = str(refused.value)
    assert words in text
    assert text.startswith("some/file.pth")
    assert text.endswith(".")
    assert "\n" not in text


def test_a_prefix_chooses_one_of_several_networks():
    _, variables, tensors = exported()
    both = {f"ema.{k}": v for k, v in tensors.items()}
    both |= {f"model.{k}": np.zeros_like(v) for k, v in tensors.items()}
    found = weights.convert(both, "file", prefix="ema.")
    assert equal(found.variables, variables)
    assert len(found.elsewhere) == len(tensors)
    with pytest.raises(UserError, match="under the prefix 'emma\\.'"):
        weights.convert(both, "file", prefix="emma.")


@pytest.mark.parametrize(
    "fields",
    [{"preactivation": True}, {"gate": "exclusive"}, {"norm": "group", "norm_groups": 4},
     {"branch_scale_by": "learned"}],
)  # fmt: skip
def test_networks_that_torchvision_has_no_names_for_are_not_exported(fields):
    with pytest.raises(UserError, match="torchvision has no name"):
        exported(**fields)
