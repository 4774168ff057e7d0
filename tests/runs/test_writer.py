"""The run folder: atomic files, one row per step, one writer, one config."""

import contextlib
import copy
import fcntl
import functools
import json
import os
import pathlib
import socket
import subprocess
import sys

import pytest

from configs import base, saved
from resnet_jax import settings
from resnet_jax.data import order
from resnet_jax.errors import UserError
from resnet_jax.runs import identity, lock, reader, storage, writer
from tests import tiny

CONFIG = {"seed": 0, "steps": 9, "model": {"depth": 20, "widths": (1, 2)}, "data": {"dir": "/here"}}


@pytest.fixture
def open_folder():
    """Opens run folders and closes them after the test."""
    with contextlib.ExitStack() as stack:

        def open_(path, config=CONFIG):
            folder = writer.RunFolder(path, config)
            stack.callback(folder.close)
            return folder

        yield open_


def with_depth(depth):
    return CONFIG | {"model": CONFIG["model"] | {"depth": depth}}


def test_a_run_folder_reads_back_as_written(tmp_path, open_folder):
    folder = open_folder(tmp_path / "plain-20")
    folder.record_launch({"command": "first"})
    folder.record_launch({"command": "second"})
    folder.rewind(0)
    folder.append({"step": 1, "train/loss": 0.5})
    folder.append({"step": 2, "train/loss": [float("nan"), 0.25, float("inf")]})
    folder.set_status("running", step=2, steps=9, device_seconds=1.5, diverged={"0": 2})
    run = reader.read(tmp_path / "plain-20")
    assert run.name == "plain-20"
    assert run.config == identity.complete(json.loads(json.dumps(CONFIG)))
    assert run.environment == {"command": "first", "resumed": [{"command": "second"}]}
    assert run.metrics == [
        {"step": 1, "train/loss": 0.5},
        {"step": 2, "train/loss": [None, 0.25, None]},
    ]
    assert run.status["status"] == "running"
    assert run.status["step"] == 2
    assert run.status["device_seconds"] == 1.5
    assert run.status["pid"] == os.getpid()


def test_rewind_drops_later_lines_and_half_a_line(tmp_path, open_folder):
    folder = open_folder(tmp_path)
    folder.rewind(0)
    for step in (1, 2, 3):
        folder.append({"step": step})
    folder.close()
    with open(tmp_path / "metrics.jsonl", "ab") as f:
        f.write(b'{"step": 4, "tr')
    assert [row["step"] for row in reader.read(tmp_path).metrics] == [1, 2, 3]

    folder = open_folder(tmp_path)
    folder.rewind(2)
    folder.append({"step": 3, "again": 1})
    assert (tmp_path / "metrics.jsonl").read_text() == (
        '{"step": 1}\n{"step": 2}\n{"step": 3, "again": 1}\n'
    )


def test_a_garbled_line_is_named(tmp_path):
    writer.RunFolder(tmp_path, CONFIG).close()
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step\n{"step": 3}\n')
    with pytest.raises(UserError, match=r"metrics\.jsonl line 2 is not JSON"):
        reader.read(tmp_path)


def test_another_config_is_refused_with_the_differing_keys(tmp_path):
    writer.RunFolder(tmp_path, CONFIG).close()
    with pytest.raises(UserError) as refusal:
        writer.RunFolder(tmp_path, with_depth(56) | {"seed": 3})
    assert "model.depth (20 there, 56 here), seed (0 there, 3 here)" in str(refusal.value)
    assert json.loads((tmp_path / "config.json").read_text())["model"]["depth"] == 20


def test_data_dir_is_not_part_of_the_identity(tmp_path):
    moved = CONFIG | {"data": {"dir": "/there"}}
    assert identity.of(moved) == identity.of(CONFIG)
    assert identity.of(with_depth(56)) != identity.of(CONFIG)
    writer.RunFolder(tmp_path, CONFIG).close()
    writer.RunFolder(tmp_path, moved).close()


def test_the_identity_covers_all_settings_that_change_results():
    config = base.get_config().to_dict()

    def changed(key):
        other = copy.deepcopy(config)
        tiny.override(other, {key.replace(".", "__"): "another"})
        return identity.of(other) != identity.of(config)

    assert {key for key in settings.flatten(config) if not changed(key)} == {
        "accumulate", "checkpoint.every", "checkpoint.keep", "data.dir", "data.workers",
        "deterministic", "eval.batch_size", "log.every", "log.signals.every", "log.tensorboard",
        "mesh.fsdp", "mesh.replicates", "model.remat", "model.scan", "model.space_to_depth",
        "profile", "replicates_by", "train.steps_per_dispatch", "variant",
    }  # fmt: skip


def as_saved_by_the_first_version(config):
    """Removes all settings that are newer, and groups that have no others."""
    older = json.loads(json.dumps(config))
    for key, setting in settings.SETTINGS.items():
        if setting.implied is not None:
            *groups, last = key.split(".")
            del functools.reduce(lambda group, name: group[name], groups, older)[last]
    return {name: value for name, value in older.items() if value != {}}


def test_a_run_of_the_first_version_is_the_same_run_and_can_be_repeated(tmp_path, open_folder):
    config = base.get_config().to_dict() | {"steps": 9}
    older = as_saved_by_the_first_version(config)
    assert "init" not in older
    assert "variant" not in older
    assert identity.of(older) == identity.of(config)
    (tmp_path / "config.json").write_text(json.dumps(older))
    assert settings.flatten(reader.read(tmp_path).config) == settings.flatten(config)
    assert saved.get_config(str(tmp_path)).to_dict() == config
    open_folder(tmp_path, config)


def test_a_resumed_run_saves_its_new_settings_and_an_ended_run_keeps_its_own(tmp_path, open_folder):
    def evaluated_by(batch_size):
        open_folder(tmp_path, CONFIG | {"eval": {"batch_size": batch_size}}).close()
        return reader.read(tmp_path).config["eval"]["batch_size"]

    assert evaluated_by(512) == 512
    assert evaluated_by(64) == 64
    folder = open_folder(tmp_path, CONFIG | {"eval": {"batch_size": 64}})
    folder.set_status("completed", step=9, steps=9, device_seconds=1.0)
    folder.close()
    assert evaluated_by(512) == 64


DATA = {"name": "x", "version": "1.0.0", "train": 26, "content": "ab", "streams": order.STREAMS}


def test_a_run_refuses_other_data(tmp_path, open_folder):
    folder = open_folder(tmp_path)
    folder.refuse_other_data(DATA)  # a new run
    folder.record_launch({"data": DATA})
    folder.refuse_other_data(DATA)
    for key, value in {"train": 296, "version": "2.0.0", "content": "cd"}.items():
        with pytest.raises(UserError) as refused:
            folder.refuse_other_data(DATA | {key: value})
        assert f": {key} ({DATA[key]!r} then, {value!r} now); give" in str(refused.value)


def test_facts_that_only_a_later_launch_recorded_count_too(tmp_path, open_folder):
    folder = open_folder(tmp_path)
    folder.record_launch({"data": {k: v for k, v in DATA.items() if k != "content"}})
    folder.refuse_other_data(DATA)
    folder.record_launch({"data": DATA})
    with pytest.raises(UserError, match=r": content \('ab' then, 'cd' now\)"):
        folder.refuse_other_data(DATA | {"content": "cd"})


def test_a_run_that_began_with_another_order_of_data_is_refused(tmp_path, open_folder):
    folder = open_folder(tmp_path)
    folder.record_launch({"data": {"name": "x", "train": 26}})  # before "streams" was recorded
    with pytest.raises(UserError, match="splits and orders the data differently"):
        folder.refuse_other_data(DATA)


def test_a_folder_has_one_writer(tmp_path, open_folder):
    folder = open_folder(tmp_path)
    with pytest.raises(UserError, match="Another process is training"):
        writer.RunFolder(tmp_path, CONFIG)
    folder.close()
    writer.RunFolder(tmp_path, CONFIG).close()


def test_an_unwritable_folder_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"cannot be written: Not a directory\.$"):
        writer.RunFolder(tmp_path / "file" / "run", CONFIG)


def test_a_disk_that_is_full_from_the_start_is_one_sentence(tmp_path, monkeypatch):
    def full(_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(UserError, match=r"cannot be written: No space left on device\.$"):
            writer.RunFolder(tmp_path / "run", CONFIG)
    writer.RunFolder(tmp_path / "run", CONFIG).close()  # with space again, it is like a new folder


def test_an_unknown_status_is_refused(tmp_path, open_folder):
    folder = open_folder(tmp_path)
    with pytest.raises(ValueError, match="finished"):
        folder.set_status("finished", step=0, steps=1, device_seconds=0)


def test_find_takes_runs_and_studies_and_refuses_the_rest(tmp_path):
    for cell in ("plain-20", "resnet-20-A"):
        writer.RunFolder(tmp_path / "study" / cell, CONFIG).close()
    (tmp_path / "study" / "report").mkdir()
    study, alone = tmp_path / "study", tmp_path / "study" / "plain-20"
    assert [run.name for run in reader.find([study])] == ["plain-20", "resnet-20-A"]
    assert [run.name for run in reader.find([alone])] == ["plain-20"]
    assert len(reader.find([alone, study])) == 3
    with pytest.raises(UserError, match="is not a folder"):
        reader.find([tmp_path / "nowhere"])
    with pytest.raises(UserError, match="holds no run"):
        reader.find([tmp_path / "study" / "report"])
    with pytest.raises(UserError, match="is not a run folder"):
        reader.read(study)


@pytest.fixture
def ended_pid():
    """The number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_running_is_alive_as_long_as_its_process_holds_the_lock(tmp_path):
    folder = writer.RunFolder(tmp_path, CONFIG)
    folder.set_status("running", step=0, steps=1, device_seconds=0)
    status = reader.read(tmp_path).status
    assert reader.is_alive(tmp_path, status)
    assert not reader.is_alive(tmp_path, status | {"status": "completed"})
    folder.close()
    # As after kill -9 if another process has reused the number: here this process.
    assert status["pid"] == os.getpid()
    assert not reader.is_alive(tmp_path, status)
    assert reader.shown_status(reader.read(tmp_path)) == "interrupted"
    assert reader.is_alive(tmp_path, status | {"host": "elsewhere"})  # cannot be checked from here


def test_without_locks_running_is_alive_as_long_as_the_process_number_exists(tmp_path, ended_pid):
    status = {"status": "running", "host": socket.gethostname(), "pid": os.getpid()}
    assert reader.is_alive(tmp_path, status)
    assert not reader.is_alive(tmp_path, status | {"pid": ended_pid})


def test_a_run_starts_while_another_process_checks_its_lock(tmp_path, open_folder, monkeypatch):
    open_folder(tmp_path).close()
    checker = open(tmp_path / lock.LOCK)  # noqa: SIM115 - closed while the run waits
    fcntl.flock(checker, fcntl.LOCK_SH)
    monkeypatch.setattr(lock.time, "sleep", lambda _: checker.close())
    open_folder(tmp_path)


def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "status.json"
    storage.write_json(path, {"old": True})

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        storage.write_json(path, {"new": True})
    assert json.loads(path.read_text()) == {"old": True}
    assert [p.name for p in tmp_path.iterdir()] == ["status.json"]


def test_reading_runs_imports_neither_jax_nor_the_trainer():
    program = "import sys, resnet_jax.runs.reader; sys.exit('jax' in sys.modules)"
    root = pathlib.Path(__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", program], cwd=root).returncode == 0
