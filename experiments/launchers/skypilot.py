"""Cells as SkyPilot's managed jobs, on a TPU slice or GPU nodes of any cloud.

Each cell is one task, with its run folder in a bucket. SkyPilot finds machines, copies this
checkout to them, and restarts the task if a spot machine is preempted or a process exits with 42.
The run then resumes from its last checkpoint. On a TPU slice JAX's processes find each other; on
other nodes process 0, on the first node, is the coordinator.

Only the `sky` program is called. SkyPilot needs its own environment, because it pins other versions
of packages that are pinned here.
"""

import dataclasses
import hashlib
import importlib.metadata
import json
import pathlib
import re
import sys
import tempfile
from collections.abc import Collection, Sequence

import yaml

from experiments.cli import command_line
from experiments.launchers.interface import Job, in_a_checkout, printed
from resnet_jax.errors import UserError
from resnet_jax.runs import storage

_PORT = 8476  # the coordinator's; JAX's default on TPUs
# Characters that a cell's name may have (plain-20-rate=0.1) and a job's name may not.
_SPELLED = {"=": ".is.", "+": ".plus."}
_RESTARTS = 3  # of a failed process, in case the machine is the cause
ACTIVE_JOBS = ("PENDING", "SUBMITTED", "STARTING", "RUNNING", "WINDING_DOWN", "RECOVERING",
               "CANCELLING")  # fmt: skip

_SETUP = """\
set -e
command -v uv >/dev/null || curl -LsSf https://astral.sh/uv/install.sh | sh
export PATH="$HOME/.local/bin:$PATH"
test -x .venv/bin/python || uv venv --python {python} .venv
uv pip install --python .venv -r requirements.txt {jax}
"""
_COORDINATOR = """\
--coordinator="$(echo "$SKYPILOT_NODE_IPS" | head -n 1):{port}" \\
  --processes="$SKYPILOT_NUM_NODES" --process="$SKYPILOT_NODE_RANK"
"""


@dataclasses.dataclass(frozen=True)
class SkyPilotOptions:
    """The resources of each cell; SkyPilot chooses if a value is empty.

    Attributes:
      accelerators: NAME or NAME:COUNT, per node; the name of a TPU slice includes its size.
      infra: CLOUD, CLOUD/REGION or CLOUD/REGION/ZONE.
      spot: whether to use preemptible machines, which are cheaper.
      nodes: machines per cell.
      mounts: PATH=URL: buckets mounted as folders.
      resources: KEY=VALUE: any other entry under `resources:`.
    """

    accelerators: str = ""
    infra: str = ""
    spot: bool = True
    nodes: int = 1
    mounts: tuple[str, ...] = ()
    resources: tuple[str, ...] = ()


class SkyPilot:
    """The jobs of one study."""

    name = "skypilot"

    def __init__(self, workdir: storage.Path, options: SkyPilotOptions):
        """Checks the options.

        Args:
          workdir: the study's folder.
          options: each cell's resources.

        Raises:
          UserError: the folder is not in a bucket, an option is malformed, or there is no checkout.
        """
        if not (command_line.ROOT / "requirements.txt").is_file():
            raise UserError(
                "--launcher=skypilot copies a checkout of resnet_jax to its machines; start it in "
                "one, as python -m experiments.sweep."
            )
        if not storage.is_bucket(workdir):
            raise UserError(
                f"--workdir={workdir} is a folder of this machine; for --launcher=skypilot give "
                "one in a bucket, such as gs://BUCKET/PATH or s3://BUCKET/PATH."
            )
        if options.accelerators and not re.fullmatch(r"[\w.-]+(:\d+)?", options.accelerators):
            raise UserError(
                f"--accelerators={options.accelerators} is not of the form NAME or NAME:COUNT, "
                "such as tpu-v6e-16 or H100:8."
            )
        self._options = options
        self._mounts = dict(_pair("mount", text, "PATH=URL") for text in options.mounts)
        for path, url in self._mounts.items():
            if not path.startswith("/") or not storage.is_bucket(storage.locate(url)):
                raise UserError(
                    f"--mount={path}={url} is not allowed; give an absolute path and a bucket, as "
                    "in --mount=/data=gs://BUCKET/tensorflow_datasets."
                )
        pairs = [_pair("resource", text, "KEY=VALUE") for text in options.resources]
        self._resources = {key: yaml.safe_load(value) for key, value in pairs}
        # The digest tells this study from one of the same name in another bucket.
        digest = hashlib.sha256(str(workdir).encode()).hexdigest()[:6]
        self._prefix = f"{_job_prefix(workdir.name)}-{digest}-"

    def require_data(self, name: str, data_dir: str) -> None:
        """Raises UserError if `data_dir` is not inside a --mount, so that the machines lack it."""
        folders = [pathlib.Path(data_dir), *pathlib.Path(data_dir).parents]
        if name == "digits" or {str(folder) for folder in folders} & self._mounts.keys():
            return
        raise UserError(
            f"data.dir={data_dir!r} does not exist on SkyPilot's machines; give the bucket that "
            f"has {name}, as in --mount=/data=gs://BUCKET/tensorflow_datasets "
            "--config.base.data.dir=/data."
        )

    def script(self, jobs: Sequence[Job]) -> str:
        """Returns the first job's task, and the names of the others."""
        text = self._text(jobs[0])
        if others := [job.name for job in jobs[1:]]:
            text += f"# The same for each of the other jobs: {', '.join(others)}.\n"
        return text

    def submit(self, jobs: Sequence[Job]) -> str:
        """Submits jobs and returns a message for the user; raises RunError if it fails."""
        with tempfile.TemporaryDirectory() as scratch:
            for job in jobs:
                path = pathlib.Path(scratch) / f"{job.name}.yaml"
                path.write_text(self._text(job), encoding="utf-8")
                _sky(*launch_command(self._job_name(job.name), path))
        return f"SkyPilot's jobs are named {self._prefix}*; sky jobs logs --name NAME follows one."

    def submit_after(self, cells: Collection[str], command: Sequence[str]) -> str:
        """Submits nothing, since managed jobs cannot wait for others; returns an empty text."""
        return ""

    def states(self) -> dict[str, str]:
        """Returns the newest job of each cell, as in ``12 RECOVERING in gcp (us-east5)``."""
        newest: dict[str, tuple[int, str]] = {}
        for job in json.loads(_sky(*QUEUE_COMMAND)):
            name = job.get("job_name") or ""
            if name.startswith(self._prefix) and job["job_id"] >= newest.get(name, (0, ""))[0]:
                where = f" in {job['infra']}" if job.get("infra") else ""
                why = f" ({job['failure_reason']})" if job.get("failure_reason") else ""
                newest[name] = job["job_id"], f"{job['status']}{where}{why}"
        return {self._cell(name): f"{number} {state}" for name, (number, state) in newest.items()}

    def active(self) -> list[str]:
        """Returns the cells whose jobs run or will run."""
        return [cell for cell, state in self.states().items() if state.split()[1] in ACTIVE_JOBS]

    def cancel(self, cells: Sequence[str]) -> None:
        """Cancels cells' jobs and releases their machines; each keeps its last checkpoint."""
        states = self.states()
        _sky(*cancel_command([states[cell].split()[0] for cell in cells]))

    def task(self, job: Job) -> dict[str, object]:
        """Returns a job's task, in the form of SkyPilot's YAML."""
        options = self._options
        resources: dict[str, object] = {
            "infra": options.infra,
            "accelerators": options.accelerators,
            "use_spot": options.spot,
            "job_recovery": {
                "strategy": "EAGER_NEXT_REGION",
                "max_restarts_on_errors": _RESTARTS,
                # Preempted with everything saved: it resumes on other machines.
                "recover_on_exit_codes": [command_line.PREEMPTED],
            },
        }
        kind = "tpu" if options.accelerators.startswith("tpu-") else ""
        kind = kind or ("cuda13" if options.accelerators else "")
        # This machine's versions: a run resumes on the versions that it was started with.
        python = ".".join(map(str, sys.version_info[:2]))
        jax = f"'jax[{kind}]=={importlib.metadata.version('jax')}'" if kind else ""
        task: dict[str, object] = {
            "name": self._job_name(job.name),
            "workdir": str(command_line.ROOT),
            "num_nodes": options.nodes,
            "resources": {key: value for key, value in resources.items() if value != ""}
            | self._resources,
            "setup": _SETUP.format(python=python, jax=jax).rstrip() + "\n",
            "run": _command(job, needs_coordinator=kind != "tpu"),
        }
        if self._mounts:
            task["file_mounts"] = {
                path: {"source": url, "mode": "MOUNT"} for path, url in self._mounts.items()
            }
        return task

    def _job_name(self, cell: str) -> str:
        for sign, spelled in _SPELLED.items():
            cell = cell.replace(sign, spelled)
        return self._prefix + cell

    def _cell(self, job_name: str) -> str:
        cell = job_name.removeprefix(self._prefix)
        for sign, spelled in _SPELLED.items():
            cell = cell.replace(spelled, sign)
        return cell

    def _text(self, job: Job) -> str:
        return yaml.dump(self.task(job), Dumper=_Dumper, sort_keys=False, width=1000)


QUEUE_COMMAND = ("jobs", "queue", "--all", "--output=json")


def launch_command(name: str, task: pathlib.Path) -> tuple[str, ...]:
    """Returns the arguments of `sky` that submit a job."""
    return "jobs", "launch", "--yes", "--detach-run", f"--name={name}", str(task)


def cancel_command(numbers: Sequence[str]) -> tuple[str, ...]:
    """Returns the arguments of `sky` that cancel jobs."""
    return "jobs", "cancel", "--yes", *numbers


def _command(job: Job, needs_coordinator: bool) -> str:
    """Returns a job's shell command on a machine with a copy of this checkout."""
    text = in_a_checkout(job)
    return f"{text} \\\n  {_COORDINATOR.format(port=_PORT)}" if needs_coordinator else f"{text}\n"


def _pair(flag: str, text: str, form: str) -> tuple[str, str]:
    key, is_pair, value = text.partition("=")
    if not key or not is_pair or not value:
        raise UserError(f"--{flag}={text} is not of the form {form}.")
    return key, value


def _job_prefix(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "study"


def _sky(*command: str) -> str:
    return printed(
        ("sky", *command),
        "--launcher=skypilot needs SkyPilot's sky on the PATH, installed in an environment of its "
        "own (docs/skypilot.md).",
        words=3,
    )


class _Dumper(yaml.SafeDumper):
    """Writes multi-line strings as blocks."""


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = "|" if "\n" in text else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _represent_text)
