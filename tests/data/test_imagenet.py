"""The ImageNet studies, run on the few real pictures that lie beside the project."""

import pathlib

import pytest

from configs import degradation_imagenet, depth_imagenet, imagenet, shortcuts_imagenet
from experiments.study import estimate, grid
from resnet_jax.runs import reader
from tests import tiny

STUDIES = {
    degradation_imagenet: ["plain-18", "plain-34", "resnet-18-A", "resnet-34-A"],
    depth_imagenet: [f"resnet-{depth}-B" for depth in (101, 152, 18, 34, 50)],
    shortcuts_imagenet: ["resnet-34-A", "resnet-34-B", "resnet-34-C"],
}


@pytest.mark.parametrize("preset", imagenet.PRESETS)
@pytest.mark.parametrize("module", STUDIES, ids=lambda m: m.__name__.split(".")[-1])
def test_cells_are_those_of_the_paper(module, preset, no_data):
    cells = grid.cells(module.get_config(preset))
    assert sorted(cell.name for cell in cells) == STUDIES[module]
    for cell in cells:
        c = cell.config
        starts_at_zero = preset == "modern" and c.model.shortcut != "none"
        assert c.model.zero_init_residual == starts_at_zero
        assert c.data.color == (preset == "paper")
        assert c.model.bn_group == 32
        assert c.model.bottleneck_stride == {"paper": "v1", "modern": "v1.5"}[preset]


def test_a_study_estimates_its_cost(tmp_path):
    """By hand: 600k batches of 256, on eight devices of 1,000 images/s of ResNet-50 each."""
    done = tiny.program(
        "experiments.sweep", "--config=configs/depth_imagenet.py",
        f"--workdir={tmp_path / 'study'}", f"--config.base.data.dir={tmp_path}", "--dry_run",
        "--only=resnet-50-B", "--rate=1000", "--devices=8", "--jobs=1",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    seconds = 600_000 * 256 / 8000 * 3_857_973_248 / 3.8e9
    heading, row, *_ = done.stdout.splitlines()
    assert heading.split()[-1] == "device-hours"
    assert float(row.split()[-1]) == pytest.approx(seconds * 8 / 3600, rel=5e-3)
    assert "8 devices per cell, each training 1,000 images/s of ResNet-50" in done.stdout
    assert "The data are missing" in done.stdout
    rate = estimate.given_rate(1000, 8)
    assert rate.devices == 8
    assert rate.mult_adds == pytest.approx(8000 * 3.8e9 * 3)


@pytest.mark.slow
@pytest.mark.parametrize("preset", imagenet.PRESETS)
def test_a_study_of_real_pictures_runs(preset, tmp_path):
    """End to end: plain and residual nets of 18 layers, a few steps, all views, the report."""
    root = pathlib.Path(tiny.ROOT.parent / "shared" / "datasets")
    if not (root / "imagenet2012").is_dir():
        pytest.skip("no prepared imagenet2012 beside the project")
    small = {
        "data.dir": root, "data.validation": 16, "steps": 3, "batch_size": 16, "model.bn_group": 8,
        "data.image_size": 64, "data.scales": "(72,128)", "eval.short_side": 72,
        "eval.scales": "(64,96)", "eval.batch_size": 32, "eval.population_examples": 32,
        "eval.every": 2, "checkpoint.every": 2, "log.every": 1, "log.tensorboard": False,
        "schedule.warmup": "none", "model.width": 0.25,
    }  # fmt: skip
    folder = tmp_path / "study"
    done = tiny.program(
        "experiments.sweep", f"--config=configs/degradation_imagenet.py:{preset}",
        f"--workdir={folder}", "--only=*-18*",
        *(f"--config.base.{key}={value}" for key, value in small.items()),
    )  # fmt: skip
    logs = {path: path.read_text() for path in folder.glob("*/log.txt")}
    assert done.returncode == 0, (done.stderr, logs)
    for name in ("plain-18", "resnet-18-A"):
        run = reader.read(folder / name)
        assert run.status["status"] == "completed"
        assert run.environment["data"]["train"] == 240
        assert run.environment["data"]["test"] == 64
        last = run.metrics[-1]
        names = {"paper": ["", "_center", "_fully_convolutional"], "modern": [""]}[preset]
        for suffix in names:
            assert 0 <= last[f"test/error{suffix}"] <= 100
            assert last[f"test/top5_error{suffix}"] <= last[f"test/error{suffix}"]
        assert "cannot be decoded" not in logs[folder / name / "log.txt"]
    report = tiny.program("experiments.compare", folder, f"--out={tmp_path / 'report'}")
    assert report.returncode == 0, report.stderr
    text = (tmp_path / "report" / "table.md").read_text()
    assert "| plain-18 |" in text
    assert "27.94" not in text  # the paper's network is four times as wide
