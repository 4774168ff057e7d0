"""What experiments.prepare writes is, byte for byte, what TFDS writes with TensorFlow."""

import os
import subprocess

import pytest

from experiments.preparation import published
from tests import tiny
from tests.preparation import archives_of

OWN = tiny.ROOT / ".venv-tensorflow" / "bin" / "python"


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """Every set, prepared by TFDS and by experiments.prepare; returns both data_dirs."""
    given, theirs, ours = map(tmp_path_factory.mktemp, ("archives", "theirs", "ours"))
    for name, make in {**archives_of.MAKERS, published.IMAGENET: archives_of.imagenet}.items():
        (given / name).mkdir()
        make(given / name)
    script = tiny.ROOT / "tests" / "preparation" / "tfds_own.py"
    done = subprocess.run(
        [OWN, script, given, theirs],
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONPATH": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for path in given.iterdir():
        done = tiny.program(
            "experiments.prepare", path.name, f"--out={ours}", f"--from={path}", "--noverify"
        )
        assert done.returncode == 0, done.stderr
    return theirs, ours


@pytest.mark.slow
@pytest.mark.skipif(not OWN.exists(), reason="no .venv-tensorflow: make test-slow makes it")
@pytest.mark.parametrize("name", published.NAMES)
def test_every_file_is_equal(both, name):
    files = []
    for root in both:
        (folder,) = (root / name).iterdir()
        files.append({path.name: path.read_bytes() for path in folder.iterdir()})
    theirs, ours = files
    assert ours.pop("prepared.json")  # these are not the published archives
    assert sorted(theirs) == sorted(ours)
    assert sum(".array_record-" in file for file in theirs) in (2, 3)
    for file, content in theirs.items():
        assert ours[file] == content, file
