"""A completed run can be trained longer if its earlier steps would not have differed."""

import jax.numpy as jnp
import pytest
from absl import logging

from experiments.study import cell_folders, grid
from resnet_jax import settings, train
from resnet_jax.errors import UserError
from resnet_jax.optim import Schedule
from resnet_jax.resolve import resolve
from resnet_jax.runs import identity, reader, writer
from tests import tiny
from tests.parallel.test_mesh import SEEDS, Setup

# Logs, validations and checkpoints fall on steps other than the ends, 7 and 15.
OFTEN = {"log__every": 3, "eval__every": 5, "checkpoint__every": 4}
CONSTANT = {"schedule__name": "constant", **OFTEN}
# The validation error decides the rate and the tested weights.
PLATEAU = {"schedule__name": "plateau", "schedule__rate": 3.0, "schedule__patience": 1,
           "schedule__tolerance": 50.0, "eval__weights": "best", **OFTEN}  # fmt: skip


@pytest.fixture(autouse=True)
def compiled():
    """Runs of two lengths use the same programs (see below), so they are compiled once."""
    with tiny.compiled_once("steps"):
        yield


def run(folder, **overrides):
    return train.train(tiny.config(**overrides), str(folder))


def test_runs_of_two_lengths_have_the_same_program():
    def text(steps):
        setup = Setup(1, 1, 1, steps=steps, **PLATEAU)
        state = setup.programs.start(SEEDS)
        return setup.programs.train_steps.lower(state, *setup.arguments(0)).as_text()

    assert text(7) == text(15)


def test_a_lengthened_run_ends_like_a_run_of_that_length(tmp_path):
    folder, undisturbed = tmp_path / "run", tmp_path / "undisturbed"
    assert run(undisturbed, steps=15, **PLATEAU) == "completed"
    assert run(folder, steps=7, **PLATEAU) == "completed"
    short = tiny.lines(folder)
    assert short[-1]["step"] == 7
    assert {"train/loss", "validation/error", "test/error"} <= short[-1].keys()
    assert run(folder, steps=15, **PLATEAU) == "completed"

    tiny.assert_bit_equal(tiny.final_state(folder), tiny.final_state(undisturbed))
    assert tiny.lines(folder) == tiny.lines(undisturbed)
    r = reader.read(folder)
    assert r.config == reader.read(undisturbed).config
    assert (r.status["step"], r.status["steps"]) == (15, 15)
    assert [launch["step"] for launch in r.environment["resumed"]] == [7]
    (end,) = r.environment["earlier_ends"]  # the earlier test is not hidden
    assert {k: v for k, v in end.items() if not k.startswith("time/")} == short[-1]
    assert [p.name for p in (folder / "tested").iterdir()] == ["15"]


def config_of(**overrides):
    return resolve(tiny.config(**overrides)).to_dict()


def folder_of(path, config, status="completed", step=None, rows=()):
    folder = writer.RunFolder(path, config)
    folder.record_launch({"command": "first"})
    folder.rewind(0)
    for row in rows:
        folder.append(row)
    steps = config["steps"]
    folder.set_status(status, step=step or steps, steps=steps, device_seconds=1.0)
    folder.close()


def rate_sequence(config, steps):
    schedule = Schedule(resolve(config))
    return [float(schedule.rate(schedule.init(), jnp.int32(step))) for step in range(steps)]


@pytest.mark.parametrize("name", settings.SETTINGS["schedule.name"].allowed.names)
def test_rates_of_any_length_names_the_right_schedules(name, tmp_path):
    given = {"schedule__name": name, "schedule__boundaries": (4.0, 9.0)}
    rates = [rate_sequence(tiny.config(steps=steps, **given), 12) for steps in (12, 24)]
    may_be_longer = rates[0] == rates[1]
    assert (name in identity.RATES_OF_ANY_LENGTH) == may_be_longer
    folder_of(tmp_path, config_of(steps=12, **given))
    if may_be_longer:
        identity.refuse_other(tmp_path, config_of(steps=24, **given))
    else:
        with pytest.raises(UserError, match=rf"steps \(12 there, 24 here\); schedule.name='{name}"):
            identity.refuse_other(tmp_path, config_of(steps=24, **given))


HALVES = {
    "schedule__name": "step",
    "schedule__unit": "fraction",
    "schedule__boundaries": (0.5, 0.75),
}


@pytest.mark.parametrize(
    ("before", "now", "words"),
    [
        ({"steps": 24}, {"steps": 12}, "a run can be made longer, not shorter; give another"),
        (
            {"steps": 12, **HALVES},
            {"steps": 24, **HALVES},
            r"can be made longer if its schedule is given in steps \(schedule.unit='steps'\)",
        ),
        ({"steps": 12}, {"steps": 24, "batch_size": 8}, r"here\); give another --workdir"),
    ],
)
def test_a_refusal_gives_the_reason(tmp_path, before, now, words):
    boundaries = {"schedule__boundaries": (4.0, 9.0)}
    folder_of(tmp_path, config_of(**(boundaries | before)))
    with pytest.raises(UserError, match=words):
        identity.refuse_other(tmp_path, config_of(**(boundaries | now)))
    assert reader.read(tmp_path).config["steps"] == before["steps"]


def test_a_kill_while_a_folder_is_made_longer_does_no_harm(tmp_path, monkeypatch):
    config, longer = config_of(steps=7, **CONSTANT), config_of(steps=15, **CONSTANT)
    row = {"step": 7, "train/loss": 1.0, "validation/error": 2.0, "test/error": 3.0}
    folder_of(tmp_path, config, rows=[{"step": 6, "train/loss": 1.5}, row])
    real = writer.storage.write_json
    for killed_at in ("environment.json", "status.json", "config.json"):

        def write(path, content, killed_at=killed_at):
            if path.name == killed_at:
                raise KeyboardInterrupt
            real(path, content)

        monkeypatch.setattr(writer.storage, "write_json", write)
        with pytest.raises(KeyboardInterrupt):
            writer.RunFolder(tmp_path, longer)
    monkeypatch.undo()
    writer.RunFolder(tmp_path, longer).close()
    r = reader.read(tmp_path)
    assert [row["step"] for row in r.metrics] == [6]
    assert r.environment["earlier_ends"] == [row]
    assert (r.status["status"], r.status["step"], r.status["steps"]) == ("queued", 7, 15)
    assert r.config["steps"] == 15


def test_metrics_that_a_longer_run_logs_too_stay_in_the_old_last_row(tmp_path):
    row = {"step": 10, "train/loss": 1.0, "validation/error": 2.0, "time/device_seconds": 9.0}
    last = row | {"validation/error_population": 2.5, "test/error": 3.0}
    every = CONSTANT | {"log__every": 5, "eval__every": 10}
    folder_of(tmp_path, config_of(steps=10, **every), rows=[last])
    writer.RunFolder(tmp_path, config_of(steps=11, **every)).close()
    assert reader.read(tmp_path).metrics == [row]


def test_a_diverged_run_stays_diverged(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    config = tiny.config(steps=12, **CONSTANT)
    folder_of(tmp_path, resolve(config).to_dict(), "diverged", step=5)
    assert train.train(tiny.config(steps=24, **CONSTANT), str(tmp_path)) == "diverged"
    r = reader.read(tmp_path)
    assert (r.status["step"], r.status["steps"], r.config["steps"]) == (5, 24, 24)


def test_cells_of_a_lengthened_study_are_queued(tmp_path):
    def cell(steps):
        config = resolve(tiny.config(steps=steps, **CONSTANT))
        return grid.Cell("plain-8", config, (), {}, config)

    folder = tmp_path / "plain-8"
    folder_of(folder, cell(7).config.to_dict())
    assert cell_folders.has_ended(folder, cell(7))
    assert not cell_folders.has_ended(folder, cell(15))
    cell_folders.refuse_others(tmp_path, [cell(15)])
    cell_folders.queue(folder, cell(15))
    assert cell_folders.status(folder)["status"] == "queued"
    assert reader.read(folder).config["steps"] == 15
    assert not cell_folders.has_ended(folder, cell(15))
