"""A trained network's scores: those of its run, and those that anybody would compute."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from resnet_jax import train
from resnet_jax.analysis.predictions import Predictions, score
from resnet_jax.losses import top5_error
from resnet_jax.step import mean_over_views
from tests import tiny


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of two seeds that holds out nothing."""
    folder = tmp_path_factory.mktemp("evaluated") / "run"
    config = tiny.config(replicates=2, seed=3, data__validation=0)
    assert train.train(config, str(folder)) == "completed"
    return folder


def evaluate(*arguments):
    return tiny.program("experiments.evaluate", *map(str, arguments))


def test_the_errors_are_those_of_the_run(run):
    recorded = tiny.lines(run)[-1]
    assert recorded["test/error"][0] != recorded["test/error"][1]
    for number, seed in enumerate((3, 4)):
        done = evaluate(run, "--json", f"--seed={seed}")
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)
        assert found["top1_error"] == pytest.approx(recorded["test/error"][number], abs=1e-5)
        assert found["loss"] == pytest.approx(recorded["test/loss"][number], rel=1e-5)
        low, high = found["top1_error_interval"]
        assert low < found["top1_error"] < high
        confusion = np.array(found["confusion"])
        assert confusion.sum() == found["examples"] == 360
        wrong = 360 - confusion.trace()
        assert found["top1_error"] == pytest.approx(100 * wrong / 360, abs=1e-5)
        for row, each in zip(confusion, found["classes"], strict=True):
            assert each["examples"] == row.sum()
            share = 100 * (1 - row[int(each["name"])] / row.sum())
            assert each["error"] == pytest.approx(share)


def test_it_prints_tables(run):
    done = evaluate(run, "--split=train")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{run}, seed 3, step 12: 1,437 examples of digits, train split")
    lines = [line.split() for line in done.stdout.splitlines()]
    errors = [line[0] for line in lines if line[1:2] == ["error"]]
    assert errors[:3] == ["top-1", "top-5", "calibration"]
    start = lines.index(["class", "examples", "error,", "%"])
    assert [line[0] for line in lines[start + 1 : start + 11]] == list("0123456789")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "name one run folder"),
        (("nowhere",), "nowhere"),
        (("{run}", "--split=tests"), "split='tests' is not known; allowed are train, validation"),
        (("{run}", "--split=validation"), "of this run has no examples (data.validation=0)"),
        (("{run}", "--view=ten_crop"), "view='ten_crop' is not known; allowed are center"),
        (("{run}", "--seed=5"), "seed=5 is not in"),
    ],
)
def test_a_mistake_is_one_sentence(run, arguments, words):
    done = evaluate(*(argument.format(run=run) for argument in arguments))
    assert done.returncode == 2, done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def drawn(examples=400, classes=7):
    draw = np.random.default_rng(0)
    probabilities = draw.dirichlet(np.full(classes, 0.3), examples).astype(np.float32)
    # So that the network is right more often than at random, and class 6 has no example.
    labels = np.where(
        draw.random(examples) < 0.5, probabilities.argmax(1), draw.integers(0, classes, examples)
    )
    labels = np.where(labels == classes - 1, 0, labels).astype(np.int32)
    return Predictions(np.log(probabilities), labels, note="")


def test_the_scores_are_those_of_a_loop():
    predictions = drawn()
    found = score(predictions)
    confusion = np.zeros((7, 7), int)
    bins = {}
    for logs, label in zip(predictions.logs, predictions.labels, strict=True):
        guess = int(np.argmax(logs))
        confusion[label, guess] += 1
        confidence = float(np.exp(logs.max()))
        bins.setdefault(-int(-confidence * 15 // 1), []).append((confidence, guess == label))
    np.testing.assert_array_equal(found.confusion, confusion)
    assert found.top1_error == pytest.approx(100 * (1 - confusion.trace() / 400), rel=1e-6)
    gaps = [abs(sum(c - right for c, right in members)) for members in bins.values()]
    assert found.calibration_error == pytest.approx(100 * sum(gaps) / 400, rel=1e-5)
    losses = [
        -logs[label] for logs, label in zip(predictions.logs, predictions.labels, strict=True)
    ]
    assert found.loss == pytest.approx(float(np.mean(losses)), rel=1e-5)
    assert found.top5_error == float(top5_error(predictions.logs, predictions.labels).mean())
    assert np.isnan(found.per_class[6])
    assert found.per_class[2] == pytest.approx(100 * (1 - confusion[2, 2] / confusion[2].sum()))


def test_a_tie_with_the_right_class_is_an_error_as_in_training():
    logs = np.log(np.full((3, 4), 0.25, np.float32))
    logs[2, 3] = 0.0  # the third example is certain
    found = score(Predictions(logs, np.array([0, 2, 3], np.int32), note=""))
    assert found.top1_error == pytest.approx(100 * 2 / 3)
    assert found.confusion.trace() == 1
    assert found.per_class[[0, 2, 3]].tolist() == [100.0, 100.0, 0.0]


def test_perfect_confidence_is_calibrated_if_it_is_right():
    logs = np.log(np.eye(3, dtype=np.float32) + 1e-30)
    right = score(Predictions(logs, np.arange(3, dtype=np.int32), note=""))
    assert (right.top1_error, right.top5_error) == (0.0, None)
    assert right.calibration_error == pytest.approx(0.0, abs=1e-4)
    wrong = score(Predictions(logs, np.array([1, 2, 0], np.int32), note=""))
    assert (wrong.top1_error, wrong.calibration_error) == (100.0, pytest.approx(100.0, rel=1e-5))


@pytest.mark.parametrize("mirrored", [False, True])
def test_the_mean_over_views_is_that_of_their_probabilities(mirrored):
    draw = np.random.default_rng(0)
    groups = [
        draw.integers(0, 256, (2, views, 4, side, 1), np.uint8) for views, side in ((3, 5), (1, 7))
    ]
    weights = draw.normal(size=(4, 5)).astype(np.float32)

    def logits_of(images):
        return images[:, :, 0, 0] / np.float32(255) @ weights

    found = mean_over_views(logits_of, tuple(map(jnp.asarray, groups)), mirrored)
    views = [image for group in groups for image in np.moveaxis(group, 1, 0)]
    views += [view[:, :, ::-1] for view in views] if mirrored else []
    exponentials = [np.exp(logits_of(view)) for view in views]
    wanted = np.mean([each / each.sum(1, keepdims=True) for each in exponentials], axis=0)
    np.testing.assert_allclose(np.exp(found), wanted, rtol=1e-5)
