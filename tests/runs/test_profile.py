"""A run traces the steps of config.profile and reports how long the device waited."""

import json

import jax
import jax.numpy as jnp
import pytest

from resnet_jax import train as trainer
from resnet_jax.errors import UserError
from resnet_jax.resolve import resolve
from resnet_jax.runs import identity, profile, reader, storage
from tests import tiny


def run(folder, **overrides):
    return trainer.train(tiny.config(steps=6, checkpoint__every=2, **overrides), str(folder))


@pytest.fixture(scope="module")
def traced(tmp_path_factory):
    folder = tmp_path_factory.mktemp("traced") / "run"
    assert run(folder, profile=(3, 4)) == "completed"
    return folder


@pytest.mark.parametrize(
    ("events", "steps", "wanted"),
    [
        ([(1e6, 3e6), (3e6, 5e6)], 2, (2, 100, 0)),
        ([(6e6, 11e6), (1e6, 5e6)], 1, (10, 90, 1)),
        ([(0, 8e6), (1e6, 2e6), (7e6, 10e6)], 5, (2, 100, 0)),
        ([(0, 1e6), (3e6, 4e6), (8e6, 10e6)], 10, (1, 40, 4)),
        ([(5, 5)], 1, (0, 100, 0)),
    ],
)
def test_busy_on_examples(events, steps, wanted):
    figures = profile.busy(events, steps)
    assert tuple(figures.values()) == pytest.approx(wanted)
    assert list(figures) == ["milliseconds_a_step", "busy_percent", "longest_gap_milliseconds"]


def test_a_run_traces_the_steps_of_its_config(traced):
    summary = json.loads((traced / "profile" / "gaps.json").read_text())
    assert (summary["first_step"], summary["last_step"]) == (3, 4)
    figures = summary["devices"]["/host:CPU"]
    assert figures["milliseconds_a_step"] > 0
    assert 1 < figures["busy_percent"] <= 100
    (trace,) = (traced / "profile").glob("plugins/profile/*/*.xplane.pb")
    names = {
        event.name
        for plane in jax.profiler.ProfileData.from_file(str(trace)).planes
        for line in plane.lines
        for event in line.events
    }
    assert any("convolution" in name for name in names)


def test_tracing_changes_no_result(traced, tmp_path):
    run(tmp_path / "run")
    assert not (tmp_path / "run" / "profile").exists()
    assert tiny.lines(tmp_path / "run") == tiny.lines(traced)
    configs = [reader.read(folder).config for folder in (tmp_path / "run", traced)]
    assert identity.of(configs[0]) == identity.of(configs[1])
    assert configs[0]["profile"] != configs[1]["profile"]


@pytest.mark.slow
def test_a_run_stopped_in_its_trace_or_resumed_after_it_has_no_trace(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        tiny.stop_when_asked(patch, 3)
        assert run(tmp_path / "run", profile=(2, 5)) == "preempted"
    assert run(tmp_path / "run", profile=(1, 3)) == "completed"
    assert not (tmp_path / "run" / "profile").exists()


@pytest.mark.slow
def test_a_full_disk_ends_the_trace_not_the_run(tmp_path, monkeypatch, caplog):
    write = storage.write_bytes

    def full(path, content):
        if "profile" in path.parts:
            raise OSError(28, "No space left on device")
        write(path, content)

    monkeypatch.setattr(storage, "write_bytes", full)
    assert run(tmp_path / "run", profile=(3, 3)) == "completed"
    assert "profile cannot be written: No space left on device." in caplog.text


def test_a_trace_goes_into_a_bucket():
    folder = storage.locate("memory://test_profiling/run/profile")
    profiler = profile.Profiler((2, 2), folder)
    for number in range(3):
        profiler.before(range(number, number + 1), ())
        result = jnp.ones((64, 64)) @ jnp.ones((64, 64))
        profiler.after(range(number, number + 1), result)
    profiler.close()
    names = storage.files(folder)
    assert [name.split("/")[-1].split(".", 1)[1] for name in names] == [
        "json", "trace.json.gz", "xplane.pb",
    ]  # fmt: skip
    assert json.loads(storage.read_bytes(folder / "gaps.json"))["first_step"] == 2


@pytest.mark.parametrize("steps", [(0, 3), (4, 3), (3,), (3, 241), (1.5, 3), (1, 2, 3)])
def test_steps_outside_the_run_are_one_sentence(steps):
    with pytest.raises(UserError, match="allowed are the first and the last step of a range"):
        resolve(tiny.config(profile=steps, steps=240))
