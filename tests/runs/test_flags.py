"""Flags that change results are recorded, and compared when a run resumes."""

import dataclasses
import importlib.util
import json

import jax
import numpy as np
import pytest

from benchmarks.peers import ours
from experiments.pods import target
from experiments.pods.program import shapes
from resnet_jax import train
from resnet_jax.errors import UserError
from resnet_jax.execution import decide, on_mesh
from resnet_jax.resolve import resolve
from resnet_jax.runs import flags
from resnet_jax.state import POPULATION
from tests import tiny
from tests.parallel import test_mesh
from tests.parallel.test_mesh import SEEDS, Setup
from tests.test_execution import mesh_of


@pytest.fixture
def folder(tmp_path):
    """A run folder that was started with the current flags."""
    (tmp_path / "environment.json").write_bytes(json.dumps({"flags": flags.current()}).encode())
    return str(tmp_path)


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("jax_threefry_partitionable", False, "THREEFRY_PARTITIONABLE=True, but now it is False"),
        ("jax_default_prng_impl", "rbg", "PRNG_IMPL=threefry2x32, but now it is rbg"),
        ("jax_random_seed_offset", 7, "SEED_OFFSET=0, but now it is 7"),
        ("jax_enable_x64", True, "X64=False, but now it is True"),
    ],
)
def test_a_run_resumes_with_the_draws_that_it_was_started_with(folder, option, value, words):
    flags.refuse_other_draws(folder)
    before = getattr(jax.config, option)
    jax.config.update(option, value)
    try:
        with pytest.raises(UserError, match=f"{words}.*set {option.upper()}={before}"):
            train.train(tiny.config(), folder)  # before anything is written
    finally:
        jax.config.update(option, before)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("XLA_FLAGS", "--xla_gpu_deterministic_ops=true"),
        ("LIBTPU_INIT_ARGS", "--xla_tpu_x=1"),
        ("NVIDIA_TF32_OVERRIDE", "0"),
    ],
)
def test_flags_that_change_rounding_are_one_line(folder, name, value, monkeypatch, caplog):
    flags.log_other_rounding(folder)
    assert not caplog.text
    monkeypatch.setenv(name, f"{flags.current()[name]} {value}")
    flags.refuse_other_draws(folder)
    flags.log_other_rounding(folder)
    (record,) = caplog.records
    assert f"{name}=" in record.getMessage()
    assert f"{value}': from here on results may round differently." in record.getMessage()


def test_flags_in_another_order_or_for_more_devices_are_the_same(folder, monkeypatch, caplog):
    monkeypatch.setenv("XLA_FLAGS", "--xla_a=1 --xla_b=2")
    with open(f"{folder}/environment.json", "w", encoding="utf-8") as f:
        json.dump({"flags": flags.current()}, f)
    others = "--xla_b=2  --xla_force_host_platform_device_count=2 --xla_dump_to=/tmp/x --xla_a=1"
    monkeypatch.setenv("XLA_FLAGS", others)
    flags.log_other_rounding(folder)
    assert not caplog.text


def test_a_folder_without_flags_is_resumed(tmp_path):
    flags.refuse_other_draws(str(tmp_path / "new"))


@pytest.mark.parametrize("deterministic", [True, False])
def test_only_gpus_get_the_deterministic_option(deterministic):
    def options(platform):
        config = resolve(tiny.config(deterministic=deterministic))
        return on_mesh(config, mesh_of(platform)).compiler_options

    assert options("gpu") == {"xla_gpu_deterministic_ops": deterministic}
    assert options("cpu") == options("tpu") == {}
    assert tiny.config().deterministic


def test_every_program_with_a_convolution_gets_the_compiler_options(monkeypatch):
    with_unknown_option = lambda c, devices: dataclasses.replace(  # noqa: E731 - one expression
        decide(c, devices), compiler_options={"xla_unheard_of": True}
    )
    monkeypatch.setattr(test_mesh, "decide", with_unknown_option)
    setup = Setup(1, 1, 1)
    state = setup.programs.start(SEEDS)
    seeds, numbers, arrays, batch = setup.arguments(0)
    evaluated = ((np.zeros((8, 1, 8, 8, 1), np.uint8),), np.zeros(8, np.int32), np.ones(8, bool))
    for program, arguments in (
        (setup.programs.train_steps, (state, seeds, numbers, arrays, batch)),
        (setup.programs.observe_step, (state.evaluated, seeds, POPULATION, 0, arrays, batch)),
        (setup.programs.eval_steps[False], (state.evaluated, *evaluated)),
        (setup.programs.eval_steps[True], (state.evaluated, *evaluated)),
    ):
        with pytest.raises(jax.errors.JaxRuntimeError, match="xla_unheard_of"):
            program.lower(*arguments).compile()


@pytest.mark.slow
def test_the_compiler_of_a_gpu_knows_the_option():
    if importlib.util.find_spec("jax_cuda13_plugin") is None:
        pytest.skip("jax_cuda13_plugin is not installed")
    config = ours.config("cifar", 8, deterministic=True)
    programs, others = shapes(config, [target.named("H200")])
    programs.train_steps.lower(programs.state, *others).compile()
