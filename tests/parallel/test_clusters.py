"""Which cluster a process joins, and with which arguments."""

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
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, [], ""),  # not a pod of an indexed Job
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
def test_the_cluster_is_detected(environment, files, cluster, tmp_path):
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert clusters.detect(environment, tmp_path, has_libtpu=True) == cluster
    if files and cluster == "tpu":  # another device, if JAX cannot use a TPU
        assert clusters.detect(environment, tmp_path, has_libtpu=False) == ""
    assert cluster in ("", *clusters.CLUSTERS)


@pytest.mark.parametrize(
    ("files", "chips"),
    [
        ([], 0),
        (["accel0", "accel1", "null"], 2),
        (["vfio/vfio", "vfio/0", "vfio/1", "vfio/2", "vfio/3"], 4),
    ],
)
def test_the_chips_of_a_host_are_its_device_files(files, chips, tmp_path):
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert clusters.tpu_chips(tmp_path) == chips


def test_a_slurm_step_counts_its_own_processes_not_the_jobs():
    assert clusters.arguments("slurm", STEP) == {"num_processes": 2, "process_id": 1}
    assert clusters.arguments("kubernetes", STEP) == {}


@pytest.mark.parametrize(
    ("tasks", "node", "gpus", "device_ids"),
    [
        ("1", "0", "8", list(range(8))),  # one process uses all GPUs of its node
        ("1(x2)", "1", "4", list(range(4))),
        ("2(x3),1", "3", "2", [0, 1]),
        ("8(x2)", "1", "8", None),  # one process per GPU: JAX assigns them
        ("1", "0", "1", None),
    ],
)
def test_gpus_of_a_process(tasks, node, gpus, device_ids):
    environment = STEP | {
        "SLURM_STEP_TASKS_PER_NODE": tasks,
        "SLURM_NODEID": node,
        "SLURM_GPUS_ON_NODE": gpus,
    }
    assert clusters.arguments("slurm", environment).get("local_device_ids") == device_ids


def test_kubernetes_without_its_package_is_an_error(monkeypatch):
    monkeypatch.setattr(clusters, "detect", lambda *_: "kubernetes")
    with pytest.raises(RunError, match=r"pip install 'jax\[k8s\]', or train alone"):
        processes.initialize_cluster()


@pytest.mark.slow
def test_a_process_joins_inside_a_slurm_step_only(tmp_path):
    """Even a job of one process joins, so that it receives preemption notices."""
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
        env=environment | {"SLURM_STEP_NUM_TASKS": "2"},  # the other never starts
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert os.path.isdir(tmp_path / "run" / "checkpoints" / "4")
