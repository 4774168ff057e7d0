"""Named features are right in every layout and cost nothing if unused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import resnet_jax
from resnet_jax.errors import UserError
from resnet_jax.networks import layout
from resnet_jax.networks.architectures import Architecture
from resnet_jax.networks.features import endpoints, logits_from
from resnet_jax.networks.resnet import ResNet

BASIC = Architecture("basic", (3, 2), (4, 8))
BOTTLENECK = Architecture("bottleneck", (1, 2, 1), (4, 6, 8))


def net(**fields):
    return ResNet(**({"arch": BASIC, "num_classes": 5, "shortcut": "A"} | fields))


def images(size=8):
    return np.random.default_rng(0).normal(size=(2, size, size, 3)).astype(np.float32)


def variables(model, pixels):
    """Returns random variables and statistics, so that all BatchNorms differ."""
    made = jax.eval_shape(lambda: model.init(jax.random.key(0), pixels, train=True))
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda a: rng.uniform(0.2, 1, a.shape).astype(np.float32), made)


class ByHand:
    """The network's forward pass without Flax: blocks one after another."""

    def __init__(self, model, of):
        self.model = model
        self.params, self.stats = (
            layout.by_block(of[c]) if model.scan else of[c] for c in ("params", "batch_stats")
        )

    def conv(self, x, kernel, stride=1):
        pad = [(n // 2, n // 2) for n in kernel.shape[:2]]
        dimensions = ("NHWC", "HWIO", "NHWC")
        return np.asarray(
            jax.lax.conv_general_dilated(
                x, kernel, (stride, stride), pad, dimension_numbers=dimensions, precision="highest"
            )
        )

    def norm(self, x, params, stats):
        deviation = np.sqrt(stats["var"] + 1e-5)
        return (x - stats["mean"]) / deviation * params["scale"] + params["bias"]

    def block(self, x, name, filters, stride):
        params, stats = self.params[name], self.stats[name]
        padding = ((0, 0), (0, 0), (0, 0), (0, filters - x.shape[-1]))
        skipped = np.pad(x[:, ::stride, ::stride], padding)
        if self.model.preactivation:
            y = self.norm(x, params["norm1"], stats["norm1"]).clip(0)
            y = self.conv(y, params["conv1"]["kernel"], stride)
            y = self.norm(y, params["norm2"], stats["norm2"]).clip(0)
            return self.conv(y, params["conv2"]["kernel"]) + skipped
        y = self.conv(x, params["conv1"]["kernel"], stride)
        y = self.norm(y, params["norm1"], stats["norm1"]).clip(0)
        y = self.conv(y, params["conv2"]["kernel"])
        y = self.norm(y, params["norm2"], stats["norm2"])
        return (y + (0 if self.model.shortcut == "none" else skipped)).clip(0)

    def __call__(self, x):
        found = {}
        x = self.conv(x, self.params["stem_conv"]["kernel"])
        if not self.model.preactivation:
            x = self.norm(x, self.params["stem_norm"], self.stats["stem_norm"]).clip(0)
        found["stem"] = x
        for stage, blocks in enumerate(BASIC.stage_sizes, start=1):
            for number in range(1, blocks + 1):
                stride = 2 if stage > 1 and number == 1 else 1
                name = layout.block(stage, number)
                x = self.block(x, name, BASIC.filters[stage - 1], stride)
            found[f"stage{stage}"] = x
        if self.model.preactivation:
            x = self.norm(x, self.params["head_norm"], self.stats["head_norm"]).clip(0)
        found["pooled"] = pooled = x.mean((1, 2))
        logits = self.params["logits"]
        found["logits"] = pooled @ logits["kernel"] + logits["bias"]
        return found


@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize("fields", [{}, {"shortcut": "none"}, {"preactivation": True}])
def test_every_endpoint_equals_the_forward_pass_by_hand(scan, fields):
    model, pixels = net(scan=scan, **fields), images()
    of = variables(model, pixels)
    found = resnet_jax.features(model, of, pixels)
    by_hand = ByHand(model, of)(pixels)
    assert list(found) == list(endpoints(model)) == list(by_hand)
    for name, value in by_hand.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-4, err_msg=name)
    np.testing.assert_array_equal(found["logits"], model.apply(of, pixels, train=False))


NETS = [
    {"stem": stem, **fields}
    for stem in ("cifar", "imagenet")
    for fields in (
        {},
        {"same_padding": ("stem", "pool", "blocks"), "width": 0.5},
        {"arch": BOTTLENECK, "shortcut": "B", "stem_filters": 6},
        {"arch": BOTTLENECK, "shortcut": "B", "bottleneck_stride": "v1.5"},
        {"arch": BOTTLENECK, "shortcut": "B", "preactivation": True},
        {"shortcut": "none", "nonlinearity": "crelu"},
        {"nonlinearity": "crelu", "preactivation": True},
    )
]


@pytest.mark.parametrize("fields", NETS, ids=str)
@pytest.mark.parametrize("size", [64, 53])
def test_endpoints_have_the_stated_strides_and_channels(fields, size):
    model = net(**fields)
    of = jax.eval_shape(lambda: model.init(jax.random.key(0), images(size), train=True))
    shapes = jax.eval_shape(lambda of: resnet_jax.features(model, of, images(size)), of)
    stated = resnet_jax.endpoints(model)
    assert stated.keys() == shapes.keys()
    for name, (stride, channels) in stated.items():
        positions = () if stride is None else 2 * (-(-size // stride),)
        assert shapes[name].shape == (2, *positions, channels), name


@pytest.mark.parametrize("depth", [18, 50])
def test_an_imagenet_network_has_the_strides_of_table_1(depth):
    stated = resnet_jax.endpoints(resnet_jax.resnet("imagenet", depth))
    sizes = [stated[f"stage{number}"] for number in range(1, 5)]
    assert [size.stride for size in sizes] == [4, 8, 16, 32]
    last = {18: 512, 50: 2048}[depth]
    assert [size.channels for size in sizes] == [last // 8, last // 4, last // 2, last]


@pytest.mark.parametrize("fields", [{}, {"preactivation": True}, {"scan": True}])
@pytest.mark.parametrize("name", ["stem", "stage1", "stage2", "pooled"])
def test_given_values_of_an_endpoint_replace_the_layers_before_it(name, fields):
    model, pixels = net(**fields), images()
    of = variables(model, pixels)
    found = resnet_jax.features(model, of, pixels)
    others = logits_from(model, of, np.zeros_like(pixels), name, found[name])
    np.testing.assert_allclose(others, found["logits"], rtol=1e-5)
    assert not np.allclose(logits_from(model, of, pixels, name, 2 * found[name]), others)
    with pytest.raises(UserError, match=r"name='logits' is not known; allowed are stem"):
        logits_from(model, of, pixels, "logits", found["logits"])


def test_only_the_named_endpoints_are_returned():
    model, pixels = net(), images()
    of = variables(model, pixels)
    assert list(resnet_jax.features(model, of, pixels, ["pooled", "stem"])) == ["pooled", "stem"]
    with pytest.raises(UserError, match=r"names='stage3' is not known; .* \(nearest: stage2\)"):
        resnet_jax.features(model, of, pixels, ["stage3"])


@pytest.mark.parametrize("scan", [False, True])
def test_without_features_programs_and_variables_are_unchanged(scan, monkeypatch):
    model, pixels = net(scan=scan), images()
    of = variables(model, pixels)
    assert set(of) == {"params", "batch_stats"}

    def texts():
        def gradient(of, pixels):
            logits, updated = model.apply(of, pixels, train=True, mutable=["batch_stats"])
            return jnp.sum(logits**2), updated

        step = jax.jit(jax.grad(gradient, has_aux=True))
        evaluation = jax.jit(lambda of, pixels: model.apply(of, pixels, train=False))
        return [f.lower(of, pixels).as_text() for f in (step, evaluation)]

    before = texts()
    monkeypatch.setattr(ResNet, "_endpoint", lambda self, name, x: x)
    assert texts() == before
