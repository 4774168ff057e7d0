"""Pilot runs choose a cell's best values, and its own seeds are trained at them."""

import json
import math

import pytest
from ml_collections import ConfigDict

from configs import digits
from experiments.study import grid, tuning
from resnet_jax.errors import UserError
from resnet_jax.runs import storage, writer
from tests.study import sweep_fake
from tests.study.test_scheduling import outcome, statuses, sweep

RATES = (0.01, 0.1, 1.0)
STUDY = """
from ml_collections import ConfigDict

from configs import digits


def get_config():
    study = ConfigDict()
    study.base = digits.get_config()
    study.base.steps, study.base.replicates = 8, 2
    study.grid = ConfigDict({"model": {"depth": (20, 56), "shortcut": ("none",)}})
    study.exceptions = ConfigDict()
    study.tune = ConfigDict(
        {"over": {"schedule": {"rate": (0.01, 0.1, 1.0)}}, "by": "training_loss", "seeds": 2,
         "first_seed": 100}
    )
    return study
"""


def study(over=None, grid=None, exceptions=None, base=None, **changes):
    config = ConfigDict()
    config.base = digits.get_config()
    config.base.replicates = 3
    config.base.update(base or {})
    config.grid = ConfigDict(grid or {"model": {"depth": (20,), "shortcut": ("none",)}})
    config.exceptions = ConfigDict(exceptions or {})
    over = {"schedule": {"rate": RATES}} if over is None else over
    usual = {"by": "training_loss", "seeds": 2, "first_seed": 100}
    config.tune = ConfigDict({"over": over, **usual, **changes})
    return config


def test_a_study_without_tune_has_no_tuning():
    config = study()
    del config.tune
    assert tuning.of_study(config) is None
    assert [cell.name for cell in grid.cells(config)] == ["plain-20"]


def test_pilots_are_the_cell_with_other_values_and_seeds():
    config = study(base={"schedule": {"rate_for_batch": 256}})
    (cell,) = grid.cells(config)
    pilots = tuning.pilots(tuning.of_study(config), cell)
    assert [pilot.name for pilot in pilots] == [f"plain-20-rate={r}" for r in ("0.01", "0.1", "1")]
    factor = config.base.batch_size / 256
    for pilot, rate in zip(pilots, RATES, strict=True):
        expected = cell.config.copy_and_resolve_references()
        # A candidate is the rate as it stands in a study: scaled to the batch like any other.
        expected.schedule.rate = rate * factor
        expected.seed, expected.replicates = 100, 2
        assert pilot.config.to_dict() == expected.to_dict()


def test_several_settings_are_tuned_together():
    config = study({"schedule": {"rate": (0.1, 1.0)}, "optimizer": {"weight_decay": (0.0, 1e-3)}})
    (cell,) = grid.cells(config)
    names = [pilot.name for pilot in tuning.pilots(tuning.of_study(config), cell)]
    assert names == [
        f"plain-20-weight_decay={d}-rate={r}" for d in ("0", "0.001") for r in ("0.1", "1")
    ]


REFUSED = {
    "no by": ({"by": None}, "tune.by"),
    "measure": ({"by": "train_loss"}, "(nearest: training_loss)"),
    "own seed": ({"first_seed": 1}, "seeds of the cells (0 to 2)"),
    "own seed above": ({"first_seed": 0, "base": {"seed": 1}}, "seeds of the cells (1 to 3)"),
    "no seeds": ({"seeds": 0}, "tune.seeds=0"),
    "unknown": ({"over": {"schedule": {"rat": (1.0,)}}}, "schedule.rate"),
    "no tuple": ({"over": {"schedule": {"rate": 0.1}}}, "is not a tuple"),
    "axis": (
        {"grid": {"schedule": {"rate": (0.1,)}}}, "tune.over.schedule.rate is an axis",
    ),
    "exception": (
        {"exceptions": {"slow": {"when": {"model": {"depth": 20}},
                                 "set": {"schedule": {"rate": 0.1}}}}},
        "exceptions.slow.set.schedule.rate is tuned",
    ),
    "depth": ({"over": {"model": {"depth": (20, 56)}}}, "tune.over.model.depth"),
    "no effect": ({"over": {"checkpoint": {"every": (1, 2)}}}, "tune.over.checkpoint.every"),
    "no validation": (
        {"by": "validation_error", "base": {"data": {"validation": 0}}}, "data.validation=0",
    ),
    "extra": ({"seed": 3}, "The key in tune"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_mistakes_are_one_sentence(case):
    changes, words = REFUSED[case]
    with pytest.raises(UserError) as caught:
        tuning.of_study(study(**changes))
    sentence = str(caught.value)
    assert words in sentence
    assert "\n" not in sentence
    assert sentence.endswith(".")


def test_a_value_that_is_not_allowed_names_the_pilot():
    config = study({"schedule": {"rate": (0.1, -1.0)}})
    (cell,) = grid.cells(config)
    with pytest.raises(UserError, match=r"Cell plain-20-rate=-1: schedule.rate=-1.0 is out of"):
        tuning.pilots(tuning.of_study(config), cell)


# ------------------------------------------------------------------------------- the choice


def ended(folder, cell, losses, errors=None, diverged=()):
    """Writes the folder of a pilot that ended with these losses of its two seeds."""
    run = writer.RunFolder(folder, cell.config.to_dict())
    run.rewind(0)
    steps = cell.config.steps
    errors = errors or [10.0] * len(losses)
    run.append({"step": steps, "train/loss": losses, "train/error": errors})
    run.set_status(
        "completed", step=steps, steps=steps, device_seconds=1.0,
        **({"diverged": {str(r): 1 for r in diverged}} if diverged else {}),
    )  # fmt: skip
    run.close()


def chosen(tmp_path, outcomes, **changes):
    """Returns the choice among three pilots that ended with `outcomes`."""
    config = study(**changes)
    (cell,), tune = grid.cells(config), tuning.of_study(config)
    workdir = storage.locate(tmp_path)
    for pilot, outcome_ in zip(tuning.pilots(tune, cell), outcomes, strict=True):
        if outcome_ is not None:
            ended(workdir / "pilots" / pilot.name, pilot, **outcome_)
    return tuning.choose(tune, cell, workdir)


def test_the_lowest_mean_over_seeds_is_chosen(tmp_path):
    # The seed with the lowest loss belongs to another candidate.
    pilots = [{"losses": [0.1, 1.0]}, {"losses": [0.4, 0.4]}, {"losses": [0.6, 0.5]}]
    choice = chosen(tmp_path, pilots)
    assert choice.best.values == {"schedule.rate": 0.1}
    assert [c.score for c in choice.candidates] == pytest.approx([0.55, 0.4, 0.55])
    assert choice.at_the_edge == {}


def test_a_diverged_seed_counts_as_the_worst(tmp_path):
    pilots = [{"losses": [0.1, 0.1], "diverged": [1]}, {"losses": [2.0, 2.0]}, {"losses": [3.0, 3]}]
    choice = chosen(tmp_path, pilots)
    assert choice.best.values == {"schedule.rate": 0.1}
    assert choice.candidates[0].score == math.inf
    by_error = chosen(
        tmp_path / "error",
        [
            {"losses": [0.1, 0.1], "errors": [0.0, 0.0], "diverged": [1]},
            {"losses": [2.0, 2.0], "errors": [49.0, 50.0]},
            {"losses": [3.0, 3.0], "errors": [80.0, 80.0]},
        ],
        by="training_error",
    )
    assert [c.score for c in by_error.candidates] == pytest.approx([50.0, 49.5, 80.0])
    assert by_error.best.values == {"schedule.rate": 0.1}


def test_among_equal_errors_the_lowest_loss_is_chosen(tmp_path):
    zero = {"errors": [0.0, 0.0]}
    pilots = [{"losses": [0.3, 0.3]} | zero, {"losses": [0.2, 0.2]} | zero, {"losses": [0.1, 0.1]}]
    choice = chosen(tmp_path, pilots, by="training_error")
    assert choice.best.values == {"schedule.rate": 0.1}


def test_the_lowest_and_the_highest_candidate_are_the_edge(tmp_path):
    losses = [[0.3, 0.3], [0.2, 0.2], [0.1, 0.1]]
    high = chosen(tmp_path / "high", [{"losses": each} for each in losses])
    low = chosen(tmp_path / "low", [{"losses": each} for each in reversed(losses)])
    assert (high.best.values["schedule.rate"], low.best.values["schedule.rate"]) == (1.0, 0.01)
    assert high.at_the_edge == {"schedule.rate": 10.0}  # the next candidates beyond
    assert low.at_the_edge == {"schedule.rate": 0.001}


def test_nothing_is_chosen_before_every_pilot_has_ended(tmp_path):
    assert chosen(tmp_path, [{"losses": [0.1, 0.1]}, None, {"losses": [0.2, 0.2]}]) is None


# -------------------------------------------------------------------------------- the sweep


@pytest.fixture
def tuned_sweep(tmp_path):
    file = tmp_path / "study.py"
    file.write_text(STUDY)
    losses = {"plain-20-rate=0.1": 0.5, "plain-56-rate=0.01": 0.2}

    def run(*flags, **cells):
        process = sweep(tmp_path / "runs", *flags, study=file, losses=losses, cells=cells)
        return outcome(process)

    return run


def test_a_sweep_tunes_each_cell_and_trains_fresh_seeds_at_its_best_rate(tuned_sweep, tmp_path):
    runs = tmp_path / "runs"
    code, out, said = tuned_sweep("--dry_run", "--rate=100")
    assert code == 0, said
    assert "pilots/plain-56-rate=0.01" in out
    assert "6 pilots, then 2 cells, 8 of them left to run" in out
    assert not runs.exists()

    code, out, said = tuned_sweep()
    assert code == 0, said
    assert set(statuses(runs / "pilots")) == {
        f"plain-{depth}-rate={rate}" for depth in (20, 56) for rate in ("0.01", "0.1", "1")
    }
    assert statuses(runs) == {"plain-20": "completed", "plain-56": "completed"}
    recorded = json.loads((runs / "pilots" / "tuning.json").read_text())
    assert recorded["over"] == {"schedule.rate": [0.01, 0.1, 1.0]}
    configs = {n: json.loads((runs / n / "config.json").read_text()) for n in statuses(runs)}
    assert {n: c["schedule"]["rate"] for n, c in configs.items()} == {
        "plain-20": 0.1, "plain-56": 0.01,
    }  # fmt: skip
    assert all((c["seed"], c["replicates"]) == (0, 2) for c in configs.values())
    assert "plain-20: rate=0.1 is the best of 3 candidates (training loss 0.5)." in said
    assert "plain-56: schedule.rate=0.01 is at the edge of its candidates" in said
    assert "--extend tries 0.001." in said
    assert "plain-20: schedule.rate" not in said

    launches = (runs / "launches").read_text(), (runs / "pilots" / "launches").read_text()
    code, _, said = tuned_sweep()
    assert code == 0, said
    assert ((runs / "launches").read_text(), (runs / "pilots" / "launches").read_text()) == launches

    code, out, _ = tuned_sweep("--status", "--only=plain-20")
    assert code == 0
    assert out.count("completed") == 4
    assert "plain-56" not in out


@pytest.mark.slow
def test_a_cell_whose_pilot_failed_waits_and_the_others_are_trained(tuned_sweep, tmp_path):
    code, _, said = tuned_sweep(**{"plain-56-rate=1": "fail"})
    assert code == 1
    assert statuses(tmp_path / "runs") == {"plain-20": "completed"}
    assert "Cells that wait for their pilots to end: 1. The same command goes on then." in said
    code, out, _ = tuned_sweep("--status")
    assert "plain-56 " in out
    assert "not started" in out

    code, _, said = tuned_sweep()
    assert code == 0, said
    assert statuses(tmp_path / "runs") == {"plain-20": "completed", "plain-56": "completed"}


@pytest.mark.slow
def test_machines_share_out_a_tuned_study_and_then_extend_it_together(tmp_path):
    config, workdir = tmp_path / "study.py", tmp_path / "runs"
    config.write_text(STUDY)
    losses = {f"plain-{depth}-rate=1": 0.5 for depth in (20, 56)}
    parts = [sweep(workdir, f"--part={i}/2", study=config, losses=losses) for i in range(2)]
    for process in parts:
        code, _, said = outcome(process)
        assert code == 0, said
    # Each cell and each pilot was run once, by the machine of its cell.
    assert sorted(line["cell"] for line in sweep_fake.started(workdir)) == ["plain-20", "plain-56"]
    pilots = [line["cell"] for line in sweep_fake.started(workdir / "pilots")]
    assert sorted(pilots) == sorted(f"plain-{d}-rate={r}" for d in (20, 56) for r in (0.01, 0.1, 1))
    assert set(statuses(workdir).values()) == {"completed"}
    code, shown, _ = outcome(sweep(workdir, "--status", study=config))
    assert code == 0
    assert shown.count("completed") == 8
    refused = outcome(sweep(workdir, "--extend", "--part=0/2", study=config))
    assert refused[0] == 2
    assert "--extend needs the pilots of all cells: give it without --part" in refused[2]
    code, _, said = outcome(sweep(workdir, "--extend", study=config, losses=losses))
    assert code == 0, said
    again = [line["cell"] for line in sweep_fake.started(workdir / "pilots")][6:]
    assert sorted(again) == ["plain-20-rate=10", "plain-56-rate=10"]
