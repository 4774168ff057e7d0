"""Where and with what a run was made."""

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
from typing import Any

import jax
from absl import logging

from resnet_jax.errors import UserError
from resnet_jax.networks.summary import Summary
from resnet_jax.parallel.processes import of_all
from resnet_jax.runs import jax_flags
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


def describe(
    network: Summary, execution: Mapping[str, Any], data: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns command, commit, versions, devices and hosts of this launch, and what it trains."""
    return {
        "command": shlex.join(["python", *sys.orig_argv[1:]]),  # as typed: argv[0] is a path
        "git": _git(),
        "python": platform.python_version(),
        "packages": _versions(),
        "platform": platform.platform(),
        "flags": jax_flags.current(),
        "devices": [f"{d.platform}: {d.device_kind}" for d in jax.devices()],
        "execution": dict(execution),
        "hosts": of_all(socket.gethostname()),
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "network": {
            "parameters": network.parameters,
            "mult_adds": network.mult_adds,
            "projections": network.projections,
        },
        "data": dict(data),
    }


def _versions() -> dict[str, str]:
    versions = {}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions


def refuse_differing_data(facts: Mapping[str, Any]) -> None:
    """Raises UserError, in every process, if one of them sees other data than process 0."""
    first, *others = (json.loads(text) for text in of_all(json.dumps(facts)))
    for process, its in enumerate(others, start=1):
        if its != first:
            differing = differences(first, its, "in process 0", f"in process {process}")
            raise UserError(
                f"Processes 0 and {process} see different data: {differing}; data.dir must lead "
                "all processes to the same."
            )


def _git(here: pathlib.Path = pathlib.Path(__file__).parent) -> dict[str, Any]:
    """Returns {"commit", "clean"} of the checkout that holds `here`, or why there is none."""

    def git(*args: str) -> str:
        # Git refuses a checkout of another user, whose hooks it might run; we run its code anyway.
        return subprocess.run(
            ["git", "-c", "safe.directory=*", *args],
            cwd=here, capture_output=True, check=True, encoding="utf-8", errors="replace",
        ).stdout.strip()  # fmt: skip

    try:
        # Else it may be the checkout of a project that has us installed inside.
        git("ls-files", "--error-unmatch", "environment.py")
        return {"commit": git("rev-parse", "HEAD"), "clean": not git("status", "--porcelain")}
    except subprocess.CalledProcessError as e:
        reason = (e.stderr.strip() or f"git ended with {e.returncode}").splitlines()[0]
    except OSError as e:
        reason = f"git: {e.strerror}"
    logging.info("The commit is not recorded: %s.", reason.rstrip("."))
    return {"commit": None, "clean": None, "reason": reason}
