"""One command runs all measurements in order, within a time, and resumes."""

import json
import os
import signal
import subprocess
import sys

import pytest

from tests import tiny
from tests.study.test_scheduling import until

FAKE = """
from benchmarks import all as every
from experiments.cli import command_line

WRITES = "-c 'open(\\"{out}/table.txt\\", \\"w\\").write(\\"1\\")'"
FAILS = "-c 'import os; print(os.environ[\\"X\\"]); exit(3)'"
every.device = lambda: ("gpu", "NVIDIA Fake 9000")
every.measurements = lambda: [
    every.Measurement("first", "Does it run?", 0.001, (WRITES,)),
    every.Measurement("second", "Does it fail?", 0.001, (FAILS,), {"X": "7"}),
    every.Measurement("third", "Has it data?", 0.001, ("-c 'print(1)' {data}",)),
    every.Measurement("long", "Is there time?", 1000, ("-c 1",)),
    every.Measurement("slow", "Is it stopped?", 0.0001, ("-c 'import time; time.sleep(100)'",)),
]
command_line.run(every.main)
"""


def run(*arguments, program=FAKE):
    return subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)],
        cwd=tiny.ROOT, env=tiny.environment() | {"JAX_PLATFORMS": "cpu"},
        capture_output=True, text=True,
    )  # fmt: skip


def test_measurements_are_run_in_order_and_once(tmp_path):
    done = run("--on=gpu", f"--out={tmp_path}", "--minutes=0.05")
    assert done.returncode == 1, done.stderr
    log = tmp_path / "second_fake_9000" / "log.txt"
    states = [line.split(": ", 1)[1] for line in done.stderr.splitlines() if line.endswith(".")]
    assert states == [
        "done.",
        f"failed with exit code 3: see {log}.",
        "skipped: give --data_dir.",
        states[3],
        "stopped: the time was over; the same command resumes.",
    ]
    assert states[3].startswith("skipped: it takes 1000 min, and 0.0")
    first = tmp_path / "first_fake_9000"
    assert (first / "table.txt").read_text() == "1"
    assert "open(" in json.loads((first / "done.json").read_text())["commands"][0]
    assert log.read_text().splitlines()[1:] == ["7"]
    (first / "table.txt").unlink()
    again = run("--on=gpu", f"--out={tmp_path}", "--minutes=0.05", "--data_dir=data")
    assert "first: done before." in again.stderr
    assert "third: done." in again.stderr
    assert not (first / "table.txt").exists()
    assert not (tmp_path / "slow_fake_9000" / "done.json").exists()


ENDLESS = """
from benchmarks import all as every
from experiments.cli import command_line

SLEEPS = "-c 'import os, time; print(os.getpid(), flush=True); time.sleep(1000)'"
every.device = lambda: ("gpu", "Fake")
every.measurements = lambda: [every.Measurement("endless", "Is it stopped?", 1, (SLEEPS,))]
command_line.run(every.main)
"""


def test_ctrl_c_stops_the_measurement_as_well(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", ENDLESS, "--on=gpu", f"--out={tmp_path}"],
        cwd=tiny.ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    log = tmp_path / "endless_fake" / "log.txt"
    until(lambda: log.is_file() and len(log.read_text().splitlines()) > 1)
    child = int(log.read_text().splitlines()[1])
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)


def test_another_device_is_refused(tmp_path):
    done = run("--on=gpu", f"--out={tmp_path}", program=FAKE.replace("every.device = ", "_ = "))
    assert done.returncode == 2
    (sentence,) = done.stderr.splitlines()
    assert sentence == "error: --on=gpu, but JAX's device here is a cpu."
    assert list(tmp_path.iterdir()) == []


COMMANDS = """
from benchmarks import all as every
import json
print(json.dumps([[m.name, m.minutes, list(m.commands)] for m in every.measurements()]))
"""


def test_every_command_exists_and_all_fit_into_the_time(tmp_path):
    listed = json.loads(run(program=COMMANDS).stdout)
    assert len({name for name, _, _ in listed}) == len(listed) > 6
    assert sum(minutes for _, minutes, _ in listed) <= 40
    dry = run("--on=gpu", "--dry_run", program="from benchmarks import all as every\n"
              "from experiments.cli import command_line\ncommand_line.run(every.main)")  # fmt: skip
    assert dry.returncode == 0, dry.stderr
    lines = [line for line in dry.stdout.splitlines() if line.startswith("python ")]
    assert lines == [f"python {command}" for _, _, commands in listed for command in commands]


@pytest.mark.slow
@pytest.mark.parametrize("module", ["repeat", "train_step", "seeds", "compile", "memory"])
def test_the_flags_of_every_benchmark_are_known(module):
    """A wrong flag would cost time on a GPU; each command is parsed, without its work."""
    listed = json.loads(run(program=COMMANDS).stdout)
    (first, *_) = [c for _, _, cs in listed for c in cs if f"benchmarks.{module} " in c]
    flags = [word for word in first.format(out="x", data="y").split() if word.startswith("--")]
    program = (
        f"from benchmarks import {module}\nfrom experiments.cli import command_line\n"
        "import sys\ncommand_line.parse(sys.argv)\nprint('known')"
    )
    done = run(*flags, program=program)
    assert done.stdout == "known\n", done.stderr
