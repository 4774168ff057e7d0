"""What a person sees: a bar with an ETA on a terminal, plain lines elsewhere."""

import logging
import os
import pty
import subprocess
import sys
import termios

from resnet_jax.runs.progress import Progress, brief
from tests import tiny

SHOW = """
import time
from resnet_jax.runs.progress import Progress
progress = Progress(start=0, steps=4, images_per_step=128, label="plain-20", bar=True)
for step in range(1, 5):
    time.sleep(0.2)
    progress.advance(1)
    progress.report({"step": step, "train/error": 12.345})
progress.close()
"""


def test_a_terminal_shows_a_bar_with_eta_error_and_rate():
    master, terminal = pty.openpty()
    termios.tcsetwinsize(terminal, (24, 160))
    process = subprocess.Popen([sys.executable, "-c", SHOW], cwd=tiny.ROOT, stderr=terminal)
    os.close(terminal)
    shown = b""
    while True:
        try:
            piece = os.read(master, 4096)
        except OSError:  # Linux says EIO when the other end has closed
            break
        if not piece:
            break
        shown += piece
    assert process.wait() == 0
    text = shown.decode()
    last = text.rstrip().split("\r")[-1]
    assert "plain-20: 100%" in last
    assert "4/4" in last
    assert "training error 12.35 %" in last
    assert "images/s" in last
    middle = next(frame for frame in text.split("\r") if "2/4" in frame)
    assert "<00:0" in middle  # the time left


def test_elsewhere_there_are_plain_lines(caplog):
    caplog.set_level(logging.INFO)
    progress = Progress(start=10, steps=20, images_per_step=128, label="plain-20", bar=True)
    progress.advance(1)
    rate = progress.report({"step": 15, "train/error": 50.0, "validation/error": 60.0})
    progress.close()
    (line,) = caplog.messages
    assert line.startswith(
        "plain-20: step 15/20, training error 50.00 %, validation error 60.00 % (moving averages)"
    )
    assert "ETA 00:00" in line
    assert rate > 0
    assert "\r" not in line


def test_replicates_are_shown_as_their_mean_without_those_that_diverged():
    assert brief({"step": 1, "train/error": [10.0, 20.0]}) == "training error 15.00 % (mean of 2)"
    nan = float("nan")
    assert brief({"train/error": [10.0, nan]}) == "training error 10.00 % (mean of 1)"
    assert brief({"train/error": [10.0, 100.0]}, {1}) == "training error 10.00 % (mean of 1)"
    assert brief({"train/error": nan}) == "training error not finite"


def test_population_statistics_take_the_place_of_moving_averages():
    row = {"validation/error": 67.22, "validation/error_population": 8.75}
    assert brief(row) == "validation error 8.75 %"
    del row["validation/error_population"]
    assert brief(row) == "validation error 67.22 % (moving averages)"
