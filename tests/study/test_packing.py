"""Cells side by side: their number, and each one's cores or GPUs and memory."""

import contextlib
import os
import re
import statistics

import pytest

from configs import degradation_cifar10, degradation_digits, degradation_imagenet
from experiments.launchers import local
from experiments.launchers.local import Machine
from experiments.study import grid, packing
from experiments.study.side_by_side import TimedProcesses, TimingFailedError
from resnet_jax.errors import UserError
from resnet_jax.parallel.cores import usable_cores
from tests import tiny
from tests.study import sweep_fake
from tests.study.test_scheduling import outcome, sweep

FRACTION = "XLA_PYTHON_CLIENT_MEM_FRACTION"
GPUS = "JAX_CUDA_VISIBLE_DEVICES"


@pytest.fixture(autouse=True)
def nothing_is_set(monkeypatch):
    for name in (FRACTION, GPUS, "JAX_ROCM_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)


# ---------------------------------------------------------------------------- where each runs


def places(machine, at_once):
    """Returns each process's (GPUs, fraction of their memory)."""
    shares = []
    for share in range(at_once):
        with local.placed(machine, share, at_once) as environment:
            assert environment.get("JAX_ROCM_VISIBLE_DEVICES") == environment.get(GPUS)
            shares.append((environment.get(GPUS), environment.get(FRACTION)))
    return shares


def test_cells_share_out_gpus_and_then_their_memory():
    assert places(Machine("gpu", 8), 1) == [(None, None)]  # JAX's default: all
    assert places(Machine("gpu", 4), 2) == [("0,1", None), ("2,3", None)]
    assert places(Machine("gpu", 2), 2) == [("0", None), ("1", None)]
    assert places(Machine("gpu"), 2) == [("0", "0.375")] * 2
    assert places(Machine("gpu", 2), 4) == [("0", "0.375"), ("1", "0.375")] * 2
    assert places(Machine("gpu", 2), 3) == [("0", "0.375"), ("1", "0.375"), ("0", "0.375")]


def test_what_the_user_has_set_is_kept(monkeypatch):
    monkeypatch.setenv(GPUS, "5,7")
    monkeypatch.setenv("JAX_ROCM_VISIBLE_DEVICES", "5,7")
    monkeypatch.setenv(FRACTION, "0.2")
    assert places(Machine("gpu", 2), 4) == [("5", "0.2"), ("7", "0.2")] * 2


def test_on_cpu_a_process_has_its_cores_and_nothing_is_set():
    mine = usable_cores()
    for share in range(2):
        with local.placed(Machine("cpu"), share, 2) as environment:
            assert usable_cores() == local.share_of(share, 2, mine)
            assert environment == dict(os.environ)
        assert usable_cores() == mine


def test_a_sweep_gives_each_cell_its_gpus(tmp_path, monkeypatch):
    monkeypatch.setenv("FAKE_GPUS", "2")
    code, _, said = outcome(sweep(tmp_path, "--jobs=9"))
    assert code == 0, said
    assert "4 at a time on gpu" in said  # the study has only 4
    launches = sweep_fake.started(tmp_path)
    assert sorted((line["gpus"], line["memory"]) for line in launches) == (
        [("0", "0.375")] * 2 + [("1", "0.375")] * 2
    )


def test_a_plan_at_a_given_rate_times_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("FAKE_GPUS", "1")
    code, out, said = outcome(sweep(tmp_path, "--dry_run", "--rate=1000"))
    assert (code, said) == (0, "")
    assert "4 of them left to run, one at a time on gpu" in out


def test_the_machine_is_asked_by_another_process(monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert local.machine() == Machine("cpu")
    monkeypatch.setenv("JAX_PLATFORMS", "")
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=3")
    assert local.machine() == Machine("cpu", 3)
    monkeypatch.setenv("JAX_PLATFORMS", "nonsense")
    assert local.machine() == Machine("cpu")


# -------------------------------------------------------------------------------- how many


def cells_of(config, *preset):
    return grid.cells(config.get_config(*preset))


@pytest.fixture
def packed(monkeypatch):
    """The measurements made, as (cell, limit); each finds two per GPU to be best."""
    measurements = []

    def jobs_per_gpu(cell, limit):
        measurements.append((cell.name, limit))
        return min(2, limit)

    monkeypatch.setattr(packing, "_jobs_per_gpu", jobs_per_gpu)
    return measurements


def test_on_cpu_one_per_core(monkeypatch, packed):
    monkeypatch.setattr(packing, "usable_cores", lambda: list(range(3)))
    cells = cells_of(degradation_digits, "one_rate")
    assert packing.default_jobs(Machine("cpu"), cells, cells) == 3
    assert packing.default_jobs(Machine("cpu"), cells[:2], cells[:1]) == 2
    assert packed == []


def test_on_gpus_one_each_or_more_if_that_is_faster(packed):
    cells = cells_of(degradation_digits, "one_rate")  # four
    assert packing.default_jobs(Machine("gpu", 8), cells, cells) == 4
    assert packing.default_jobs(Machine("gpu", 4), cells, cells) == 4
    assert packing.default_jobs(Machine("gpu"), cells, cells[:1]) == 1
    assert packing.default_jobs(Machine("gpu", 2), cells, []) == 2
    assert packed == []
    assert packing.default_jobs(Machine("gpu"), cells, cells) == 2
    assert packing.default_jobs(Machine("gpu", 2), cells, cells) == 4
    assert packing.default_jobs(Machine("gpu", 2), cells, cells[:3]) == 2
    assert packed == [(cells[0].name, 4), (cells[0].name, 2), (cells[0].name, 1)]


def test_on_tpus_one_per_chip_which_processes_cannot_share(packed):
    cells = cells_of(degradation_digits, "one_rate")  # four
    assert packing.default_jobs(Machine("tpu", 8), cells, cells) == 4
    assert packing.default_jobs(Machine("tpu", 2), cells, cells) == 2
    assert packing.default_jobs(Machine("tpu", 2), cells, cells[:1]) == 2
    assert packed == []
    packing.refuse_shared_chips(Machine("tpu", 4), 4)
    packing.refuse_shared_chips(Machine("gpu", 4), 9)
    with pytest.raises(UserError, match="--jobs=5 is more than this machine's 4 TPU chips"):
        packing.refuse_shared_chips(Machine("tpu", 4), 5)


def test_on_tpus_each_process_has_one_chip_and_joins_no_other():
    seen = []
    for share in range(4):
        with local.placed(Machine("tpu", 4), share, 4) as environment:
            seen.append({k: v for k, v in environment.items() if os.environ.get(k) != v})
    assert [own["TPU_VISIBLE_CHIPS"] for own in seen] == ["0", "1", "2", "3"]
    assert len({own["TPU_PROCESS_PORT"] for own in seen}) == 4
    for own in seen:
        assert own["TPU_PROCESS_ADDRESSES"] == f"localhost:{own['TPU_PROCESS_PORT']}"
        assert own["TPU_CHIPS_PER_PROCESS_BOUNDS"] == own["TPU_PROCESS_BOUNDS"] == "1,1,1"
    with local.placed(Machine("tpu", 4), 0, 1) as environment:  # one cell has all chips
        assert environment == dict(os.environ)


def test_tpu_chips_are_counted_without_asking_jax(monkeypatch):
    """Each host of a slice has a sweep of its own, and JAX would wait for the other hosts."""

    def ask(*_, **__):
        raise AssertionError("JAX was asked")

    monkeypatch.setattr(local.subprocess, "run", ask)
    monkeypatch.setattr(local.importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(local.clusters, "tpu_chips", lambda folder: 4)
    monkeypatch.setenv("JAX_PLATFORMS", "tpu,cpu")
    assert local.machine() == Machine("tpu", 4)
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert local.machine() == Machine("cpu")
    monkeypatch.setenv("JAX_PLATFORMS", "")
    monkeypatch.setattr(local.clusters, "tpu_chips", lambda folder: 0)
    with pytest.raises(AssertionError, match="JAX was asked"):
        local.machine()


def test_one_at_a_time_if_cells_need_the_whole_machine(packed):
    streamed = cells_of(degradation_imagenet)
    assert packing.default_jobs(Machine("gpu", 4), streamed, streamed) == 1
    assert packing.default_jobs(Machine("tpu", 4), streamed, streamed) == 1
    for key in ("fsdp", "replicates"):
        spread = degradation_cifar10.get_config()
        spread.base.mesh[key] = 2
        cells = grid.cells(spread)
        assert packing.default_jobs(Machine("gpu", 4), cells, cells) == 1
    assert packed == []


# ---------------------------------------------------------------------------- measured


@pytest.fixture
def device(monkeypatch):
    """A device with given steps per second, by number of processes; 0: out of memory."""
    rates, groups = {}, []

    class Fake:
        def __init__(self, config, processes, placed, devices):
            with placed(0) as environment:
                groups.append((processes, environment[GPUS], environment[FRACTION], devices))
            self.processes, self.turns = processes, 0

        def wait_until_ready(self):
            if not rates[self.processes]:
                raise TimingFailedError("out of memory")

        def seconds_per_step(self):
            return self.processes / rates[self.processes]

        def run(self, steps, processes):
            assert steps == max(1, round(rates[self.processes] / self.processes))
            self.turns += 1
            disturbed = 0.01 if (self.turns, processes) == (2, 2) else 1.0
            return disturbed * processes / rates[processes]

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

    monkeypatch.setattr(packing, "TimedProcesses", Fake)
    return rates, groups


@pytest.mark.parametrize(
    ("steps_per_second", "limit", "chosen", "tried"),
    [
        ({1: 10, 2: 16, 4: 20}, 4, 4, [4]),
        ({1: 10, 2: 16, 4: 12}, 4, 2, [4]),
        ({1: 10, 2: 10.5, 4: 10.9}, 4, 1, [4]),
        ({1: 10, 2: 9, 4: 8}, 4, 1, [4]),
        ({1: 10, 2: 16, 4: 0}, 4, 2, [4, 2]),
        ({1: 10, 2: 0, 4: 0}, 4, 1, [4, 2]),
        ({1: 10, 2: 16, 4: 20}, 3, 2, [2]),
        ({1: 0.2, 2: 0.4}, 2, 2, [2]),
        ({}, 1, 1, []),
    ],
)
def test_the_fastest_number_per_gpu(device, steps_per_second, limit, chosen, tried):
    rates, groups = device
    rates.update(steps_per_second)
    (cell, *_) = cells_of(degradation_digits, "one_rate")
    assert packing._jobs_per_gpu(cell, limit) == chosen
    memory = {4: "0.188", 2: "0.375"}
    assert groups == [(number, "0", memory[number], 1) for number in tried]


def small_cell():
    config = degradation_digits.get_config("one_rate")
    config.base.batch_size, config.base.replicates, config.base.model.width = 8, 1, 0.25
    config.grid.model.depth = (8,)
    return grid.cells(config)[0]


def anywhere(monkeypatch, **variables):
    """Returns `placed` of TimedProcesses for this machine; processes get these variables too."""
    monkeypatch.chdir(tiny.ROOT)
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")

    @contextlib.contextmanager
    def placed(number):
        with local.placed(Machine("cpu"), number, 2) as environment:
            yield environment | variables

    return placed


@pytest.mark.slow
def test_a_group_takes_steps_and_says_what_they_took(monkeypatch, tmp_path):
    config = small_cell().config
    config.train.steps_per_dispatch = "5"
    kept = {
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    with TimedProcesses(config, 2, anywhere(monkeypatch, **kept), devices=1) as processes:
        slowest = processes.wait_until_ready()
        assert slowest["compile_seconds"] > 0.1
        assert (slowest["device"], slowest["devices"]) == ("cpu", 1)
        assert not list(tmp_path.iterdir())
        few = statistics.median(processes.run(5) * 5 for _ in range(5))
        many = statistics.median(processes.run(100, 1) * 100 for _ in range(5))
        assert 3 * few < many < 100 * few
        answer, answers = processes._answer, []
        monkeypatch.setattr(
            processes, "_answer", lambda n: answers.append(answer(n)) or answers[-1]
        )
        processes.run(7)
        assert answers == [{"steps": 10}] * 2
        processes._workers[1].kill()
        assert processes.run(5, 1) > 0  # the second is not asked
        with pytest.raises(TimingFailedError, match="exit code -9"):
            processes.run(5)
    assert all(worker.poll() is not None for worker in processes._workers)


def test_a_step_is_timed_over_enough_steps(monkeypatch):
    for seconds, expected in ((0.01, [1, 1, 50]), (0.6, [1, 1])):
        processes, runs = object.__new__(TimedProcesses), []

        def run(steps, seconds=seconds, runs=runs):
            runs.append(steps)
            return seconds

        monkeypatch.setattr(processes, "run", run)
        assert processes.seconds_per_step(0.5) == seconds
        assert runs == expected


def test_a_group_that_takes_too_long_is_ended(monkeypatch):
    with (
        TimedProcesses(small_cell().config, 1, anywhere(monkeypatch), limit=0.5) as processes,
        pytest.raises(TimingFailedError, match=r"it took more than 0\.5 s"),
    ):
        processes.wait_until_ready()


def test_a_group_says_why_a_process_has_ended(monkeypatch):
    placed = anywhere(monkeypatch, JAX_PLATFORMS="nonsense")
    with (
        TimedProcesses(small_cell().config, 1, placed) as processes,
        pytest.raises(TimingFailedError, match="nonsense"),
    ):
        processes.wait_until_ready()


@pytest.mark.slow
def test_a_device_is_timed_here(monkeypatch, caplog):
    anywhere(monkeypatch)
    with caplog.at_level("INFO"):
        chosen = packing._jobs_per_gpu(small_cell(), 2)
    rates, said = re.fullmatch(
        r"Total steps per second: (.*); cells per device: (\d)\.", caplog.messages[-1]
    ).groups()
    alone, two = (float(rate.split()[0]) for rate in rates.split(", "))
    assert min(alone, two) > 0
    assert int(said) == chosen
    if abs(two / alone - 1.1) > 0.02:  # the logged rates are rounded
        assert chosen == (2 if two > 1.1 * alone else 1)
