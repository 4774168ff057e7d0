"""A full disk stops a run with one sentence; with more space it resumes bit for bit."""

import subprocess
import time
import zlib

import pytest

from resnet_jax import train
from resnet_jax.errors import RunError
from resnet_jax.runs import checkpoints
from resnet_jax.runs.reader import read
from tests import tiny

WIDE = {"model__width": 0.5, "checkpoint__every": 4}


def enlarge(disk):
    subprocess.run(["mount", "-o", "remount,size=64m,nr_inodes=10000", str(disk)], check=True)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    assert tiny.launch(folder, **WIDE).returncode == 0
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        # Room for one checkpoint: the second is refused before a byte of it is written.
        ("size=500k", "a checkpoint could not be written to {}/checkpoints: it needs about"),
        # Room for a checkpoint's arrays, but not for Orbax's metadata.
        (
            "size=300k",
            "a checkpoint could not be written to {}/checkpoints: no space left on device",
        ),
        # Room for one checkpoint's files, so that the second, or another file, fails half way.
        ("size=64m,nr_inodes=62", "no space left on device"),
        ("size=64m,nr_inodes=75", "no space left on device"),
        ("size=64m,nr_inodes=85", "no space left on device"),
    ],
)
def test_it_is_one_sentence_and_the_run_resumes(small_disk, undisturbed, options, sentence):
    disk = small_disk(options)
    folder = disk / "run"
    started = time.monotonic()
    stopped = tiny.launch(folder, **WIDE)
    assert time.monotonic() - started < 120  # Orbax's threads once kept it alive for five minutes
    assert stopped.returncode == 1
    assert "Traceback" not in stopped.stderr
    (error,) = [line for line in stopped.stderr.splitlines() if line.startswith("error: ")]
    assert sentence.format(folder).lower() in error.lower()
    assert stopped.stderr.splitlines()[-1] == error
    assert not list((folder / "checkpoints").glob("*tmp*"))

    enlarge(disk)
    assert tiny.launch(folder, **WIDE).returncode == 0
    tiny.assert_bit_equal(tiny.final_state(folder), tiny.final_state(undisturbed))
    assert tiny.lines(folder) == tiny.lines(undisturbed)
    assert read(folder).status["status"] == "completed"


@pytest.mark.slow
def test_a_full_disk_of_compiled_programs_is_one_line(small_disk, undisturbed, tmp_path):
    disk, folder = small_disk("size=200k"), tmp_path / "run"  # room for some programs
    done = tiny.launch(folder, f"--compilation_cache={disk}", **WIDE)
    assert done.returncode == 0
    assert done.stderr.count(" could not be written to ") == 1
    assert f"{disk}/jax-" in done.stderr
    assert "No space left on device" in done.stderr
    assert "Traceback" not in done.stderr
    assert "UserWarning" not in done.stderr
    tiny.assert_bit_equal(tiny.final_state(folder), tiny.final_state(undisturbed))
    assert tiny.lines(folder) == tiny.lines(undisturbed)
    for path in disk.glob("*/*-cache"):
        zlib.decompress(path.read_bytes())  # none is truncated


@pytest.mark.parametrize("kilobytes", [4, 8, 12, 16, 24, 32])
def test_a_disk_that_fills_up_at_any_file_is_a_run_error(small_disk, kilobytes):
    """Space runs out at the config, the environment, the events, a row of metrics ..."""
    disk = small_disk("size=1m")
    (disk / "ballast").write_bytes(b"x" * ((1024 - kilobytes) << 10))
    config = tiny.config(log__tensorboard=True, log__every=1, steps=40, checkpoint__every=100)
    with pytest.raises(RunError, match="written"):
        train.train(config, str(disk / "run"))


def test_of_a_long_message_the_systems_reason_is_given():
    message = f"RESOURCE_EXHAUSTED: Error\nwriting {'x/' * 200}: No space left on device; [code]"
    assert checkpoints._reason(ValueError(message)) == "No space left on device"
    assert checkpoints._reason(OSError(122, "Disk quota exceeded")) == "Disk quota exceeded"
    assert checkpoints._reason(ValueError(f"odd\n{'x' * 400}")) == "odd " + 296 * "x"
