"""The files and folders that programs write are checked before any work."""

import re

import pytest
from absl import flags

from experiments.cli import new_files
from resnet_jax.errors import UserError


def defined(name, value, define=flags.DEFINE_string):
    values = flags.FlagValues()
    holder = define(name, value, "", flag_values=values)
    values.mark_as_parsed()
    return holder


@pytest.mark.parametrize(
    ("flag", "sentence"),
    [
        (None, "--out is missing; see --help."),
        ("{here}/net.onx", "--out={here}/net.onx must end with .npz or .onnx (nearest: .onnx)."),
        ("{here}/a.npz", "--out={here}/a.npz is a folder; give a file."),
        ("{here}/b.npz", "--out={here}/b.npz exists already; give another name."),
        ("{here}/c/b.npz", "--out={here}/c/b.npz cannot be written: the folder {here}/c does not "
         "exist."),
        ("/proc/b.npz", "--out=/proc/b.npz cannot be written: No such file or directory."),
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_written_is_refused(tmp_path, flag, sentence):
    (tmp_path / "a.npz").mkdir()
    (tmp_path / "b.npz").write_text("mine")
    holder = defined("out", flag and flag.format(here=tmp_path))
    with pytest.raises(UserError) as raised:
        new_files.file(holder, (".npz", ".onnx"))
    assert str(raised.value) == sentence.format(here=tmp_path)
    assert (tmp_path / "b.npz").read_text() == "mine"


def test_a_file_is_replaced_only_if_its_flag_says_so(tmp_path):
    there = tmp_path / "b.npz"
    there.write_text("mine")
    holder = defined("out", str(there))
    keep, replace = (defined("overwrite", v, flags.DEFINE_bool) for v in (False, True))
    with pytest.raises(UserError, match=r"give another name, or --overwrite to replace it\.$"):
        new_files.file(holder, overwrite=keep)
    assert new_files.file(holder, overwrite=replace) == there
    assert new_files.file(defined("out", str(tmp_path / "new"))) == tmp_path / "new"
    assert [path.name for path in tmp_path.iterdir()] == ["b.npz"]


def test_a_folder_may_be_new_but_must_be_writable(tmp_path):
    (tmp_path / "a").write_text("mine")
    for name in ("", "new", "new/deeper"):
        assert new_files.folder(defined("out", str(tmp_path / name))) == tmp_path / name
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    for name in ("a", "a/below"):
        words = f"--out={tmp_path / name} cannot be a folder: {tmp_path / 'a'} is a file."
        with pytest.raises(UserError, match=re.escape(words)):
            new_files.folder(defined("out", str(tmp_path / name)))
    with pytest.raises(UserError, match="--out=/proc/new cannot be written: "):
        new_files.folder(defined("out", "/proc/new"))


def test_a_read_only_disk_is_refused(small_disk):
    disk = small_disk("ro")
    words = f"--out={disk / 'a'} cannot be written: Read-only file system."
    for refuse in (new_files.file, new_files.folder):
        with pytest.raises(UserError, match=re.escape(words)):
            refuse(defined("out", str(disk / "a")))
