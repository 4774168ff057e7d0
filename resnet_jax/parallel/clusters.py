"""Detects the cluster that started this process, and the arguments that JAX needs to join it.

JAX finds the addresses itself: on Slurm inside `srun`, on Cloud TPU, and on Kubernetes (Jobs and
JobSets, with the kubernetes package). This module decides only whether to join: outside a cluster
joining fails, and it hangs if the other processes never start.
"""

import pathlib
from collections.abc import Mapping

CLUSTERS = ("slurm", "kubernetes", "tpu")
_SLURM_STEP = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_STEP_NUM_TASKS", "SLURM_PROCID",
               "SLURM_LOCALID")  # fmt: skip
_TPU_DEVICES = ("accel*", "vfio/[0-9]*")
_FIRST_PORT = 8476  # libtpu's default


def detect(environment: Mapping[str, str], devices: pathlib.Path, has_libtpu: bool) -> str:
    """Returns one of CLUSTERS, or "" if no cluster started this process.

    Args:
      environment: the process's environment variables.
      devices: the folder of device files, /dev.
      has_libtpu: whether JAX can use a TPU; other devices have files of the same names.
    """
    if all(name in environment for name in _SLURM_STEP):
        return "slurm"
    # Before Kubernetes: a GKE JobSet with TPUs is both, and JAX reads its TPU variables.
    if "TPU_WORKER_HOSTNAMES" in environment or (has_libtpu and tpu_chips(devices)):
        return "tpu" if environment.get("JAX_PLATFORMS", "") in ("", "tpu", "tpu,cpu") else ""
    if {"KUBERNETES_SERVICE_HOST", "JOB_COMPLETION_INDEX"} <= environment.keys():
        return "kubernetes"
    return ""


def tpu_chips(devices: pathlib.Path) -> int:
    """Returns the number of TPU chips of this host, if it has libtpu, from the folder /dev.

    JAX cannot be asked: it would wait for the other hosts of the slice.
    """
    return max(len(list(devices.glob(pattern))) for pattern in _TPU_DEVICES)


def one_chip(chip: int) -> dict[str, str]:
    """Returns the variables with which a process has one TPU chip of its host to itself.

    It joins no other process of the slice; JAX's own tests of several processes set the same ones.
    """
    port = str(_FIRST_PORT + chip)
    return {
        "TPU_VISIBLE_CHIPS": str(chip),
        "TPU_CHIPS_PER_PROCESS_BOUNDS": "1,1,1",
        "TPU_PROCESS_BOUNDS": "1,1,1",
        "TPU_PROCESS_ADDRESSES": f"localhost:{port}",
        "TPU_PROCESS_PORT": port,
        "CLOUD_TPU_TASK_ID": "0",
    }


def arguments(cluster: str, environment: Mapping[str, str]) -> dict[str, int | list[int]]:
    """Returns the arguments of jax.distributed.initialize() that it would get wrong by itself."""
    if cluster != "slurm":
        return {}
    result: dict[str, int | list[int]] = {
        # JAX would take the job's numbers; this step may have fewer processes.
        "num_processes": int(environment["SLURM_STEP_NUM_TASKS"]),
        "process_id": int(environment["SLURM_PROCID"]),
    }
    gpus = int(environment.get("SLURM_GPUS_ON_NODE", "0"))
    if _tasks_on_this_node(environment) == 1 and gpus > 1:
        # JAX would use only the node's first GPU.
        result["local_device_ids"] = list(range(gpus))
    return result


def _tasks_on_this_node(environment: Mapping[str, str]) -> int:
    # Slurm writes "2(x3),1" for 2 tasks on each of three nodes and 1 on the fourth.
    counts: list[int] = []
    for part in environment.get("SLURM_STEP_TASKS_PER_NODE", "1").split(","):
        count, _, nodes = part.partition("(x")
        counts += [int(count)] * int(nodes.rstrip(")") or 1)
    node = int(environment.get("SLURM_NODEID", "0"))
    return counts[min(node, len(counts) - 1)]
