"""Runs and studies with folders in buckets of emulated servers, through the real clients."""

import signal
import subprocess
import tempfile
import time

import jax
import numpy as np
import pytest

from resnet_jax.errors import RunError
from resnet_jax.programs import initializer
from resnet_jax.resolve import resolve
from resnet_jax.runs import lock, reader, storage
from resnet_jax.runs.checkpoints import Checkpoints, OtherStateError
from tests import tiny
from tests.parallel import test_processes
from tests.runs import buckets

LONG = {"steps": 400, "log__every": 10, "checkpoint__every": 50, "eval__every": 100,
        "log__tensorboard": True}  # fmt: skip


# gcsfs and its emulator are several times slower.
@pytest.fixture(scope="module", params=["s3", pytest.param("gs", marks=pytest.mark.slow)])
def url(request):
    with buckets.served(request.param) as folder:
        yield folder


@pytest.fixture
def place(url, request):
    """An empty folder in the bucket."""
    name = "".join(c if c.isalnum() else "-" for c in request.node.name)
    return storage.locate(f"{url}/{name}")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The same run with its folder on a disk."""
    folder = tmp_path_factory.mktemp("undisturbed")
    done = tiny.launch(folder, **LONG)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def state():
    c = resolve(tiny.config())
    return jax.device_put(initializer(c)(np.arange(2)))


def program(name, *arguments):
    return tiny.program(f"experiments.{name}", *arguments)


def until(condition, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.1)


def inventories(place):
    """The inventories of the complete checkpoints."""
    return sorted(name for name in storage.files(place) if name.endswith("inventory.json"))


def stop(place, number):
    """Starts a run and sends it a signal after its first checkpoint; returns its exit code."""
    with tempfile.TemporaryFile("w+") as said:  # an unread pipe would fill up
        process = subprocess.Popen(
            tiny.command(place, **LONG), cwd=tiny.ROOT, env=tiny.environment(), stderr=said
        )
        until(lambda: inventories(place) or process.poll() is not None)
        process.send_signal(number)
        process.wait(timeout=60)
        said.seek(0)
        assert "Traceback" not in said.read()
    return process.returncode


def assert_same_run(place, folder):
    assert tiny.lines(place) == tiny.lines(folder)
    tiny.assert_bit_equal(tiny.final_state(place), tiny.final_state(folder))
    ours, theirs = reader.read(place), reader.read(folder)
    assert ours.status["status"] == theirs.status["status"] == "completed"
    assert ours.config == theirs.config


# ------------------------------------------------------------------------------------- a run


@pytest.mark.slow
def test_a_stopped_run_resumes_bit_for_bit(place, undisturbed, tmp_path):
    assert stop(place, signal.SIGTERM) == 42
    stopped = reader.read(place)
    assert stopped.status["status"] == "preempted"
    at = stopped.status["step"]
    assert stopped.metrics[-1]["step"] == at // 10 * 10
    done = tiny.launch(place, **LONG)
    assert done.returncode == 0, done.stderr
    assert f"resumes at step {at}." in done.stderr
    assert_same_run(place, undisturbed)
    assert lock.LOCK not in storage.files(place)
    complete = ("checkpoints/350", "checkpoints/400", "tested/400")
    assert inventories(place) == [f"{name}/inventory.json" for name in complete]
    board = place / "tensorboard"
    launches = [storage.read_bytes(board / name) for name in storage.files(board)]
    assert len(launches) == 2
    assert all(b"train/loss" in events for events in launches)

    said = program("compare", place, f"--out={tmp_path / 'report'}")
    assert said.returncode == 0, said.stderr
    assert "resnet-8-A" in (tmp_path / "report" / "table.csv").read_text()
    again = tiny.launch(place, **LONG)
    assert again.returncode == 0
    assert "has ended already: completed at step 400 of 400" in again.stderr


@pytest.mark.slow
@pytest.mark.parametrize("url", ["s3"], indirect=True)
def test_a_killed_run_resumes_bit_for_bit(place, undisturbed):
    assert stop(place, signal.SIGKILL) == -signal.SIGKILL
    assert storage.read_bytes(place / lock.LOCK)
    done = tiny.launch(place, **LONG)
    assert done.returncode == 0, done.stderr
    assert "is in use, or its last process was killed: waiting up to 40 s" in done.stderr
    assert "resumes at step" in done.stderr
    assert_same_run(place, undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize("url", ["s3"], indirect=True)
def test_two_processes_train_into_a_bucket_and_resume(place, undisturbed, monkeypatch):
    # The bucket is on this machine, which a proxy cannot reach.
    monkeypatch.setenv("no_proxy", "127.0.0.1,localhost")
    overrides = test_processes.SEEDS | {"steps": 60, "checkpoint__every": 20, "log__every": 10}
    codes, said = test_processes.finish(test_processes.start(place, 2, 2, **overrides))
    assert codes == [0, 0], said
    assert len(reader.read(place).environment["hosts"]) == 2
    final = tiny.final_state(place)
    # As if killed just before the end; the last complete checkpoint is then step 40.
    storage.write_json(place / "status.json", reader.read(place).status | {"status": "running"})
    (place / "checkpoints" / "60" / "inventory.json").unlink()
    storage.write_bytes(place / lock.LOCK, b'{"owner": "x", "host": "h", "pid": 1, "renewed": 7}')
    codes, said = test_processes.finish(test_processes.start(place, 2, 2, **overrides))
    assert codes == [0, 0], said
    # The wait is longer than the timeout of a collective on the devices.
    assert "waiting up to 40 s to see which" in said[0]
    assert "resumes at step 40" in said[0]
    tiny.assert_bit_equal(tiny.final_state(place), final)


@pytest.mark.slow
def test_a_study_runs_in_a_bucket_with_its_logs(place):
    flags = [flag.replace("--config.", "--config.base.") for flag in tiny.flags_of()]
    study = [
        "--config=configs/degradation_digits.py:one_rate", f"--workdir={place}",
        *(flag for flag in flags if "model.depth" not in flag), "--config.grid.model.depth=(8,)",
        "--config.base.replicates=1", "--config.base.model.bn_group=0",
    ]  # fmt: skip
    done = program("sweep", *study)
    assert done.returncode == 0, done.stderr
    assert {run.name: run.status["status"] for run in reader.find([place])} == {
        "plain-8": "completed",
        "resnet-8-A": "completed",
    }
    log = storage.read_bytes(place / "plain-8" / "log.txt").decode()
    assert log.startswith("--- ")
    assert "completed at step 12 of 12" in log
    status = program("sweep", *study, "--status")
    assert status.returncode == 0
    assert status.stdout.count("completed") == 2
    refused = program("sweep", *study, "--launcher=slurm")
    assert refused.returncode == 2
    assert f"error: --workdir={place} is in a bucket" in refused.stderr


@pytest.mark.slow
@pytest.mark.parametrize("url", ["s3"], indirect=True)
def test_an_unreachable_bucket_is_one_sentence(url, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    done = tiny.launch(f"{url}/run")
    assert done.returncode == 2
    errors = done.stderr.splitlines()
    assert errors[-1].startswith(f"error: {url}/run/config.json cannot be read: ")
    assert "connect" in errors[-1].lower()
    assert "Traceback" not in done.stderr


# ------------------------------------------------------------------------------- checkpoints


@pytest.fixture
def folder(place, state):
    """Checkpoints of steps 1, 2 and 3, of which the newest two are kept."""
    checkpoints = Checkpoints(place, keep=2)
    for step in (1, 2, 3):
        checkpoints.save(step, tiny.at_step(state, step))
    checkpoints.save(3, tiny.at_step(state, 9))  # ignored: step 3 exists
    assert checkpoints.steps()[-1] in (2, 3)
    checkpoints.wait()
    assert checkpoints.steps() == [2, 3]
    checkpoints.close()
    return place


def test_the_newest_comes_back_bit_for_bit(folder, state):
    tiny.assert_bit_equal(tiny.restore(folder, state), tiny.at_step(state, 3))


def test_an_existing_checkpoint_is_not_uploaded_again(folder, state):
    checkpoints = Checkpoints(folder, keep=2)
    checkpoints.restore(state)
    checkpoints.save(3, tiny.at_step(state, 9))
    checkpoints.close()
    tiny.assert_bit_equal(tiny.restore(folder, state), tiny.at_step(state, 3))


def test_a_copy_on_a_disk_can_be_restored(folder, state, tmp_path):
    for name in storage.files(folder):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(storage.read_bytes(folder / name))
    tiny.assert_bit_equal(tiny.restore(tmp_path, state), tiny.at_step(state, 3))


def test_without_checkpoints_nothing_is_restored(place, state):
    assert tiny.restore(place, state) is None


def steps_in(folder):
    return {name.split("/")[0] for name in storage.files(folder)}


def lose_a_file(checkpoint):
    (checkpoint / "best" / "manifest.ocdbt").unlink()


@pytest.mark.parametrize("damage", [tiny.flip_bytes, lose_a_file])
def test_a_damaged_checkpoint_is_logged_and_the_previous_one_restored(
    folder, state, damage, caplog
):
    damage(folder / "3")
    tiny.assert_bit_equal(tiny.restore(folder, state), tiny.at_step(state, 2))
    assert "CHECKPOINT 3 IS DAMAGED" in caplog.text
    assert steps_in(folder) == {"2", "damaged-3"}
    damage(folder / "2")
    with pytest.raises(RunError, match=r"None of the checkpoints \[2\] in .* can be read"):
        tiny.restore(folder, state)


def test_another_versions_checkpoint_is_refused_and_kept(folder, state):
    other = state.replace(params={k: v for k, v in state.params.items() if k != "logits"})
    with pytest.raises(OtherStateError, match=rf"Checkpoint 3 in {folder} is intact, but"):
        tiny.restore(folder, other)
    tiny.assert_bit_equal(tiny.restore(folder, state), tiny.at_step(state, 3))


def test_an_incomplete_upload_is_ignored_and_removed_by_the_next_one(folder, state):
    (folder / "3" / "inventory.json").unlink()
    tiny.assert_bit_equal(tiny.restore(folder, state), tiny.at_step(state, 2))
    assert steps_in(folder) == {"2", "3"}  # readers remove nothing: an upload may be in progress
    checkpoints = Checkpoints(folder, keep=2)
    checkpoints.save(4, tiny.at_step(state, 4))
    checkpoints.close()
    assert steps_in(folder) == {"2", "4"}


def test_a_failed_upload_is_a_run_error_and_keeps_the_previous_checkpoint(
    folder, state, monkeypatch, tmp_path
):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    checkpoints = Checkpoints(folder, keep=2)

    uploads = []

    def full(_, paths):
        uploads.extend(paths)
        raise OSError(28, "quota exceeded")

    with monkeypatch.context() as broken:
        broken.setattr(folder.fs, "put", full)
        checkpoints.save(4, tiny.at_step(state, 4))
        with pytest.raises(RunError, match=r"could not be written to .*: quota exceeded"):
            checkpoints.wait()
    checkpoints.close()
    assert len(uploads) > 5
    assert not any(path.endswith("inventory.json") for path in uploads)  # it is uploaded last
    assert list(tmp_path.iterdir()) == []  # no scratch folder is left
    tiny.assert_bit_equal(tiny.restore(folder, state), tiny.at_step(state, 3))


def test_a_network_failure_does_not_count_as_damage(folder, state, monkeypatch):
    def lost(*_, **__):
        raise OSError(101, "network is unreachable")

    with monkeypatch.context() as broken:
        broken.setattr(folder.fs, "get", lost)
        with pytest.raises(RunError, match="cannot be read: network is unreachable"):
            tiny.restore(folder, state)
    tiny.assert_bit_equal(tiny.restore(folder, state), tiny.at_step(state, 3))


def test_a_report_is_not_written_to_a_bucket(place):
    said = program("compare", place, f"--out={place}/report")
    assert said.returncode == 2
    assert "is a URL; it must be a path on a disk of this machine" in said.stderr
