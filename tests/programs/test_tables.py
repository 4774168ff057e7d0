"""Tables are plain lines in files and pipes, and fit the width of a terminal."""

import contextlib
import os
import pty
import subprocess
import sys
import termios

from experiments.cli import tables
from tests import tiny

LONG = "a remark " * 30


def test_lines_are_aligned_and_never_wrapped():
    table = tables.aligned([["a", "bb", "c"], ["ccc", "d", LONG], ["[+0.90, +1.60]"]], indent=2)
    assert tables.plain(["first", table, "", LONG]).splitlines() == [
        "first",
        "  a               bb  c",
        f"  ccc             d   {LONG.rstrip()}",
        "  [+0.90, +1.60]",
        "",
        LONG.rstrip(),
    ]


def test_numbers_are_aligned_right():
    text = tables.plain([tables.aligned([["net", "size"], ["a", "5"], ["bb", "1,000"]], left=1)])
    assert text.splitlines() == ["net   size", "a        5", "bb   1,000"]


def test_long_cells_are_folded_on_a_terminal():
    rows = f"[['a'], ['{LONG}']]"
    code = f"from experiments.cli import tables; tables.print_parts([tables.aligned({rows})])"
    master, terminal = pty.openpty()
    termios.tcsetwinsize(terminal, (24, 60))
    environment = tiny.environment() | {"TERM": "xterm"}
    command = [sys.executable, "-c", code]
    assert subprocess.run(command, cwd=tiny.ROOT, env=environment, stdout=terminal).returncode == 0
    os.close(terminal)
    shown = b""
    with contextlib.suppress(OSError):  # Linux's end of a terminal that nobody has open
        while part := os.read(master, 1 << 16):  # a read may return less than there is
            shown += part
    lines = shown.decode().splitlines()
    assert len(lines) > 4
    assert max(map(len, lines)) <= 60 + len("\x1b[1m\x1b[0m")
