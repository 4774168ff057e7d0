"""Which cluster a process is told to join, and what it is told."""

import os
import subprocess
import sys

import pytest

from resnet_jax.errors import RunError
from resnet_jax.parallel import clusters, processes
from tests import tiny

STEP = {
    "SLURM_JOB_ID": "12",
    "SLURM_STEP_NODELIST": "node[1-2]",
    "SLURM_STEP_NUM_TASKS": "2",
    "SLURM_NTASKS": "8",
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "1",
    "SLURM_STEP_TASKS_PER_NODE": "1(x2)",
}
POD = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "0"}


def without(name):
    return {key: value for key, value in STEP.items() if key != name}


@pytest.mark.parametrize(
    ("environment", "files", "cluster"),
    [
        ({}, [], ""),
        (STEP, [], "slurm"),
        (without("SLURM_STEP_NODELIST"), [], ""),  # in a batch script, outside of srun
        (without("SLURM_PROCID"), [], ""),
        (POD, [], "kubernetes"),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, [], ""),  # a pod of no indexed Job
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, [], "tpu"),
        (POD | {"TPU_WORKER_HOSTNAMES": "a,b"}, [], "tpu"),
        ({}, ["accel0"], "tpu"),
        ({}, ["vfio/0"], "tpu"),
        ({}, ["vfio/vfio", "null"], ""),
        ({"JAX_PLATFORMS": "cpu"}, ["accel0"], ""),
        ({"JAX_PLATFORMS": "tpu,cpu"}, ["accel0"], "tpu"),
        (STEP, ["accel0"], "slurm"),
    ],
)
def test_who_has_started_it(environment, files, cluster, tmp_path):
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert clusters.detect(environment, tmp_path, has_libtpu=True) == cluster
    if files and cluster == "tpu":  # something else, on a machine that cannot use a TPU
        assert clusters.detect(environment, tmp_path, has_libtpu=False) == ""
    assert cluster in ("", *clusters.CLUSTERS)


def test_a_step_of_slurm_counts_its_own_processes():
    assert clusters.arguments("slurm", STEP) == {"num_processes": 2, "process_id": 1}
    assert clusters.arguments("kubernetes", STEP) == {}


@pytest.mark.parametrize(
    ("tasks", "node", "gpus", "told"),
    [
        ("1", "0", "8", list(range(8))),  # one process has all GPUs of its node
        ("1(x2)", "1", "4", list(range(4))),
        ("2(x3),1", "3", "2", [0, 1]),
        ("8(x2)", "1", "8", None),  # one process a GPU: JAX gives each its own
        ("1", "0", "1", None),
    ],
)
def test_gpus_of_a_process(tasks, node, gpus, told):
    environment = STEP | {
        "SLURM_STEP_TASKS_PER_NODE": tasks,
        "SLURM_NODEID": node,
        "SLURM_GPUS_ON_NODE": gpus,
    }
    assert clusters.arguments("slurm", environment).get("local_device_ids") == told


def test_kubernetes_without_its_package_is_said(monkeypatch):
    monkeypatch.setattr(clusters, "detect", lambda *_: "kubernetes")
    with pytest.raises(RunError, match=r"pip install 'jax\[k8s\]', or train alone"):
        processes.initialize_cluster()


@pytest.mark.slow
def test_one_process_of_a_step_trains_and_one_outside_does_not_ask(tmp_path):
    """What a job of one process sees: JAX's service runs, so that it hears of preemption."""
    environment = tiny.environment() | STEP | {"JAX_PLATFORMS": "cpu"}
    environment |= {"SLURM_STEP_NODELIST": "127.0.0.1", "SLURM_STEP_NUM_TASKS": "1",
                    "SLURM_NTASKS": "1", "SLURM_PROCID": "0"}  # fmt: skip
    code = (
        "from resnet_jax.parallel import processes as d; d.initialize_cluster();"
        "print(d.is_distributed(), d.is_primary())"
    )
    for changed, words in (({}, "True True"), ({"SLURM_PROCID": None}, "False True")):
        given = {k: v for k, v in (environment | changed).items() if v is not None}
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=tiny.ROOT, env=given, capture_output=True, text=True
        )
        assert done.stdout.strip() == words, done.stderr
    command = [*tiny.command(tmp_path / "run", steps=4), "--cluster=none"]
    done = subprocess.run(
        command, cwd=tiny.ROOT, capture_output=True, text=True,
        env=environment | {"SLURM_STEP_NUM_TASKS": "2"},  # another that never comes
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert os.path.isdir(tmp_path / "run" / "checkpoints" / "4")
