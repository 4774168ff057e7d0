"""Every product of float32 numbers has the precision that the run's config names."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet_jax import runs, settings
from resnet_jax.data.augment import Augmentation
from tests import tiny
from tests.test_mesh import SEEDS, Setup


@functools.cache
def products(precision, dtype="float32"):
    """Returns the precisions of each convolution and matrix product of all of a run's programs."""
    setup = Setup(1, 1, 1, model__precision=precision, model__dtype=dtype, model__shortcut="B")
    state = setup.programs.start(SEEDS)
    seeds, arrays, batch = setup.arguments(0)
    images = np.zeros((8, 1, 8, 8, 1), np.uint8)
    evaluated = ((images,), np.zeros(8, np.int32), np.ones(8, bool))
    lowered = [
        setup.programs.train_steps.lower(state, seeds, arrays, batch),
        setup.programs.moments_step.lower(state.evaluated, seeds, 0, arrays, batch),
        setup.programs.eval_steps[False].lower(state.evaluated, *evaluated),
    ]
    lines = [
        line
        for program in lowered
        for line in program.as_text().splitlines()
        if re.search(r"stablehlo\.(convolution|dot_general|dot)\b", line)
    ]
    return [re.findall(r"\b(HIGHEST|HIGH|DEFAULT)\b", line) for line in lines]


@pytest.mark.parametrize("precision", ["highest", "high", "default"])
def test_it_is_that_of_every_product_of_a_run(precision):
    found = products(precision)
    # Forward, and two gradients of all but the first layer, of four seeds; moments; evaluation.
    assert len(found) > 5 * 4 * 8
    default = [] if precision == "default" else None
    for each in found:
        assert each in ([precision.upper()] * 2, default)


def test_a_shift_of_colours_is_float32_whatever_the_network_is():
    augmentation = Augmentation(0, False, color=True)
    draws = augmentation.draw(jax.random.key(0), 2)
    text = jax.jit(augmentation).lower(draws, jnp.zeros((2, 4, 4, 3))).as_text()
    (product,) = [line for line in text.splitlines() if "dot_general" in line]
    assert "precision = [HIGHEST, HIGHEST]" in product


def test_it_is_part_of_a_runs_identity_and_the_papers_is_float32():
    paper, other = (
        settings.resolve(tiny.config(model__precision=precision))
        for precision in ("highest", "high")
    )
    assert settings.resolve(tiny.config()).model.precision == "highest"
    assert runs.identity(paper.to_dict()) != runs.identity(other.to_dict())
