"""Forecasts from programs whose needs are made up, so that nothing is compiled."""

import pytest

from benchmarks.peers import ours
from experiments.pods import forecast, program, target
from resnet_jax.errors import UserError
from tests.pods.test_bound import needs

CAPACITY = target.parse("v5e").chip.memory


class Made:
    """Stands for program.Compiler; an image takes `each` bytes, and remat leaves an eighth."""

    def __init__(self, each, refuses=False):
        self.each, self.refuses, self.seen = each, refuses, []

    def needs(self, config):
        self.seen.append(config)
        if config.batch_size % config.accumulate or config.batch_size < 4 * config.accumulate:
            raise UserError("the batch does not divide")
        stages = len(config.model.remat)
        memory = config.batch_size // config.accumulate * self.each // (1 + 7 * (stages == 3))
        if self.refuses and memory > CAPACITY:
            raise program.TooLargeError("that takes (20.00G), but there are (15.75G)")
        made = needs(flops=197e9)
        return program.Needs(**(vars(made) | {"memory": memory}))


def forecaster(monkeypatch, made):
    monkeypatch.setattr(forecast.program, "Compiler", lambda devices: made)
    monkeypatch.setattr(target.Target, "devices", lambda self: [])
    return forecast.Forecaster(target.parse("v5e:2x2"))


def test_a_run_that_fits_has_its_least_time(monkeypatch):
    made = Made(10**6)
    config = ours.config("cifar", 20, dtype="bfloat16")
    found = forecaster(monkeypatch, made).of_run(config)
    assert (found.memory, found.steps, found.remedies) == (128 * 10**6, config.steps, ())
    assert found.seconds == pytest.approx(config.steps * 1e-3)
    assert found.chip_hours == pytest.approx(config.steps * 1e-3 * 4 / 3600)
    assert len(made.seen) == 1


@pytest.mark.parametrize("refuses", [False, True])
def test_of_one_that_does_not_the_smallest_change_that_helps_is_named(monkeypatch, refuses):
    made = Made(3 * CAPACITY // 128, refuses)
    config = ours.config("cifar", 20, dtype="bfloat16", bn_group=16)
    found = forecaster(monkeypatch, made).of_run(config)
    assert found.step is None
    assert (found.seconds, found.chip_hours) == (0, 0)
    assert found.remedies == ("accumulate=4", "model.remat=(1, 2, 3)", "batch_size=32")
    assert found.memory == (20 * 1024**3 if refuses else 3 * CAPACITY // 128 * 128)
    # The config itself is unchanged.
    assert (config.accumulate, config.model.remat, config.batch_size) == (1, (), 128)


def test_nothing_helps(monkeypatch):
    found = forecaster(monkeypatch, Made(10 * CAPACITY)).of_run(ours.config("cifar", 20))
    assert found.remedies == ()


def test_a_compilers_message_without_a_number():
    assert program.TooLargeError("RESOURCE_EXHAUSTED: no").memory == 0
    assert program.TooLargeError("takes (1.50M) of (1.00M)").memory == 1.5 * 2**20
