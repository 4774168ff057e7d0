"""Predictions of a trained network for every example of a split, and what they say about it."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from resnet_jax import losses
from resnet_jax.analysis import examples
from resnet_jax.errors import UserError
from resnet_jax.state import Variables
from resnet_jax.step import mean_over_views
from resnet_jax.trained import Trained

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

    Arguments are those of `examples.of_split`.

    Raises:
      UserError: as `examples.of_split`; or the data set is not the one that the network was trained
        on, or the network has diverged.
    """
    run.check_finite()
    with examples.of_split(run, split, view) as found:
        parts = list(examples.outputs(run, found, log_probabilities(run, found.views.mirrored)))
    labels, logs = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    require_probabilities(logs)
    return Predictions(logs, labels, found.note)


def require_probabilities(logs: np.ndarray) -> None:
    """Raises UserError if log-probabilities are not numbers."""
    if np.isnan(logs).any():
        raise UserError("the network's probabilities are not finite: it has diverged.")


def log_probabilities(run: Trained, mirrored: bool = False) -> examples.Function:
    """Returns the function whose values are Predictions.logs, for `examples.outputs`.

    Args:
      run: the network.
      mirrored: whether each view's mirror image is a view too.

    Raises:
      UserError: as Trained.normalization.
    """
    normalization = run.normalization

    def logs_of(variables: Variables, groups: tuple[jax.Array, ...]) -> jax.Array:
        def logits_of(images_BHWC: jax.Array) -> Any:
            return run.model.apply(variables, normalization(images_BHWC), train=False)

        return mean_over_views(logits_of, groups, mirrored)

    return logs_of


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
    errors = losses.top1_error(logs, labels)
    predicted = _predicted(predictions, np.asarray(errors) > 0)
    confusion = np.zeros((classes, classes), np.int64)
    np.add.at(confusion, (predictions.labels, predicted), 1)
    return Scores(
        examples=len(labels),
        loss=float(losses.cross_entropy(logs, labels, smoothing=0.0).mean()),
        top1_error=float(errors.mean()),
        top5_error=float(losses.top5_error(logs, labels).mean()) if classes > 5 else None,
        calibration_error=_calibration_error(predictions, predicted),
        confusion=confusion,
    )


def _predicted(predictions: Predictions, is_wrong: np.ndarray) -> np.ndarray:
    """Returns the predicted classes; of a tie with the right class, another one."""
    predicted = predictions.logs.argmax(axis=1)
    tied = np.flatnonzero(is_wrong & (predicted == predictions.labels))
    others = predictions.logs[tied]
    others[np.arange(len(tied)), predicted[tied]] = -np.inf
    predicted[tied] = others.argmax(axis=1)
    return predicted


def _calibration_error(predictions: Predictions, predicted: np.ndarray) -> float:
    confidence = np.exp(predictions.logs.max(axis=1).astype(np.float64))
    is_right = (predicted == predictions.labels).astype(np.float64)
    # Intervals exclude their lower end: (0, 1/15], (1/15, 2/15] ...
    bins = np.clip(np.ceil(confidence * _BINS).astype(int) - 1, 0, _BINS - 1)
    gaps = np.bincount(bins, weights=confidence - is_right, minlength=_BINS)
    return float(100 * np.abs(gaps).sum() / len(confidence))
