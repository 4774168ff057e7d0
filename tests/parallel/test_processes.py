"""Two processes with two devices each train the same run as one process with four."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from resnet_jax.runs import reader, records
from tests import tiny
from tests.data import pictures

# Two seeds over two processes: neither process holds the other's metrics.
SEEDS = {"replicates": 2, "mesh__replicates": 2}
ONE_SEED = {"mesh__fsdp": 2, "model__width": 1.0}


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def start(folder, processes, devices, **overrides):
    """Starts the processes of a run, each with `devices` CPU devices."""
    port = free_port()
    environment = tiny.environment() | {
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "JAX_PLATFORMS": "cpu",
        # Nothing answers there: the processes must not connect through the proxy.
        "http_proxy": "http://127.0.0.1:9",
    }
    cluster_flags = [f"--coordinator=127.0.0.1:{port}", f"--processes={processes}"]
    return [
        subprocess.Popen(
            [*tiny.command(folder, **overrides), *cluster_flags, f"--process={process}"],
            cwd=tiny.ROOT, env=environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for process in range(processes)
    ]  # fmt: skip


def finish(processes, seconds=180):
    """Waits for all processes; returns their exit codes and their stderr."""
    stderrs = [process.communicate(timeout=seconds)[1] for process in processes]
    return [process.returncode for process in processes], stderrs


def until(condition, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def at_step(folder, step):
    return any(row["step"] >= step for row in records.read_metrics(folder))


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides",
    [
        pytest.param(SEEDS, id="seeds"),
        pytest.param(ONE_SEED, id="one_seed"),
    ],
)
def test_two_processes_train_the_same_run_as_one(tmp_path, overrides):
    codes, stderrs = finish(start(tmp_path / "two", 2, 2, **overrides))
    assert codes == [0, 0], stderrs
    assert "training error" in stderrs[0]
    assert stderrs[1] == ""  # process 0 logs for all
    assert "Compiled programs" not in stderrs[0]  # several processes need an explicit folder
    codes, stderrs = finish(start(tmp_path / "one", 1, 4, **overrides))
    assert codes == [0], stderrs
    assert "Compiled programs are kept in" in stderrs[0]
    two, one = reader.read(tmp_path / "two"), reader.read(tmp_path / "one")
    assert two.environment["execution"]["mesh"] == one.environment["execution"]["mesh"]
    assert (len(two.environment["hosts"]), len(one.environment["hosts"])) == (2, 1)
    assert len(two.environment["devices"]) == 4
    assert two.status["status"] == one.status["status"] == "completed"
    assert len(list((two.path / "tensorboard").glob("*"))) == 0  # switched off in these tests
    for ours, theirs in zip(tiny.lines(two.path), tiny.lines(one.path), strict=True):
        assert ours.keys() == theirs.keys()
        for key, value in ours.items():
            np.testing.assert_allclose(value, theirs[key], rtol=1e-4, err_msg=key)


@pytest.mark.slow
def test_a_signal_to_one_process_stops_both_and_the_run_resumes_exactly(tmp_path):
    long = SEEDS | {"steps": 150, "log__every": 10, "eval__every": 50, "checkpoint__every": 1000}
    long |= {"train__steps_per_dispatch": "2"}
    stopped = start(tmp_path / "run", 2, 2, **long)
    until(lambda: at_step(tmp_path / "run", 10))
    stopped[1].send_signal(signal.SIGTERM)
    codes, stderrs = finish(stopped)
    assert codes == [42, 42], stderrs
    status = reader.read(tmp_path / "run").status
    assert status["status"] == "preempted"
    assert 10 <= status["step"] < 150
    assert status["step"] % 2 == 0
    codes, stderrs = finish(start(tmp_path / "run", 2, 2, **long))
    assert codes == [0, 0], stderrs
    assert f"resumes at step {status['step']}" in stderrs[0]
    codes, stderrs = finish(start(tmp_path / "undisturbed", 2, 2, **long))
    assert codes == [0, 0], stderrs
    assert tiny.lines(tmp_path / "run") == tiny.lines(tmp_path / "undisturbed")
    tiny.assert_bit_equal(
        tiny.final_state(tmp_path / "run"), tiny.final_state(tmp_path / "undisturbed")
    )


@pytest.mark.slow
def test_a_run_of_two_processes_resumes_in_one(tmp_path):
    long = SEEDS | {"steps": 200, "log__every": 20, "checkpoint__every": 20, "eval__every": 100}
    killed = start(tmp_path / "run", 2, 2, **long)
    # Any checkpoint: old ones are deleted.
    until(lambda: any(p.name.isdigit() for p in (tmp_path / "run").glob("checkpoints/*")))
    for process in killed:
        process.kill()
    finish(killed)
    codes, stderrs = finish(start(tmp_path / "run", 1, 4, **long))
    assert codes == [0], stderrs
    assert "resumes at step" in stderrs[0]
    run = reader.read(tmp_path / "run")
    assert run.status["status"] == "completed"
    steps = [row["step"] for row in run.metrics]
    assert steps == sorted(set(steps))
    assert steps[-1] == 200


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_single_process_that_joined_saves_when_preempted(tmp_path, number):
    long = {"steps": 4000, "log__every": 20, "eval__every": 5000, "checkpoint__every": 5000}
    (process,) = start(tmp_path / "run", 1, 2, **long)
    until(lambda: at_step(tmp_path / "run", 20))
    process.send_signal(number)
    codes, stderrs = finish([process])
    assert codes == [42], stderrs
    status = reader.read(tmp_path / "run").status
    assert (status["status"], status["reason"]) == (
        "preempted", "SIGTERM arrived; everything is saved",
    )  # fmt: skip
    assert (tmp_path / "run" / "checkpoints" / str(status["step"])).is_dir()


@pytest.mark.slow
def test_two_processes_fall_back_together_from_a_damaged_checkpoint(tmp_path):
    options = SEEDS | {"steps": 12, "checkpoint__every": 4}
    codes, stderrs = finish(start(tmp_path / "undisturbed", 2, 2, **options))
    assert codes == [0, 0], stderrs
    folder = tmp_path / "run"
    shutil.copytree(tmp_path / "undisturbed", folder)
    (folder / "status.json").unlink()  # as if killed in its last step
    largest = max((folder / "checkpoints" / "12").rglob("*"), key=os.path.getsize)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 0xFF
    largest.write_bytes(content)
    codes, stderrs = finish(start(folder, 2, 2, **options))
    assert codes == [0, 0], stderrs
    assert "CHECKPOINT 12 IS DAMAGED" in stderrs[0]
    assert "resumes at step 8" in stderrs[0]
    assert (folder / "checkpoints" / "damaged-12").is_dir()
    assert tiny.lines(folder) == tiny.lines(tmp_path / "undisturbed")
    tiny.assert_bit_equal(tiny.final_state(folder), tiny.final_state(tmp_path / "undisturbed"))


@pytest.mark.slow
@pytest.mark.parametrize("lost", [0, 1])
def test_a_lost_process_stops_the_other_with_a_message(tmp_path, lost):
    processes = start(tmp_path / "run", 2, 2, **SEEDS, steps=100_000, log__every=20)
    until(lambda: at_step(tmp_path / "run", 20))
    processes[lost].kill()
    began = time.monotonic()
    other = processes[1 - lost]
    try:
        _, stderr = other.communicate(timeout=60)
    except subprocess.TimeoutExpired:
        other.kill()
        raise
    assert time.monotonic() - began < 60
    assert other.returncode not in (0, 42)
    assert re.search("another task died|heartbeat", stderr)
    processes[lost].communicate()


def test_a_folder_that_process_0_cannot_open_stops_both(tmp_path):
    (tmp_path / "run").write_text("a file in the way")
    codes, stderrs = finish(start(tmp_path / "run", 2, 1, **SEEDS))
    assert codes == [2, 1], stderrs
    assert "cannot be written" in stderrs[0]
    assert "Process 0 stopped: " in stderrs[1]
    assert not any("Traceback" in text for text in stderrs)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--processes=2"], "go together"),
        (["--coordinator=nowhere", "--processes=2", "--process=0"], "not of the form HOST:PORT"),
        (["--coordinator=h:1", "--processes=2", "--process=2"], "allowed is from 0 to 1"),
    ],
)
def test_inconsistent_flags_are_refused(tmp_path, flags, words):
    result = subprocess.run(
        [*tiny.command(tmp_path / "run"), *flags],
        cwd=tiny.ROOT, env=dict(os.environ), capture_output=True, text=True,
    )  # fmt: skip
    assert result.returncode == 2
    assert words in result.stderr
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_two_processes_stream_the_same_run_as_one_and_read_half_each(tmp_path):
    """Each process reads only the pictures that its own devices compute."""
    pictures.prepare(tmp_path / "tfds")
    c = pictures.config(
        tmp_path / "tfds",
        batch_size=16,
        steps=4,
        eval__views=("ten_crop", "center", "fully_convolutional"),
    )
    (tmp_path / "config.json").write_text(json.dumps(c.to_dict()))
    code = (
        "import json, sys; from configs import saved; from resnet_jax import train;"
        "from resnet_jax.parallel import processes;"
        "from resnet_jax.data import records;"
        "read = []; getitem = records.Records.__getitem__;"
        "records.Records.__getitem__ = lambda self, n: read.append(self.split) or getitem(self, n);"
        "_, folder, port, count, number = sys.argv;"
        "processes.initialize('127.0.0.1:' + port, int(count), int(number));"
        f"train.train(saved.get_config({str(tmp_path / 'config.json')!r}), folder);"
        "print(read.count('train'), read.count('validation'))"
    )
    counts = {}
    for processes, devices in ((2, 2), (1, 4)):
        port = str(free_port())
        environment = tiny.environment() | {
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
            "JAX_PLATFORMS": "cpu",
        }
        started = [
            subprocess.Popen(
                [sys.executable, "-c", code, str(tmp_path / str(processes)), port, str(processes),
                 str(number)],
                cwd=tiny.ROOT, env=environment, text=True,
                stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            )
            for number in range(processes)
        ]  # fmt: skip
        outputs = [process.communicate(timeout=240) for process in started]
        assert [process.returncode for process in started] == [0] * processes, outputs
        counts[processes] = [tuple(map(int, stdout.split()[-2:])) for stdout, _ in outputs]
    ((train_pictures, test_pictures),) = counts[1]
    for train_read, test_read in counts[2]:
        # Each process computes half of each training batch of 16. Its share of the 11 test and 4
        # validation pictures may be uneven.
        assert train_read < 0.75 * train_pictures
        assert 0 < test_read < test_pictures
    assert sum(read for read, _ in counts[2]) == train_pictures
    assert sum(read for _, read in counts[2]) == test_pictures
    for two, one in zip(tiny.lines(tmp_path / "2"), tiny.lines(tmp_path / "1"), strict=True):
        assert two.keys() == one.keys()
        for key, value in two.items():
            np.testing.assert_allclose(value, one[key], rtol=1e-4, err_msg=key)
