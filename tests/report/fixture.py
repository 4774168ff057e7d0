"""Writes run folders with known numbers, in the trainer's format."""

import copy
import itertools
import json
import math
import pathlib
import random
from collections.abc import Callable, Sequence
from typing import Any

from configs import base, cifar10
from experiments.report import tuned
from experiments.report.axes import finding, rows
from resnet_jax import settings
from resnet_jax.resolve import resolve
from resnet_jax.runs import reader
from tests import tiny

CHANGES: dict[str, Any] = {
    "batch_size": 100,
    "steps": 100,
    "eval__every": 20,
    "eval__views": ["ten_crop"],
    "log__every": 10,
}
# The paper's recipe on CIFAR-10, except for its length and seeds; pass steps=64000.
PAPER = {
    key.replace(".", "__"): value
    for key, value in settings.flatten(resolve(cifar10.get_config()).to_dict()).items()
    if key not in ("seed", "replicates", "steps", "model.depth", "model.shortcut")
}
ENVIRONMENT: dict[str, Any] = {
    "command": "python -m experiments.train --config=configs/digits.py",
    "git": {"commit": "0123456789abcdef0123456789abcdef01234567", "clean": True},
    "packages": {"jax": "0.10.2", "flax": "0.12.8"},
    "python": "3.11.4",
    "devices": ["NVIDIA H100"],
    "hosts": ["node-1"],
    "started": "2026-01-02T03:04:05+00:00",
    "network": {"parameters": 269722, "mult_adds": 40551808, "projections": 0},
    "data": {
        "name": "digits",
        "train": 2000,
        "validation": 180,
        "test": 360,
        "classes": 10,
        "image_shape": [8, 8, 1],
        "note": "",
    },
    "resumed": [],
}


def config(**changes: Any) -> dict[str, Any]:
    """Returns the base config as JSON, with changes such as ``model__depth=56``."""
    changed = base.get_config().to_dict()
    tiny.override(changed, CHANGES | changes)
    return json.loads(json.dumps(changed))


def lines(steps: Sequence[int], train: Any, **last: Any) -> list[dict[str, Any]]:
    """Returns a row per step with its training error; `last` is added to the last row.

    Names in `last` have two underscores instead of a slash: ``test__error``.
    """
    rows = [
        {
            "step": step,
            "train/error": error,
            "train/loss": [1.0] * len(error) if isinstance(error, list) else 1.0,
        }
        for step, error in zip(steps, train, strict=True)
    ]
    rows[-1] |= {key.replace("__", "/"): value for key, value in last.items()}
    return rows


def flat(train: Any, validation: Any = 30.0, test: Any = 31.0) -> list[dict[str, Any]]:
    """Returns the rows of a completed run of 100 steps with a constant training error."""
    return lines(
        range(10, 101, 10),
        [train] * 10,
        validation__error=validation,
        validation__error_population=validation,
        test__error=test,
    )


def write(
    path: pathlib.Path,
    metrics: list[dict[str, Any]],
    status: str = "completed",
    *,
    note: str = "",
    train_examples: int = 2000,
    parameters: int = 269722,
    environment: bool = True,
    more: dict[str, Any] | None = None,
    **changes: Any,
) -> pathlib.Path:
    """Writes one run folder and returns it; `more` goes into status.json."""
    settings = config(**changes)
    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps(settings))
    if environment:
        facts = copy.deepcopy(ENVIRONMENT)
        facts["data"] |= {"name": settings["data"]["name"], "note": note, "train": train_examples}
        facts["network"]["parameters"] = parameters
        (path / "environment.json").write_text(json.dumps(facts))
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in metrics))
    (path / "status.json").write_text(
        json.dumps(
            {
                "status": status,
                "step": metrics[-1]["step"] if metrics else 0,
                "steps": settings["steps"],
                "reason": "",
                "device_seconds": 12.5,
                "host": "another-host",  # unreachable, so "running" stays "running"
                "pid": 1,
                **(more or {}),
            }
        )
    )
    return path


def study(
    folder: pathlib.Path,
    *,
    depths: Sequence[int] = (8, 14, 20, 32),
    shortcuts: Sequence[str] = ("none", "A"),
    steps: int = 1000,
    every: int = 10,
    replicates: int = 5,
    note: str = "",
    signals: bool = False,
    **changes: Any,
) -> pathlib.Path:
    """Writes a study of noisy curves: plain nets degrade with depth, residual nets do not."""
    for shortcut in shortcuts:
        for depth in depths:
            name = f"plain-{depth}" if shortcut == "none" else f"resnet-{depth}-{shortcut}"
            rows = curve(depth, shortcut, steps, every, replicates)
            if signals:
                add_signals(rows, depth, shortcut, replicates)
            write(
                folder / name,
                rows,
                note=note,
                parameters=10_000 * depth,
                model__depth=depth,
                model__shortcut=shortcut,
                steps=steps,
                replicates=replicates,
                **changes,
            )
    return folder


def add_signals(rows: list[dict[str, Any]], depth: int, shortcut: str, replicates: int) -> None:
    """Adds signals to the first and the second-to-last row, in alphabetical order."""
    growth = 1.2 if shortcut == "none" else 1.0
    blocks = [f"stage{stage}_block{k}" for stage in (1, 2, 3) for k in range(1, depth // 6 + 1)]
    convolutions = [f"{block}/conv{i}" for block in blocks for i in (1, 2)]
    for row in (rows[0], rows[-2]):
        signals = {}
        for number, layer in enumerate(["stem_conv", *convolutions]):
            values = [growth ** (depth - number) + 0.01 * seed for seed in range(replicates)]
            signals[f"gradient_norm/{layer}"] = values
            signals[f"update_to_weight/{layer}"] = [0.01 * value for value in values]
            signals[f"response_std/{layer.replace('conv', 'norm')}"] = [1 / v for v in values]
            signals[f"dead_units/{layer.replace('conv', 'norm')}"] = [0.0] * replicates
        for block in blocks if shortcut != "none" else []:
            signals[f"branch_to_shortcut/{block}"] = [0.5] * replicates
        row |= {f"signals/{name}": signals[name] for name in sorted(signals)}


def curve(
    depth: int, shortcut: str, steps: int, every: int, replicates: int
) -> list[dict[str, Any]]:
    """Returns rows of noisy, falling errors, which depend only on the arguments."""
    dice = random.Random(f"{depth}{shortcut}")
    floor = 2 + depth / 3 if shortcut == "none" else 6 - depth / 10
    speed = steps / (12 if shortcut == "none" else 20)
    own = [floor + dice.gauss(0, 0.4) for _ in range(replicates)]

    def each(of: Callable[[float], float]) -> Any:
        values = [round(min(100.0, max(0.0, of(base))), 4) for base in own]
        return values if replicates > 1 else values[0]

    rows: list[dict[str, Any]] = []
    for step in range(every, steps + 1, every):
        fall = 88 * math.exp(-step / speed)
        row: dict[str, Any] = {
            "step": step,
            "train/error": each(lambda base: base + fall + dice.gauss(0, 1.2)),  # noqa: B023 - called at once
            "train/loss": each(lambda base: base / 10),
            "time/images_per_second": 5000.0,
        }
        if step % (5 * every) == 0 or step == steps:
            row["validation/error"] = each(
                lambda base: 1.2 * base + fall + 3 + dice.gauss(0, 0.5)  # noqa: B023 - called at once
            )
        rows.append(row)
    rows[-1]["validation/error_population"] = each(lambda base: 1.2 * base + 3)
    rows[-1]["test/error"] = each(lambda base: 1.2 * base + 3.5)
    rows[-1]["test/loss"] = each(lambda base: base / 8)
    return rows


def along(
    folder: pathlib.Path,
    key: str,
    values: Sequence[Any],
    of: Callable[[int, str, Any], float],
    *,
    depths: Sequence[int] = (8, 20, 56),
    shortcuts: Sequence[str] = ("none", "A"),
    seeds: int = 3,
    best: Callable[[int, str], Any] | None = None,
    **changes: Any,
) -> pathlib.Path:
    """Writes a study with an axis; seed i adds i / 10 points to the training error.

    Args:
      folder: of the study.
      key: the axis, such as ``schedule.rate``.
      values: on it.
      of: the training error of (depth, shortcut, value).
      depths: of the networks.
      shortcuts: of the networks.
      seeds: per run.
      best: the value for (depth, shortcut) that the networks themselves are trained at; the other
        runs are then pilots with other seeds.
      changes: as for config().
    """
    runs = folder / "pilots" if best else folder
    for shortcut, depth in itertools.product(shortcuts, depths):
        name = f"plain-{depth}" if shortcut == "none" else f"resnet-{depth}-{shortcut}"
        shape = {"model__depth": depth, "model__shortcut": shortcut, "replicates": seeds}
        for value in values:
            _point(runs / f"{name}-{settings.show(value)}", of(depth, shortcut, value), seeds,
                   seed=100 if best else 0, **{key.replace(".", "__"): value}, **shape,
                   **changes)  # fmt: skip
        if best:
            value = best(depth, shortcut)
            _point(folder / name, of(depth, shortcut, value) + 0.5, seeds,
                   **{key.replace(".", "__"): value}, **shape, **changes)  # fmt: skip
    if best:
        tuning = {"over": {key: list(values)}, "by": "training_error"}
        (runs / "tuning.json").write_text(json.dumps(tuning))
    return folder


def _point(path: pathlib.Path, error: float, seeds: int, **changes: Any) -> None:
    errors = [min(100.0, round(error + i / 10, 4)) for i in range(seeds)]
    rows = flat(errors, errors, errors)
    for row in rows:
        row["train/loss"] = [one / 40 for one in errors]
    write(path, rows, **changes)


def sections(folder: pathlib.Path, margin: float = 0.5) -> list[rows.Section]:
    """Returns the sections of a report on a study, one per axis."""
    runs = reader.find([folder])
    return [rows.section(across, margin) for across in finding.find(runs, tuned.find(runs))]
