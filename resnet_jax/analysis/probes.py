"""How well simple classifiers read the classes off frozen features (Alain & Bengio 2017)."""

import warnings
from typing import NamedTuple

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import NearestNeighbors
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0, 10.0)  # inverse, of the L2 penalty
NEIGHBOURS = (1, 5, 20, 100)
_ITERATIONS = 1000


class Features(NamedTuple):
    """Features of N examples.

    Attributes:
      values: float32 (N, C).
      labels: int32 (N,).
    """

    values: np.ndarray
    labels: np.ndarray


class Probe(NamedTuple):
    """A classifier on frozen features.

    Attributes:
      error: its test error in percent.
      chosen: the candidate with the lowest validation error, the smallest of equal ones: one of
        STRENGTHS or NEIGHBOURS.
    """

    error: float
    chosen: float


def linear(train: Features, validation: Features, test: Features) -> Probe:
    """Trains a multinomial logistic regression on standardised features.

    Args:
      train: its training examples.
      validation: choose the penalty.
      test: measure the error.
    """
    fitted = {strength: _regression(train, strength) for strength in STRENGTHS}
    errors = {
        strength: _error(model.predict(validation.values), validation)
        for strength, model in fitted.items()
    }
    chosen = min(errors, key=errors.__getitem__)
    return Probe(_error(fitted[chosen].predict(test.values), test), chosen)


def _regression(train: Features, strength: float) -> Pipeline:
    regression = LogisticRegression(C=strength, max_iter=_ITERATIONS)
    with warnings.catch_warnings():
        # Classes that can be separated exactly have no finite optimum without a penalty.
        warnings.simplefilter("ignore", ConvergenceWarning)
        return make_pipeline(StandardScaler(), regression).fit(train.values, train.labels)


def neighbours(train: Features, validation: Features, test: Features) -> Probe:
    """Lets the training examples of the highest cosine similarity vote; see linear().

    Of classes with equally many votes the first one wins.
    """
    counts = [count for count in NEIGHBOURS if count <= len(train.labels)]
    index = NearestNeighbors(n_neighbors=counts[-1], metric="cosine").fit(train.values)

    def predicted(values: np.ndarray) -> dict[int, np.ndarray]:
        nearest = train.labels[index.kneighbors(values, return_distance=False)]
        rows = np.arange(len(values))[:, None]
        winners = {}
        for count in counts:
            votes = np.zeros((len(values), 1 + train.labels.max()), np.int32)
            np.add.at(votes, (rows, nearest[:, :count]), 1)
            winners[count] = votes.argmax(axis=1)
        return winners

    errors = {c: _error(p, validation) for c, p in predicted(validation.values).items()}
    chosen = min(errors, key=errors.__getitem__)
    return Probe(_error(predicted(test.values)[chosen], test), chosen)


def _error(predicted: np.ndarray, examples: Features) -> float:
    return float(100 * np.mean(predicted != examples.labels))
