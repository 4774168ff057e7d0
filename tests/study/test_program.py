"""The sweep as a user runs it, on real cells of eight layers."""

import json
import os
import shutil

import pytest

from resnet_jax.runs import identity, reader
from tests import tiny

STUDY = "--config=configs/degradation_digits.py:one_rate"
SMALL = (
    "--config.grid.model.depth=(8,)",
    "--config.base.steps=4",
    "--config.base.batch_size=16",
    "--config.base.replicates=1",
    "--config.base.model.width=0.25",
    "--config.base.eval.population_examples=64",
    "--config.base.checkpoint.every=2",
    "--config.base.log.every=2",
)


def sweep(workdir, *flags):
    return tiny.program("experiments.sweep", f"--workdir={workdir}", *flags)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ((), "--config is missing"),
        (("--status",), "is not a folder"),
        ((STUDY, "--only=plain-2"), "nearest: plain-20"),
        ((STUDY, "--launcher=slrum"), "nearest: slurm"),
        ((STUDY, "--jobs=-1"), "--jobs=-1"),
        ((STUDY, "--config.grid.model.depht=(20,)"), "nearest: grid.model.depth"),
        ((STUDY, "--config.grid.model.depth=(20,21)"), "nearest: 20 and 26"),
        ((STUDY, "--dry_run", "--target=v5x"), "nearest: v5"),
        ((STUDY, "--target=v5e"), "--target has an effect only with --dry_run"),
        ((STUDY, "--dry_run", "--target=v5e", "--rate=9"), "either --target or --rate"),
        ((STUDY, "--dry_run", "--price=2"), "--price has an effect only with --target"),
        ((STUDY, "--dry_run", "--target=v5e", "--share=2"), "--share=2 is not allowed"),
        ((STUDY, "--part=2/2"), "--part=2/2 is not allowed; it is I/N with I from 0 to N - 1"),
        ((STUDY, "--part=1"), "--part=1 is not allowed"),
        ((STUDY, "--part=-1/2"), "--part=-1/2 is not allowed"),
        ((STUDY, "--part=8/9"), "--part=8/9 has no cell: there are 4"),
        ((STUDY, "--config.base.init.from=/nowhere"), "init.from='/nowhere' does not exist"),
        (("--config=configs/digits.py",), "is not a study"),
        (("--config=configs/degradation_cifar10.py", "--config.base.data.dir=/nowhere"), "cifar10"),
    ],
)
def test_a_mistake_is_one_sentence_and_writes_nothing(tmp_path, flags, words):
    result = sweep(tmp_path / "study", *flags)
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert words in result.stderr
    assert not (tmp_path / "study").exists()


@pytest.mark.slow
def test_a_study_continues_after_one_cell_has_failed(tmp_path):
    planned = sweep(tmp_path, STUDY, *SMALL, "--dry_run")
    assert planned.returncode == 0
    assert "2 of them left to run" in planned.stdout
    assert not list(tmp_path.iterdir())

    broken = tmp_path / "plain-8" / "checkpoints"
    broken.parent.mkdir()
    broken.write_text("a file in the way")
    result = sweep(tmp_path, STUDY, *SMALL)
    assert result.returncode == 1, result.stderr
    found = {run.name: run for run in reader.find([tmp_path])}
    assert found["resnet-8-A"].status["status"] == "completed"
    assert found["plain-8"].status["status"] == "failed"
    assert found["plain-8"].status["reason"]
    assert found["plain-8"].status["reason"] in result.stdout
    assert "plain-8: FAILED" in result.stderr
    log = (tmp_path / "resnet-8-A" / "log.txt").read_text()
    assert f"Compiled programs are kept in {os.environ['JAX_COMPILATION_CACHE_DIR']}/" in log

    broken.unlink()
    result = sweep(tmp_path, STUDY, *SMALL)
    assert result.returncode == 0, result.stderr
    again = {run.name: run for run in reader.find([tmp_path])}
    assert again["plain-8"].status["status"] == "completed"
    assert again["resnet-8-A"].status == found["resnet-8-A"].status  # not touched again
    for run in again.values():
        assert run.metrics[-1]["step"] == 4
        assert "test/error" in run.metrics[-1]

    # Training from a cell's saved config gives the same run.
    shutil.rmtree(tmp_path / "plain-8" / "checkpoints")
    config = json.loads((tmp_path / "plain-8" / "config.json").read_text())
    retrained = tiny.program(
        "experiments.train", f"--workdir={tmp_path / 'again'}",
        f"--config=configs/saved.py:{tmp_path / 'plain-8'}",
    )  # fmt: skip
    assert retrained.returncode == 0, retrained.stderr
    copy = reader.read(tmp_path / "again")
    assert identity.of(copy.config) == identity.of(config)
    assert tiny.lines(copy.path)[-1]["step"] == tiny.lines(again["plain-8"].path)[-1]["step"]

    status = sweep(tmp_path, "--status")
    assert status.returncode == 0
    assert status.stdout.count("completed") == 3
