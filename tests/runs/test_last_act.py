"""A run is saved before its test, so that a failed test costs no training step."""

import dataclasses
import errno

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet_jax import train
from resnet_jax.errors import RunError
from resnet_jax.runs import reader
from tests import tiny

# The words of the CPU's runtime, and of those of GPUs and TPUs.
CPU_WORDS = "Out of memory allocating"
NO_MEMORY = "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 67108864 bytes."


def run(folder, **overrides):
    return train.train(tiny.config(**overrides), str(folder))


def variables_of(folder):
    """Returns the tested variables."""
    c = reader.read(folder).config
    like = tiny.final_state(folder).evaluated
    assert sorted(p.name for p in (folder / "tested").iterdir()) == [str(c["steps"])]
    return tiny.restore(folder / "tested", like)


def raise_in(monkeypatch, name, error, at=1):
    """Makes a function of train.py raise at its `at`-th call."""
    real, calls = getattr(train, name), []

    def wrapped(*args, **kwargs):
        calls.append(name)
        if len(calls) == at:
            raise error
        return real(*args, **kwargs)

    monkeypatch.setattr(train, name, wrapped)
    return calls


@pytest.fixture(scope="module", autouse=True)
def compiled():
    """Every launch here uses the same programs, so they are compiled once."""
    with tiny.compiled_once():
        yield


def fail_to_train(monkeypatch, error):
    """Makes every training step raise `error`."""
    build = train.build

    def train_steps(*_):
        raise error

    monkeypatch.setattr(
        train, "build", lambda *args: dataclasses.replace(build(*args), train_steps=train_steps)
    )


@pytest.fixture(scope="module")
def undisturbed(compiled, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    assert run(folder) == "completed"
    return folder


def assert_only_trained(folder, undisturbed):
    """Checks that the folder has all of training and nothing of the test."""
    tiny.assert_bit_equal(tiny.final_state(folder), tiny.final_state(undisturbed))
    last, wanted = tiny.lines(folder)[-1], tiny.lines(undisturbed)[-1]
    assert last == {key: wanted[key] for key in wanted if key.startswith(("step", "train/"))}
    assert not (folder / "tested").exists()


def test_if_the_test_is_stopped_only_the_test_is_repeated(
    tmp_path, undisturbed, monkeypatch, caplog
):
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        tiny.stop_when_asked(patch, times=13)  # once after each step, then before the first view
        assert run(folder) == "preempted"
    assert_only_trained(folder, undisturbed)

    fail_to_train(monkeypatch, AssertionError("a training step was taken"))
    with monkeypatch.context() as patch:
        patch.setenv("LIBTPU_INIT_ARGS", "--x=1")
        # The third call: the first two are on the validation split, one per kind of statistics.
        raise_in(patch, "evaluate", jax.errors.JaxRuntimeError(NO_MEMORY), at=3)
        with pytest.raises(RunError, match=r"for an evaluation, lower eval\.batch_size=64;"):
            run(folder)
    assert_only_trained(folder, undisturbed)
    status = reader.read(folder).status
    assert (status["status"], status["step"]) == ("failed", 12)
    assert "The device's memory is too small (RESOURCE_EXH" in status["reason"]

    with monkeypatch.context() as patch:  # like a kill between the test and its checkpoint
        raise_in(patch, "Checkpoints", KeyboardInterrupt(), at=2)
        with pytest.raises(KeyboardInterrupt):
            run(folder)
    assert tiny.lines(folder) == tiny.lines(undisturbed)

    assert run(folder) == "completed"
    tiny.assert_bit_equal(tiny.final_state(folder), tiny.final_state(undisturbed))
    tiny.assert_bit_equal(variables_of(folder), variables_of(undisturbed))
    assert tiny.lines(folder) == tiny.lines(undisturbed)
    r = reader.read(folder)
    resumed = r.environment["resumed"]
    assert [launch["step"] for launch in resumed] == [12, 12, 12]
    assert [launch["flags"]["LIBTPU_INIT_ARGS"] for launch in resumed] == ["--x=1", "", ""]
    assert caplog.text.count("was started with LIBTPU_INIT_ARGS='' and resumes with '--x=1'") == 1
    assert r.status["status"] == "completed"


def test_a_test_can_be_repeated_with_smaller_batches(tmp_path, undisturbed, monkeypatch):
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        calls = raise_in(patch, "population_statistics", jax.errors.JaxRuntimeError(NO_MEMORY))
        with pytest.raises(RunError, match="accumulate=1"):
            run(folder)
        assert calls
    fail_to_train(monkeypatch, AssertionError("a training step was taken"))
    assert run(folder, eval__batch_size=16) == "completed"
    tiny.assert_bit_equal(variables_of(folder), variables_of(undisturbed))
    for row, wanted in zip(tiny.lines(folder), tiny.lines(undisturbed), strict=True):
        assert row.keys() == wanted.keys()
        for key in row:
            exact = key == "step" or "error" in key
            np.testing.assert_allclose(row[key], wanted[key], rtol=0 if exact else 1e-5)


@pytest.mark.parametrize(
    ("error", "place"),
    [
        (jax.errors.JaxRuntimeError(NO_MEMORY), "device"),
        (jax.errors.JaxRuntimeError(f"INTERNAL: Error dispatching: {CPU_WORDS}"), "device"),
        (MemoryError("Unable to allocate 7.45 GiB for an array"), "host"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "host"),
    ],
)
def test_too_little_memory_is_one_sentence(tmp_path, monkeypatch, error, place):
    fail_to_train(monkeypatch, error)
    with pytest.raises(RunError) as e:
        run(tmp_path / "run")
    assert str(e.value) == reader.read(tmp_path / "run").status["reason"]
    assert str(e.value) == (
        f"The {place}'s memory is too small ({error}): for a training step, raise accumulate=1 "
        "or add stages to model.remat=(); for an evaluation, lower eval.batch_size=64; the same "
        "command with such a change resumes from the last checkpoint (a smaller batch_size=16 "
        "would be another run)."
    )


def test_the_cpus_runtime_uses_these_words():
    """It raises only when the result is needed."""
    with pytest.raises(jax.errors.JaxRuntimeError, match=CPU_WORDS):
        jax.jit(lambda: jnp.ones((1 << 46,), jnp.float32))().block_until_ready()


def test_other_runtime_errors_are_not_reported_as_memory(tmp_path, monkeypatch):
    raise_in(monkeypatch, "population_statistics", jax.errors.JaxRuntimeError("INTERNAL: no"))
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
        run(tmp_path / "run")
