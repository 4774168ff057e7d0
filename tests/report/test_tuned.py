"""A tuned study in a report: networks at their best values are compared, and pilots are shown."""

import csv
import json

import pytest

from experiments.report import groups, tuned
from resnet_jax.runs import reader
from tests import tiny
from tests.report import fixture

BEST = {20: 0.1, 56: 0.01}
ERRORS = {(20, 0.1): 4.0, (20, 0.01): 8.0, (56, 0.1): 40.0, (56, 0.01): 12.0}


def write_study(folder, best=BEST):
    """Two plain nets with their pilots: the best rate falls with depth."""
    for depth, rate in best.items():
        shape = {"model__depth": depth, "model__shortcut": "none"}
        for candidate in (0.01, 0.1):
            error = ERRORS[depth, candidate]
            fixture.write(
                folder / "pilots" / f"plain-{depth}-rate={candidate}",
                fixture.flat([error, error + 1], [30.0] * 2, [31.0] * 2),
                seed=100, replicates=2, schedule__rate=candidate, **shape,
            )  # fmt: skip
        error = ERRORS[depth, rate] + 0.5
        fixture.write(
            folder / f"plain-{depth}",
            fixture.flat([error, error + 1, error + 2], [30.0] * 3, [31.0] * 3),
            replicates=3, schedule__rate=rate, **shape,
        )  # fmt: skip
    (folder / "pilots" / "tuning.json").write_text('{"over": {"schedule.rate": [0.01, 0.1]}}')
    return folder


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tuned")
    write_study(folder / "study")
    assert tiny.compare(folder / "study", f"--out={folder / 'report'}") == 0
    return folder / "report"


def test_networks_at_their_own_best_rates_are_compared(out):
    summary = json.loads((out / "summary.json").read_text())
    assert [(c["name"], c["n"]) for c in summary["cells"]] == [("plain-20", 3), ("plain-56", 3)]
    assert len(summary["groups"]) == 1
    claim = summary["claims"][0]
    assert (claim["id"], claim["verdict"]) == ("1", "confirmed")
    assert claim["difference"] == pytest.approx(8.0)  # no pilot's seed takes part in it


def test_runs_of_other_studies_are_not_mixed_with_them(tmp_path):
    # Without pilots a study has one rate, and is another recipe.
    write_study(tmp_path / "study")
    fixture.study(tmp_path / "plain", depths=(20, 56), shortcuts=("none",))
    runs = reader.find([tmp_path / "study", tmp_path / "plain"])
    compared = groups.comparable(runs, tuned.by_study(tuned.find(runs)))
    assert sorted(len(group.cells) for group in compared) == [2, 2]
    assert {group.tuned for group in compared} == {(), ("schedule.rate",)}


def test_two_studies_that_chose_differently_are_not_pooled(tmp_path):
    write_study(tmp_path / "one")
    write_study(tmp_path / "two", best={20: 0.1, 56: 0.1})
    runs = reader.find([tmp_path / "one", tmp_path / "two"])
    (group,) = groups.comparable(runs, tuned.by_study(tuned.find(runs)))
    assert [(cell.name, len(cell.runs)) for cell in group.cells] == [
        ("plain-20", 2), ("plain-56", 1), ("plain-56", 1),
    ]  # fmt: skip


def test_every_candidate_is_in_every_form_of_the_report(out, capsys):
    expected = [
        ("plain-20", 0.01, 8.5, False), ("plain-20", 0.1, 4.5, True),
        ("plain-56", 0.01, 12.5, True), ("plain-56", 0.1, 40.5, False),
    ]  # fmt: skip
    (tuning,) = json.loads((out / "summary.json").read_text())["tuning"]
    assert tuning["tuned"] == ["schedule.rate"]
    assert [
        (t["network"], t["values"]["schedule.rate"], t["train_error"]["mean"], t["is_chosen"])
        for t in tuning["trials"]
    ] == expected
    markdown, page = (out / "table.md").read_text(), (out / "index.html").read_text()
    for network, rate, error, is_chosen in expected:
        mark = "chosen" if is_chosen else ""
        assert f"| {network} | rate={rate:g} | 1 | {error:.2f} ± 0.71 | 2 | {mark} |" in markdown
        assert f">{error:.2f} ± 0.71</td>" in page
        assert f"/pilots/{network}-rate={rate}</th>" in page  # among the run folders
    note = "each network is at its best candidate: plain-20 rate=0.1; plain-56 rate=0.01"
    assert note in markdown
    assert note in page
    rows = list(csv.DictReader((out / "table.csv").read_text().splitlines()))
    assert [row["tuned"] for row in rows] == ["rate=0.1", "rate=0.01", *[""] * 4]


def test_the_measure_that_chose_is_shown(tmp_path):
    write_study(tmp_path / "study")
    tuning = {"over": {"schedule.rate": [0.01, 0.1]}, "by": "validation_error"}
    (tmp_path / "study" / "pilots" / "tuning.json").write_text(json.dumps(tuning))
    assert tiny.compare(tmp_path / "study", f"--out={tmp_path / 'report'}") == 0
    markdown, page = ((tmp_path / "report" / n).read_text() for n in ("table.md", "index.html"))
    row = "| plain-20 | rate=0.1 | 1 | 4.50 ± 0.71 | 30.00 ± 0.00 | 2 | chosen |"
    assert row in markdown.splitlines()
    assert 'data-label="validation error, %">30.00 ± 0.00</td>' in page
    for text in (markdown, page):
        assert "the candidate with the lowest validation error; the training loss decides" in text
    (written,) = json.loads((tmp_path / "report" / "summary.json").read_text())["tuning"]
    assert (written["by"], written["trials"][0]["validation_error"]["mean"]) == (
        "validation_error", 30.0
    )  # fmt: skip


def chosen(tuning, network):
    return [trial.is_chosen for trial in tuning.trials if trial.network == network]


def test_pilots_of_a_network_that_was_not_trained_yet_are_shown(tmp_path):
    folder = write_study(tmp_path / "study", best={20: 0.1})
    (tuning,) = tuned.find(reader.find([folder]))
    assert chosen(tuning, "plain-20") == [False, True]
    fixture.write(
        folder / "pilots" / "plain-56-rate=0.1", fixture.flat([40.0, 41.0]), seed=100,
        replicates=2, schedule__rate=0.1, model__depth=56, model__shortcut="none",
    )  # fmt: skip
    (tuning,) = tuned.find(reader.find([folder]))
    assert chosen(tuning, "plain-56") == [False]


def test_pilots_are_named_by_all_axes_of_the_grid(tmp_path):
    for name, momentum in (("plain-20-momentum=0.5", 0.5), ("plain-20-momentum=0.9", 0.9)):
        fixture.write(
            tmp_path / "s" / "pilots" / f"{name}-rate=0.1", fixture.flat(40.0), model__depth=20,
            model__shortcut="none", schedule__rate=0.1, optimizer__momentum=momentum,
        )  # fmt: skip
    tuning = {"over": {"schedule.rate": [0.1]}, "by": "training_loss"}
    (tmp_path / "s" / "pilots" / "tuning.json").write_text(json.dumps(tuning))
    runs = reader.find([tmp_path / "s" / "pilots"])
    trials = tuned._of_study(tmp_path / "s", [], runs).trials
    assert [t.network for t in trials] == ["plain-20-momentum=0.5", "plain-20-momentum=0.9"]


def test_an_axis_of_the_grid_is_not_taken_for_a_tuned_setting(tmp_path):
    for momentum, best in ((0.5, 0.1), (0.9, 0.01)):
        shape = {"model__depth": 20, "model__shortcut": "none", "optimizer__momentum": momentum}
        for rate in (0.01, 0.1):
            fixture.write(
                tmp_path / "s" / "pilots" / f"plain-20-momentum={momentum}-rate={rate}",
                fixture.flat(5.0), seed=100, schedule__rate=rate, **shape,
            )  # fmt: skip
        own = tmp_path / "s" / f"plain-20-momentum={momentum}"
        fixture.write(own, fixture.flat(5.0), schedule__rate=best, **shape)
    (tmp_path / "s" / "pilots" / "tuning.json").write_text('{"over": {"schedule.rate": []}}')
    runs = reader.find([tmp_path / "s"])
    (study,) = tuned.find(runs)
    assert study.keys == ("schedule.rate",)
    chosen = [
        (t.cell.config["optimizer"]["momentum"], t.values["schedule.rate"])
        for t in study.trials
        if t.is_chosen
    ]
    assert sorted(chosen) == [(0.5, 0.1), (0.9, 0.01)]
    assert len(groups.comparable(runs, tuned.by_study([study]))) == 2  # one per momentum
