"""A full disk stops the programs that write data sets; with more space they resume."""

import subprocess

import pytest

from tests import tiny
from tests.data import pictures
from tests.preparation import archives_of


def prepare(folder, out):
    archives_of.imagenet(folder)
    return ["experiments.prepare", "imagenet2012", f"--from={folder}", "--noverify", f"--out={out}"]


def shrink(folder, out):
    pictures.prepare(folder)
    return ["experiments.shrink", f"--data_dir={folder}", "--short_side=60", f"--out={out}"]


def image_folder(folder, out):
    for name in ("a", "b"):
        (folder / name).mkdir(parents=True)
        for number in range(20):
            path = folder / name / f"{number}.png"
            path.write_bytes(pictures.encode(pictures.paint(number), kind="PNG"))
    return ["experiments.prepare", "image_folder", f"--from={folder}", f"--out={out}"]


def files(folder):
    return {path.name: path.read_bytes() for path in folder.glob("*/*/*") if path.suffix != ".json"}


@pytest.mark.parametrize("command", [prepare, shrink, image_folder])
def test_a_full_disk(command, small_disk, tmp_path):
    (tmp_path / "given").mkdir()
    disk = small_disk("size=40k")
    program = command(tmp_path / "given", disk)
    done = tiny.program(*program)
    assert done.returncode == 1, done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"error: {disk}/")
    assert "cannot be written: No space left on device" in last
    assert not list(disk.glob("*/*/dataset_info.json"))
    subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
    done = tiny.program(*program)
    assert done.returncode == 0, done.stderr
    program[-1] = f"--out={tmp_path / 'undisturbed'}"
    assert tiny.program(*program).returncode == 0
    assert files(disk) == files(tmp_path / "undisturbed")
    assert len(files(disk)) > 2
