"""Progress on screen: a bar with an ETA on a terminal, plain lines elsewhere."""

import logging
import os
import pty
import re
import subprocess
import sys
import termios

from resnet_jax.runs.progress import Progress, brief
from tests import tiny

SHOW = """
import time
from absl import logging
from resnet_jax.runs.progress import Progress
logging.use_absl_handler()
logging.set_verbosity(logging.INFO)
progress = Progress(start=0, steps=4, images_per_step=128, label="plain-20", bar=True)
for step in range(1, 5):
    time.sleep(0.6)  # the time left is estimated anew twice a second
    progress.advance(1)
    progress.report({"step": step, "train/error": 12.345})
    if step == 2:
        logging.info("saved")
progress.close()
logging.info("ended")
"""


def on_a_terminal(columns, **variables):
    """Returns the output of SHOW on a terminal."""
    master, terminal = pty.openpty()
    termios.tcsetwinsize(terminal, (24, columns))
    process = subprocess.Popen(
        [sys.executable, "-c", SHOW], cwd=tiny.ROOT, stderr=terminal,
        env=tiny.environment() | {"TERM": "xterm"} | variables,
    )  # fmt: skip
    os.close(terminal)
    shown = b""
    while True:
        try:
            piece = os.read(master, 4096)
        except OSError:  # Linux raises EIO once the other end is closed
            break
        if not piece:
            break
        shown += piece
    assert process.wait() == 0
    return shown.decode()


def frames(text):
    """Returns each line as it was drawn, without colours."""
    return re.split(r"[\r\n]+", re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", text))


def test_a_terminal_shows_a_bar_with_eta_error_and_rate():
    shown = frames(on_a_terminal(160))
    last = [frame for frame in shown if "plain-20" in frame][-1]
    assert "plain-20: 100%" in last
    assert "4/4" in last
    assert "training error 12.35 %" in last
    assert "images/s" in last
    # Which frames are drawn, and how much time they show, depends on how busy the machine is.
    unfinished = [frame for frame in shown if "plain-20" in frame and "4/4" not in frame]
    assert any(re.search(r"ETA 0:\d\d:\d\d", frame) for frame in unfinished)


def test_log_lines_appear_above_the_bar():
    text = on_a_terminal(160)
    lines = [line for line in frames(text) if "saved" in line or "ended" in line]
    assert [line.split()[-1] for line in lines] == ["saved", "ended"]
    assert not any("plain-20" in line for line in lines)
    before, _, after = text.partition("saved")
    assert before.endswith("] ")  # absl's prefix
    assert "\x1b[2K" in before.rpartition("\r")[2]  # the bar is erased, then redrawn
    assert "2/4" in frames(after)[1]


def test_the_cursor_is_never_hidden():
    assert "\x1b[?25l" not in on_a_terminal(160)


def test_a_narrow_terminal_truncates_the_bar():
    last = [frame for frame in frames(on_a_terminal(80)) if "plain-20" in frame][-1]
    assert len(last) <= 80
    assert "plain-20: 100%" in last
    assert "4/4" in last
    assert last.rstrip().endswith("…")


def test_a_dumb_terminal_shows_plain_lines():
    lines = on_a_terminal(160, TERM="dumb").splitlines()
    assert sum("images/s, ETA" in line for line in lines) == 4
    assert not any("\x1b" in line for line in lines)


def test_colours_can_be_turned_off():
    assert not re.search(r"\x1b\[[0-9;]*3\dm", on_a_terminal(160, NO_COLOR="1"))


def test_without_a_terminal_there_are_plain_lines(caplog):
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


def test_population_statistics_replace_moving_averages():
    row = {"validation/error": 67.22, "validation/error_population": 8.75}
    assert brief(row) == "validation error 8.75 %"
    del row["validation/error_population"]
    assert brief(row) == "validation error 67.22 % (moving averages)"
    assert brief(row, has_batch_norm=False) == "validation error 67.22 %"
