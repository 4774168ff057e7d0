"""Cells as SkyPilot's managed jobs: a TPU slice or GPU nodes, in whichever cloud has them.

Each cell is a task of its own, with its run folder in a bucket. SkyPilot finds machines, copies
this checkout to them, and starts the same task anew where spot capacity is taken away or a process
exits with 42; the run goes on from its last checkpoint. On a TPU slice JAX's processes find each
other; on other nodes they meet at the first one's address.

Nothing but the `sky` program is called: SkyPilot lives in an environment of its own, for it pins
other versions of what is pinned here.
"""

import dataclasses
import hashlib
import importlib.metadata
import json
import pathlib
import re
import shlex
import tempfile
from collections.abc import Sequence
from typing import Any

import yaml

from experiments.cli import command_line
from experiments.launchers.interface import Job, printed
from resnet_jax.errors import UserError
from resnet_jax.runs import storage

_ROOT = pathlib.Path(__file__).parents[2]
_PORT = 8476  # where the processes of nodes meet; JAX's own on TPUs
# What a cell's name may have (plain-20-rate=0.1) and the name of a machine may not.
_SPELLED = {"=": ".is.", "+": ".plus."}
_RESTARTS = 3  # of a process that fails by itself: a machine may be to blame
ACTIVE = ("PENDING", "SUBMITTED", "STARTING", "RUNNING", "WINDING_DOWN", "RECOVERING",
          "CANCELLING")  # fmt: skip

_SETUP = """\
set -e
command -v uv >/dev/null || curl -LsSf https://astral.sh/uv/install.sh | sh
export PATH="$HOME/.local/bin:$PATH"
test -x .venv/bin/python || uv venv --python 3.11 .venv
uv pip install --python .venv -r requirements.txt {jax}
"""
_MEET = """\
--coordinator="$(echo "$SKYPILOT_NODE_IPS" | head -n 1):{port}" \\
  --processes="$SKYPILOT_NUM_NODES" --process="$SKYPILOT_NODE_RANK"
"""


@dataclasses.dataclass(frozen=True)
class Options:
    """What is asked of SkyPilot for each cell; empty leaves the choice to it.

    Attributes:
      accelerators: NAME or NAME:COUNT, of each node; a TPU slice's name has its size in it.
      infra: CLOUD, CLOUD/REGION or CLOUD/REGION/ZONE.
      spot: whether machines may be taken away, which makes them cheaper.
      nodes: machines a cell.
      mounts: PATH=URL, buckets that are to be folders of the machines.
      resources: KEY=VALUE, whatever else SkyPilot knows under `resources:`.
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

    def __init__(self, workdir: storage.Path, options: Options):
        """Touches nothing.

        Args:
          workdir: the study's folder.
          options: for every cell.

        Raises:
          UserError: the folder is in no bucket, or an option is malformed.
        """
        if not storage.is_bucket(workdir):
            raise UserError(
                f"--workdir={workdir} is a folder of this machine; for --launcher=skypilot give "
                "one that all machines see, as gs://BUCKET/PATH or s3://BUCKET/PATH."
            )
        if options.accelerators and not re.fullmatch(r"[\w.-]+(:\d+)?", options.accelerators):
            raise UserError(
                f"--accelerators={options.accelerators} is not of the form NAME or NAME:COUNT, "
                "as tpu-v6e-16 or H100:8."
            )
        self._options = options
        self._mounts = dict(_pair("mount", text, "PATH=URL") for text in options.mounts)
        for path, url in self._mounts.items():
            if not path.startswith("/") or not storage.is_bucket(storage.locate(url)):
                raise UserError(
                    f"--mount={path}={url}: it takes an absolute path and a bucket, as in "
                    "--mount=/data=gs://BUCKET/tensorflow_datasets."
                )
        pairs = [_pair("resource", text, "KEY=VALUE") for text in options.resources]
        self._resources = {key: yaml.safe_load(value) for key, value in pairs}
        # Another study of the same name in another bucket must not be taken for this one.
        digest = hashlib.sha256(str(workdir).encode()).hexdigest()[:6]
        self._prefix = f"{_plain(workdir.name)}-{digest}-"

    def require_data(self, name: str, data_dir: str) -> None:
        """Raises UserError where no --mount leads to `data_dir`, which is on other machines."""
        folders = [pathlib.Path(data_dir), *pathlib.Path(data_dir).parents]
        if name == "digits" or {str(folder) for folder in folders} & self._mounts.keys():
            return
        raise UserError(
            f"data.dir={data_dir!r} is nowhere on the machines that SkyPilot finds; give the "
            f"bucket that has {name}, as --mount=/data=gs://BUCKET/tensorflow_datasets "
            "--config.base.data.dir=/data."
        )

    def script(self, jobs: Sequence[Job]) -> str:
        """Returns the first job's task, and what the others are called."""
        text = self._text(jobs[0])
        if others := [job.name for job in jobs[1:]]:
            text += f"# Of the same form, each a job of its own: {', '.join(others)}.\n"
        return text

    def submit(self, jobs: Sequence[Job]) -> str:
        """Hands jobs to SkyPilot and returns what to tell the user; RunError where it fails."""
        with tempfile.TemporaryDirectory() as scratch:
            for job in jobs:
                path = pathlib.Path(scratch) / f"{job.name}.yaml"
                path.write_text(self._text(job), encoding="utf-8")
                _sky(*launch_command(self._job_name(job.name), path))
        return f"SkyPilot has them as {self._prefix}*; sky jobs logs --name NAME follows one."

    def states(self) -> dict[str, str]:
        """Returns how the newest job of each cell is, as ``12 RECOVERING in gcp (us-east5)``."""
        newest: dict[str, tuple[int, str]] = {}
        for job in json.loads(_sky(*QUEUE_COMMAND)):
            name = job.get("job_name") or ""
            if name.startswith(self._prefix) and job["job_id"] >= newest.get(name, (0, ""))[0]:
                where = f" in {job['infra']}" if job.get("infra") else ""
                why = f" ({job['failure_reason']})" if job.get("failure_reason") else ""
                newest[name] = job["job_id"], f"{job['status']}{where}{why}"
        return {self._cell(name): f"{number} {state}" for name, (number, state) in newest.items()}

    def active(self) -> list[str]:
        """Returns the cells that SkyPilot runs, or will run."""
        return [cell for cell, state in self.states().items() if state.split()[1] in ACTIVE]

    def cancel(self, cells: Sequence[str]) -> None:
        """Ends cells' jobs and gives their machines back; each keeps its last checkpoint."""
        states = self.states()
        _sky(*cancel_command([states[cell].split()[0] for cell in cells]))

    def task(self, job: Job) -> dict[str, Any]:
        """Returns a job as SkyPilot's YAML has it."""
        options = self._options
        resources: dict[str, Any] = {
            "infra": options.infra,
            "accelerators": options.accelerators,
            "use_spot": options.spot,
            "job_recovery": {
                "strategy": "EAGER_NEXT_REGION",
                "max_restarts_on_errors": _RESTARTS,
                # Stopped with everything saved: it goes on when there is room again.
                "recover_on_exit_codes": [command_line.PREEMPTED],
            },
        }
        kind = "tpu" if options.accelerators.startswith("tpu-") else ""
        kind = kind or ("cuda13" if options.accelerators else "")
        version = importlib.metadata.version("jax")
        task: dict[str, Any] = {
            "name": self._job_name(job.name),
            "workdir": str(_ROOT),
            "num_nodes": options.nodes,
            "resources": {key: value for key, value in resources.items() if value != ""}
            | self._resources,
            "setup": _SETUP.format(jax=f"'jax[{kind}]=={version}'" if kind else "").rstrip() + "\n",
            "run": _command(job, meets_by_itself=kind == "tpu"),
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
    """Returns what `sky` is asked to start a job and return."""
    return "jobs", "launch", "--yes", "--detach-run", f"--name={name}", str(task)


def cancel_command(numbers: Sequence[str]) -> tuple[str, ...]:
    """Returns what `sky` is asked to end jobs."""
    return "jobs", "cancel", "--yes", *numbers


def _command(job: Job, meets_by_itself: bool) -> str:
    """Returns a job's command in shell, as it is in the copy of this checkout."""
    words = [".venv/bin/python", *job.command[1:]]
    text = shlex.join(word.replace(f"{_ROOT}/", "") for word in words)
    return f"{text}\n" if meets_by_itself else f"{text} \\\n  {_MEET.format(port=_PORT)}"


def _pair(flag: str, text: str, form: str) -> tuple[str, str]:
    key, is_pair, value = text.partition("=")
    if not key or not is_pair or not value:
        raise UserError(f"--{flag}={text} is not of the form {form}.")
    return key, value


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "study"


def _sky(*command: str) -> str:
    return printed(
        ("sky", *command),
        "--launcher=skypilot needs SkyPilot on the PATH, from an environment of its own "
        "(docs/skypilot.md).",
        words=3,
    )


class _Dumper(yaml.SafeDumper):
    """Writes text of several lines as such."""


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = "|" if "\n" in text else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _represent_text)
