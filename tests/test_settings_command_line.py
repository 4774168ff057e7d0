"""A mistake on the command line costs a second and one sentence."""

import os
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--config=configs/digits.py", "--config.model.dpeth=20"], r"model\.depth"),
        (["--config=configs/digit.py"], r"configs/digit\.py is not a file.*configs/digits\.py"),
        (["--config=configs/digits.py", "--config.model.depth=deep"], "'deep' is not a whole"),
    ],
)
def test_mistakes_on_the_command_line_are_one_sentence(flags, words, tmp_path):
    command = [sys.executable, "-m", "experiments.train", *flags, f"--workdir={tmp_path / 'run'}"]
    done = subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert re.search(words, done.stderr)
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "run").exists()
