"""Runs our programs in copies of a process that has imported JAX: a second less for each.

Our programs cannot tell such a copy from a process of their own.
"""

import atexit
import importlib
import json
import os
import pathlib
import runpy
import subprocess
import sys
import tempfile
import warnings
from typing import Any

ROOT = pathlib.Path(__file__).parents[1]
_READ_ONCE = ("JAX", "XLA", "PYTHON", "LD_")  # variables that an import or the start may read

_SLOW = ("flax.linen", "jax", "optax", "orbax.checkpoint", "scipy.stats")  # without flags of ours

_servers: dict[tuple[tuple[str, str], ...], subprocess.Popen[str]] = {}


def run(
    name: str, arguments: list[str], environment: dict[str, str]
) -> subprocess.CompletedProcess[str]:
    """Runs ``python -m NAME ARGUMENTS`` in the checkout to its end; returns what it printed."""
    key = tuple((k, v) for k, v in sorted(environment.items()) if k.startswith(_READ_ONCE))
    server = _servers.get(key)
    if server is None:
        server = _servers[key] = subprocess.Popen(
            [sys.executable, "-m", "tests.forks"], cwd=ROOT, env=environment, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        atexit.register(server.communicate)  # it ends with its stdin
    assert server.stdin is not None
    assert server.stdout is not None
    print(json.dumps([name, arguments, environment]), file=server.stdin, flush=True)
    code, out, err = json.loads(server.stdout.readline())
    return subprocess.CompletedProcess([name, *arguments], code, out, err)


def _serve() -> list[Any]:
    """Answers requests until stdin ends. In each copy of this process, returns its request."""
    for line in sys.stdin:
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            with warnings.catch_warnings(action="ignore"):  # JAX warns of every fork
                child = os.fork()
            if not child:
                with open(os.devnull, "rb") as nothing:
                    for number, file in enumerate((nothing, out, err)):
                        os.dup2(file.fileno(), number)
                return json.loads(line)
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            said = []
            for file in (out, err):
                file.seek(0)
                said.append(file.read().decode())
        print(json.dumps([code, *said]), flush=True)
    sys.exit()


if __name__ == "__main__":
    for module in _SLOW:
        importlib.import_module(module)
    name, arguments, environment = _serve()
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = ["-m", *arguments]
    sys.orig_argv = [sys.executable, "-m", name, *arguments]
    runpy.run_module(name, run_name="__main__", alter_sys=True)
