"""Which cluster started this process, if any, and what JAX must be told to meet the others there.

JAX finds the addresses itself: on Slurm inside of `srun`, on Cloud TPU, and on Kubernetes (Jobs and
JobSets, with the kubernetes package). Here it is only decided whether to ask: a process that asks
where nobody answers stops, and one that waits for others who never come hangs.
"""

import pathlib
from collections.abc import Mapping
from typing import Any

CLUSTERS = ("slurm", "kubernetes", "tpu")
_SLURM_STEP = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_STEP_NUM_TASKS", "SLURM_PROCID",
               "SLURM_LOCALID")  # fmt: skip
_TPU_DEVICES = ("accel*", "vfio/[0-9]*")


def detect(environment: Mapping[str, str], devices: pathlib.Path, has_libtpu: bool) -> str:
    """Returns one of CLUSTERS, or nothing where the process stands alone.

    Args:
      environment: the process's variables.
      devices: where TPUs appear as files: /dev.
      has_libtpu: whether JAX could use a TPU; other devices have files of the same names.
    """
    if all(name in environment for name in _SLURM_STEP):
        return "slurm"
    # A JobSet on GKE with TPUs has both; JAX finds the addresses among its TPU variables.
    has_files = any(any(devices.glob(pattern)) for pattern in _TPU_DEVICES)
    if "TPU_WORKER_HOSTNAMES" in environment or (has_libtpu and has_files):
        return "tpu" if environment.get("JAX_PLATFORMS", "") in ("", "tpu", "tpu,cpu") else ""
    if {"KUBERNETES_SERVICE_HOST", "JOB_COMPLETION_INDEX"} <= environment.keys():
        return "kubernetes"
    return ""


def arguments(cluster: str, environment: Mapping[str, str]) -> dict[str, Any]:
    """Returns what jax.distributed.initialize() is to be told beside what it finds itself."""
    if cluster != "slurm":
        return {}
    told: dict[str, Any] = {
        # JAX would take those of the job, of which this step may have fewer.
        "num_processes": int(environment["SLURM_STEP_NUM_TASKS"]),
        "process_id": int(environment["SLURM_PROCID"]),
    }
    gpus = int(environment.get("SLURM_GPUS_ON_NODE", "0"))
    here = _tasks_on_this_node(environment)
    if here == 1 and gpus > 1:
        # JAX would give the process of a node the first of its GPUs only.
        told["local_device_ids"] = list(range(gpus))
    return told


def _tasks_on_this_node(environment: Mapping[str, str]) -> int:
    """Returns how many processes of the step run on this node; Slurm writes ``2(x3),1``."""
    counts: list[int] = []
    for part in environment.get("SLURM_STEP_TASKS_PER_NODE", "1").split(","):
        count, _, times = part.partition("(x")
        counts += [int(count)] * int(times.rstrip(")") or 1)
    node = int(environment.get("SLURM_NODEID", "0"))
    return counts[min(node, len(counts) - 1)]
