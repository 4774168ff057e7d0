"""How a sweep runs its cells; the cells of sweep_fake.py train nothing."""

import json
import os
import pathlib
import shlex
import signal
import subprocess
import sys
import time

import pytest

from configs import degradation_digits
from experiments.launchers import local
from experiments.report.claims import naming
from resnet_jax.parallel.cores import usable_cores
from resnet_jax.runs import reader
from tests import tiny
from tests.study import sweep_fake

STUDY = "configs/degradation_digits.py:one_rate"
CELLS = ("plain-56", "resnet-56-A", "plain-20", "resnet-20-A")  # the longest first


def sweep(workdir, *flags, study=STUDY, cells=None, losses=None):
    """Starts a sweep of fake cells."""
    environment = tiny.environment() | {
        "JAX_PLATFORMS": "cpu",
        "FAKE_CELLS": json.dumps(cells or {}),
        "FAKE_LOSSES": json.dumps(losses or {}),
    }
    command = [
        sys.executable,
        "-m",
        "tests.study.sweep_fake",
        f"--config={study}",
        f"--workdir={workdir}",
        *flags,
    ]
    return subprocess.Popen(
        command, cwd=tiny.ROOT, env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def outcome(process):
    out, said = process.communicate(timeout=60)
    assert "Traceback" not in said
    return process.returncode, out, said


def statuses(workdir):
    return {run.name: run.status["status"] for run in reader.find([workdir])}


def until(condition, seconds=30.0):
    end = time.time() + seconds
    while not condition():
        assert time.time() < end, "timed out"
        time.sleep(0.05)


def running(workdir):
    return [p.parent.name for p in pathlib.Path(workdir).glob("*/status.json")
            if json.loads(p.read_text())["status"] == "running"]  # fmt: skip


def most_at_once(launches):
    return max(sum(a["start"] <= b["start"] < a["end"] for a in launches) for b in launches)


def test_cells_run_two_at_a_time_longest_first_each_on_its_cores(tmp_path):
    code, out, said = outcome(sweep(tmp_path, "--jobs=2"))
    assert code == 0, said
    named = naming.read(tmp_path)
    assert {id: one.before_runs for id, one in named.items()} == dict.fromkeys(
        degradation_digits.get_config("one_rate").claims, True
    )
    launches = sweep_fake.started(tmp_path)
    assert {line["cell"] for line in launches} == set(CELLS)
    assert {line["cell"] for line in sorted(launches, key=lambda line: line["start"])[:2]} == set(
        CELLS[:2]
    )
    assert most_at_once(launches) == 2
    mine = usable_cores()
    shares = {tuple(line["cores"]) for line in launches}
    assert shares == {tuple(local.share_of(n, 2, mine)) for n in range(2)}
    assert statuses(tmp_path) == dict.fromkeys(CELLS, "completed")
    assert out.count("completed") == 4
    assert "plain-20: started" in said
    # The sweep must not keep a narrow affinity for itself.
    assert usable_cores() == mine


def test_one_job_has_all_cores(tmp_path):
    code, _, _ = outcome(sweep(tmp_path, "--jobs=1", "--only=*-20*"))
    launches = sweep_fake.started(tmp_path)
    assert code == 0
    assert most_at_once(launches) == 1
    assert {tuple(line["cores"]) for line in launches} == {tuple(usable_cores())}
    assert set(statuses(tmp_path)) == {"plain-20", "resnet-20-A"}


def test_a_resumed_cell_gets_as_many_cores_as_before(tmp_path):
    """Otherwise its last digits would depend on which other cells were left to run."""
    outcome(sweep(tmp_path, "--jobs=2", "--only=plain-20"))
    (launch,) = sweep_fake.started(tmp_path)
    assert launch["cores"] == local.share_of(0, 2, usable_cores())


def test_only_a_failed_cell_runs_again(tmp_path):
    cells = {"plain-56": "fail", "plain-20": "fail_itself", "resnet-20-A": "diverge"}
    code, out, said = outcome(sweep(tmp_path, "--jobs=2", cells=cells))
    assert code == 1
    assert statuses(tmp_path) == {
        "plain-56": "failed", "resnet-56-A": "completed",
        "plain-20": "failed", "resnet-20-A": "diverged",
    }  # fmt: skip
    for shown in (out, said):
        assert "the disk is on fire" in shown
        assert "its own reason" in shown
        assert str(tmp_path / "plain-56" / "log.txt") in shown
    assert "plain-56: FAILED" in said
    before = len(sweep_fake.started(tmp_path))

    code, _, said = outcome(sweep(tmp_path, "--jobs=2"))
    assert code == 0, said
    assert {line["cell"] for line in sweep_fake.started(tmp_path)[before:]} == {
        "plain-56", "plain-20",
    }  # fmt: skip
    log = (tmp_path / "plain-56" / "log.txt").read_text()
    assert log.count("---") == 2  # both launches append to it
    assert log.count("this is plain-56") == 2
    assert "the disk is on fire" in log

    before = len(sweep_fake.started(tmp_path))
    code, out, _ = outcome(sweep(tmp_path))
    assert code == 0
    assert len(sweep_fake.started(tmp_path)) == before
    assert out.count("completed") == 3


def test_a_cell_whose_files_cannot_be_read_does_not_stop_the_others(tmp_path):
    cells = {"plain-56": "garbled"}
    code, _, said = outcome(sweep(tmp_path, "--jobs=1", "--only=plain-*", cells=cells))
    assert "plain-56/metrics.jsonl line 1 is not JSON" in said
    assert json.loads((tmp_path / "plain-20" / "status.json").read_text())["status"] == "completed"
    assert code == 2  # the table at the end cannot be made
    assert said.splitlines()[-1].startswith("error: ")


def test_cells_that_cannot_say_how_they_ended(tmp_path):
    cells = {"plain-56": "killed", "plain-20": "silent"}
    code, _, _ = outcome(sweep(tmp_path, "--only=plain-*", cells=cells))
    assert code == 1
    reasons = {run.name: run.status["reason"] for run in reader.find([tmp_path])}
    assert "SIGKILL" in reasons["plain-56"]
    assert "ended before the run did" in reasons["plain-20"]
    assert "this is plain-20" in reasons["plain-20"]


def test_an_old_failure_is_not_taken_for_a_new_one(tmp_path):
    outcome(sweep(tmp_path, "--only=plain-20", cells={"plain-20": "fail_itself"}))
    outcome(sweep(tmp_path, "--only=plain-20", cells={"plain-20": "fail"}))
    (run,) = reader.find([tmp_path])
    assert run.status["reason"] == "the disk is on fire"
    assert run.status["step"] == 4  # its progress is kept
    assert run.status["device_seconds"] == 1.0


def test_a_preempted_cell_is_no_failure(tmp_path):
    code, out, said = outcome(sweep(tmp_path, "--only=*-20*", cells={"plain-20": "preempted"}))
    assert code == 42
    assert statuses(tmp_path) == {"plain-20": "preempted", "resnet-20-A": "completed"}
    assert "plain-20: preempted" in said
    assert "preempted" in out


@pytest.mark.parametrize(
    "number",
    [
        signal.SIGTERM,
        pytest.param(signal.SIGINT, marks=pytest.mark.slow),
        pytest.param(signal.SIGHUP, marks=pytest.mark.slow),
    ],
)
def test_a_signal_reaches_the_cells_once_and_nothing_more_starts(tmp_path, number):
    # One ends long before the other: no other cell may take its place.
    process = sweep(tmp_path, "--jobs=2", cells={"plain-56": "wait", "resnet-56-A": "linger"})
    until(lambda: len(running(tmp_path)) == 2)
    process.send_signal(number)
    code, _, said = outcome(process)
    assert code == 42
    assert number.name in said
    assert statuses(tmp_path) == {
        "plain-56": "preempted", "resnet-56-A": "preempted",
        "plain-20": "queued", "resnet-20-A": "queued",
    }  # fmt: skip
    code, _, _ = outcome(sweep(tmp_path, "--jobs=2"))
    assert code == 0
    assert statuses(tmp_path) == dict.fromkeys(CELLS, "completed")


def test_ctrl_c_on_the_terminal_does_not_reach_the_cells_twice(tmp_path):
    process = sweep(tmp_path, "--only=plain-20", cells={"plain-20": "wait"})
    until(lambda: running(tmp_path))
    pid = json.loads((tmp_path / "plain-20" / "status.json").read_text())["pid"]
    # A terminal signals its foreground process group; the cell must be in another.
    assert os.getpgid(pid) != os.getpgid(process.pid)
    process.terminate()
    assert outcome(process)[0] == 42


def test_a_second_signal_kills(tmp_path):
    process = sweep(tmp_path, "--only=plain-20", cells={"plain-20": "deaf"})
    until(lambda: running(tmp_path))
    pid = json.loads((tmp_path / "plain-20" / "status.json").read_text())["pid"]
    process.terminate()
    time.sleep(1.5)  # a signal that follows at once counts as the same request
    assert process.poll() is None  # it waits for the cell
    process.terminate()
    code, out, _ = outcome(process)
    assert code == 1
    assert "interrupted" in out
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_cell_that_another_process_trains_is_refused(tmp_path):
    first = sweep(tmp_path, "--only=plain-20", cells={"plain-20": "wait"})
    until(lambda: running(tmp_path))
    code, _, said = outcome(sweep(tmp_path, "--only=*-20*"))
    assert code == 2
    assert "Another process is training" in said
    assert not sweep_fake.started(tmp_path)
    first.terminate()
    outcome(first)


@pytest.mark.slow
def test_a_cell_that_outlives_its_killed_sweep_is_not_trained_twice(tmp_path):
    process = sweep(tmp_path, "--only=plain-20", cells={"plain-20": "wait"})
    until(lambda: running(tmp_path))
    process.kill()
    outcome(process)
    left = json.loads((tmp_path / "plain-20" / "status.json").read_text())["pid"]
    os.kill(left, 0)  # raises if it died with the sweep
    code, _, said = outcome(sweep(tmp_path, "--only=*-20*"))
    assert code == 2
    assert f"Another process is training in {tmp_path / 'plain-20'}" in said
    os.kill(left, signal.SIGTERM)
    until(lambda: statuses(tmp_path)["plain-20"] == "preempted")
    until(lambda: outcome(sweep(tmp_path, "--only=*-20*"))[0] == 0)  # it may still be exiting
    assert statuses(tmp_path) == {"plain-20": "completed", "resnet-20-A": "completed"}


def test_a_foreign_folder_is_refused_before_anything_starts(tmp_path):
    outcome(sweep(tmp_path, "--only=resnet-20-A"))
    before = sorted(tmp_path.rglob("*"))
    code, _, said = outcome(sweep(tmp_path, "--config.base.schedule.rate=0.3"))
    assert code == 2
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    assert "resnet-20-A" in said
    assert "schedule.rate (0.02 there, 0.3 here)" in said
    assert sorted(tmp_path.rglob("*")) == before


def test_shares_cover_the_cores_and_never_overlap():
    cores = [0, 1, 2, 5, 6, 7, 8]
    for at_once in range(1, 8):
        shares = [local.share_of(n, at_once, cores) for n in range(at_once)]
        assert [core for share in shares for core in share] == cores
        assert max(map(len, shares)) - min(map(len, shares)) <= 1
    assert [local.share_of(n, 5, [4, 5]) for n in range(5)] == [[4], [5], [4], [5], [4]]


def test_commands_are_printed_and_run_elsewhere(tmp_path):
    code, printed, said = outcome(sweep(tmp_path / "study", "--commands"))
    assert code == 0, said
    lines = printed.splitlines()
    assert [line.split("/")[-1] for line in lines] == list(CELLS)
    assert set(statuses(tmp_path / "study").values()) == {"queued"}
    assert (tmp_path / "study" / "claims.json").is_file()
    for line in lines[:3]:
        program, *arguments = shlex.split(line)
        assert program == ".venv/bin/python"
        subprocess.run([sys.executable, *arguments], cwd=tiny.ROOT, check=True)
    code, printed, _ = outcome(sweep(tmp_path / "study", "--commands"))
    assert printed.splitlines() == lines[3:]
    code, _, said = outcome(sweep(tmp_path / "study", "--commands", "--launcher=slurm"))
    assert code == 2
    assert "--commands has no effect with --launcher=slurm" in said
