"""The memory benchmark runs, and kept_bytes agrees with a count by hand."""

import functools
import json

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn

from benchmarks.compiled.kept import kept_bytes
from resnet_jax.networks.architectures import architecture
from resnet_jax.networks.resnet import ResNet
from tests import tiny

B = 5
IMAGE = (2, 2, 3)
EVERY = ((), (1,), (1, 2), (1, 2, 3))  # choices of remat for three stages


def launch(*flags):
    return tiny.program("benchmarks.memory", *flags)


class Small(nn.Module):
    """Maps images to logits of three classes, with one dense layer per pixel or with four."""

    deep: bool

    @nn.compact
    def __call__(self, images_BHWC, *, train):
        self.variable("batch_stats", "unused", jnp.zeros, 7)
        x = images_BHWC
        if self.deep:
            x = jnp.square(nn.Dense(4, use_bias=False)(x))
            x = jnp.sin(nn.Dense(2, use_bias=False)(x) + nn.Dense(2, use_bias=False)(x))
        return nn.Dense(3, use_bias=False)(x).mean(axis=(1, 2))


def kept_of(model, batch_size, image_shape):
    image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    variables = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=True), image)
    return kept_bytes(model, variables, batch_size, image_shape)


@pytest.mark.parametrize("deep", [False, True])
def test_kept_by_hand(deep):
    # The images; the softmax's exponentials, their sum and the targets.
    numbers = B * 12 + B * (3 + 1 + 3)
    if deep:
        numbers += B * 4 * 4 * 2  # the input and output of square
        numbers += B * 4 * 2 * 2  # the sine and its derivative
    assert kept_of(Small(deep), B, IMAGE) == 4 * numbers


@functools.cache
def cifar(depth, remat):
    arch = architecture("cifar", depth)
    model = ResNet(arch, 10, dtype=jnp.bfloat16, scan=True, remat=remat)
    return kept_of(model, B, (32, 32, 3))


def test_only_the_input_of_a_rematerialised_block_is_kept():
    inputs = B * (32 * 32 * 16 + 16 * 16 * 32 + 8 * 8 * 64) * 2  # bfloat16
    assert cifar(26, EVERY[-1]) - cifar(20, EVERY[-1]) == inputs
    assert cifar(1202, EVERY[-1]) - cifar(20, EVERY[-1]) == (200 - 3) * inputs


def test_no_bfloat16_activation_is_kept_in_float32():
    filters, positions = (16, 32, 64), (32 * 32, 16 * 16, 8 * 8)
    # The block's input and the outputs of its two convolutions, bfloat16.
    activations = sum(B * p * c * 3 * 2 for p, c in zip(positions, filters, strict=True))
    # Each BatchNorm's two moments, in float32.
    others = sum(2 * 2 * c * 4 for c in filters)
    assert cifar(26, ()) - cifar(20, ()) == activations + others


def test_more_rematerialised_stages_keep_less():
    kept = [cifar(20, remat) for remat in EVERY]
    assert sorted(set(kept), reverse=True) == kept


@pytest.mark.slow
def test_it_measures_every_choice_of_remat(tmp_path):
    done = launch(
        "--family=cifar", "--depths=20", "--batch_size=64", "--device_gb=0.228", f"--out={tmp_path}"
    )
    assert done.returncode == 0, done.stderr
    table = json.loads((tmp_path / "table.json").read_text())
    assert table["compiled for"] == "cpu; another compiler lays memory out otherwise"
    rows = table["rows"]
    assert [tuple(row["remat"]) for row in rows] == list(EVERY)
    for row in rows:
        assert (row["family"], row["depth"], row["batch_size"]) == ("cifar", 20, 64)
        held = row["arguments_bytes"] + row["output_bytes"] - row["aliased_bytes"]
        assert row["peak_bytes"] == held + row["temporaries_bytes"]
        assert row["kept_bytes"] < row["temporaries_bytes"]
        # With the training split of 45,000 images.
        assert 45_000 * (32 * 32 * 3 + 4) < row["arguments_bytes"] < 160e6
        assert row["fits"] == (row["peak_bytes"] <= 0.228e9)
    assert {row["fits"] for row in rows} == {True, False}
    for name in ("kept_bytes", "temporaries_bytes"):
        values = [row[name] for row in rows]
        assert sorted(set(values), reverse=True) == values
    text = (tmp_path / "table.txt").read_text()
    assert text == done.stdout
    first = text.splitlines()[1].split()
    assert first[:5] == ["cifar", "20", "64", "none", f"{rows[0]['kept_bytes'] / 1e9:.2f}"]
    assert first[-2:] == [f"{rows[0]['peak_bytes'] / 1e9:.2f}", "no"]


@pytest.mark.slow
def test_no_view_needs_more_memory_than_a_training_step(tmp_path):
    done = launch("--views", "--depths=18", "--batch_size=8", f"--out={tmp_path}")
    assert done.returncode == 0, done.stderr
    step, *others = json.loads((tmp_path / "table.json").read_text())["rows"]
    assert (step["program"], step["pictures"]) == ("training step", 8)
    assert {row["program"]: row["pictures"] for row in others} == {
        "population statistics": 8,
        "ten_crop": 1,
        "center": 8,
        "fully_convolutional": 1,  # its largest scale alone is more than eight crops
    }
    assert others[-1]["largest_view"] == [1, 640, 832]
    for row in others:
        assert 0 < row["temporaries_bytes"] < step["temporaries_bytes"], row["program"]
        assert row["peak_bytes"] < step["peak_bytes"], row["program"]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--depths=20"], "error: --depths needs --family: cifar or imagenet."),
        (["--family=cifar", "--depths=x"], "error: --depths has 'x'; allowed are whole numbers"),
        (["--family=cifar", "--depths=21"], "model.depth=21 is not in the cifar family"),
        (["--device_gb=-1"], "device_gb"),
    ],
    ids=str,
)
def test_mistakes_are_one_sentence(flags, words):
    done = launch(*flags)
    assert done.returncode == 2
    assert words in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
