"""The flags that choose the launcher of a study's cells, and its options."""

from absl import flags

from experiments.launchers import skypilot, slurm
from experiments.launchers.interface import Queue
from experiments.launchers.slurm_scripts import SlurmOptions
from resnet_jax.allowed import check_choice
from resnet_jax.errors import UserError, listing
from resnet_jax.runs import storage

LAUNCHERS = ("local", "slurm", "skypilot")

_LAUNCHER = flags.DEFINE_string("launcher", "local", f"Starts the cells: {listing(LAUNCHERS)}.")
JOBS = flags.DEFINE_integer(
    "jobs",
    0,
    "Cells at a time; 0: one per core or TPU chip, on GPUs the fastest number.",
    lower_bound=0,
)
ONLY_NEW = flags.DEFINE_bool(
    "only_new",
    False,
    "Slurm, SkyPilot: submit only what was never submitted before; otherwise, what failed or was "
    "cancelled is submitted again.",
)
_NODES = flags.DEFINE_integer("nodes", 1, "Slurm, SkyPilot: nodes per cell.", lower_bound=1)

_PARTITION = flags.DEFINE_string("partition", "", "Slurm: the partition.")
_ACCOUNT = flags.DEFINE_string("account", "", "Slurm: the account.")
_TIME = flags.DEFINE_string(
    "time", "", "Slurm: the time limit, for example 12:00:00; cells are requeued and resume."
)
_GRES = flags.DEFINE_string("gres", "", "Slurm: resources per node, for example gpu:8.")
_TASKS = flags.DEFINE_integer(
    "tasks_per_node", 1, "Slurm: processes per node; one for all its GPUs, or one per GPU.",
    lower_bound=1,
)  # fmt: skip
_CPUS = flags.DEFINE_integer("cpus_per_task", 0, "Slurm: CPUs per process; 0: Slurm's default.")
_SBATCH = flags.DEFINE_multi_string("sbatch", [], "Slurm: an extra option, such as '--qos=low'.")

_ACCELERATORS = flags.DEFINE_string(
    "accelerators", "", "SkyPilot: accelerators per node, such as tpu-v6e-16 or H100:8."
)
_INFRA = flags.DEFINE_string("infra", "", "SkyPilot: the cloud, such as gcp or gcp/us-east5.")
_SPOT = flags.DEFINE_bool("spot", True, "SkyPilot: use preemptible machines.")
_MOUNT = flags.DEFINE_multi_string(
    "mount", [], "SkyPilot: mount a bucket, such as /data=gs://BUCKET/tensorflow_datasets."
)
_RESOURCE = flags.DEFINE_multi_string(
    "resource", [], "SkyPilot: an extra entry of its resources, such as disk_size=500."
)

_LAUNCHERS_OF_FLAGS = {
    "jobs": (JOBS, ("local", "slurm")),
    "only_new": (ONLY_NEW, ("slurm", "skypilot")),
    "nodes": (_NODES, ("slurm", "skypilot")),
    **{
        flag.name: (flag, ("slurm",))
        for flag in (_PARTITION, _ACCOUNT, _TIME, _GRES, _TASKS, _CPUS, _SBATCH)
    },
    **{
        flag.name: (flag, ("skypilot",))
        for flag in (_ACCELERATORS, _INFRA, _SPOT, _MOUNT, _RESOURCE)
    },
}


def chosen_queue(workdir: storage.Path) -> Queue | None:
    """Returns the chosen scheduler, or None for this machine.

    Raises:
      UserError: there is no such launcher, or a flag belongs to another one.
    """
    launcher = _LAUNCHER.value
    check_choice("--launcher", launcher, LAUNCHERS)
    for name, (flag, launchers) in _LAUNCHERS_OF_FLAGS.items():
        if flag.value != flag.default and launcher not in launchers:
            others = listing(f"--launcher={other}" for other in launchers)
            raise UserError(f"--{name} is for {others}; this is --launcher={launcher}.")
    if launcher == "slurm":
        options = SlurmOptions(
            _PARTITION.value, _ACCOUNT.value, _TIME.value, _GRES.value, _NODES.value,
            _TASKS.value, _CPUS.value, JOBS.value, tuple(_SBATCH.value),
        )  # fmt: skip
        return slurm.Slurm(workdir, options)
    if launcher == "skypilot":
        return skypilot.SkyPilot(
            workdir,
            skypilot.SkyPilotOptions(
                _ACCELERATORS.value, _INFRA.value, _SPOT.value, _NODES.value,
                tuple(_MOUNT.value), tuple(_RESOURCE.value),
            ),
        )  # fmt: skip
    return None
