"""The facts about a launch in environment.json: software, devices, hosts, network and data."""

import contextlib
import datetime
import importlib.metadata
import json
import pathlib
import platform
import shlex
import socket
import subprocess
import sys
from collections.abc import Mapping

import jax
from absl import logging

from resnet_jax.errors import UserError
from resnet_jax.networks.summary import Summary
from resnet_jax.parallel.processes import of_all
from resnet_jax.runs import flags
from resnet_jax.runs.records import Data, Git, Launch
from resnet_jax.runs.writer import differences

PACKAGES = (
    "resnet_jax",
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "numpy",
    "tensorflow-datasets",
)


def launch_facts(network: Summary, execution: Mapping[str, object], data: Data) -> Launch:
    """Returns the facts about this launch: command, commit, versions, devices, hosts, network."""
    return {
        "command": shlex.join(["python", *sys.orig_argv[1:]]),  # as typed; argv[0] would be a path
        "git": _git(),
        "python": platform.python_version(),
        "packages": _versions(),
        "platform": platform.platform(),
        "flags": flags.current(),
        "devices": [f"{d.platform}: {d.device_kind}" for d in jax.devices()],
        "execution": dict(execution),
        "hosts": of_all(socket.gethostname()),
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "network": {
            "parameters": network.parameters,
            "mult_adds": network.mult_adds,
            "projections": network.projections,
        },
        "data": data,
    }


def _versions() -> dict[str, str]:
    versions = {}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions


def refuse_differing_data(facts: Mapping[str, object]) -> None:
    """Raises UserError, in every process, if one process sees other data than process 0."""
    first, *others = (json.loads(text) for text in of_all(json.dumps(facts)))
    for process, other in enumerate(others, start=1):
        if other != first:
            differing = differences(first, other, "in process 0", f"in process {process}")
            raise UserError(
                f"Processes 0 and {process} see different data: {differing}; data.dir must hold "
                "the same data in all processes."
            )


def _git(here: pathlib.Path = pathlib.Path(__file__).parent) -> Git:
    """Returns {"commit", "clean"} of the checkout that contains `here`, or the "reason" if none."""

    def git(*args: str) -> str:
        # Git refuses another user's checkout because of its hooks, but we run its code anyway.
        return subprocess.run(
            ["git", "-c", "safe.directory=*", *args],
            cwd=here, capture_output=True, check=True, encoding="utf-8", errors="replace",
        ).stdout.strip()  # fmt: skip

    try:
        # Fails if the package is merely installed inside another project's checkout.
        git("ls-files", "--error-unmatch", "environment.py")
        return {"commit": git("rev-parse", "HEAD"), "clean": not git("status", "--porcelain")}
    except subprocess.CalledProcessError as e:
        reason = (e.stderr.strip() or f"git exited with {e.returncode}").splitlines()[0]
    except OSError as e:
        reason = f"git: {e.strerror}"
    logging.info("The commit is not recorded: %s.", reason.rstrip("."))
    return {"commit": None, "clean": None, "reason": reason}
