"""Predictions of a trained network for every example of a split, and what they say about it."""

import contextlib
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from resnet_jax import losses
from resnet_jax.allowed import check_choice
from resnet_jax.data import datasets
from resnet_jax.data.sets import DATA_SETS
from resnet_jax.data.views import VIEWS, make_views
from resnet_jax.errors import UserError
from resnet_jax.execution import decide
from resnet_jax.step import mean_over_views
from resnet_jax.trained import Trained

SPLITS = ("train", "validation", "test")
_BINS = 15  # of the calibration error, as in Guo et al. 2017


@dataclasses.dataclass(frozen=True, eq=False)
class Predictions:
    """Predictions for N examples.

    Attributes:
      logs: the log of the predicted probabilities, averaged over views; float32 (N, K).
      labels: int32 (N,).
      note: a caveat about the data, or empty.
    """

    logs: np.ndarray
    labels: np.ndarray
    note: str


def predict(run: Trained, split: str = "test", view: str = "center") -> Predictions:
    """Evaluates a network on every example of a split exactly once, on all devices.

    Args:
      run: the network; its config names the data set.
      split: one of SPLITS; "train" is without the validation split.
      view: one of data.views.VIEWS; resident sets have "center" only.

    Raises:
      UserError: the split is unknown or empty, the set has no such view, or the data set is
        missing, broken, or not the one that the network was trained on.
    """
    check_choice("split", split, SPLITS)
    is_resident = DATA_SETS[run.config.data.name].resident
    check_choice("view", view, VIEWS[:1] if is_resident else VIEWS)
    config = run.config.copy_and_resolve_references()
    config.replicates, config.seed = 1, run.seed
    execution = decide(config, jax.devices())
    with contextlib.closing(datasets.open_set(config.data, execution.mesh)) as data:
        examples = {"train": data.train, "validation": data.validation, "test": data.test}[split]
        if not len(examples):
            raise UserError(
                f"split={split!r} of this run has no examples (data.validation="
                f"{config.data.validation})."
            )
        normalization = run.normalization

        @jax.jit
        def logs_of(groups: tuple[jax.Array, ...]) -> jax.Array:
            def logits_of(images_BHWC: jax.Array) -> Any:
                normalized = normalization(images_BHWC)
                return run.model.apply(run.variables, normalized, train=False)

            return mean_over_views(logits_of, groups, views.mirrored)

        views = make_views(view, config.data, config.eval)
        logs, labels = [], []
        with contextlib.closing(examples.views(views, execution.eval_batch_size)) as batches:
            for batch in batches:
                mask = np.asarray(batch.mask)
                logs.append(np.asarray(logs_of(batch.groups))[mask])
                labels.append(np.asarray(batch.labels)[mask])
        return Predictions(np.concatenate(logs), np.concatenate(labels), data.note)


@dataclasses.dataclass(frozen=True, eq=False)
class Scores:
    """What predictions say about a network; errors are in percent.

    Attributes:
      examples: how many there are.
      loss: mean cross-entropy in nats.
      top1_error: see losses.top1_error.
      top5_error: see losses.top5_error; None for less than six classes.
      calibration_error: the mean distance, in percentage points, between the probability of the
        predicted class and the share of examples for which it is right, over 15 intervals of that
        probability (Guo et al. 2017, arXiv 1706.04599, equation 3).
      confusion: int64 (K, K): examples by label (row) and predicted class (column).
    """

    examples: int
    loss: float
    top1_error: float
    top5_error: float | None
    calibration_error: float
    confusion: np.ndarray

    @property
    def per_class(self) -> np.ndarray:
        """The top-1 error of each class in percent, (K,); NaN for a class without examples."""
        with np.errstate(invalid="ignore"):
            return 100 * (1 - self.confusion.diagonal() / self.confusion.sum(axis=1))


def score(predictions: Predictions) -> Scores:
    """Scores predictions."""
    logs, labels = jnp.asarray(predictions.logs), jnp.asarray(predictions.labels)
    classes = logs.shape[1]
    predicted = predictions.logs.argmax(axis=1)
    confusion = np.zeros((classes, classes), np.int64)
    np.add.at(confusion, (predictions.labels, predicted), 1)
    return Scores(
        examples=len(labels),
        loss=float(losses.cross_entropy(logs, labels, smoothing=0.0).mean()),
        top1_error=float(losses.top1_error(logs, labels).mean()),
        top5_error=float(losses.top5_error(logs, labels).mean()) if classes > 5 else None,
        calibration_error=_calibration_error(predictions, predicted),
        confusion=confusion,
    )


def _calibration_error(predictions: Predictions, predicted: np.ndarray) -> float:
    confidence = np.exp(predictions.logs.max(axis=1).astype(np.float64))
    is_right = (predicted == predictions.labels).astype(np.float64)
    # Intervals exclude their lower end: (0, 1/15], (1/15, 2/15] ...
    bins = np.clip(np.ceil(confidence * _BINS).astype(int) - 1, 0, _BINS - 1)
    gaps = np.bincount(bins, weights=confidence - is_right, minlength=_BINS)
    return float(100 * np.abs(gaps).sum() / len(confidence))
