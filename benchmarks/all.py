"""Runs everything that waits for a GPU, the most decisive first, and writes results/.

    python -m benchmarks.all --on=gpu --data_dir=TFDS_DATA_DIR [--minutes=40] [--out=results]
    python -m benchmarks.all --on=gpu --dry_run    # lists the commands and stops

Each measurement has a folder OUT/NAME_DEVICE with its table and log.txt. What does not fit into the
time that is left, or lacks its data, is skipped and named; the same command runs what is missing.
PyTorch is measured as well if it is installed (benchmarks/requirements.txt).
"""

import dataclasses
import importlib.util
import os
import pathlib
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence

from absl import flags, logging
from rich.console import RenderableType

from experiments.cli import command_line, new_files, tables
from resnet_jax.errors import RunError, UserError
from resnet_jax.runs.storage import read_json, write_json

_ON = flags.DEFINE_enum("on", None, ["gpu"], "The kind of device to measure.")
_OUT = flags.DEFINE_string("out", "results", "The folder for the folders of the measurements.")
_DATA_DIR = flags.DEFINE_string("data_dir", None, "The TFDS data_dir with CIFAR-10's own pixels.")
_MINUTES = flags.DEFINE_float("minutes", 40, "Stop after this many minutes.", lower_bound=0.01)
_DRY_RUN = flags.DEFINE_boolean("dry_run", False, "List the commands, run nothing.")

_DEVICE = "import jax; d = jax.devices()[0]; print(d.platform, d.device_kind, sep='|')"
_DONE = "done.json"


@dataclasses.dataclass(frozen=True)
class Measurement:
    """Commands that answer one question.

    Attributes:
      name: the first part of its folder's name; the second is the device.
      question: the question that it answers.
      minutes: its expected time on an H100 or H200.
      commands: arguments for Python, in which {out} is the folder and {data} the TFDS data_dir.
      environment: variables to set.
    """

    name: str
    question: str
    minutes: float
    commands: tuple[str, ...]
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def needs_data(self) -> bool:
        """Whether it reads CIFAR-10."""
        return any("{data}" in command for command in self.commands)


def measurements() -> list[Measurement]:
    """Returns all measurements, the most decisive first."""
    peers = "flax,torch" if importlib.util.find_spec("torch") else "flax"
    study = "degradation_cifar10_short"
    return [
        Measurement(
            "repeat",
            "Is training deterministic, and can a NaN in one seed reach the others?",
            4,
            ("-m benchmarks.repeat --replicates=1,5 --out={out}",),
        ),
        Measurement(
            "resume",
            "Does a killed run resume bit for bit?",
            4,
            ("-m pytest -q -p no:warnings -p no:cacheprovider tests/runs/test_resume.py",),
            {"JAX_PLATFORMS": "cuda"},
        ),
        Measurement(
            "train_step_cifar",
            "How fast is a step of CIFAR's nets beside plain Flax and PyTorch?",
            5,
            (
                f"-m benchmarks.train_step --family=cifar --depths=20,56 --peers={peers} "
                "--out={out}",
            ),
        ),
        Measurement(
            study,
            "Do deeper plain nets train worse on CIFAR-10, each at its best rate?",
            9,
            (
                f"-m experiments.sweep --config=configs/{study}.py --config.base.data.dir={{data}} "
                "--workdir={out}/runs/" + study,
                f"-m experiments.compare {{out}}/runs/{study} --out={{out}}/report",
            ),
        ),
        Measurement(
            "train_step_imagenet",
            "How fast is a step of ResNet-50?",
            5,
            (f"-m benchmarks.train_step --depths=50 --peers={peers} --out={{out}}",),
        ),
        Measurement(
            "replicates",
            "What do several seeds on one device cost?",
            5,
            ("-m benchmarks.seeds --depth=20 --replicates=1,2,4,8 --dtype=bfloat16 --out={out}",),
        ),
        Measurement(
            "compile_cifar",
            "How does compile time grow with depth?",
            3,
            ("-m benchmarks.compile --family=cifar --out={out}",),
        ),
        Measurement(
            "compile_imagenet",
            "The same for ImageNet's nets.",
            3,
            ("-m benchmarks.compile --family=imagenet --out={out}",),
        ),
        Measurement(
            "memory",
            "How much memory does a step take, with and without recomputation?",
            2,
            ("-m benchmarks.memory --out={out}",),
        ),
    ]


def main(argv: Sequence[str]) -> int:
    """Returns the exit code: 1 if a measurement failed."""
    command_line.no_arguments(argv)
    wanted = command_line.required(_ON)
    out = new_files.folder(_OUT).absolute()
    if _DRY_RUN.value:
        tables.print_parts([_table([(m, "", m.minutes) for m in measurements()], "minutes")])
        for measurement in measurements():
            for command in measurement.commands:
                print(f"python {command}")
        return 0
    platform, kind = device()
    if platform != wanted:
        raise UserError(f"--on={wanted}, but JAX's device here is a {platform}.")
    slug = re.sub(r"[^a-z0-9]+", "_", kind.lower().removeprefix("nvidia ")).strip("_")
    deadline = time.monotonic() + 60 * _MINUTES.value
    rows = []
    for measurement in measurements():
        began = time.monotonic()
        state = _state(measurement, out / f"{measurement.name}_{slug}", deadline)
        logging.info("%s: %s.", measurement.name, state)
        rows.append((measurement, state, (time.monotonic() - began) / 60))
    tables.print_parts([_table(rows, "took, min")])
    return 1 if any("failed" in state for _, state, _ in rows) else 0


def device() -> tuple[str, str]:
    """Returns the platform and the kind of this machine's first device.

    Another process asks JAX, which would keep the device's memory.
    """
    done = subprocess.run(
        [sys.executable, "-c", _DEVICE], capture_output=True, text=True, encoding="utf-8"
    )
    if done.returncode:
        raise RunError(f"JAX finds no device: {done.stderr.strip().splitlines()[-1]}")
    platform, kind = done.stdout.strip().split("|")
    return platform, kind


def _state(measurement: Measurement, folder: pathlib.Path, deadline: float) -> str:
    """Runs a measurement, unless it is done; returns what became of it."""
    left = deadline - time.monotonic()
    if read_json(folder / _DONE):
        return "done before"
    if measurement.needs_data and not _DATA_DIR.value:
        return "skipped: give --data_dir"
    if left < 60 * measurement.minutes:
        return f"skipped: it takes {measurement.minutes:g} min, and {left / 60:.1f} are left"
    folder.mkdir(parents=True, exist_ok=True)
    logging.info("%s: %s", measurement.name, measurement.question)
    with open(folder / "log.txt", "w", encoding="utf-8") as log:
        for command in measurement.commands:
            line = command.format(out=folder, data=_DATA_DIR.value)
            log.write(f"$ python {line}\n")
            log.flush()
            code = _run([sys.executable, *shlex.split(line)], measurement, log.fileno(), deadline)
            if code is None:
                return "stopped: the time was over; the same command resumes"
            if code:
                return f"failed with exit code {code}: see {folder / 'log.txt'}"
    write_json(folder / _DONE, {"commands": list(measurement.commands)})
    return "done"


def _run(command: Sequence[str], measurement: Measurement, log: int, deadline: float) -> int | None:
    """Returns a command's exit code; None if it was stopped, with its children, at the deadline."""
    process = subprocess.Popen(
        command,
        stdout=log,
        stderr=log,
        env={**os.environ, **measurement.environment},
        start_new_session=True,
    )
    try:
        return process.wait(deadline - time.monotonic())
    except subprocess.TimeoutExpired:
        return None
    finally:
        if process.poll() is None:  # also after Ctrl-C, which does not reach its session
            _stop(process)


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Stops a process and its children; they have 30 s to save."""
    os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _table(rows: Sequence[tuple[Measurement, str, float]], minutes: str) -> RenderableType:
    cells = [["measurement", minutes, "question", ""]]
    cells += [[m.name, f"{took:.1f}", m.question, state] for m, state, took in rows]
    return tables.aligned(cells)


if __name__ == "__main__":
    command_line.run(main)
