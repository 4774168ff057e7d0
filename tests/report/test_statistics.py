"""Intervals, p-values and Holm's correction, against scipy and published numbers."""

import math

import numpy as np
import pytest
import scipy.stats

from experiments.report.statistics import (
    ALPHA,
    LEAST_P,
    Difference,
    Sample,
    correct,
    holm,
    power_law,
    proportion_interval,
)

MANY = 1e9  # examples: enough for the counting error to vanish


def sample(values, examples=MANY, first=0, diverged=()):
    return Sample(dict(enumerate(values, first)), examples * len(values), frozenset(diverged))


def test_different_seeds_give_welchs_interval():
    a, b = [5.1, 4.7, 6.0, 5.5], [3.0, 3.9, 2.2]
    want = scipy.stats.ttest_ind(a, b, equal_var=False)
    difference = Difference.of(sample(a), sample(b))
    assert not difference.paired
    assert difference.value == pytest.approx(np.mean(a) - np.mean(b))
    assert difference.interval(ALPHA) == pytest.approx(want.confidence_interval(0.95), abs=1e-4)
    assert difference.p_value(0) == pytest.approx(want.pvalue, rel=1e-3)


def test_the_same_seeds_give_the_paired_interval():
    a, b = [5.1, 4.7, 6.0], [4.0, 3.7, 4.8]
    want = scipy.stats.ttest_rel(a, b)
    difference = Difference.of(sample(a), sample(b))
    assert difference.paired
    assert difference.interval(0.02) == pytest.approx(want.confidence_interval(0.98), abs=1e-4)
    assert difference.p_value(0) == pytest.approx(want.pvalue, rel=1e-3)
    assert not Difference.of(sample(a), sample(b, first=1)).paired


def test_an_interval_needs_two_seeds_on_each_side():
    with pytest.raises(ValueError, match="two seeds on each side"):
        Difference.of(sample([3.0]), sample([1.0, 1.0]))


@pytest.mark.parametrize(("errors", "count"), [(0, 1257), (1, 1257), (7, 40), (40, 40)])
def test_a_share_has_clopper_and_pearsons_interval(errors, count):
    want = scipy.stats.binomtest(errors, count).proportion_ci(0.95, method="exact")
    found = proportion_interval(errors / count, count, 0.05)
    assert found == pytest.approx((want.low, want.high))


def test_the_rule_of_three():
    # One-sided at 95 %, no error in n gives a limit of 3 / n; two-sided, each tail has 2.5 %.
    assert proportion_interval(0.0, 1257, 0.1)[1] == pytest.approx(3 / 1257, rel=0.01)
    assert proportion_interval(0.0, 1257, 0.05)[1] == pytest.approx(3.69 / 1257, rel=0.01)


def test_zero_spread_does_not_give_certainty():
    zero = sample([0.0, 0.0], examples=1257)
    upper = 100 * (1 - 0.025 ** (1 / 2514))
    assert Difference.of(zero, zero).interval(ALPHA) == pytest.approx((-upper, upper))
    one_digit = sample([100 / 1257] * 2, examples=1257)
    low, high = Difference.of(one_digit, zero).interval(ALPHA)
    assert low < 0 < high
    # The same fraction of many more examples is significant.
    seen_often = sample([100 / 1257] * 2, examples=125700)
    assert Difference.of(seen_often, sample([0.0, 0.0], 125700)).interval(ALPHA)[0] > 0


def test_an_interval_is_never_narrower_than_counting_allows():
    spread = Difference.of(sample([4.0, 6.0, 5.0]), sample([1.0, 3.0, 1.5], first=9))
    counted = Difference.of(sample([4.0, 6.0, 5.0], 50), sample([1.0, 3.0, 1.5], 50, first=9))
    equal = Difference.of(sample([5.0] * 3, 50), sample([5.5 / 3] * 3, 50, first=9))
    for end in (0, 1):
        wider = max(spread.interval(ALPHA)[end], equal.interval(ALPHA)[end], key=abs_from(spread))
        assert counted.interval(ALPHA)[end] == pytest.approx(wider)


def abs_from(difference):
    return lambda end: abs(end - difference.value)


def test_diverged_seeds_are_counted_as_seeds():
    """All of n seeds against none of n: p is close to Fisher's exact test."""
    fisher = {
        n: scipy.stats.fisher_exact([[n, 0], [0, n]]).pvalue  # two-sided
        for n in (2, 3, 4, 5)
    }
    for n, p in fisher.items():
        failed = sample([100.0] * n, 50_000, diverged=range(n))
        trained = sample([5.0 + i / 10 for i in range(n)], 50_000)
        found = Difference.of(failed, trained).p_value(0)
        assert p / 2 < found < p
        assert (found <= ALPHA) == (n >= 4)
        # On either side.
        assert Difference.of(trained, failed).p_value(0) == pytest.approx(found)


def test_p_is_the_alpha_whose_interval_ends_at_the_threshold():
    difference = Difference.of(sample([2.0, 2.5, 3.1], 900), sample([1.0, 1.2, 0.9], 900))
    for threshold in (-1.0, 0.0, 0.5, 4.0):
        p = difference.p_value(threshold)
        ends = difference.interval(p)
        assert ends[0 if difference.value > threshold else 1] == pytest.approx(threshold, abs=1e-6)
    assert difference.p_value(difference.value) == 1.0
    far = Difference.of(sample([90.0, 90.1, 90.2]), sample([1.0, 1.1, 1.2]))
    assert far.p_value(0) == LEAST_P


def test_holms_adjusted_p_values():
    # R: p.adjust(c(0.01, 0.04, 0.03, 0.005), "holm")
    adjusted, alphas = holm([0.01, 0.04, 0.03, 0.005])
    assert adjusted == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert alphas == pytest.approx([0.05 / 3, 0.05 / 2, 0.05 / 2, 0.05 / 4])
    assert holm([0.4, 0.7])[0] == pytest.approx([0.8, 0.8])
    assert holm([]) == ([], [])


def test_adjusted_p_values_and_levels_agree():
    dice = np.random.default_rng(3)
    for _ in range(200):
        p = dice.uniform(0, 0.06, size=dice.integers(1, 6)).tolist()
        adjusted, alphas = holm(p)
        significant = [q <= ALPHA for q in adjusted]
        assert significant == [q <= alpha for q, alpha in zip(p, alphas, strict=True)]


def test_that_every_difference_is_small_needs_no_correction():
    base = [1.0, 1.1, 1.2]
    near = Difference.of(sample([1.0, 1.3, 1.4]), sample(base))
    assert near.interval(ALPHA)[1] < 0.5 < near.interval(ALPHA / 2)[1]
    assert correct([near, near], 0.5)[1] == [ALPHA, ALPHA]
    far = Difference.of(sample([9.0, 9.2, 9.5]), sample(base))
    # As soon as one lies above, the family needs the correction.
    assert correct([near, far], 0.5)[1] == [ALPHA, ALPHA / 2]


def test_the_estimated_number_of_seeds_has_a_power_of_80_percent():
    spread, gap = 2.0, 1.5
    a = [gap + spread * x / math.sqrt(2) for x in (-1, 1)]  # standard deviation `spread`
    b = [spread * x / math.sqrt(2) for x in (1, -1)]
    needed = Difference.of(sample(a), sample(b, first=9)).seeds_to_exclude(0, ALPHA)
    dice = np.random.default_rng(0)
    decided = [
        Difference.of(
            sample(dice.normal(gap, spread, needed)),
            sample(dice.normal(0, spread, needed), first=needed),
        ).interval(ALPHA)[0]
        > 0
        for _ in range(400)
    ]
    assert 0.74 < np.mean(decided) < 0.88


def test_no_number_of_seeds_separates_equal_means():
    equal = Difference.of(sample([4.0, 6.0]), sample([6.0, 4.0], first=2))
    assert equal.seeds_to_exclude(0, ALPHA) is None
    # With a margin, non-inferiority can be shown.
    assert equal.seeds_to_exclude(0.5, ALPHA) == pytest.approx(126, abs=3)


# ---------------------------------------------------------------- differences of differences


def test_a_difference_of_differences_is_paired_if_all_samples_have_the_same_seeds():
    a, b, c, d = [5.1, 4.7, 6.0], [4.0, 3.7, 4.8], [2.0, 2.2, 1.7], [1.0, 1.9, 1.1]
    terms = [(1, sample(a)), (-1, sample(b)), (-1, sample(c)), (1, sample(d))]
    difference = Difference.combined(terms)
    each = np.subtract(np.subtract(a, b), np.subtract(c, d))
    want = scipy.stats.ttest_1samp(each, 0)
    assert difference.paired
    assert difference.value == pytest.approx(each.mean())
    assert difference.interval(ALPHA) == pytest.approx(want.confidence_interval(0.95), abs=1e-4)


def test_samples_with_the_same_seeds_are_paired_among_themselves():
    a, b, c, d = [5.1, 4.7, 6.0], [4.0, 3.7, 4.8], [2.0, 2.2, 1.7, 2.9], [1.0, 1.9, 1.1, 1.0]
    terms = [(1, sample(a)), (-1, sample(b)), (-1, sample(c, first=9)), (1, sample(d, first=9))]
    difference = Difference.combined(terms)
    first, second = np.subtract(a, b), np.subtract(c, d)
    want = scipy.stats.ttest_ind(first, second, equal_var=False)
    assert (difference.paired, difference.block_seeds) == (False, (3, 4))
    assert difference.interval(ALPHA) == pytest.approx(want.confidence_interval(0.95), abs=1e-4)


def test_the_counting_errors_of_four_samples_add_in_quadrature():
    none = sample([0.0, 0.0], examples=1257)
    upper = 100 * (1 - 0.025 ** (1 / 2514))
    found = Difference.combined([(1, none), (-1, none), (-1, none), (1, none)]).interval(ALPHA)
    assert found == pytest.approx((-upper * math.sqrt(2), upper * math.sqrt(2)))


# --------------------------------------------------------------------------------- power laws


def test_a_power_law_has_the_slope_and_the_interval_of_a_regression():
    x, y = [8, 20, 32, 56, 110], [0.3, 0.1, 0.12, 0.03, 0.02]
    fit = scipy.stats.linregress(np.log(x), np.log(y))
    half = scipy.stats.t.ppf(0.975, 3) * fit.stderr
    law = power_law(x, y, step=1.001)
    assert law.exponent == pytest.approx(fit.slope)
    assert law.interval == pytest.approx((fit.slope - half, fit.slope + half))
    assert law.factor * 20**law.exponent == pytest.approx(math.exp(fit.intercept) * 20**fit.slope)


def test_equal_best_values_leave_the_exponent_as_uncertain_as_their_spacing():
    x = [8.0, 16.0, 32.0]
    law = power_law(x, [0.1] * 3, step=4.0)
    # The steepest line within half a step of each: from 2 x 0.1 down to 0.1 / 2 over a factor of 4.
    assert law.exponent == pytest.approx(0.0, abs=1e-12)
    assert law.interval == pytest.approx((-1.0, 1.0))
    assert power_law(x[:2], [0.1] * 2, step=4.0) is None
    assert power_law([8.0, 8.0, 32.0], [0.1] * 3, step=4.0) is None
