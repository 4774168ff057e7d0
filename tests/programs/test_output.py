"""Losing a terminal or a pipe never stops the work."""

import contextlib
import json
import os
import pathlib
import pty
import re
import subprocess
import sys
import termios

import pytest

from experiments.cli import output
from resnet_jax.runs import reader
from tests import tiny
from tests.report import fixture
from tests.study.test_scheduling import STUDY, running, statuses, until

DIGITS = "--config=configs/digits.py"


@pytest.mark.parametrize(
    "arguments",
    [("describe", DIGITS), ("sweep", "--help")],
    ids=" ".join,
)
def test_a_closed_pipe_is_not_an_error(arguments):
    reader, pipe = os.pipe()
    os.close(reader)
    program, *flags = arguments
    done = subprocess.run(
        [sys.executable, "-m", f"experiments.{program}", *flags],
        cwd=tiny.ROOT, stdout=pipe, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    os.close(pipe)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_report_is_complete_if_its_pipe_is_closed(tmp_path):
    study = fixture.study(tmp_path / "study", depths=(8, 14), replicates=2)
    reader, pipe = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "experiments.compare", str(study), f"--out={tmp_path / 'r'}"]
    done = subprocess.run(command, cwd=tiny.ROOT, stdout=pipe, stderr=pipe)
    os.close(pipe)
    assert done.returncode == 0
    assert (tmp_path / "r" / "index.html").stat().st_size > 1000


@pytest.mark.skipif(not pathlib.Path("/dev/full").exists(), reason="a device of Linux")
def test_lost_output_is_one_sentence():
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "experiments.describe", DIGITS],
            cwd=tiny.ROOT, stdout=full, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr == "error: stdout could not be written: No space left on device.\n"


@pytest.mark.slow
def test_training_needs_neither_stdout_nor_stderr(tmp_path):
    command = tiny.command(tmp_path, steps=3)
    closed = ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *command]
    done = subprocess.run(closed, cwd=tiny.ROOT, env=tiny.environment())
    assert done.returncode == 0
    assert reader.read(tmp_path).status["status"] == "completed"


def test_a_new_file_does_not_reuse_the_number_of_a_closed_stream(tmp_path):
    program = (
        "import os, sys; from experiments.cli import output; output.install(); "
        f"f = open({str(tmp_path / 'data')!r}, 'w'); os.write(2, b'from C++'); f.close(); "
        "print('hidden'); print('hidden', file=sys.stderr)"
    )
    closed = ["sh", "-c", 'exec "$@" 2>&-', "sh", sys.executable, "-c", program]
    assert subprocess.run(closed, cwd=tiny.ROOT).returncode == 0
    assert (tmp_path / "data").read_bytes() == b""


def sweep_on_a_terminal(workdir, first, cells):
    """Starts a sweep of fake cells on a new terminal; returns it and the terminal's master end.

    `first` is a shell command to run before it.
    """
    master, slave = pty.openpty()
    termios.tcsetwinsize(slave, (24, 160))
    program = [
        sys.executable,
        "-m",
        "tests.study.sweep_fake",
        f"--config={STUDY}",
        f"--workdir={workdir}",
    ]
    # The first terminal that a session leader opens becomes its own and sends it hang-ups.
    shell = f'{first}; exec "$@" <{os.ttyname(slave)} >{os.ttyname(slave)} 2>&1'
    sweep = subprocess.Popen(
        ["sh", "-c", shell, "sh", *program, "--jobs=2"],
        cwd=tiny.ROOT, start_new_session=True,
        env=tiny.environment() | {"JAX_PLATFORMS": "cpu", "FAKE_CELLS": json.dumps(cells)},
    )  # fmt: skip
    until(lambda: len(running(workdir)) == 2)
    os.read(master, 1 << 16)  # the overview, or earlier output
    os.close(slave)
    return sweep, master


def test_a_sweep_that_ignores_hang_ups_trains_all_its_cells(tmp_path):
    sweep, master = sweep_on_a_terminal(tmp_path, "trap '' HUP", {})
    os.close(master)
    assert sweep.wait(timeout=60) == 0
    assert set(statuses(tmp_path).values()) == {"completed"}
    assert len(statuses(tmp_path)) == 4


def test_cells_save_when_the_terminal_of_their_sweep_hangs_up(tmp_path):
    cells = {"plain-56": "wait", "resnet-56-A": "linger"}
    sweep, master = sweep_on_a_terminal(tmp_path, ":", cells)
    os.close(master)
    assert sweep.wait(timeout=60) == 42
    assert statuses(tmp_path) == {
        "plain-56": "preempted", "resnet-56-A": "preempted",
        "plain-20": "queued", "resnet-20-A": "queued",
    }  # fmt: skip


def test_a_sweep_on_a_terminal_shows_its_cells_and_then_the_ledger(tmp_path):
    sweep, master = sweep_on_a_terminal(tmp_path, ":", {})
    shown = b""
    with contextlib.suppress(OSError):  # Linux raises EIO once the other end is closed
        while piece := os.read(master, 1 << 16):
            shown += piece
    assert sweep.wait() == 0
    text = re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", shown.decode())
    during, _, after = text.rpartition("cell ")
    assert re.search(r"\d done, \d running, \d waiting, 00:\d\d so far, ETA", during)
    assert re.search(r"plain-20: +\d+% .* \d+/120 ", during)
    assert "resnet-20-A: completed at step 8/8" in during
    assert [line.split()[1] for line in after.splitlines()[1:5]] == ["completed"] * 4


def test_any_character_can_be_printed(tmp_path):
    with open(tmp_path / "out", "w", encoding="ascii") as f:
        shown = output.Display(f)
        shown.write("7.1 ± 0.2")
        shown.flush()
    assert (tmp_path / "out").read_text(encoding="utf-8") == "7.1 \\xb1 0.2"
