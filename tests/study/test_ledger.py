"""The ledger reads only run folders, the plan writes nothing, and their numbers are right."""

import dataclasses
import json
import os
import socket
import subprocess
import sys

import pytest
from ml_collections import ConfigDict

from configs import degradation_cifar10, degradation_digits
from experiments.cli import tables
from experiments.launchers.local import Machine
from experiments.report import contents, groups, page
from experiments.report import figures as report_figures
from experiments.report import table as report_table
from experiments.study import estimate, grid, ledger, plan, tuning
from experiments.study.estimate import Rate, Size
from resnet_jax.data import sources
from resnet_jax.errors import RunError
from resnet_jax.runs import reader, writer
from tests import tiny
from tests.report import fixture

PARAMETERS = {20: 269722, 32: 464154, 44: 658586, 56: 853018, 110: 1727962}  # the paper's networks


def write(folder, *, rows=(), replicates=1, **status):
    folder.mkdir(parents=True)
    config = fixture.config(replicates=replicates)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if status:
        status = {"step": 40, "steps": 240, "reason": "", "device_seconds": 75.0} | status
        (folder / "status.json").write_text(json.dumps(status))


def row_of(text, name):
    (line,) = [line for line in text.splitlines() if line.split()[:1] == [name]]
    return line


def ended_process():
    """Returns the id of a process that has ended."""
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return child.pid


def test_the_ledger_shows_each_cells_progress(tmp_path):
    host = socket.gethostname()
    rows = [
        {"step": 20, "train/error": 30.0, "validation/error": 41.0},
        {"step": 40, "train/error": 22.25},
    ]
    write(tmp_path / "alive", rows=rows, status="running", host=host, pid=os.getpid())
    write(tmp_path / "dead", rows=rows, status="running", host=host, pid=ended_process())
    last = {"step": 240, "train/error": [1.0, 2.0], "test/error": [4.0, 90.0]}
    ended = {"status": "completed", "step": 240, "diverged": {"1": 57}}
    write(tmp_path / "done", rows=[last], replicates=2, **ended)
    write(tmp_path / "bad", status="failed", step=0, reason="the disk is full")
    (tmp_path / "bad" / "log.txt").write_text("")
    write(tmp_path / "new")
    text = tables.plain(ledger.status_table(reader.find([tmp_path]), expected=["never", "done"]))
    assert row_of(text, "alive").split() == [
        "alive", "running", "40/240", "22.25", "41.00*", "-", "01:15",
    ]  # fmt: skip
    assert "interrupted" in row_of(text, "dead")
    assert row_of(text, "done").split()[:7] == [
        "done", "completed", "240/240", "1.00", "-", "4.00", "01:15",
    ]  # fmt: skip
    assert "replicate 1 diverged at step 57" in row_of(text, "done")
    assert "the disk is full" in row_of(text, "bad")
    assert str(tmp_path / "bad" / "log.txt") in row_of(text, "bad")
    assert row_of(text, "new").split()[1] == "queued"
    assert row_of(text, "never").split() == ["never", "not", "started"]
    assert text.splitlines()[1].startswith("never")
    assert "shown as a mean" in text
    assert "* BatchNorm used its moving averages" in text


def test_every_table_and_line_shows_the_reports_numbers(tmp_path):
    """Three replicates, one of them diverged with finite errors, and both kinds of statistics."""
    rows = fixture.lines(
        [85, 95, 100],
        [[40.0, 90.0, 60.0], [8.0, 90.0, 20.0], [2.0, 90.0, 10.0]],
        validation__error=[67.0, 90.0, 67.44],
        validation__error_population=[8.0, 90.0, 9.5],
        test__error=[7.0, 90.0, 8.0],
    )
    rows[0]["validation/error"] = [70.0, 90.0, 70.0]
    about = {"replicates": 3, "train_examples": 1000}  # an epoch is 10 steps
    diverged = {"more": {"diverged": {"1": 90}}}
    done = fixture.write(tmp_path / "a" / "done", rows, **about, **diverged)
    going = fixture.write(tmp_path / "b" / "going", rows[:1], "preempted", **about)
    shown = {"done": ("10.00", "8.75", "7.50"), "going": ("63.33", "76.67*", "-")}
    wanted = {"done": (10.0, 8.75, 7.5), "going": (pytest.approx(190 / 3), 230 / 3, None)}
    for folder, n in ((done, 2), (going, 3)):
        run = reader.read(folder)
        text = tables.plain(ledger.status_table([run]))
        assert tuple(row_of(text, run.name).split()[3:6]) == shown[run.name]
        ((cell,),) = [group.cells for group in groups.comparable([run])]
        means = [cell.stat(measure).mean for measure in report_figures.MEASURES.values()]
        assert means == pytest.approx(list(wanted[run.name]))
        marked = shown[run.name][1].endswith("*")
        assert ("* BatchNorm used its moving averages" in text) == marked
        assert f"mean of {n}{'; moving averages' if marked else ''})" in ledger.show_errors(run)
        (group,) = groups.comparable([run])
        noted = "validation error with BatchNorm's moving averages, not its population statistics"
        assert any(note.startswith(noted) for note in report_table.footnotes(group)) == marked
    assert ledger.show_errors(reader.read(done)) == (
        "training error 10.00 % (mean of 2), validation error 8.75 % (mean of 2), "
        "test error 7.50 % (mean of 2)"
    )


def test_a_run_extended_after_its_test_shows_its_newest_validation(tmp_path):
    rows = fixture.lines([50], [5.0], validation__error=9.0)
    rows[-1]["validation/error_population"] = 8.0
    rows += fixture.lines([100], [4.0], validation__error=7.0)
    run = reader.read(fixture.write(tmp_path / "run", rows))
    assert "validation error 7.00 % (moving averages)" in ledger.show_errors(run)


def test_without_batch_norm_there_are_no_moving_averages(tmp_path):
    rows = fixture.lines([100], [4.0], validation__error=7.0)
    run = reader.read(fixture.write(tmp_path / "run", rows, model__norm="none"))
    assert ledger.show_errors(run) == "training error 4.00 %, validation error 7.00 %"
    text = tables.plain(ledger.status_table([run]))
    assert "moving averages" not in text
    (group,) = groups.comparable([run])
    assert not any("moving averages" in note for note in report_table.footnotes(group))
    report = contents.of_runs([run], margin=0.5)
    assert "moving averages" not in page.render(report, "").split("How the numbers")[0]


def test_makespan_starts_each_job_in_the_first_free_place():
    assert estimate.makespan([5, 5, 1, 1], 2) == 6
    assert estimate.makespan([5, 1, 1, 1], 2) == 5
    assert estimate.makespan([3, 2, 1], 1) == 6
    assert estimate.makespan([], 2) == 0


@pytest.fixture(scope="module")
def cifar():
    cells = [c for c in grid.cells(degradation_cifar10.get_config()) if "-110" not in c.name]
    cells = [c for c in cells if "-20" in c.name or "-56" in c.name]
    return cells, {cell.name: estimate.size_of(cell) for cell in cells}


def test_sizes_are_the_papers(cifar):
    cells, sizes = cifar
    for cell in cells:
        size = sizes[cell.name]
        assert size.parameters == PARAMETERS[cell.config.model.depth]
        assert size.work == size.mult_adds * 3 * 128 * 64000 * 5
    assert sizes["plain-20"].mult_adds == 40551040  # 4.06e7, without additions and BatchNorm


def make_plan(monkeypatch, cells, sizes, workdir, at_once=2, rate=None):
    rate = rate or Rate(mult_adds=1e9, seconds_per_layer=1.0, source="a test")
    monkeypatch.setattr(plan, "_measured_rate", lambda *_: rate)
    return tables.plain(
        plan.dry_run(cells, sizes, workdir, at_once, Machine("cpu"), sources.require)
    )


def test_the_plan_without_data_prints_and_writes_nothing(cifar, monkeypatch, tmp_path):
    cells, sizes = cifar
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "nothing"))
    cells = [c for c in grid.cells(degradation_cifar10.get_config()) if c.name in sizes]
    text = make_plan(monkeypatch, cells, sizes, tmp_path / "study")
    assert row_of(text, "plain-20").split() == [
        "plain-20", "20", "none", "269,722", "40,551,040", "64,000", "5",
        "not", "started", "1384:08:51", "1,384",
    ]  # fmt: skip
    # mult-adds, forward and backward, batch, steps, replicates, the rate; 20 layers' compilation
    seconds = 40551040 * 3 * 128 * 64000 * 5 / 1e9 + 20 * 1.0
    assert int(seconds) == 1384 * 3600 + 8 * 60 + 51
    assert "would not start" in text
    assert "cifar10" in text
    assert "Nothing was started or written" in text
    assert not list(tmp_path.iterdir())


def digits():
    config = degradation_digits.get_config("one_rate")
    config.base.steps = 240
    cells = grid.cells(config)
    return cells, {cell.name: Size(100, 10, 1000.0 * cell.config.model.depth) for cell in cells}


def test_the_plan_estimates_from_what_has_finished(monkeypatch, tmp_path):
    cells, sizes = digits()

    def end(cell, word, step, seconds):
        folder = writer.RunFolder(tmp_path / cell.name, cell.config.to_dict())
        folder.set_status(word, step=step, steps=240, device_seconds=seconds)
        folder.record_launch({"devices": ["cpu: cpu", "cpu: cpu"]})
        folder.close()

    end(cells[0], "completed", 240, 80.0)  # plain-20: 40 s on its two devices, 20,000 mult-adds
    end(cells[2], "preempted", 60, 1.0)  # plain-56
    end(cells[3], "failed", 0, 1.0)  # resnet-56-A
    text = make_plan(monkeypatch, cells, sizes, tmp_path, at_once=2)
    assert row_of(text, "plain-20").split()[-3:] == ["completed", "-", "-"]
    assert row_of(text, "resnet-20-A").split()[-2:] == ["00:40", "0.0222"]  # on two devices
    assert row_of(text, "plain-56").split()[-4:] == ["preempted", "60/240", "01:24", "0.0467"]
    assert row_of(text, "resnet-56-A").split()[-2:] == ["01:52", "0.0622"]
    assert "4 cells, 3 of them left to run, 2 at a time" in text
    # In the given order: 20-A and 56 start, and 56-A follows 20-A.
    assert "total time: 02:32" in text
    assert "completed cells: plain-20" in text


def test_a_tuned_study_compiles_each_network_once_per_stage(monkeypatch, tmp_path):
    config = degradation_digits.get_config()
    config.grid.model.update({"depth": (20, 56), "shortcut": ("none",)})
    over = {"schedule": {"rate": (0.01, 0.1)}}
    config.tune = ConfigDict(
        {"over": over, "by": "training_loss", "seeds": 2, "first_seed": 1000}
    )  # fmt: skip
    tune, cells = tuning.of_study(config), grid.cells(config)
    pilots = [
        dataclasses.replace(pilot, name=f"pilots/{pilot.name}")
        for cell in cells
        for pilot in tuning.pilots(tune, cell)
    ]
    sizes = {c.name: Size(100, 10, 1000.0 * c.config.model.depth) for c in [*cells, *pilots]}
    planned = estimate.start_order([*cells, *pilots], sizes)
    # Two that compile the same program would do so at the same time.
    assert [cell.name for cell in planned] == [
        "pilots/plain-56-rate=0.01", "pilots/plain-20-rate=0.01",
        "pilots/plain-56-rate=0.1", "pilots/plain-20-rate=0.1", "plain-56", "plain-20",
    ]  # fmt: skip
    rate = Rate(
        mult_adds=1e3, seconds_per_layer=1.0, source="a test", compile_seconds_per_layer=2.0
    )
    text = make_plan(monkeypatch, planned, sizes, tmp_path, rate=rate)
    times = [row_of(text, cell.name).split()[-2] for cell in planned]
    assert times == ["03:44", "01:20", "01:52", "00:40", "03:44", "01:20"]
    assert "4 pilots, then 2 cells, 6 of them left to run, 2 at a time" in text
    # 3:52 for the pilots, then 3:44 for the cells.
    assert "total time: 07:36, 0.211 device-hours" in text
    # Pilots with as many seeds as the cells have their programs.
    config.tune.seeds = config.base.replicates
    tune = tuning.of_study(config)
    pilots = [pilot for cell in cells for pilot in tuning.pilots(tune, cell)]
    assert estimate.first_of_programs([*pilots, *cells]) == {
        "plain-20-rate=0.01", "plain-56-rate=0.01",
    }  # fmt: skip


def test_a_plan_that_cannot_be_timed_still_prints(monkeypatch, tmp_path):
    cells, sizes = digits()

    def broken(*_):
        raise RunError("no device.")

    monkeypatch.setattr(plan, "_measured_rate", broken)
    text = tables.plain(plan.dry_run(cells, sizes, tmp_path, 1, Machine("cpu"), sources.require))
    assert "There is no estimate: no device." in text
    assert "one at a time on cpu" in text


@pytest.mark.slow
def test_the_rate_is_timed_on_this_machine(monkeypatch, tmp_path):
    config = degradation_digits.get_config("one_rate")
    config.base.batch_size = 16
    config.base.model.width = 0.25
    config.base.replicates = 1
    config.grid.model.depth = (8,)
    cell = grid.cells(config)[0]
    for key in ("JAX_PLATFORMS", "XLA_FLAGS"):
        monkeypatch.delenv(key, raising=False)
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.chdir(tiny.ROOT)
    size = estimate.size_of(cell)
    rate = plan._measured_rate(cell, size, at_once=1, machine=Machine("cpu"))
    assert 0 < rate.seconds_per_layer < 60
    assert 0 < rate.compile_seconds_per_layer < 60
    seconds = estimate.seconds(cell, size, rate, step=0)
    before = 8 * (rate.seconds_per_layer + rate.compile_seconds_per_layer)
    assert seconds == pytest.approx(size.work / rate.mult_adds + before)
    step = size.work / cell.config.steps / rate.mult_adds
    assert 1e-5 < step < 10
    assert f"{step:.3g} s per step" in rate.source


def test_a_run_whose_metrics_do_not_fit_its_config_does_not_hide_the_others(tmp_path):
    write(tmp_path / "odd", rows=[{"step": 1, "train/error": [1.0, 2.0]}], replicates=3)
    write(tmp_path / "sound", rows=[{"step": 1, "train/error": 5.0}])
    text = tables.plain(ledger.status_table(reader.find([tmp_path])))
    assert "holds 2 values per row, but config.json has 3 replicates" in row_of(text, "odd")
    assert "5.00" in row_of(text, "sound")
    assert "3 replicates" in ledger.show_errors(reader.read(tmp_path / "odd"))
