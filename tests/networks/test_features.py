"""Named features are right in every layout and cost nothing if unused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import resnet_jax
from resnet_jax.errors import UserError
from resnet_jax.networks import layout
from resnet_jax.networks.architectures import Architecture
from resnet_jax.networks.features import endpoints
from resnet_jax.networks.resnet import ResNet

BASIC = Architecture("basic", (3, 2), (4, 8))


def net(**fields):
    return ResNet(BASIC, num_classes=5, **({"shortcut": "A"} | fields))


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


@pytest.mark.parametrize(("stem", "stride"), [("cifar", 1), ("imagenet", 4)])
def test_endpoints_have_the_documented_strides(stem, stride):
    model, pixels = net(stem=stem), images(32)
    of = variables(model, pixels)
    shapes = jax.eval_shape(lambda: resnet_jax.features(model, of, pixels))
    side = 32 // stride
    assert shapes["stem"].shape == shapes["stage1"].shape == (2, side, side, 4)
    assert shapes["stage2"].shape == (2, side // 2, side // 2, 8)
    assert shapes["pooled"].shape == (2, 8)
    assert shapes["logits"].shape == (2, 5)


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
    monkeypatch.setattr(ResNet, "_keep", lambda *_: None)
    assert texts() == before
