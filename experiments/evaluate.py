"""Evaluates a trained network on a split of its data set.

    python -m experiments.evaluate runs/resnet-56
    python -m experiments.evaluate runs/resnet-50 --split=validation --view=ten_crop --json

It prints the top-1 and top-5 error with an exact 95 % interval over examples, the loss, the
calibration error, the error of each class and the most frequent confusions. --json prints
everything, with the whole confusion matrix. The run may be one that experiments.convert made.
"""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import flags

from experiments.cli import command_line, tables
from experiments.report.statistics import proportion_interval
from resnet_jax import trained
from resnet_jax.analysis import predictions
from resnet_jax.analysis.predictions import Scores
from resnet_jax.data.views import VIEWS
from resnet_jax.errors import UserError

_SPLIT = flags.DEFINE_string("split", "test", "train, validation or test.")
_VIEW = flags.DEFINE_string("view", VIEWS[0], f"One of {', '.join(VIEWS)}; see eval.views.")
_SEED = flags.DEFINE_integer("seed", None, "One of the run's seeds; by default the first.")
_DATA_DIR = flags.DEFINE_string("data_dir", None, "The TFDS data_dir; by default the run's.")
_JSON = flags.DEFINE_bool("json", False, "Print JSON.")

_ROWS = 20  # of the table of classes, and of confusions


def main(argv: Sequence[str]) -> int:
    """Returns the exit code."""
    if len(argv) != 2:
        raise UserError("name one run folder: python -m experiments.evaluate RUN.")
    run = trained.load(argv[1], _SEED.value, data_dir=_DATA_DIR.value)
    found = predictions.predict(run, _SPLIT.value, _VIEW.value)
    scores = predictions.score(found)
    names = run.class_names
    about = {
        "run": argv[1],
        "seed": run.seed,
        "step": run.step,
        "is_tested": run.is_tested,
        "data": run.config.data.name,
        "split": _SPLIT.value,
        "view": _VIEW.value,
        "note": found.note,
    }
    if _JSON.value:
        print(json.dumps(about | as_json(scores, names)))
    else:
        tables.print_parts(as_text(about, scores, names))
    return 0


def as_json(scores: Scores, names: Sequence[str]) -> dict[str, Any]:
    """Returns every score, ready for JSON; a class without examples has the error null."""
    per_class = zip(names, scores.per_class, scores.confusion.sum(axis=1), strict=True)
    return {
        "examples": scores.examples,
        "loss": scores.loss,
        "top1_error": scores.top1_error,
        "top1_error_interval": _interval(scores.top1_error, scores),
        "top5_error": scores.top5_error,
        "top5_error_interval": _interval(scores.top5_error, scores),
        "calibration_error": scores.calibration_error,
        "classes": [
            {"name": name, "examples": int(count), "error": float(error) if count else None}
            for name, error, count in per_class
        ],
        "confusion": scores.confusion.tolist(),
    }


def _interval(error: float | None, scores: Scores) -> list[float] | None:
    """Returns the 95 % interval of an error, in percent."""
    if error is None:
        return None
    low, high = proportion_interval(error / 100, scores.examples, alpha=0.05)
    return [100 * low, 100 * high]


def as_text(about: dict[str, Any], scores: Scores, names: Sequence[str]) -> tables.Parts:
    """Returns the scores as tables."""
    title = (
        f"{about['run']}, seed {about['seed']}, step {about['step']}: {scores.examples:,} "
        f"examples of {about['data']}, {about['split']} split, view {about['view']}."
    )
    rows = [["", "%", "95 % interval"]]
    for name, error in (("top-1 error", scores.top1_error), ("top-5 error", scores.top5_error)):
        if error is not None:
            low, high = _interval(error, scores) or (0.0, 0.0)
            rows.append([name, f"{error:.2f}", f"{low:.2f} to {high:.2f}"])
    rows.append(["calibration error", f"{scores.calibration_error:.2f}", ""])
    parts: list[Any] = [title]
    if about["note"]:
        parts.append(f"Note: {about['note']}.")
    parts += ["", tables.aligned(rows, left=1), f"loss {scores.loss:.4f} nats"]
    return [*parts, "", *_classes(scores, names), "", *_confusions(scores, names)]


def _classes(scores: Scores, names: Sequence[str]) -> tables.Parts:
    """Returns the table of classes, of the worst ones if there are many."""
    counts, errors = scores.confusion.sum(axis=1), scores.per_class
    order = np.arange(len(names))
    title = "top-1 error by class"
    if len(names) > _ROWS:
        order = np.argsort(-np.nan_to_num(errors, nan=-1.0), kind="stable")[:_ROWS]
        title += f", the highest {_ROWS} of {len(names)}"
    rows = [["class", "examples", "error, %"]]
    for number in order.tolist():
        error = f"{errors[number]:.2f}" if counts[number] else "-"
        rows.append([names[number], f"{counts[number]:,}", error])
    return [title, tables.aligned(rows, left=1)]


def _confusions(scores: Scores, names: Sequence[str]) -> tables.Parts:
    """Returns the most frequent confusions of two classes."""
    wrong = scores.confusion * (1 - np.eye(len(names), dtype=np.int64))
    order = np.argsort(-wrong, axis=None, kind="stable")[:_ROWS]
    pairs = [np.unravel_index(i, wrong.shape) for i in order]
    rows = [["label", "predicted", "examples"]]
    rows += [[names[a], names[b], f"{wrong[a, b]:,}"] for a, b in pairs if wrong[a, b]]
    if len(rows) == 1:
        return ["no confusions"]
    return ["most frequent confusions", tables.aligned(rows, left=2)]


if __name__ == "__main__":
    command_line.run(main)
