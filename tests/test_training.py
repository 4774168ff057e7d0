"""The training loop and its run folder: output, choice of weights, divergence, compilation."""

import dataclasses
import logging
import re
import subprocess

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tensorboardX.proto import event_pb2

from resnet_jax import state, train, trained
from resnet_jax.errors import UserError
from resnet_jax.execution import Execution
from resnet_jax.runs import reader
from tests import tiny


def run(folder, **overrides):
    status = train.train(tiny.config(**overrides), str(folder))
    return status, reader.read(folder)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished") / "run"
    return run(folder, log__tensorboard=True)


def test_a_run_folder_has_everything_that_a_report_reads(finished):
    status, r = finished
    assert status == r.status["status"] == "completed"
    assert (r.status["step"], r.status["steps"], r.status["reason"]) == (12, 12, "")
    assert r.status["device_seconds"] > 0
    assert r.config["steps"] == 12
    assert r.config["model"]["num_classes"] == 10
    assert r.environment["network"]["projections"] == 0
    assert r.environment["network"]["parameters"] > 1000
    assert r.environment["data"]["train"] + r.environment["data"]["validation"] == 1437
    assert r.environment["packages"]["jax"]
    assert r.environment["flags"]["jax_default_prng_impl"] == "threefry2x32"
    assert set(r.environment["git"]) == {"commit", "clean"}
    fields = {field.name for field in dataclasses.fields(Execution)}
    assert r.environment["execution"].keys() == fields


def test_metrics_have_one_row_per_step_and_errors_in_percent(finished):
    _, r = finished
    steps = [row["step"] for row in r.metrics]
    assert steps == [3, 5, 6, 9, 10, 12]
    assert [row["step"] for row in r.metrics if "train/loss" in row] == [3, 6, 9, 12]
    assert [row["step"] for row in r.metrics if "validation/error" in row] == [5, 10, 12]
    assert 20 < r.metrics[0]["train/error"] <= 100
    # 3 steps of 16 images: errors are multiples of 100/48 %.
    assert r.metrics[0]["train/error"] * 48 / 100 == pytest.approx(
        round(r.metrics[0]["train/error"] * 48 / 100), abs=1e-3
    )
    for row in r.metrics:
        for key, value in row.items():
            assert key == "step" or isinstance(value, float), key
            assert not ("second" in key and not key.startswith("time/"))


def test_the_test_split_is_evaluated_once_at_the_end(finished):
    _, r = finished
    assert [row["step"] for row in r.metrics if "test/error" in row] == [12]
    last = r.metrics[-1]
    assert last["validation/loss"] != last["validation/loss_population"]


def test_tensorboard_holds_the_same_scalars(finished):
    _, r = finished
    (events,) = (r.path / "tensorboard").iterdir()
    scalars = {}
    for record in read_records(events.read_bytes()):
        event = event_pb2.Event.FromString(record)
        for value in event.summary.value:
            scalars[event.step, value.tag] = value.simple_value
    wanted = {(row["step"], key): row[key] for row in r.metrics for key in row if key != "step"}
    assert scalars.keys() == wanted.keys()
    for key, value in wanted.items():
        assert scalars[key] == pytest.approx(value, rel=1e-6)


def read_records(content):
    """Yields the payloads of a TFRecord file: length (8 bytes), CRC (4), payload, CRC (4)."""
    while content:
        length = int.from_bytes(content[:8], "little")
        yield content[12 : 12 + length]
        content = content[16 + length :]


def test_a_finished_run_is_left_alone(finished, caplog):
    _, r = finished
    caplog.set_level(logging.INFO)
    before = (r.path / "metrics.jsonl").read_bytes()
    assert train.train(tiny.config(log__tensorboard=True), str(r.path)) == "completed"
    assert "has ended already: completed at step 12 of 12" in caplog.text
    assert (r.path / "metrics.jsonl").read_bytes() == before


def test_another_configs_folder_is_refused_before_anything_is_written(finished):
    _, r = finished
    before = sorted(p.name for p in r.path.iterdir())
    with pytest.raises(UserError, match=r"model\.depth \(8 there, 14 here\)"):
        train.train(tiny.config(model__depth=14), str(r.path))
    assert sorted(p.name for p in r.path.iterdir()) == before
    assert reader.read(r.path).status["status"] == "completed"


def test_a_batch_that_devices_cannot_share_is_refused_before_a_folder_is_made(tmp_path):
    with pytest.raises(UserError, match=r"batch_size=12 .* over 8 devices.*nearest: 16"):
        train.train(tiny.config(batch_size=12), str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_best_is_the_first_lowest_validation_error(tmp_path):
    _, r = run(tmp_path / "run", steps=20, eval__every=2, schedule__rate=0.1)
    curve = {row["step"]: row["validation/error"] for row in r.metrics if "validation/error" in row}
    lowest = min(curve.values())
    assert len(set(curve.values())) > 2
    best = tiny.final_state(r.path).best
    assert best.error.tolist() == [pytest.approx(lowest)]
    assert best.step.tolist() == [min(s for s, e in curve.items() if e == lowest)]


@pytest.mark.slow
def test_eval_weights_best_tests_the_best_weights(tmp_path):
    losses = {}
    for weights in ("last", "best"):
        settings = {"eval__weights": weights, "eval__statistics": "moving_average"}
        _, r = run(tmp_path / weights, steps=12, eval__every=2, schedule__rate=2.0, **settings)
        assert "validation/error_population" not in r.metrics[-1]
        losses[weights] = r.metrics[-1]["test/loss"]
    last, best = tiny.final_state(tmp_path / "last"), tiny.final_state(tmp_path / "best")
    tiny.assert_bit_equal(last, best)  # training does not differ
    assert best.best.step[0] < 12, "with this rate the best step must not be the last one"
    assert losses["last"] != losses["best"]
    for run_folder, step in ((tmp_path / "last", 12), (tmp_path / "best", int(best.best.step[0]))):
        assert trained.load(run_folder).step == step


# ------------------------------------------------------------------------------- diverging


def test_a_diverged_run_ends_without_an_error(tmp_path):
    wrecked = tiny.launch(tmp_path / "wrecked", schedule__rate=1e30, steps=30)
    assert wrecked.returncode == 0, wrecked.stderr
    r = reader.read(tmp_path / "wrecked")
    assert r.status["status"] == "diverged"
    at = r.status["step"]
    assert 1 < at <= 4
    assert r.status["diverged"] == {"0": at}
    assert (
        r.status["reason"] == f"loss or weights were not finite at step {at}; no checkpoint was due"
    )
    assert r.metrics[-1]["train/loss"] is None
    assert r.metrics[-1]["step"] < 30
    assert not any(p.name.isdigit() for p in (r.path / "checkpoints").iterdir())
    again = tiny.launch(tmp_path / "wrecked", schedule__rate=1e30, steps=30)
    assert again.returncode == 0
    assert "has ended already: diverged" in again.stderr


def poison(monkeypatch, replicate, at):
    """Makes one replicate's loss NaN at a step, through its last kernel."""
    build = train.build

    def make(*args):
        programs = build(*args)

        def poisoned(s, *rest):
            if int(s.step[0]) == at - 1:
                kernel = s.params["logits"]["kernel"].at[replicate].set(jnp.nan)
                s = s.replace(params=s.params | {"logits": s.params["logits"] | {"kernel": kernel}})
            return programs.train_steps(s, *rest)

        return dataclasses.replace(programs, train_steps=poisoned)

    monkeypatch.setattr(train, "build", make)


def test_the_last_good_checkpoint_is_named(tmp_path, monkeypatch):
    poison(monkeypatch, replicate=0, at=10)
    status, r = run(tmp_path / "run", steps=30)
    assert status == "diverged"
    assert r.status["reason"] == (
        "loss or weights were not finite at step 10; the last good checkpoint is step 8"
    )
    names = sorted(int(p.name) for p in (r.path / "checkpoints").iterdir())
    assert names == [4, 8]
    assert np.isfinite(tiny.final_state(r.path).params["logits"]["kernel"]).all()


@pytest.mark.slow
def test_one_diverged_replicate_does_not_stop_the_others(tmp_path, monkeypatch):
    single, _ = run(tmp_path / "alone", seed=0)
    assert single == "completed"
    poison(monkeypatch, replicate=1, at=5)
    status, r = run(tmp_path / "both", replicates=2, eval__weights="best")
    assert status == "completed"
    assert r.status["diverged"] == {"1": 5}
    assert r.metrics[-1]["test/step"][1] == 0  # its best weights are the initial ones
    assert [row["train/loss"][1] is None for row in r.metrics if "train/loss" in row] == [
        False, True, True, True,
    ]  # fmt: skip
    ours = [row["train/loss"][0] for row in r.metrics if "train/loss" in row]
    theirs = [row["train/loss"] for row in tiny.lines(tmp_path / "alone") if "train/loss" in row]
    np.testing.assert_allclose(ours, theirs, rtol=2e-3)
    best = tiny.final_state(r.path).best
    assert best.step[1] == state.NEVER  # it diverged before its first evaluation


# ------------------------------------------------------------------------------ one program


def test_nothing_is_compiled_twice(tmp_path, caplog):
    with jax.log_compiles(True), caplog.at_level(logging.WARNING):
        run(tmp_path / "run", steps=20)
    compiled = re.findall(r"Finished XLA compilation of jit\((\w+)\)", caplog.text)
    programs = ("train_steps", "eval_step", "observe_step", "after_validation")
    assert {name: compiled.count(name) for name in programs} == dict.fromkeys(programs, 1)


def test_a_length_flag_replaces_the_files_length_and_flags_without_effect_are_named(tmp_path):
    # configs/digits.py sets `steps`; 32 examples are two steps of batch 16.
    command = [*tiny.command(tmp_path / "run", optimizer__b1=0.8), "--config.examples=32"]
    command = [flag for flag in command if not flag.startswith("--config.steps")]
    done = subprocess.run(
        command, cwd=tiny.ROOT, env=tiny.environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    config = reader.read(tmp_path / "run").config
    assert (config["steps"], config["epochs"], config["examples"]) == (2, None, None)
    # The flag without effect is named in the log and in the run folder.
    sentence = "optimizer.b1=0.8 has no effect with optimizer.name='sgd'"
    assert done.stderr.count(f"{sentence}.") == 1
    assert reader.read(tmp_path / "run").environment["without_effect"] == [sentence]
