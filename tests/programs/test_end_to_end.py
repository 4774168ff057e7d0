"""The path of a user: config, runs, run folders, report; also on the real CIFAR-10."""

import json
import subprocess
import sys

import pytest

from configs import degradation_digits
from resnet_jax.runs import reader
from tests import tiny


def program(*arguments):
    done = subprocess.run(
        [sys.executable, "-m", *map(str, arguments)],
        cwd=tiny.ROOT,
        env=tiny.environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


SMALL = [
    "--config.base.steps=12",
    "--config.base.batch_size=16",
    "--config.base.replicates=2",
    "--config.base.model.width=0.25",
    "--config.base.log.every=3",
    "--config.base.eval.every=6",
    "--config.base.eval.population_examples=64",
    "--config.grid.model.depth=(8,14)",
]


@pytest.mark.slow
def test_a_study_becomes_a_report(tmp_path):
    study, report = tmp_path / "study", tmp_path / "report"
    sweep = [
        "experiments.sweep",
        "--config=configs/degradation_digits.py:one_rate",
        f"--workdir={study}",
    ]
    program(*sweep, *SMALL)
    said = program("experiments.compare", study, f"--out={report}")
    assert said.splitlines()[-1] == str(report / "index.html")
    summary = json.loads((report / "summary.json").read_text())
    cells = {cell["name"]: cell for cell in summary["cells"]}
    assert sorted(cells) == ["plain-14", "plain-8", "resnet-14-A", "resnet-8-A"]
    for name, cell in cells.items():
        run = reader.read(study / name)
        last = run.metrics[-1]
        assert (cell["status"], cell["n"], cell["paper_error"]) == ("completed", 2, None)
        assert cell["parameters"] == run.environment["network"]["parameters"]
        assert cell["test_error"]["mean"] == pytest.approx(sum(last["test/error"]) / 2)
        assert cell["validation_error"]["mean"] == pytest.approx(
            sum(last["validation/error_population"]) / 2
        )
        assert cell["test_error"]["std"] is not None
    assert cells["plain-14"]["parameters"] == cells["resnet-14-A"]["parameters"]
    named = [claim["id"] for claim in summary["claims"] if claim["named_before_runs"]]
    assert tuple(named) == degradation_digits.get_config().claims
    for name in ("curves.png", "curves.svg", "depth.png", "depth.svg", "table.csv", "table.md"):
        assert (report / name).stat().st_size > 0


@pytest.mark.slow
def test_cifar10_trains_and_its_report_has_the_note_on_the_data(tmp_path, tfds_dir):
    folder, report = tmp_path / "resnet-8-A", tmp_path / "report"
    program(
        "experiments.train",
        "--config=configs/cifar10.py",
        f"--config.data.dir={tfds_dir}",
        "--config.model.depth=8",
        "--config.model.width=0.5",
        "--config.steps=60",
        "--config.log.every=20",
        "--config.eval.population_examples=512",
        f"--workdir={folder}",
    )
    run = reader.read(folder)
    assert run.status["status"] == "completed"
    sizes = [run.environment["data"][split] for split in ("train", "validation", "test")]
    assert sizes == [45000, 5000, 10000]
    assert run.config["data"]["flip"] == "on"
    errors = [row["train/error"] for row in run.metrics if "train/error" in row]
    assert errors[-1] < errors[0] - 3  # it learns
    assert run.metrics[-1]["test/error"] < 88  # chance is 90 %
    note = run.environment["data"]["note"]
    program("experiments.compare", folder, f"--out={report}")
    if note:
        assert "JPEG" in note
        assert note in (report / "table.md").read_text()


@pytest.mark.slow
def test_make_ablation_answers_the_question(tmp_path):
    study = tmp_path / "study"
    # If these tests run under make, its variables would make this make print folders.
    environment = {k: v for k, v in tiny.environment().items() if not k.startswith("MAKE")}
    done = subprocess.run(
        # A test needs fewer seeds than a result, and two candidates instead of four.
        [
            "make",
            "ablation",
            f"STUDY={study}",
            "FLAGS=--config.base.replicates=4 '--config.tune.over.schedule.rate=(0.03,0.1)'",
        ],
        cwd=tiny.ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    page = study / "report" / "index.html"
    assert done.stdout.splitlines()[-1] == str(page)
    assert page.is_file()
    summary = json.loads((study / "report" / "summary.json").read_text())
    names = {"plain-14", "plain-32", "resnet-14-A", "resnet-32-A"}
    assert {cell["name"] for cell in summary["cells"]} == names
    named = [claim for claim in summary["claims"] if claim["named_before_runs"]]
    verdicts = {claim["id"]: claim["verdict"] for claim in named}
    assert tuple(verdicts) == degradation_digits.get_config().claims
    assert verdicts["1"] == "confirmed"
    assert verdicts["2"] != "rejected"
    assert not {"saturated", "not tested"} & set(verdicts.values())
    (tuning,) = summary["tuning"]
    chosen = [trial for trial in tuning["trials"] if trial["is_chosen"]]
    assert (len(tuning["trials"]), len(chosen)) == (8, 4)
