"""A sweep whose cells train nothing, but can end in every way that a cell can end.

    python -m tests.study.sweep_fake [flags of experiments.sweep]
    python -m tests.study.sweep_fake cell FOLDER     the sweep starts this, not experiments.train

FAKE_CELLS={"plain-20": "fail", ...} sets how cells end; all others complete.
FAKE_LOSSES={"plain-20": 0.5, ...} sets cells' training losses; all others are 1.
FAKE_GPUS=2 lets the sweep find 2 GPUs.
"""

import json
import os
import pathlib
import signal
import sys
import time
from typing import Any

from resnet_jax.parallel.cores import usable_cores
from resnet_jax.runs import writer

SECONDS = 0.5  # per cell


def started(study: pathlib.Path) -> list[dict[str, Any]]:
    """Returns {"cell", "start", "end", "cores", "gpus", "memory"} per cell that ran to its end."""
    lines = (study / "launches").read_text().splitlines() if (study / "launches").exists() else []
    return [json.loads(line) for line in lines]


def train(path: pathlib.Path) -> int:
    behaviour = json.loads(os.environ.get("FAKE_CELLS", "{}")).get(path.name, "complete")
    start = time.time()
    config = json.loads((path / "config.json").read_text())
    folder = writer.RunFolder(path, config)
    if behaviour == "preempted once":
        behaviour = "complete" if folder.status()["status"] == "preempted" else "preempted"
    stopped: list[int] = []
    if behaviour in ("wait", "linger", "deaf"):
        signal.signal(signal.SIGTERM, lambda number, frame: stopped.append(number))
    print(f"this is {path.name}", flush=True)
    if behaviour == "fail":
        print("error: the disk is on fire", file=sys.stderr)
        return 1
    if behaviour == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if behaviour == "silent":
        return 0

    def status(word: str, step: int, reason: str = "") -> None:
        folder.set_status(word, step=step, steps=8, device_seconds=1.0, reason=reason)

    status("running", 4)
    folder.rewind(0)
    loss = json.loads(os.environ.get("FAKE_LOSSES", "{}")).get(path.name, 1.0)
    seeds = config["replicates"]
    folder.append({"step": 4, "train/error": [50.0] * seeds, "train/loss": [loss] * seeds})
    while behaviour == "deaf" or (behaviour in ("wait", "linger") and not stopped):
        time.sleep(0.05)
    time.sleep(SECONDS * (4 if behaviour == "linger" else 1))
    if behaviour == "garbled":
        (path / "metrics.jsonl").write_text("not JSON\n")
    ends = {
        "complete": ("completed", 8, "", 0),
        "garbled": ("completed", 8, "", 0),
        "diverge": ("diverged", 5, "the loss was not finite at step 5", 0),
        "fail_itself": ("failed", 4, "its own reason", 1),
        "preempted": ("preempted", 4, "SIGTERM came", 42),
        "wait": ("preempted", 4, "SIGTERM came", 42),
        "linger": ("preempted", 4, "SIGTERM came", 42),
    }
    word, step, reason, code = ends[behaviour]
    status(word, step, reason)
    line = {"cell": path.name, "start": start, "end": time.time(), "cores": usable_cores()}
    line["gpus"] = os.environ.get("JAX_CUDA_VISIBLE_DEVICES")
    line["memory"] = os.environ.get("XLA_PYTHON_CLIENT_MEM_FRACTION")
    with open(path.parent / "launches", "a") as f:
        f.write(json.dumps(line) + "\n")
    return code


def main() -> None:
    if sys.argv[1] == "cell":
        sys.exit(train(pathlib.Path(sys.argv[2])))
    from experiments import sweep
    from experiments.cli import command_line
    from experiments.launchers import local
    from experiments.study import cell_folders

    if gpus := os.environ.get("FAKE_GPUS"):
        local.machine = lambda: local.Machine("gpu", int(gpus))
    cell_folders.command = lambda folder, _: (
        sys.executable,
        "-m",
        "tests.study.sweep_fake",
        "cell",
        str(folder),
    )
    command_line.run(sweep.main)


if __name__ == "__main__":
    main()
