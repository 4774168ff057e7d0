"""The launcher on a real Slurm: two nodes, preemption, a lost node, a cancelled job."""

import contextlib
import itertools
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest

from resnet_jax import settings
from resnet_jax.runs import reader, records
from tests import tiny
from tests.launchers.try_slurm import NEEDED, NODES, Cluster
from tests.study.test_tuning import STUDY

absent = [name for name in NEEDED if shutil.which(name) is None]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(absent), reason=f"not installed: {', '.join(absent)}"),
]

DIGITS = "--config=configs/degradation_digits.py:one_rate"
CELLS = ("plain-8", "resnet-8-A", "resnet-8-B")
EVERY = 50  # steps between checkpoints
STEPS = 2500


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    slurm = Cluster(tmp_path_factory.mktemp("slurm"))
    slurm.start(cpus=2)
    yield slurm
    slurm.stop()


def sweep(cluster, folder, *flags):
    """Runs the sweep program on a study of small cells; returns its output."""
    c = tiny.config(
        steps=STEPS, checkpoint__every=EVERY, log__every=10, eval__every=1000, model__bn_group=8
    )
    before = settings.flatten(tiny.digits.get_config().to_dict())
    after = settings.flatten(c.to_dict())
    base = [f"--config.base.{k}={v}" for k, v in after.items() if v != before[k]]
    base = [flag for flag in base if not flag.startswith("--config.base.model.depth")]
    command = [
        sys.executable, "-m", "experiments.sweep", DIGITS, f"--workdir={folder}",
        "--launcher=slurm", *base, "--config.base.replicates=1",
        "--config.grid.model.depth=(8,)", "--config.grid.model.shortcut=('none','A','B')", *flags,
    ]  # fmt: skip
    environment = {k: v for k, v in cluster.environment.items() if k != "XLA_FLAGS"}
    done = subprocess.run(
        command, cwd=tiny.ROOT, env=environment | {"JAX_PLATFORMS": "cpu"},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def status(folder, cell):
    path = folder / cell
    return reader.read(path).status if (path / "config.json").is_file() else {}


def until(condition, what, seconds=240):
    give_up = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < give_up, f"timed out waiting until {what}"
        time.sleep(0.3)


def step_of(folder, cell):
    rows = records.read_metrics(folder / cell)
    return rows[-1]["step"] if rows else 0


def all_completed(folder, cells=CELLS):
    return all(status(folder, cell).get("status") == "completed" for cell in cells)


def jobs_of(cluster, folder):
    """Returns {cell: (job, state, node)} as --status prints it."""
    printed = sweep(cluster, folder, "--status")
    found = re.findall(r"^(\S+) +\w+ +(\d+_\d+) ([A-Z]+)(?: on (\S+))?", printed, re.MULTILINE)
    return {cell: (job, state, node) for cell, job, state, node in found}


def launches(folder, cell):
    """Returns the steps that each launch of a cell began at and logged."""
    text = (folder / cell / "log.txt").read_text()
    parts = re.split(r"(?:starts at|resumes at) step (\d+)\.", text)[1:]
    return [
        (int(start), [int(step) for step in re.findall(r": step (\d+)/\d+,", said)])
        for start, said in zip(parts[::2], parts[1::2], strict=True)
    ]


def assert_nothing_was_done_twice(folder, cell):
    """Each launch starts from the last checkpoint of the launch before."""
    found = launches(folder, cell)
    assert found[0][0] == 0
    for (_, logged), (start, again) in itertools.pairwise(found):
        reached = max(logged, default=0)
        assert start >= reached - 2 * EVERY  # a save takes a while in the background
        assert all(step > start for step in again)
    steps = [row["step"] for row in records.read_metrics(folder / cell)]
    assert steps == sorted(set(steps))


@contextlib.contextmanager
def held(folder):
    """Stops the programs of a study's cells during the block, so that none ends meanwhile."""
    pids = []
    for path in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            program, *words = path.read_bytes().decode(errors="replace").split("\0")
            if "python" in program and any(
                word.startswith(f"--workdir={folder}/") for word in words
            ):
                pids.append(int(path.parent.name))
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield len(pids)
    finally:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):  # of the lost node
                os.kill(pid, signal.SIGCONT)


@pytest.fixture(scope="module")
def undisturbed(cluster, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    said = sweep(cluster, folder)
    assert "Slurm's job is " in said
    until(lambda: all_completed(folder), "the undisturbed study is done")
    for cell in CELLS:  # the variable reached the cells through Slurm
        log = (folder / cell / "log.txt").read_text()
        assert f"Compiled programs are kept in {os.environ['JAX_COMPILATION_CACHE_DIR']}/" in log
    return folder


def test_every_cell_completes_whatever_happens_to_its_job(cluster, undisturbed, tmp_path):
    folder = tmp_path / "a study"
    sweep(cluster, folder, "--jobs=3")
    until(lambda: all(step_of(folder, cell) > 2 * EVERY for cell in CELLS), "all cells train")
    # Two cells share a node: one of them is cancelled, the other is preempted by a job of higher
    # priority. The third cell's node is lost.
    with held(folder) as programs:
        assert programs == 3
        jobs = jobs_of(cluster, folder)
        assert {state for _, state, _ in jobs.values()} == {"RUNNING"}
        assert {node for _, _, node in jobs.values()} == set(NODES)
        by_node = {node: [c for c in CELLS if jobs[c][2] == node] for node in NODES}
        (lost,), (preempted, cancelled) = sorted(by_node.values(), key=len)
        cluster.lose_node(jobs[lost][2])
        said = sweep(cluster, folder, "--cancel", f"--only={cancelled}")
        assert f"Cancelled: {cancelled}." in said
        cluster.run("sbatch", "--partition=high", f"--nodelist={jobs[preempted][2]}", "--exclusive",
                    f"--output={tmp_path}/high.txt", "--wrap=sleep 3")  # fmt: skip

    until(lambda: status(folder, cancelled).get("status") == "preempted", "the cancelled one saved")
    until(lambda: len(launches(folder, preempted)) == 2, "the preempted one is back")
    until(lambda: jobs_of(cluster, folder)[lost][2] != jobs[lost][2], "the lost one is requeued")
    cluster.start_node(jobs[lost][2])
    assert jobs_of(cluster, folder)[cancelled][1] == "CANCELLED"
    said = sweep(cluster, folder, "--cancel", f"--only={cancelled}")
    assert "Cancelled: no cell was queued or running." in said

    # The same command submits the cancelled cell again, and no other.
    assert "Cells submitted: 1." in sweep(cluster, folder)
    assert "There is nothing to submit." in sweep(cluster, folder)
    until(lambda: all_completed(folder), "all cells are done")
    for cell in CELLS:
        assert len(launches(folder, cell)) == 2
        assert_nothing_was_done_twice(folder, cell)
        assert tiny.lines(folder / cell) == tiny.lines(undisturbed / cell)
        tiny.assert_bit_equal(tiny.final_state(folder / cell), tiny.final_state(undisturbed / cell))
    # A job that is asked to stop loses no step.
    for cell in (preempted, cancelled):
        (_, logged), (start, _) = launches(folder, cell)
        assert max(logged) <= start < max(logged) + 10
    assert "There is nothing to submit." in sweep(cluster, folder)
    until(
        lambda: {state for _, state, _ in jobs_of(cluster, folder).values()} == {"COMPLETED"},
        "Slurm has noticed",
    )


def test_a_cell_over_two_nodes_is_preempted_and_resumes(cluster, tmp_path):
    # Two processes are slower than one, so that fewer steps are enough.
    only = ("--only=resnet-8-A", "--nodes=2", "--time=10:00", "--config.base.steps=800")
    sweep(cluster, tmp_path / "whole", *only)
    cell = ["resnet-8-A"]
    until(lambda: all_completed(tmp_path / "whole", cell), "the undisturbed one is done")
    folder = tmp_path / "study"
    sweep(cluster, folder, *only)
    until(lambda: step_of(folder, cell[0]) > 2 * EVERY, "it trains")
    cluster.run("sbatch", "--partition=high", f"--nodelist={NODES[1]}", "--exclusive",
                f"--output={tmp_path}/high.txt", "--wrap=sleep 3")  # fmt: skip
    until(lambda: all_completed(folder, cell), "it is done")
    found = reader.read(folder / cell[0])
    assert len(found.environment["hosts"]) == len(found.environment["devices"]) == 2
    assert len(launches(folder, cell[0])) == 2
    assert_nothing_was_done_twice(folder, cell[0])
    (_, logged), (start, _) = launches(folder, cell[0])
    assert max(logged) <= start < max(logged) + 10
    assert tiny.lines(folder / cell[0]) == tiny.lines(tmp_path / "whole" / cell[0])


def test_one_command_runs_both_stages_of_a_tuned_study(cluster, tmp_path):
    file, folder = tmp_path / "study.py", tmp_path / "a study"
    file.write_text(STUDY)
    cells = {"plain-56-rate=0.1": "fail", "plain-20-rate=1": "preempted once"}
    losses = {"plain-20-rate=0.01": 0.4, "plain-20-rate=0.001": 0.3, "plain-20-rate=0.0001": 0.35}
    environment = cluster.environment | {
        "JAX_PLATFORMS": "cpu", "FAKE_CELLS": json.dumps(cells), "FAKE_LOSSES": json.dumps(losses),
    }  # fmt: skip

    def fake_sweep(*flags):
        done = subprocess.run(
            [sys.executable, "-m", "tests.study.sweep_fake", f"--config={file}",
             f"--workdir={folder}", "--launcher=slurm", "--extend", *flags],
            cwd=tiny.ROOT, env=environment, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr

    assert re.search(
        r"wait for their pilots to end: 2\. Slurm's job \d+ submits them", fake_sweep()
    )
    assert re.search(r"next stage is started by job \d+_0 [A-Z]+", fake_sweep("--status"))
    until(lambda: all_completed(folder, ["plain-20"]), "the cell at its best rate is done")
    until(lambda: not cluster.run("squeue", "--noheader"), "the queue is empty")
    # The rate was extended twice; a cell with a failed pilot was not trained, nor was this pilot.
    assert reader.read(folder / "plain-20").config["schedule"]["rate"] == 0.001
    assert not (folder / "plain-56").exists()
    lines = (folder / "pilots" / "slurm" / "jobs.jsonl").read_text().splitlines()
    jobs = [json.loads(line) for line in lines]
    submitted = [job["cells"] for job in jobs if "after" not in job]
    assert len(submitted[0]) == 6
    assert submitted[1:] == [["plain-20-rate=0.001"], ["plain-20-rate=0.0001"]]
    assert len(jobs) == 6  # each of them has its follow-up
    # Without --only_new, the failed pilot is submitted again; cancelling includes its follow-up.
    environment["FAKE_CELLS"] = json.dumps({"plain-56-rate=0.1": "wait"})
    assert "Cells submitted: 1." in fake_sweep()
    assert re.search(r"Cancelled: (?=.*sweep-\d)(?=.*plain-56-rate=0.1)", fake_sweep("--cancel"))


def test_an_impossible_job_is_refused_in_one_sentence(cluster, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "experiments.sweep", DIGITS,
         f"--workdir={tmp_path / 'study'}", "--launcher=slurm", "--partition=none"],
        cwd=tiny.ROOT, env=cluster.environment | {"JAX_PLATFORMS": "cpu"},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: sbatch failed: Batch job submission failed: Invalid partition")
    assert "Traceback" not in done.stderr
