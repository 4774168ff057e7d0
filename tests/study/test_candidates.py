"""Further candidates for cells whose best value is at the edge of the study's candidates."""

import json
import re
import shutil

import pytest

from experiments.study import grid, tuning
from experiments.study.candidates import FURTHER
from resnet_jax.runs import storage
from tests.study.test_scheduling import outcome, statuses, sweep
from tests.study.test_tuning import STUDY, ended, study

# The setting, its candidates, the best of them, and the next one.
NEXT = {
    "up": ("schedule.rate", (0.02, 0.05, 0.1), 0.1, 0.2),
    "down": ("schedule.rate", (0.1, 0.02, 0.05), 0.02, 0.008),  # in any order
    "no binary tail": ("schedule.rate", (0.1, 0.3), 0.3, 0.9),
    "whole": ("batch_size", (32, 48), 48, 72),
    "whole, rounded": ("batch_size", (2, 3), 2, 1),
    "whole, nothing below": ("batch_size", (1, 2), 1, "not at the edge"),
    "the limit": ("optimizer.momentum", (0.0, 0.9), 0.0, "not at the edge"),
    "beyond the limit": ("optimizer.momentum", (0.8, 0.9), 0.9, None),
    "away from the limit": ("optimizer.momentum", (0.8, 0.9), 0.8, 0.711),
    "a neighbour of 0": ("optimizer.weight_decay", (0.0, 1e-4), 1e-4, None),
    "too close": ("schedule.rate", (0.123, 0.12301), 0.123, None),
    "three digits": ("schedule.rate", (0.03, 0.1), 0.1, 0.333),
    "inside": ("schedule.rate", (0.1, 0.2, 0.4), 0.2, "not at the edge"),
    "alone": ("schedule.rate", (0.1,), 0.1, "not at the edge"),
    "words": ("optimizer.name", ("sgd", "adam"), "sgd", "not at the edge"),
    "switches": ("optimizer.nesterov", (False, True), True, "not at the edge"),
}


def tune(over):
    part = study().tune.to_dict() | {"over": over}
    return tuning.Tuning(**part)


@pytest.mark.parametrize("case", NEXT)
def test_the_next_candidate_continues_the_spacing(case):
    key, values, best, expected = NEXT[case]
    tuned = tune({key: list(values)})
    at_the_edge = tuned.is_at_the_edge("plain-20", key, best)
    found = tuned.further("plain-20", key, best) if at_the_edge else "not at the edge"
    assert found == expected
    assert type(found) is type(expected)  # a whole setting's value is an int


def test_each_end_of_each_cell_is_extended_a_limited_number_of_times():
    tuned, key = tune({"schedule.rate": [0.1, 0.2]}), "schedule.rate"
    for best in (0.2, 0.1):
        for _ in range(FURTHER):
            best = tuned.further("plain-20", key, best)
            tuned = tuned.with_values("plain-20", {key: best})
        assert tuned.further("plain-20", key, best) is None
    assert sorted(tuned.values("plain-20", key)) == [
        0.00625, 0.0125, 0.025, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2,
    ]  # fmt: skip
    assert tuned.values("plain-56", key) == [0.1, 0.2]
    assert tuned.further("plain-56", key, 0.2) == 0.4


def test_a_value_is_tried_with_every_value_of_the_other_settings():
    tuned = tune({"schedule.rate": [0.1, 0.2], "optimizer.weight_decay": [0.0, 1e-4]})
    tuned = tuned.with_values("plain-20", {"schedule.rate": 0.4})
    assert tuned.candidates("plain-20")[-2:] == [
        {"schedule.rate": 0.4, "optimizer.weight_decay": 0.0},
        {"schedule.rate": 0.4, "optimizer.weight_decay": 1e-4},
    ]
    assert len(tuned.candidates("plain-20")) == 6


def test_recorded_values_are_joined(tmp_path):
    workdir, key = storage.locate(tmp_path), "schedule.rate"
    given = tune({key: [0.1, 0.2]})
    given.with_values("plain-20", {key: 0.4}).write(workdir)
    given.with_values("plain-56", {key: 0.05}).write(workdir)  # another sweep, at the same time
    recorded = given.recorded(workdir)
    assert recorded.extended == {"plain-20": {key: [0.4]}, "plain-56": {key: [0.05]}}
    # A study that now has the value itself, or tunes another setting, has no use for it.
    assert tune({key: [0.1, 0.2, 0.4]}).recorded(workdir).values("plain-20", key) == [0.1, 0.2, 0.4]
    assert tune({"optimizer.momentum": [0.8, 0.9]}).recorded(workdir).extended == {}


def test_a_value_that_the_cell_cannot_have_is_not_tried(tmp_path, caplog):
    config = study({"batch_size": (64, 96)}, base={"model": {"bn_group": 32}})
    (cell,), tuned = grid.cells(config), tuning.of_study(config)
    for pilot, loss in zip(tuning.pilots(tuned, cell), (0.2, 0.1), strict=True):
        ended(storage.locate(tmp_path) / "pilots" / pilot.name, pilot, [loss, loss])
    with caplog.at_level("WARNING"):
        assert tuning.extended(tuned, [cell], storage.locate(tmp_path)) == tuned
    assert "plain-20 is not extended: " in caplog.text
    assert "model.bn_group=32 does not divide batch_size=144" in caplog.text


@pytest.mark.slow
def test_a_sweep_extends_the_cells_whose_best_rate_is_at_the_edge(tmp_path):
    file, runs = tmp_path / "study.py", tmp_path / "runs"
    file.write_text(STUDY)
    losses = {"plain-20-rate=0.1": 0.5, "plain-56-rate=0.01": 0.4, "plain-56-rate=0.001": 0.3,
              "plain-56-rate=0.0001": 0.35}  # fmt: skip

    def run(*flags):
        code, out, said = outcome(sweep(runs, *flags, study=file, losses=losses))
        assert code == 0, said
        return out, said

    _, said = run("--extend")
    rates = ("0.01", "0.1", "1")
    names = {f"plain-{depth}-rate={rate}" for depth in (20, 56) for rate in rates}
    names |= {"plain-56-rate=0.001", "plain-56-rate=0.0001"}
    assert set(statuses(runs / "pilots")) == names
    assert statuses(runs) == {"plain-20": "completed", "plain-56": "completed"}
    rate = json.loads((runs / "plain-56" / "config.json").read_text())["schedule"]["rate"]
    assert rate == 0.001
    assert "plain-56: rate=0.001 is the best of 5 candidates (training loss 0.3)." in said
    recorded = json.loads((runs / "pilots" / "tuning.json").read_text())
    assert recorded["over"] == {"schedule.rate": [0.01, 0.1, 1.0]}
    assert recorded["extended"] == {"plain-56": {"schedule.rate": [0.001, 0.0001]}}

    # Without the flag, every command knows the candidates.
    shutil.rmtree(runs / "pilots" / "plain-56-rate=0.0001")
    assert "8 pilots, then 2 cells, 1 of them left to run" in run("--dry_run", "--rate=100")[0]
    assert re.search(r"plain-56-rate=0.0001 +not started", run("--status")[0])
