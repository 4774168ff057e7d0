"""Run folders on disks and in buckets: paths, atomic files, growing files, one writer."""

import contextlib
import errno
import json
import os
import pathlib
import threading
import time

import pytest
from upath import UPath

from configs import cifar10, saved
from experiments.cli import compilation_cache, config_flag
from resnet_jax.errors import RunError, UserError
from resnet_jax.resolve import resolve
from resnet_jax.runs import lock, reader, storage, writer
from tests import tiny
from tests.runs import buckets
from tests.runs.test_writer import CONFIG, with_depth


@pytest.fixture
def bucket():
    """A folder in an empty bucket in this process's memory."""
    path = storage.locate("memory://bucket/runs")
    yield path
    path.fs.store.clear()


@pytest.fixture(params=["disk", "bucket"])
def place(request, tmp_path):
    """A folder on a disk, and one in a bucket."""
    return tmp_path if request.param == "disk" else request.getfixturevalue("bucket")


@pytest.fixture
def quick(monkeypatch):
    """Leases are renewed, and lost, within a second."""
    monkeypatch.setattr(lock, "RENEW_SECONDS", 0.1)
    monkeypatch.setattr(lock, "LOST_SECONDS", 0.6)


# ------------------------------------------------------------------------------------- paths


def test_locate_returns_pathlib_paths_on_disk_and_upaths_in_buckets():
    assert storage.locate("runs/a") == pathlib.Path("runs/a")
    assert isinstance(storage.locate("runs/a"), pathlib.Path)
    for url in ("s3://bucket/runs/a", "gs://bucket/runs/a/"):
        path = storage.locate(url)
        assert isinstance(path, UPath)
        assert str(path) == url.rstrip("/")
        assert str(path / "config.json") == f"{url.rstrip('/')}/config.json"
        assert path.name == "a"
        assert path.absolute() == path
        assert storage.locate(path) is path


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ("gcs://bucket/a", r"gcs://bucket/a cannot hold run folders; .*\(nearest: gs://\)"),
        ("http://host/a", "allowed are a folder, gs://BUCKET/PATH and s3://BUCKET/PATH"),
        ("gs:/bucket/a", "a bucket is gs://bucket/a"),
        ("s3:bucket/a", "a bucket is s3://bucket/a"),
        ("s3://bucket", "lacks a path inside the bucket, as in s3://bucket/runs"),
        ("gs://bucket/", "lacks a path inside the bucket"),
        ("gs:///a", "lacks a path inside the bucket"),
        ("gs://bucket/runs[1]", r"contains \[; a path in a bucket"),
        ("s3://bucket/*", r"contains \*; a path in a bucket"),
    ],
)
def test_an_invalid_place_is_refused_in_one_sentence(typed, words):
    with pytest.raises(UserError, match=words):
        storage.locate(typed)


# ------------------------------------------------------------------------------------- files


@pytest.mark.parametrize("place", [storage.locate, storage.on_disk])
def test_a_home_directory_is_expanded(place, monkeypatch):
    monkeypatch.setenv("HOME", "/home/someone")
    assert place("~/runs/a", "--workdir") == pathlib.Path("/home/someone/runs/a")
    assert place("a~b", "--workdir") == pathlib.Path("a~b")
    assert place("./~", "--workdir") == pathlib.Path("./~")


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ("", "--out is empty; is a shell variable unset?"),
        (" ", "--out is empty; is a shell variable unset?"),
        (
            "~nosuchuser/runs",
            "--out=~nosuchuser/runs begins with ~nosuchuser, whose home directory",
        ),
        ("caf\udce9/runs", "caf\N{REPLACEMENT CHARACTER}/runs is not UTF-8; give a UTF-8 path."),
    ],
)
@pytest.mark.parametrize("place", [storage.locate, storage.on_disk])
def test_a_mistyped_folder_is_refused(place, typed, words):
    with pytest.raises(UserError) as refused:
        place(typed, "--out")
    assert words in str(refused.value)
    str(refused.value).encode()  # it can be printed


def test_a_current_folder_that_is_not_utf8_is_named(tmp_path, monkeypatch):
    folder = tmp_path / "caf\udce9"
    folder.mkdir()
    monkeypatch.chdir(folder)
    with pytest.raises(UserError, match="is not UTF-8"):
        storage.locate("runs", "--workdir")


@pytest.mark.parametrize("typed", ["gs://bucket/data", "gs:/bucket/data", "https://host/data"])
def test_on_disk_refuses_urls(typed):
    with pytest.raises(UserError, match=r"^data\.dir=\S+ is a URL; it must be a path on a disk"):
        storage.on_disk(typed, "data.dir")


def test_every_path_is_checked_alike(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    resolved = resolve(_with_data_dir("~/data"))
    assert resolved.data.dir == str(tmp_path / "data")
    with pytest.raises(UserError, match=r"data\.dir=gs://b/c is a URL"):
        resolve(_with_data_dir("gs://b/c"))
    with pytest.raises(UserError, match="begins with ~nosuchuser"):
        saved.get_config("~nosuchuser/run")
    with pytest.raises(UserError, match="begins with ~nosuchuser"):
        compilation_cache.cache_folder("~nosuchuser/cache", {})
    with pytest.raises(UserError, match="begins with ~nosuchuser"):
        reader.find(["~nosuchuser/runs"])
    with pytest.raises(UserError, match="begins with ~nosuchuser"):
        config_flag.load_config("~nosuchuser/config.py")


def test_the_path_of_a_report_is_checked_alike():
    for out, words in [("", "--out is empty"), ("~nosuchuser/x", "begins with ~nosuchuser")]:
        with pytest.raises(UserError, match=words):
            tiny.compare("runs/x", f"--out={out}")


def _with_data_dir(folder):
    config = cifar10.get_config()
    config.data.dir = folder
    return config


def test_files_are_written_read_and_appended_to(place):
    path = place / "a" / "file"
    if not storage.is_bucket(place):
        path.parent.mkdir()
    assert storage.read_bytes(path) is None
    storage.append_bytes(path, b"one")
    storage.append_bytes(path, b" two")
    assert storage.read_bytes(path) == b"one two"
    storage.write_json(path, {"three": 3})
    assert json.loads(storage.read_bytes(path)) == {"three": 3}
    assert [p.name for p in path.parent.glob("*")] == ["file"]


def test_files_lists_a_buckets_files(bucket):
    for name in ("config.json", "a/config.json", "a/b/config.json"):
        storage.write_bytes(bucket / name, b'{"x": 1}')
    assert sorted(storage.files(bucket)) == ["a/b/config.json", "a/config.json", "config.json"]
    assert sorted(storage.files(bucket, depth=2)) == ["a/config.json", "config.json"]
    assert [run.path for run in reader.find([bucket])] == [bucket]
    (bucket / "config.json").unlink()
    assert [run.path for run in reader.find([bucket])] == [bucket / "a"]


def test_lines_reach_a_disk_at_once(tmp_path):
    lines = storage.Lines(tmp_path / "lines", b"a\n")
    lines.append(b"b\n")
    assert storage.read_bytes(tmp_path / "lines") == b"a\nb\n"
    lines.close()


def test_lines_reach_a_bucket_on_flush_or_after_a_while(bucket, monkeypatch):
    path = bucket / "lines"
    lines = storage.Lines(path, b"a\n")
    lines.append(b"b\n")
    assert storage.read_bytes(path) == b"a\n"
    lines.flush()
    assert storage.read_bytes(path) == b"a\nb\n"
    monkeypatch.setattr(storage, "LINES_SECONDS", 0.0)
    lines.append(b"c\n")
    assert storage.read_bytes(path) == b"a\nb\nc\n"


def test_errors_of_a_buckets_client_become_oserrors_with_the_reason(bucket, tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise RuntimeError("no credentials\nwere found")

    monkeypatch.setattr(type(bucket.fs), "cat_file", refuse)
    with pytest.raises(OSError, match="no credentials were found") as raised:
        storage.read_bytes(bucket / "file")
    assert storage.reason(raised.value) == "no credentials were found"
    with pytest.raises(UserError, match=r"config\.json cannot be read: no credentials were found"):
        reader.read(bucket)
    # A disk has no client, so an error there is a bug of ours and stays as it is.
    with pytest.raises(ZeroDivisionError), storage.reaching(tmp_path):
        _ = 1 / 0


# -------------------------------------------------------------------------------- run folders


def test_a_run_folder_in_a_bucket_reads_as_it_was_written(bucket):
    folder = writer.RunFolder(bucket / "plain-20", CONFIG)
    folder.record_launch({"command": "first"})
    folder.record_launch({"command": "second"})
    folder.rewind(0)
    for step in (1, 2, 3):
        folder.append({"step": step})
    folder.set_status("running", step=3, steps=9, device_seconds=1.5)
    folder.close()
    (run,) = reader.find([bucket])
    assert run.name == "plain-20"
    assert run.config["model"].items() >= {"depth": 20, "widths": [1, 2]}.items()
    assert run.environment == {"command": "first", "resumed": [{"command": "second"}]}
    assert run.metrics == [{"step": 1}, {"step": 2}, {"step": 3}]
    assert run.status["status"] == "running"
    names = sorted(storage.files(run.path))
    assert names == ["config.json", "environment.json", "metrics.jsonl", "status.json"]

    again = writer.RunFolder(bucket / "plain-20", CONFIG)
    again.rewind(2)
    again.append({"step": 3, "train/loss": 1.0})
    again.flush()
    assert reader.read(bucket / "plain-20").metrics[1:] == [
        {"step": 2},
        {"step": 3, "train/loss": 1.0},
    ]
    again.close()
    with pytest.raises(UserError, match=r"model\.depth \(20 there, 56 here\)"):
        writer.RunFolder(bucket / "plain-20", with_depth(56))


def test_a_bucket_folder_without_runs_is_refused(bucket):
    with pytest.raises(UserError, match="is not a folder"):
        reader.find([bucket])
    storage.write_bytes(bucket / "other" / "file", b"")
    with pytest.raises(UserError, match="holds no run"):
        reader.find([bucket])


# --------------------------------------------------------------------------------- one writer


def test_a_second_process_is_refused_while_the_first_lives(place, quick):
    first = lock.take(place)
    with pytest.raises(UserError, match="Another process is training in"):
        lock.take(place)
    first.check()
    first.release()
    second = lock.take(place)
    second.check()
    second.release()


def test_a_dead_processes_lease_in_a_bucket_is_taken_over(bucket, quick, caplog):
    storage.write_bytes(bucket / lock.LOCK, b'{"owner": "x", "host": "h", "pid": 1, "renewed": 7}')
    began = time.monotonic()
    with caplog.at_level("INFO"):
        taken = lock.take(bucket)
    assert 0.5 < time.monotonic() - began < 3
    assert "is in use, or its last process was killed" in caplog.text
    taken.check()
    taken.release()
    assert storage.read_bytes(bucket / lock.LOCK) is None


def test_a_lease_released_while_another_process_waits_is_taken_at_once(bucket, quick, monkeypatch):
    monkeypatch.setattr(lock, "LOST_SECONDS", 60.0)
    storage.write_bytes(bucket / lock.LOCK, b'{"owner": "x", "host": "h", "pid": 1, "renewed": 7}')
    monkeypatch.setattr(lock.time, "sleep", lambda _: (bucket / lock.LOCK).unlink(missing_ok=True))
    lock.take(bucket).release()


def test_a_process_that_lost_its_lease_stops_writing(bucket, quick):
    folder = writer.RunFolder(bucket / "run", CONFIG)
    folder.rewind(0)
    folder.append({"step": 1})
    folder.flush()
    folder.append({"step": 2})  # not in the bucket yet
    other_lease = b'{"owner": "x", "host": "node7", "pid": 1, "renewed": 1}'
    storage.write_bytes(folder.path / lock.LOCK, other_lease)
    time.sleep(1)  # ten times the interval at which it checks the owner
    sentence = r"A process on node7 took memory://bucket/runs/run over"
    with pytest.raises(RunError, match=sentence):
        folder.append({"step": 3})
    with pytest.raises(RunError, match=sentence):
        folder.flush()
    with pytest.raises(RunError, match=sentence):
        folder.set_status("failed", step=1, steps=2, device_seconds=0.0)
    folder.close()
    assert reader.read(folder.path).metrics == [{"step": 1}]
    assert storage.read_bytes(folder.path / lock.LOCK) == other_lease


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_disk_that_cannot_lock_files_is_held_by_a_lease(
    tmp_path, quick, monkeypatch, caplog, code
):
    def flock(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(lock.fcntl, "flock", flock)
    with caplog.at_level("INFO"):
        first = lock.take(tmp_path)
    assert f"files cannot be locked there ({os.strerror(code)})" in caplog.text
    assert lock.is_held(tmp_path)
    with pytest.raises(UserError, match="Another process is training in"):
        lock.take(tmp_path)
    first.check()
    first.release()
    assert lock.is_held(tmp_path) is False


@pytest.mark.parametrize("kind", ["memory", "disk", "s3", "gs"])
def test_of_processes_that_start_together_one_holds_the_lease(kind, quick, tmp_path, request):
    with contextlib.ExitStack() as stack:
        if kind == "memory":
            place = request.getfixturevalue("bucket")
        elif kind == "disk":
            place = tmp_path
        else:
            place = storage.locate(stack.enter_context(buckets.served(kind)))
        together = threading.Barrier(4)
        taken, refused = [], []

        def start():
            together.wait()
            try:
                taken.append(lock.Lease(place, place / lock.LEASE))
            except UserError as e:
                refused.append(str(e))

        threads = [threading.Thread(target=start) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert (len(taken), len(refused)) == (1, 3)
        assert abs(storage.modified(place / lock.LEASE) - time.time()) < 30
        taken[0].check()
        taken[0].release()


def test_of_processes_that_take_over_together_one_holds_the_lease(bucket, quick, monkeypatch):
    storage.write_bytes(bucket / lock.LOCK, b'{"owner": "x", "host": "h", "pid": 1, "renewed": 7}')
    other = b'{"owner": "y", "host": "node7", "pid": 1, "renewed": 1}'
    write = storage.write_bytes

    def both(path, content):
        write(path, content)
        write(path, other)

    monkeypatch.setattr(storage, "write_bytes", both)
    with pytest.raises(UserError, match="Another process is training in"):
        lock.take(bucket)


def test_a_server_without_create_if_absent_still_refuses_a_second_process(
    bucket, quick, monkeypatch
):
    def unknown(*_, **__):
        raise OSError(errno.ENOSYS, "A header you provided implies functionality not implemented")

    monkeypatch.setattr(bucket.fs, "pipe_file", unknown)
    first = lock.take(bucket)
    with pytest.raises(UserError, match="Another process is training in"):
        lock.take(bucket)
    first.release()


def test_a_bucket_is_held_until_its_lease_is_released_or_stale(bucket, monkeypatch):
    assert lock.is_held(bucket) is False
    lease = lock.take(bucket)
    status = {"status": "running", "host": "elsewhere", "pid": 1}
    assert reader.is_alive(bucket, status)
    with monkeypatch.context() as patch:
        patch.setattr(lock, "_STALE_SECONDS", -1.0)
        assert not reader.is_alive(bucket, status)
    lease.release()
    assert not reader.is_alive(bucket, status)


def test_an_incomplete_lease_has_no_owner(bucket, quick):
    lease = lock.take(bucket)
    storage.write_bytes(bucket / lock.LOCK, b'{"owner')
    time.sleep(0.5)
    lease.check()
    assert lock._holder(storage.read_bytes(bucket / lock.LOCK))["pid"] == os.getpid()
    lease.release()


@pytest.mark.parametrize("kind", ["s3", "gs"])
def test_each_test_gets_an_empty_bucket(kind):
    for content in (b"first", b"second"):
        with buckets.served(kind) as folder:
            path = storage.locate(f"{folder}/file")
            assert storage.read_bytes(path) is None
            storage.write_bytes(path, content)
            assert storage.read_bytes(path) == content
