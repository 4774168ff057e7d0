"""A killed run ends bit for bit like an undisturbed one."""

import os
import random
import re
import shutil
import signal
import subprocess
import time

import numpy as np
import pytest

from resnet_jax.runs import reader, records
from tests import tiny

# Every part of the state is in use, so that a checkpoint cannot omit one unnoticed.
EVERYTHING = {
    "replicates": 2,
    "ema_decay": 0.9,
    "optimizer__name": "sgd",
    "schedule__name": "plateau",
    "schedule__rate": 3.0,  # high enough that the best weights are not the last
    "schedule__warmup": "until_error",
    "schedule__warmup_window": 4,
    "schedule__warmup_error": 88.0,
    "schedule__patience": 2,
    "schedule__tolerance": 50.0,  # almost no error counts as better, so the rate drops
    "data__pad": 1,
    "model__stochastic_depth": 0.3,
    "model__dropout": 0.2,
    "eval__weights": "best",
    "steps": 60,
    "checkpoint__every": 3,
    "log__every": 4,  # so that checkpoints fall inside windows of metrics
    "log__signals__every": 6,
}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    done = tiny.launch(folder, **EVERYTHING)
    assert done.returncode == 0, done.stderr
    return folder


def assert_same_run(folder, undisturbed):
    tiny.assert_bit_equal(tiny.final_state(folder), tiny.final_state(undisturbed))
    assert tiny.lines(folder) == tiny.lines(undisturbed)
    assert reader.read(folder).status["status"] == "completed"


def wait_for_step(folder, process, step):
    """Waits until a row of metrics of `step` or later is on disk."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        rows = records.read_metrics(folder)
        if rows and rows[-1]["step"] >= step:
            return
        time.sleep(0.01)
    raise AssertionError(f"no row of step {step}; exit code {process.poll()}")


def start(folder, **overrides):
    return subprocess.Popen(
        tiny.command(folder, **overrides),
        cwd=tiny.ROOT,
        env=tiny.environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def test_the_undisturbed_run_uses_every_part_of_the_state(undisturbed):
    state = tiny.final_state(undisturbed)
    assert state.step.tolist() == [60, 60]
    assert not state.schedule.warming.any()  # the warm-up has ended
    rows = [row for row in tiny.lines(undisturbed) if "train/loss" in row]
    rates = {row["train/learning_rate"][0] for row in rows}
    assert len(rates) >= 3  # warm-up, full rate and plateau
    observed = [r["step"] for r in tiny.lines(undisturbed) if "signals/dead_units/stem_norm" in r]
    assert observed == list(range(0, 60, 6))
    assert (state.best.step < 60).any()


def test_sigterm_saves_exits_with_42_and_resumes_exactly(tmp_path, undisturbed):
    folder = tmp_path / "run"
    process = start(folder, **EVERYTHING)
    wait_for_step(folder, process, 8)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 42
    status = reader.read(folder).status
    assert status["status"] == "preempted"
    assert "SIGTERM" in status["reason"]
    assert 8 <= status["step"] < 60
    assert (folder / "checkpoints" / str(status["step"])).is_dir()  # not an earlier step

    again = tiny.launch(folder, **EVERYTHING)
    assert again.returncode == 0, again.stderr
    assert f"resumes at step {status['step']}" in again.stderr
    assert_same_run(folder, undisturbed)
    launches = reader.read(folder).environment
    assert [launches["step"], launches["resumed"][0]["step"]] == [0, status["step"]]


def unfinished(folder):
    return list(folder.glob("checkpoints/*.orbax-checkpoint-tmp"))


def test_kill_9_in_the_middle_of_a_save(tmp_path, undisturbed):
    folder = tmp_path / "run"
    for _ in range(5):  # try again if the save ended just before the kill
        process = start(folder, **EVERYTHING)
        wait_for_step(folder, process, 4)
        while process.poll() is None and not unfinished(folder):
            time.sleep(0.002)
        process.kill()
        process.wait(60)
        if unfinished(folder):
            break
    assert unfinished(folder)
    assert tiny.launch(folder, **EVERYTHING).returncode == 0
    assert not unfinished(folder)
    assert_same_run(folder, undisturbed)


@pytest.mark.slow
def test_kill_9_in_the_test(tmp_path, undisturbed):
    folder = tmp_path / "run"
    process = start(folder, **EVERYTHING)
    wait_for_step(folder, process, 60)
    while process.poll() is None and not (folder / "checkpoints" / "60").is_dir():
        time.sleep(0.002)
    process.kill()
    process.wait(60)
    assert reader.read(folder).status["status"] == "running"
    assert tiny.launch(folder, **EVERYTHING).returncode == 0
    assert_same_run(folder, undisturbed)
    assert [launch["step"] for launch in reader.read(folder).environment["resumed"]] == [60]


@pytest.mark.slow
def test_kill_9_at_random_times(tmp_path, undisturbed):
    folder = tmp_path / "run"
    seed = random.randrange(2**32)
    print(f"times drawn with seed {seed}")
    draw = random.Random(seed)
    in_a_save, reached = 0, 0
    for _ in range(6):
        process = start(folder, **EVERYTHING)
        # A save takes about as long as the three steps between saves, so many kills hit a save.
        wait_for_step(folder, process, min(50, reached + draw.randrange(1, 15)))
        time.sleep(draw.uniform(0, 0.3))
        process.kill()
        process.wait(60)
        in_a_save += any("tmp" in p.name for p in (folder / "checkpoints").iterdir())
        reached = tiny.lines(folder)[-1]["step"]
    print(f"killed 6 times, {in_a_save} of them during a save")
    assert tiny.launch(folder, **EVERYTHING).returncode == 0
    assert_same_run(folder, undisturbed)


@pytest.mark.slow
def test_killed_before_the_first_checkpoint_starts_over_exactly(tmp_path, undisturbed):
    folder = tmp_path / "run"
    process = start(folder, **(EVERYTHING | {"checkpoint__every": 3}))
    wait_for_step(folder, process, 4)
    process.kill()
    process.wait(60)
    shutil.rmtree(folder / "checkpoints")  # as if killed before the first was complete
    with open(folder / "metrics.jsonl", "ab") as f:
        f.write(b'{"step": 5, "train/lo')  # as if killed in the middle of a line
    assert tiny.launch(folder, **EVERYTHING).returncode == 0
    assert_same_run(folder, undisturbed)


@pytest.mark.slow
def test_a_run_resumes_from_the_checkpoint_before_a_damaged_one(tmp_path, undisturbed):
    folder = tmp_path / "run"
    process = start(folder, **EVERYTHING)
    wait_for_step(folder, process, 16)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 42
    newest = max(int(p.name) for p in (folder / "checkpoints").iterdir() if p.name.isdigit())
    data = max((folder / f"checkpoints/{newest}/state").rglob("d/*"), key=os.path.getsize)
    content = bytearray(data.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 32] = bytes(b ^ 0xFF for b in content[middle : middle + 32])
    data.write_bytes(content)

    again = tiny.launch(folder, **EVERYTHING)
    assert again.returncode == 0, again.stderr
    assert f"CHECKPOINT {newest} IS DAMAGED" in again.stderr
    assert_same_run(folder, undisturbed)


@pytest.mark.slow
def test_a_run_resumes_with_blocks_in_a_loop(tmp_path):
    """Checkpoints do not depend on `model.scan`, so a run can move from a CPU to a GPU."""
    changes = {"model__depth": 20, "steps": 12, "log__every": 1, "checkpoint__every": 3}
    undisturbed, folder = tmp_path / "undisturbed", tmp_path / "run"
    assert tiny.launch(undisturbed, **changes).returncode == 0
    process = start(folder, **changes)
    wait_for_step(folder, process, 2)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 42
    again = tiny.launch(folder, model__scan="on", **changes)
    assert again.returncode == 0, again.stderr
    done = int(re.search(r"resumes at step (\d+)", again.stderr)[1])
    losses, expected = (
        np.array([row["train/loss"] for row in tiny.lines(f) if "train/loss" in row])
        for f in (folder, undisturbed)
    )
    assert losses.shape == (12,)
    np.testing.assert_allclose(losses[: done + 1], expected[: done + 1], rtol=1e-4)
    # A loop rounds differently, so some activation eventually ends on the other side of 0.
    np.testing.assert_allclose(losses, expected, rtol=0.02)
