"""The flags that say what starts a study's cells, and what they ask of it."""

from absl import flags

from experiments.launchers import skypilot, slurm
from experiments.launchers.interface import Queue
from resnet_jax.allowed import check_choice
from resnet_jax.errors import UserError, listing
from resnet_jax.runs import storage

LAUNCHERS = ("local", "slurm", "skypilot")

_LAUNCHER = flags.DEFINE_string(
    "launcher", "local", f"What starts the cells: {listing(LAUNCHERS)}."
)
JOBS = flags.DEFINE_integer(
    "jobs",
    0,
    "Cells at a time; 0: one a core, on GPUs as many as train most, on TPU one.",
    lower_bound=0,
)
_NODES = flags.DEFINE_integer("nodes", 1, "Slurm, SkyPilot: nodes a cell.", lower_bound=1)

_PARTITION = flags.DEFINE_string("partition", "", "Slurm: the partition.")
_ACCOUNT = flags.DEFINE_string("account", "", "Slurm: the account.")
_TIME = flags.DEFINE_string("time", "", "Slurm: the limit, as 12:00:00; a cell goes on after it.")
_GRES = flags.DEFINE_string("gres", "", "Slurm: what to give each node, as gpu:8.")
_TASKS = flags.DEFINE_integer(
    "tasks_per_node", 1, "Slurm: processes a node, 1 with all its GPUs or one a GPU.", lower_bound=1
)
_CPUS = flags.DEFINE_integer("cpus_per_task", 0, "Slurm: CPUs a process; 0: its default.")
_SBATCH = flags.DEFINE_multi_string("sbatch", [], "Slurm: any other option, as '--qos=low'.")

_ACCELERATORS = flags.DEFINE_string(
    "accelerators", "", "SkyPilot: of each node, as tpu-v6e-16 or H100:8."
)
_INFRA = flags.DEFINE_string("infra", "", "SkyPilot: where, as gcp or gcp/us-east5.")
_SPOT = flags.DEFINE_bool("spot", True, "SkyPilot: machines that may be taken away.")
_MOUNT = flags.DEFINE_multi_string(
    "mount", [], "SkyPilot: a bucket as a folder, as /data=gs://BUCKET/tensorflow_datasets."
)
_RESOURCE = flags.DEFINE_multi_string(
    "resource", [], "SkyPilot: any other line of its resources, as disk_size=500."
)

_OF = {
    "jobs": (JOBS, ("local", "slurm")),
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


def queue(workdir: storage.Path) -> Queue | None:
    """Returns the scheduler that was asked for; None for this machine.

    Raises:
      UserError: there is no such launcher, or a flag is of another one.
    """
    launcher = _LAUNCHER.value
    check_choice("--launcher", launcher, LAUNCHERS)
    for name, (flag, launchers) in _OF.items():
        if flag.value != flag.default and launcher not in launchers:
            theirs = listing(f"--launcher={other}" for other in launchers)
            raise UserError(f"--{name} is for {theirs}; this is --launcher={launcher}.")
    if launcher == "slurm":
        options = slurm.Options(
            _PARTITION.value, _ACCOUNT.value, _TIME.value, _GRES.value, _NODES.value,
            _TASKS.value, _CPUS.value, JOBS.value, tuple(_SBATCH.value),
        )  # fmt: skip
        return slurm.Slurm(workdir, options)
    if launcher == "skypilot":
        return skypilot.SkyPilot(
            workdir,
            skypilot.Options(
                _ACCELERATORS.value, _INFRA.value, _SPOT.value, _NODES.value,
                tuple(_MOUNT.value), tuple(_RESOURCE.value),
            ),
        )  # fmt: skip
    return None
