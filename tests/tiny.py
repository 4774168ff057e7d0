"""The smallest complete run, an 8-layer net with few filters on digits, and helpers to use it."""

import contextlib
import dataclasses
import itertools
import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import flagsaver
from jax.sharding import Mesh
from ml_collections import ConfigDict

from configs import digits, saved
from experiments import compare as report
from experiments.cli import command_line
from resnet_jax import settings, train
from resnet_jax.data.augment import Augmentation
from resnet_jax.execution import Execution
from resnet_jax.networks.per_block import UNSCALED
from resnet_jax.parallel.stopping import StopRequest
from resnet_jax.programs import initializer
from resnet_jax.resolve import resolve
from resnet_jax.runs import identity, records
from resnet_jax.runs.checkpoints import Checkpoints
from resnet_jax.step import Task
from tests import forks

ROOT = pathlib.Path(__file__).parents[1]


def config(**overrides: Any) -> ConfigDict:
    """Returns the tiny config; overrides are dotted keys with ``__`` for the dot."""
    c = digits.get_config()
    c.steps = 12
    c.batch_size = 16
    c.model.depth = 8
    c.model.width = 0.25
    c.eval.every = 5
    c.eval.batch_size = 64
    c.eval.population_examples = 64
    c.checkpoint.every = 4
    c.log.every = 3
    c.log.tensorboard = False
    c.log.signals.every = 0
    with c.unlocked():
        override(c, overrides)
    return c


def override(config: Any, changes: dict[str, Any]) -> None:
    """Sets keys such as ``model__depth`` in a ConfigDict or in nested dictionaries."""
    for key, value in changes.items():
        *sections, name = key.split("__")
        place = config
        for section in sections:
            place = place[section]
        place[name] = value


def flags_of(**overrides: Any) -> list[str]:
    """Returns the command-line flags that turn configs/digits.py into config(**overrides)."""
    before = settings.flatten(digits.get_config().to_dict())
    after = settings.flatten(config(**overrides).to_dict())
    return [f"--config.{k}={v}" for k, v in after.items() if v != before[k]]


def command(workdir: pathlib.Path, **overrides: Any) -> list[str]:
    """Returns the command that trains the tiny config."""
    program = [sys.executable, "-m", "experiments.train", "--config=configs/digits.py"]
    return [*program, f"--workdir={workdir}", *flags_of(**overrides)]


def environment() -> dict[str, str]:
    """Returns an environment with one CPU device instead of the eight of these tests.

    It has no COLUMNS and LINES, which readline sets in pytest and pytest's workers inherit: they
    would override the size of a terminal.
    """
    absent = ("XLA_FLAGS", "COLUMNS", "LINES")
    return {k: v for k, v in os.environ.items() if k not in absent}


def launch(
    workdir: pathlib.Path, *flags: str, **overrides: Any
) -> subprocess.CompletedProcess[str]:
    """Runs the command with additional flags to its end."""
    return subprocess.run(
        [*command(workdir, **overrides), *flags],
        cwd=ROOT, env=environment(), capture_output=True, text=True,
    )  # fmt: skip


def program(name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Runs ``python -m NAME ARGUMENTS`` on one CPU device to its end."""
    given = environment() | {"JAX_PLATFORMS": "cpu"}
    if name.startswith("benchmarks."):
        # Most of their time is compiling, and no test looks at how fast their steps are.
        given["XLA_FLAGS"] = "--xla_backend_optimization_level=0"
    return forks.run(name, [*map(str, arguments)], given)


def compare(*arguments: object) -> int:
    """Runs ``python -m experiments.compare ARGUMENTS`` in this process; returns its exit code."""
    with flagsaver.flagsaver():
        return report.main(command_line.parse(["compare", *map(str, arguments)]))


def stop_when_asked(monkeypatch: pytest.MonkeyPatch, times: int) -> None:
    """Makes runs in this process stop as if by SIGTERM, at their `times`-th check for a signal."""
    asked = itertools.count(1)

    def reached(self: StopRequest) -> bool:
        if next(asked) == times:
            self.received = "SIGTERM"
        return bool(self.received)

    monkeypatch.setattr(StopRequest, "reached", reached)


@contextlib.contextmanager
def compiled_once(*ignored: str) -> Iterator[None]:
    """Runs that differ only in settings of these names, or change no result, share programs."""
    real, known = train.build, {}

    def build(config: ConfigDict, *args: Any) -> Any:
        deciding = identity.deciding(config.to_dict())
        shared = {key: value for key, value in deciding.items() if key not in ignored}
        key = json.dumps(shared, sort_keys=True)
        if key not in known:
            known[key] = real(config, *args)
        return known[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "build", build)
        yield


def execution(mesh: Mesh, **changes: Any) -> Execution:
    """Returns an execution on `mesh` for tests without a run."""
    usual = Execution(
        mesh=mesh, platform="cpu", scan=False, loops=None, seeds_by="separate",
        steps_per_dispatch=1, unroll=True, waits=mesh.size > 1, eval_batch_size=64,
        compiler_options={}, init_options={},
    )  # fmt: skip
    return dataclasses.replace(usual, **changes)


def task(model: Any, normalization: Any, mesh: Mesh) -> Task:
    """Returns a task for evaluation and BatchNorm moments only."""
    nothing: Any = None
    return Task(
        model=model, scales=UNSCALED, optimizer=nothing, schedule=nothing,
        normalization=normalization,
        augmentation=Augmentation(0, flip=False), label_smoothing=0.0, ema_decay=0.0, log_every=1,
        signals=False, unroll=True, mesh=mesh,
    )  # fmt: skip


def final_state(workdir: pathlib.Path) -> Any:
    """Restores the newest checkpoint of a run folder, whatever its config."""
    c = resolve(saved.get_config(str(workdir)))
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    like = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=here),
        initializer(c).shapes(c.replicates),
    )
    return jax.device_get(restore(workdir / "checkpoints", like))


def restore(folder: Any, like: Any) -> Any:
    """Restores the newest checkpoint in a folder; returns None if there is none."""
    checkpoints = Checkpoints(folder, keep=2)
    try:
        return checkpoints.restore(like)
    finally:
        checkpoints.close()


def at_step(state: Any, step: int) -> Any:
    """Returns a state whose every array differs between steps."""

    def shift(a: Any) -> Any:
        return a ^ True if a.dtype == bool and step % 2 else a + jnp.asarray(step, a.dtype)

    return jax.tree.map(shift, state)


def largest_file(folder: Any) -> Any:
    """Returns the largest file below a folder, on a disk or in a bucket."""
    return max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def flip_bytes(folder: Any) -> None:
    """Damages the largest file below a folder."""
    path = largest_file(folder)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(bytes(content))


def lines(workdir: pathlib.Path) -> list[dict[str, Any]]:
    """Returns the rows of metrics without the timings, which differ between runs."""
    rows = records.read_metrics(workdir)
    return [{k: v for k, v in row.items() if not k.startswith("time/")} for row in rows]


def assert_bit_equal(a: Any, b: Any) -> None:
    """Compares two pytrees bit by bit, naming the first leaf that differs."""
    leaves_a, leaves_b = jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b)
    assert len(leaves_a) == len(leaves_b) > 0
    for (path, x), y in zip(leaves_a, leaves_b, strict=True):
        x, y = np.asarray(x), np.asarray(y)
        name = jax.tree_util.keystr(path)
        assert x.dtype == y.dtype, name
        assert x.tobytes() == y.tobytes(), f"{name} differs by {np.abs(x - y).max()}"
