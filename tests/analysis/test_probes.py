"""Linear probes and nearest neighbours on frozen features."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from resnet_jax.analysis import probes
from resnet_jax.analysis.probes import NEIGHBOURS, STRENGTHS, Features


def made(count, noise, seed):
    """Returns features of three classes, around points of different lengths in 5 dimensions."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, 3, count).astype(np.int32)
    centres = np.array([[4, 0, 0, 0, 9], [0, 1, 0, 0, 9], [0, 0, 2, 1, 9]], np.float32)
    values = centres[labels] + noise * random.normal(size=(count, 5))
    return Features(values.astype(np.float32), labels)


TRAIN, VALIDATION, TEST = made(60, 1.0, 0), made(50, 1.0, 1), made(70, 1.0, 2)


def voted(values, count):
    """Returns the most frequent class of the training examples with the highest cosine."""

    def unit(rows):
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    cosines = unit(values) @ unit(TRAIN.values).T
    nearest = np.argsort(-cosines, axis=1)[:, :count]
    return np.array([np.bincount(TRAIN.labels[row]).argmax() for row in nearest])


def test_neighbours_of_the_highest_cosine_vote():
    counts = [count for count in NEIGHBOURS if count <= 60]
    errors = {
        count: np.mean(voted(VALIDATION.values, count) != VALIDATION.labels) for count in counts
    }
    assert len(set(errors.values())) > 1
    chosen = min(counts, key=lambda count: errors[count])
    expected = 100 * np.mean(voted(TEST.values, chosen) != TEST.labels)
    assert 0 < expected < 60
    assert probes.neighbours(TRAIN, VALIDATION, TEST) == (pytest.approx(expected), chosen)


def test_validation_chooses_among_candidates_and_the_test_has_no_say():
    wrong = Features(TEST.values, (TEST.labels + 1) % 3)
    for probe in (probes.linear, probes.neighbours):
        one, other = probe(TRAIN, VALIDATION, TEST), probe(TRAIN, VALIDATION, wrong)
        assert one.chosen == other.chosen
        assert one.error < 50 < other.error


def test_a_linear_probe_is_the_optimum_of_the_penalised_loss():
    (value, other) = STRENGTHS[0], STRENGTHS[-1]
    assert value < other
    probe = probes.linear(TRAIN, VALIDATION, TEST)
    mean, std = TRAIN.values.mean(axis=0), TRAIN.values.std(axis=0)
    standard = [(part.values - mean) / std for part in (TRAIN, TEST)]
    # Gradient descent on sum of cross-entropies + |W|^2 / (2 C).
    weights, bias = np.zeros((5, 3)), np.zeros(3)
    targets = np.eye(3)[TRAIN.labels]
    for _ in range(20000):
        logits = standard[0] @ weights + bias
        shares = np.exp(logits - logits.max(axis=1, keepdims=True))
        slope = shares / shares.sum(axis=1, keepdims=True) - targets
        weights -= 0.005 * (standard[0].T @ slope + weights / probe.chosen)
        bias -= 0.005 * slope.sum(axis=0)
    predicted = (standard[1] @ weights + bias).argmax(axis=1)
    assert probe.error == pytest.approx(100 * np.mean(predicted != TEST.labels))
    assert probe.error > 0


def test_the_penalty_of_the_lowest_validation_error_is_chosen():
    def validated(strength):
        mean, std = TRAIN.values.mean(axis=0), TRAIN.values.std(axis=0)
        model = LogisticRegression(C=strength, max_iter=1000)
        model.fit((TRAIN.values - mean) / std, TRAIN.labels)
        return np.mean(model.predict((VALIDATION.values - mean) / std) != VALIDATION.labels)

    errors = {strength: validated(strength) for strength in STRENGTHS}
    assert len(set(errors.values())) > 1
    assert probes.linear(TRAIN, VALIDATION, TEST).chosen == min(STRENGTHS, key=errors.get)


def test_few_examples_and_constant_features_are_no_trouble():
    few = Features(TRAIN.values[:6], np.array([0, 1, 2, 0, 1, 2], np.int32))
    assert probes.neighbours(few, VALIDATION, TEST).chosen in (1, 5)
    assert 0 <= probes.linear(few, VALIDATION, TEST).error <= 100
