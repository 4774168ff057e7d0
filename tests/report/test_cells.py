"""Pooling runs into cells and cells into groups, with unfinished and diverged runs."""

import json
import os
import socket
import subprocess
import sys

import pytest

from experiments.report import claims, curves, figures, groups, table
from experiments.report.replicates import Replicate
from resnet_jax.errors import UserError
from resnet_jax.runs import reader
from tests.report import fixture


def made(folder):
    return groups.comparable(reader.find([folder]))


def write_plain_net(folder, depth, **changes):
    """Writes a run of two seeds whose training errors are its depth, and one more."""
    fixture.write(
        folder / str(depth),
        fixture.flat([depth, depth + 1], [1, 1], [1, 1]),
        replicates=2,
        model__depth=depth,
        model__shortcut="none",
        **changes,
    )


def test_runs_that_differ_in_seeds_are_one_cell(tmp_path):
    fixture.write(tmp_path / "a", fixture.flat(10.0), seed=0)
    fixture.write(
        tmp_path / "b", fixture.flat([12.0, 17.0], [3.0, 3.0], [4.0, 4.0]), seed=5, replicates=2
    )
    (group,) = made(tmp_path)
    (cell,) = group.cells
    assert (cell.name, cell.status, len(cell.healthy)) == ("resnet-20-A", "completed", 3)
    assert cell.stat(Replicate.train_error).mean == pytest.approx(13.0)
    assert cell.device_seconds == 25.0


def test_the_same_seed_counts_once_and_a_note_says_so(tmp_path):
    fixture.write(tmp_path / "a", fixture.flat(10.0), seed=0)
    fixture.write(
        tmp_path / "b", fixture.flat([99.0, 20.0], [3.0, 3.0], [4.0, 4.0]), seed=0, replicates=2
    )
    (cell,) = made(tmp_path)[0].cells
    assert sorted(cell.values(Replicate.train_error)) == [10.0, 20.0]
    assert cell.notes == ("seed 0 of b is left out: another run holds the same seed",)


def test_the_unfinished_run_with_more_steps_counts_for_a_shared_seed(tmp_path):
    fixture.write(tmp_path / "a", fixture.lines([20], [70.0]), "failed")
    fixture.write(tmp_path / "b", fixture.lines([20, 80], [70.0, 30.0]), "preempted")
    (cell,) = made(tmp_path)[0].cells
    assert (cell.values(Replicate.train_error), cell.status) == ([30.0], "preempted")


def test_a_run_given_twice_is_read_once(tmp_path):
    fixture.write(tmp_path / "s" / "a", fixture.flat(10.0))
    (group,) = groups.comparable(reader.find([tmp_path / "s", tmp_path / "s" / "a"]))
    assert len(group.cells[0].replicates) == 1
    assert group.cells[0].notes == ()


@pytest.mark.parametrize("recorded", [True, False])
def test_diverged_replicates_are_counted_but_in_no_mean(tmp_path, recorded):
    metrics = fixture.lines([50, 100], [[8.0, 40.0, 20.0], [8.0, None, 10.0]])
    more = {"diverged": {"1": 70}} if recorded else {}
    about = {"replicates": 3, "train_examples": 100, "log__every": 1}
    fixture.write(tmp_path / "a", metrics, more=more, **about)
    (group,) = made(tmp_path)
    (cell,) = group.cells
    stat = cell.stat(Replicate.train_error)
    assert (stat.mean, stat.n) == (9.0, 2)
    assert table.show_status(cell) == "completed; 1 of 3 diverged"
    step = 70 if recorded else 100
    assert table.show_n(cell) == "2 of 3"
    assert table.footnotes(group) == [
        f"resnet-20-A: seed 1 at step {step} diverged; in no mean, counted as 100 % by claims"
    ]
    assert curves.of_cell(cell, window=0)[0].mean == [14.0, 9.0]


def test_a_cell_whose_replicates_all_diverged_is_drawn_up_to_there(tmp_path):
    metrics = fixture.lines([10, 20], [90.0, None])
    fixture.write(tmp_path / "a", metrics, status="diverged", more={"diverged": {"0": 20}})
    (cell,) = made(tmp_path)[0].cells
    assert (cell.status, len(cell.healthy)) == ("diverged", 0)
    assert cell.stat(Replicate.train_error).mean is None
    assert curves.of_cell(cell, window=0)[0].steps == [10]


def test_a_diverged_status_without_a_record_means_every_replicate(tmp_path):
    fixture.write(tmp_path / "a", fixture.lines([10], [90.0]), status="diverged")
    (cell,) = made(tmp_path)[0].cells
    assert len(cell.diverged) == 1


def test_a_diverged_seed_beside_completed_ones_is_counted(tmp_path):
    fixture.write(tmp_path / "a", fixture.flat(10.0), seed=0)
    fixture.write(
        tmp_path / "b",
        fixture.lines([30], [None]),
        status="diverged",
        seed=1,
        more={"diverged": {"0": 30}},
    )
    (cell,) = made(tmp_path)[0].cells
    assert (cell.status, len(cell.healthy), len(cell.diverged)) == ("completed", 1, 1)


def test_a_rerun_that_completed_stands_beside_the_divergence(tmp_path):
    fixture.write(
        tmp_path / "a",
        fixture.lines([30], [None]),
        status="diverged",
        more={"diverged": {"0": 30}},
    )
    fixture.write(tmp_path / "b", fixture.flat(10.0))
    (cell,) = made(tmp_path)[0].cells
    assert (cell.status, len(cell.healthy), len(cell.diverged)) == ("completed", 0, 1)
    assert cell.notes == ("seed 0 of b is left out: the same seed diverged in a, which counts",)


def test_a_diverged_seed_of_an_unfinished_run_counts_beside_completed_ones(tmp_path):
    fixture.write(tmp_path / "a", fixture.flat(10.0), seed=0)
    fixture.write(
        tmp_path / "b",
        fixture.lines([20], [[70.0, None]]),
        status="preempted",
        seed=1,
        replicates=2,
        more={"diverged": {"1": 20}},
    )
    (cell,) = made(tmp_path)[0].cells
    assert [r.seed for r in cell.healthy] == [0]
    assert [r.seed for r in cell.diverged] == [2]
    (note,) = cell.notes
    assert note == "b (preempted at step 20 of 100) is left out, except for its diverged seeds"


def test_an_unfinished_run_is_shown_as_far_as_it_went(tmp_path):
    fixture.write(tmp_path / "a", fixture.lines([10, 20], [50.0, 40.0]), status="preempted")
    (group,) = made(tmp_path)
    (cell,) = group.cells
    assert table.show_status(cell) == "preempted at step 20 of 100"
    assert curves.of_cell(cell, window=0)[0].steps == [10, 20]
    assert figures.depth_lines(group, Replicate.train_error) == []


def test_unfinished_runs_are_left_out_beside_completed_ones(tmp_path):
    fixture.write(tmp_path / "a", fixture.flat(10.0), seed=0)
    fixture.write(
        tmp_path / "b",
        fixture.lines([20], [70.0]),
        status="failed",
        seed=1,
        more={"reason": "the disk is full"},
    )
    (cell,) = made(tmp_path)[0].cells
    assert (cell.status, cell.values(Replicate.train_error)) == ("completed", [10.0])
    assert cell.notes == ("b (failed at step 20 of 100: the disk is full) is left out",)


def test_a_queued_run_has_no_numbers(tmp_path):
    fixture.write(tmp_path / "a", [], status="queued", environment=False)
    (cell,) = made(tmp_path)[0].cells
    assert (cell.status, len(cell.healthy), cell.parameters) == ("queued", 0, None)
    assert curves.of_cell(cell, window=0) == []


def test_running_without_its_process_is_interrupted(tmp_path):
    def status(pid):
        path = fixture.write(
            tmp_path / str(pid),
            fixture.lines([10], [50.0]),
            status="running",
            more={"host": socket.gethostname(), "pid": pid},
        )
        return reader.shown_status(reader.read(path))

    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    assert status(gone.pid) == "interrupted"
    assert status(os.getpid()) == "running"


@pytest.mark.parametrize(
    "changes",
    [
        {"accumulate": 2},
        {"model__remat": [1, 2]},
        {"mesh__fsdp": 4},
        {"profile": [101, 120]},
        {"checkpoint__keep": 9},
        {"eval__batch_size": 64},
        {"log__every": 2},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_settings_that_change_no_result_leave_one_group_with_verdicts(tmp_path, changes):
    write_plain_net(tmp_path, 20)
    write_plain_net(tmp_path, 56, **changes)
    (group,) = made(tmp_path)
    assert claims.judge(group, margin=0.5)[0].verdict == "confirmed"


def test_depth_shortcut_and_neutral_settings_make_no_group(tmp_path):
    fixture.write(tmp_path / "a", fixture.flat(1.0), model__depth=20, model__shortcut="none")
    fixture.write(
        tmp_path / "b",
        fixture.flat(1.0),
        model__depth=110,
        checkpoint__every=7,
        log__every=3,
        data__dir="/elsewhere",
        eval__every=9,
        epochs=5.0,
    )
    (group,) = made(tmp_path)
    assert (group.label, group.settings, group.note) == ("digits", {}, "")
    assert [cell.name for cell in group.cells] == ["plain-20", "resnet-110-A"]


UNTIL_ERROR = {"schedule__warmup": "until_error"}


def test_the_papers_warm_up_of_resnet_110_makes_no_group_and_is_named(tmp_path):
    fixture.write(tmp_path / "a", fixture.flat(1.0), model__depth=20)
    fixture.write(tmp_path / "b", fixture.flat(1.0), model__depth=110, model__shortcut="none")
    fixture.write(tmp_path / "c", fixture.flat(1.0), model__depth=110, **UNTIL_ERROR)
    (group,) = made(tmp_path)
    assert (group.label, group.settings) == ("digits", {})
    assert table.footnotes(group) == [
        "resnet-110-A was warmed up at a rate of 0.01 until the training error fell below 80 %, "
        "as in the paper (section 4.2); the others were not"
    ]
    # By itself it is not an exception, so there is no note.
    (alone,) = groups.comparable(reader.find([tmp_path / "c"]))
    assert table.footnotes(alone) == []


@pytest.mark.parametrize(
    "changes",
    [
        {"model__depth": 56, "schedule__warmup": "until_error"},  # shallower than the paper's
        {"model__depth": 110, "model__shortcut": "none", "schedule__warmup": "until_error"},
        {"model__depth": 110, "schedule__warmup": "linear", "schedule__warmup_length": 400.0},
        {"model__depth": 110, "schedule__warmup": "until_error", "schedule__warmup_rate": 0.05},
        {"model__depth": 110, "schedule__warmup": "until_error", "schedule__warmup_error": 50.0},
        {"model__depth": 110, "schedule__warmup": "until_error", "schedule__rate": 0.2},
        {"model__family": "imagenet", "model__depth": 34, "schedule__warmup": "until_error"},
    ],
    ids=str,
)
def test_any_other_warm_up_is_a_different_recipe(tmp_path, changes):
    family = changes.get("model__family", "cifar")
    fixture.write(tmp_path / "a", fixture.flat(1.0), model__depth=18, model__family=family)
    fixture.write(tmp_path / "b", fixture.flat(1.0), **changes)
    found = made(tmp_path)
    assert len(found) == 2
    assert table.footnotes(found[0]) == []


def test_a_warm_up_with_other_values_than_the_papers_is_no_exception(tmp_path):
    faster = {"schedule__warmup_rate": 0.05}
    fixture.write(tmp_path / "a", fixture.flat(1.0), model__depth=20, **faster)
    fixture.write(tmp_path / "b", fixture.flat(1.0), model__depth=110, **faster, **UNTIL_ERROR)
    assert len(made(tmp_path)) == 2


def test_a_training_error_over_more_than_an_epoch_is_named(tmp_path):
    fixture.write(tmp_path / "a", fixture.flat(1.0), log__every=20)  # an epoch is 20 steps
    fixture.write(tmp_path / "b", fixture.flat(1.0), log__every=21, model__depth=56)
    (group,) = made(tmp_path)
    assert table.footnotes(group) == [
        "training error is the mean over the last log.every steps, more than an epoch or a quarter "
        "of the run: resnet-56-A"
    ]


def test_plain_20_with_warm_up_is_not_compared_with_plain_56_without(tmp_path):
    write_plain_net(tmp_path, 20, schedule__warmup="until_error")
    write_plain_net(tmp_path, 56, schedule__warmup="none")
    verdicts = [claims.judge(group, margin=0.5)[0].verdict for group in made(tmp_path)]
    assert verdicts == ["not tested", "not tested"]


def test_evaluations_that_affect_results_make_a_group(tmp_path):
    fixture.write(tmp_path / "a", fixture.flat(1.0), eval__weights="best", eval__every=9)
    fixture.write(tmp_path / "b", fixture.flat(1.0), eval__weights="best", eval__every=10)
    assert [g.settings for g in made(tmp_path)] == [{"eval.every": 9}, {"eval.every": 10}]


def test_groups_are_labelled_with_differing_settings(tmp_path):
    fixture.write(tmp_path / "a", fixture.flat(1.0), data__name="cifar10", steps=200)
    fixture.write(tmp_path / "b", fixture.flat(1.0), steps=100)
    fixture.write(tmp_path / "c", fixture.flat(1.0), steps=200)
    labels = [group.label for group in made(tmp_path)]
    assert labels == ["cifar10", "digits, steps=100", "digits, steps=200"]


def test_a_label_names_three_settings_and_counts_the_rest(tmp_path):
    fixture.write(tmp_path / "a", fixture.flat(1.0))
    fixture.write(
        tmp_path / "b",
        fixture.flat(1.0),
        steps=50,
        batch_size=7,
        optimizer__name="adam",
        optimizer__weight_decay=0.0,
    )
    second = made(tmp_path)[1]
    assert second.label == (
        "digits, batch_size=7, optimizer.name=adam, optimizer.weight_decay=0.0 and 1 more"
    )
    assert second.settings["steps"] == 50


@pytest.mark.parametrize("other", ["A", "B"])
def test_two_residual_nets_of_one_depth_with_two_warm_ups_make_two_groups(tmp_path, other):
    fixture.write(tmp_path / "20", fixture.flat(1.0), model__depth=20)
    fixture.write(tmp_path / "a", fixture.flat(1.0), model__depth=110)
    fixture.write(
        tmp_path / "b", fixture.flat(1.0), model__depth=110, model__shortcut=other, **UNTIL_ERROR
    )
    assert [(g.label, [c.name for c in g.cells]) for g in made(tmp_path)] == [
        ("digits, schedule.warmup=none", ["resnet-20-A", "resnet-110-A"]),
        ("digits, schedule.warmup=until_error", [f"resnet-110-{other}"]),
    ]


def test_data_with_a_note_are_not_compared_with_data_without(tmp_path):
    note = "JPEG-coded copies of the images"
    fixture.write(tmp_path / "a", fixture.flat(1.0), model__depth=20)
    fixture.write(tmp_path / "b", fixture.flat(1.0), model__depth=32, note=note)
    found = made(tmp_path)
    assert [g.note for g in found] == ["", note]
    assert [g.label for g in found] == ["digits, no note", f"digits, note: {note}"]


@pytest.mark.parametrize(("name", "groups_"), [("arrays", 2), ("cifar10", 1)])
def test_sets_of_a_users_own_are_compared_by_content(name, groups_, tmp_path):
    for content, shortcut in (("one", "none"), ("other", "A")):
        folder = fixture.write(
            tmp_path / shortcut, fixture.flat(20.0), model__shortcut=shortcut, data__name=name
        )
        file = folder / "environment.json"
        facts = json.loads(file.read_text())
        facts["data"]["content"] = content
        file.write_text(json.dumps(facts))
    assert len(groups.comparable(reader.find([tmp_path]))) == groups_


def test_networks_that_start_from_weights_of_their_own_are_compared(tmp_path):
    for name, shortcut, source in (
        ("plain", "none", "runs/plain"), ("resnet", "A", "runs/resnet"),
        ("other", "A", "runs/other"), ("drawn", "A", ""),
    ):  # fmt: skip
        fixture.write(
            tmp_path / name, fixture.flat(20.0), model__shortcut=shortcut, init__from=source
        )
    drawn, trained = sorted(groups.comparable(reader.find([tmp_path])), key=lambda g: len(g.cells))
    assert [cell.runs[0].name for cell in drawn.cells] == ["drawn"]
    # Those of two sources are not pooled as seeds of one cell.
    assert sorted(cell.runs[0].name for cell in trained.cells) == ["other", "plain", "resnet"]
    assert [len(cell.runs) for cell in trained.cells] == [1, 1, 1]


def test_a_run_that_never_loaded_its_data_stays_with_its_study(tmp_path):
    fixture.write(tmp_path / "a", [], status="queued", environment=False, model__depth=20)
    fixture.write(tmp_path / "b", fixture.flat(1.0), model__depth=32, note="a note")
    (group,) = made(tmp_path)
    assert (len(group.cells), group.note) == (2, "a note")


def test_the_legend_names_shortcuts_of_residual_nets(tmp_path):
    for shortcut in "BCA":
        fixture.write(tmp_path / shortcut, fixture.flat(1.0), model__shortcut=shortcut)
    (group,) = made(tmp_path)
    assert [curves.legend_name(c, group) for c in group.cells] == [
        f"depth 20, shortcut {letter}" for letter in "ABC"
    ]
    assert {curves.side(c) for c in group.cells} == {"Residual nets"}


def test_configs_that_cannot_be_read_are_named(tmp_path):
    path = fixture.write(tmp_path / "a", fixture.flat(1.0)) / "config.json"
    config = json.loads(path.read_text())
    del config["batch_size"]
    path.write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"a/config\.json lacks batch_size; another ver"):
        made(tmp_path)
    fixture.write(tmp_path / "s" / "b", fixture.flat(1.0), model__shortcut="D")
    with pytest.raises(UserError, match=r"model\.shortcut='D' is not known"):
        made(tmp_path / "s")


def test_status_decides_what_claims_use(tmp_path):
    for depth, status in ((20, "completed"), (32, "completed"), (56, "running")):
        metrics = fixture.flat([depth, depth + 1], [1, 1], [1, 1])
        fixture.write(
            tmp_path / str(depth),
            metrics,
            status,
            replicates=2,
            model__depth=depth,
            model__shortcut="none",
        )
    first = claims.judge(made(tmp_path)[0], margin=0.5)[0]
    assert (first.difference, first.verdict) == (12.0, "confirmed")
    assert first.detail.endswith("; not counted: plain-56 (running)")


def test_runs_are_in_the_order_of_their_values(tmp_path):
    for value in ("0.5", "0", "1", "0.05"):
        fixture.write(tmp_path / f"plain-8-scale={value}", [], model__depth=8)
    names = [run.name for run in reader.find([tmp_path])]
    assert names == [f"plain-8-scale={value}" for value in ("0", "0.05", "0.5", "1")]
