"""Runs that differ only in numbers that their program takes as arguments share it."""

import jax
import pytest

from resnet_jax.optim import Numbers, numbers_of
from resnet_jax.resolve import resolve
from tests import tiny
from tests.parallel.test_mesh import SEEDS, Setup

SCHEDULES = {
    "step": {"schedule__name": "step", "schedule__boundaries": (1.0,)},
    "cosine": {"schedule__name": "cosine", "schedule__warmup": "linear",
               "schedule__warmup_length": 2.0},
    "until_error": {"schedule__warmup": "until_error", "schedule__warmup_error": 85.0,
                    "schedule__warmup_window": 1},
}  # fmt: skip
NUMBERS = {"schedule__rate": 0.3, "schedule__warmup_rate": 0.2, "optimizer__weight_decay": 0.5,
           "model__shortcut_scale": 0.4, "model__branch_scale": 0.7}  # fmt: skip
SCALED = {"model__shortcut_scale": 0.9, "model__branch_scale": 0.8}  # 1 has a program of its own


def made(**overrides):
    return Setup(1, 1, 1, replicates=len(SEEDS), **overrides)


def text(setup):
    state = setup.programs.start(SEEDS)
    return setup.programs.train_steps.lower(state, *setup.arguments(0)).as_text()


def test_each_number_is_that_of_the_config():
    numbers = numbers_of(resolve(tiny.config(**NUMBERS)))
    assert numbers == Numbers(*map(pytest.approx, (0.3, 0.2, 0.5, 0.4, 0.7)))


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_runs_that_differ_in_the_numbers_have_one_program(schedule):
    one = made(**SCHEDULES[schedule], **SCALED)
    other = made(**SCHEDULES[schedule], **NUMBERS)
    assert text(one) == text(other)
    different = made(**SCHEDULES[schedule], **SCALED, optimizer__momentum=0.5)
    assert (text(one) == text(different)) is False  # as a bool: a difference would take minutes


def test_with_anothers_numbers_a_program_trains_the_other_run():
    options = SCHEDULES["until_error"]
    one, other = made(**options, **SCALED), made(**options, **NUMBERS)

    def trained(setup, numbers):
        state = setup.programs.start(SEEDS)
        for step in range(3):
            seeds, _, *data = setup.arguments(step)
            state, _ = setup.programs.train_steps(state, seeds, numbers, *data)
        return jax.device_get(state)

    ours = trained(one, other.programs.numbers)
    tiny.assert_bit_equal(ours, trained(other, other.programs.numbers))
    for key in NUMBERS:  # each of them acts
        changed = made(**options, **SCALED | {key: NUMBERS[key]}).programs.numbers
        with pytest.raises(AssertionError, match="differs by"):
            tiny.assert_bit_equal(trained(one, one.programs.numbers), trained(one, changed))
