"""Every float32 product has the config's precision."""

import functools
import importlib.util
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.pods import target
from resnet_jax.data.augment import Augmentation
from resnet_jax.networks.architectures import Architecture
from resnet_jax.networks.resnet import ResNet
from resnet_jax.resolve import resolve
from resnet_jax.runs import identity
from resnet_jax.state import POPULATION
from tests import tiny
from tests.parallel.test_mesh import SEEDS, Setup


@functools.cache
def products(precision, dtype="float32"):
    """Returns the operand precisions of every convolution and product in a run's programs."""
    setup = Setup(1, 1, 1, model__precision=precision, model__dtype=dtype, model__shortcut="B")
    state = setup.programs.start(SEEDS)
    seeds, numbers, arrays, batch = setup.arguments(0)
    images = np.zeros((8, 1, 8, 8, 1), np.uint8)
    evaluated = ((images,), np.zeros(8, np.int32), np.ones(8, bool))
    lowered = [
        setup.programs.train_steps.lower(state, seeds, numbers, arrays, batch),
        setup.programs.observe_step.lower(state.evaluated, seeds, POPULATION, 0, arrays, batch),
        setup.programs.eval_steps[False].lower(state.evaluated, *evaluated),
    ]
    lines = [
        line
        for program in lowered
        for line in program.as_text().splitlines()
        if re.search(r"stablehlo\.(convolution|dot_general|dot)\b", line)
    ]
    return [re.findall(r"\b(HIGHEST|HIGH|DEFAULT)\b", line) for line in lines]


@pytest.mark.parametrize("precision", ["highest", "default"])
def test_every_product_of_a_run_has_the_precision(precision):
    precisions = products(precision)
    # Four seeds of 8 layers, each: forward, two gradients, moments and evaluation.
    assert len(precisions) > 5 * 4 * 8
    allowed = [["HIGHEST"] * 2] if precision == "highest" else [[], ["DEFAULT"] * 2]
    assert all(each in allowed for each in precisions)


def test_the_colour_shift_is_always_float32():
    augmentation = Augmentation(0, False, color=True)
    draws = augmentation.draw(jax.random.key(0), 2)
    text = jax.jit(augmentation).lower(draws, jnp.zeros((2, 4, 4, 3))).as_text()
    (product,) = [line for line in text.splitlines() if "dot_general" in line]
    assert "precision = [HIGHEST, HIGHEST]" in product


def test_precision_is_part_of_a_runs_identity_and_defaults_to_float32():
    paper, other = (
        resolve(tiny.config(model__precision=precision)) for precision in ("highest", "high")
    )
    assert resolve(tiny.config()).model.precision == "highest"
    assert identity.of(paper.to_dict()) != identity.of(other.to_dict())


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "count"), [("highest", 11), ("default", 0)])
@pytest.mark.parametrize(
    ("chip", "package"),
    [
        ("H200", "jax_cuda13_plugin"),
        pytest.param("v5e", "libtpu", marks=pytest.mark.compiler),
    ],
)
def test_precision_reaches_the_program_of_a_chip(chip, package, precision, count):
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    model = ResNet(
        Architecture("basic", (1,), (64,)), num_classes=100, shortcut="B", precision=precision
    )
    x = np.ones((8, 8, 8, 64), np.float32)
    variables = jax.eval_shape(lambda: dict(model.init(jax.random.key(0), x, train=True)))

    def loss(variables, x):
        logits, _ = model.apply(variables, x, train=True, mutable=["batch_stats"])
        return (logits**2).mean()

    here = jax.sharding.SingleDeviceSharding(target.named(chip))
    shapes = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=here), (variables, x)
    )
    text = jax.jit(jax.grad(loss)).lower(*shapes).compile().as_text()
    # Three convolutions and the classifier, each with two gradients, less the images' gradient.
    assert text.count("operand_precision={highest,highest}") == count
