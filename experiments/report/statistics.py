"""Means over seeds, and intervals and tests for differences; docs/statistics.md has the formulas.

Errors are in percent and differences in percentage points, as everywhere in a report; `alpha` is a
fraction (0.05 for a 95 % interval).
"""

import bisect
import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np
import scipy  # imports scipy.stats and scipy.optimize at their first use: they take a second

DASH = "\N{EN DASH}"  # shown for a missing number
ALPHA = 0.05  # the family-wise error rate
MISSED = 0.2  # the type II error rate (1 - power) of the estimated number of seeds
MOST_SEEDS = 1000  # the upper limit of that estimate
LEAST_P = 1e-12  # smaller p-values are reported as this


@dataclasses.dataclass(frozen=True)
class Stat:
    """Mean and sample standard deviation (ddof=1) over `n` replicates; None where undefined."""

    mean: float | None
    std: float | None
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> "Stat":
        """Returns the statistics of values, one per replicate."""
        n = len(values)
        return cls(
            mean=float(np.mean(values)) if n else None,
            std=float(np.std(values, ddof=1)) if n > 1 else None,
            n=n,
        )

    def __str__(self) -> str:
        """Returns ``7.51 ± 0.12``, or only the mean of a single value."""
        if self.mean is None:
            return DASH
        return f"{self.mean:.2f}" + ("" if self.std is None else f" ± {self.std:.2f}")


@dataclasses.dataclass(frozen=True)
class Sample:
    """One error per seed, in percent, and the number of examples it was counted over.

    A measure that is not counted, such as a logarithm, has an infinite number of examples.
    """

    errors: Mapping[int, float]
    examples: float  # over all seeds
    diverged: frozenset[int] = frozenset()  # the seeds that diverged

    @property
    def values(self) -> list[float]:
        """The errors, sorted by seed."""
        return [self.errors[seed] for seed in sorted(self.errors)]

    @property
    def mean(self) -> float:
        """The mean over seeds, in percent."""
        return float(np.mean(self.values))


@dataclasses.dataclass(frozen=True)
class Difference:
    """A difference of means, or a difference of differences, with all that its interval needs.

    Attributes:
      coefficients: of the means, such as (1, -1).
      means: of each sample, in percent.
      seeds: of each sample.
      observations: binary observations of each sample: examples, or seeds.
      variances: over seeds, of each block: samples with the same seeds form one block, since their
        differences seed by seed have less variance.
      block_seeds: of each block.
    """

    coefficients: tuple[float, ...]
    means: tuple[float, ...]
    seeds: tuple[int, ...]
    observations: tuple[float, ...]
    variances: tuple[float, ...]
    block_seeds: tuple[int, ...]

    @classmethod
    def of(cls, a: Sample, b: Sample) -> "Difference":
        """Returns mean(a) - mean(b), paired if both have the same seeds.

        Raises:
          ValueError: a side has fewer than two seeds, so its variance is unknown.
        """
        return cls.combined([(1.0, a), (-1.0, b)])

    @classmethod
    def combined(cls, terms: Sequence[tuple[float, Sample]]) -> "Difference":
        """Returns the sum of coefficient * mean over the samples of different cells.

        Raises:
          ValueError: a sample has fewer than two seeds, so its variance is unknown.
        """
        if any(len(sample.errors) < 2 for _, sample in terms):
            raise ValueError("an interval needs two seeds on each side")
        # A diverged seed is a single event, whatever its number of examples. Since it could have
        # happened in any sample, all samples then count seeds instead of examples.
        is_by_seed = any(sample.diverged for _, sample in terms)
        blocks: dict[tuple[int, ...], np.ndarray] = {}
        for coefficient, sample in terms:
            key = tuple(sorted(sample.errors))
            blocks[key] = blocks.get(key, 0.0) + coefficient * np.array(sample.values)
        return cls(
            coefficients=tuple(coefficient for coefficient, _ in terms),
            means=tuple(sample.mean for _, sample in terms),
            seeds=tuple(len(sample.errors) for _, sample in terms),
            observations=tuple(
                len(sample.errors) if is_by_seed else sample.examples for _, sample in terms
            ),
            variances=tuple(float(np.var(values, ddof=1)) for values in blocks.values()),
            block_seeds=tuple(map(len, blocks)),
        )

    @property
    def paired(self) -> bool:
        """Whether all samples were paired by seed."""
        return len(self.variances) == 1

    @property
    def value(self) -> float:
        """The difference of the means."""
        return sum(c * mean for c, mean in zip(self.coefficients, self.means, strict=True))

    def interval(self, alpha: float) -> tuple[float, float]:
        """Returns the interval at level 1 - alpha.

        Each end is the wider of two intervals' ends: of the t interval over seeds (paired, or
        Welch's), and of the interval from counting errors, which is the measure's resolution.
        """
        spread = self._spread(alpha)
        down, up = [], []
        for c, mean, count in zip(self.coefficients, self.means, self.observations, strict=True):
            low, high = proportion_interval(mean / 100, count, alpha)
            ends = [c * (100 * low - mean), c * (100 * high - mean)]
            down.append(min(ends))
            up.append(max(ends))
        value = self.value
        return value - max(spread, math.hypot(*down)), value + max(spread, math.hypot(*up))

    def p_value(self, null: float) -> float:
        """Returns the smallest alpha whose interval excludes `null`, at least LEAST_P."""

        def gap(exponent: float) -> float:
            low, high = self.interval(10**exponent)
            return max(low - null, null - high)

        least = math.log10(LEAST_P)
        if gap(least) > 0:
            return LEAST_P
        if gap(0) <= 0:
            return 1.0
        return float(10 ** scipy.optimize.brentq(gap, least, 0))

    def seeds_to_exclude(self, null: float, alpha: float) -> int | None:
        """Returns the seeds per side with which the interval would probably exclude `null`.

        It assumes the present means, variances and observations per seed, and a power of
        1 - MISSED. None: more than MOST_SEEDS.
        """

        def is_enough(seeds: int) -> bool:
            more = self._with_seeds(seeds)
            arms = [
                self.value - low if self.value > null else high - self.value
                for low, high in (more.interval(alpha), more.interval(2 * MISSED))
            ]
            return sum(arms) < abs(self.value - null)

        least = bisect.bisect_left(range(2, MOST_SEEDS + 1), True, key=is_enough) + 2
        return least if least <= MOST_SEEDS else None

    def _spread(self, alpha: float) -> float:
        """Returns half the width of the t interval over seeds."""
        sizes = self.block_seeds
        parts = [variance / n for variance, n in zip(self.variances, sizes, strict=True)]
        if sum(parts) == 0:
            return 0.0
        # Welch and Satterthwaite's degrees of freedom; n - 1 for pairs.
        freedom = sum(parts) ** 2 / sum(p**2 / (n - 1) for p, n in zip(parts, sizes, strict=True))
        return float(scipy.stats.t.ppf(1 - alpha / 2, freedom)) * math.sqrt(sum(parts))

    def _with_seeds(self, seeds: int) -> "Difference":
        scaled = [count * seeds / n for count, n in zip(self.observations, self.seeds, strict=True)]
        return dataclasses.replace(
            self,
            seeds=(seeds,) * len(self.seeds),
            observations=tuple(scaled),
            block_seeds=(seeds,) * len(self.block_seeds),
        )


def proportion_interval(share: float, count: float, alpha: float) -> tuple[float, float]:
    """Returns Clopper and Pearson's exact interval for a share of `count` observations.

    Each tail has alpha / 2, even at shares of 0 and 1. The number of errors, share * count, need
    not be whole, since a mean over a window may weight its first row. An infinite count, of a
    measure that is no proportion, adds no uncertainty.
    """
    if math.isinf(count):
        return share, share
    errors = min(share * count, count)
    low = scipy.stats.beta.ppf(alpha / 2, errors, count - errors + 1) if errors > 0 else 0.0
    high = scipy.stats.beta.ppf(1 - alpha / 2, errors + 1, count - errors) if errors < count else 1
    return float(low), float(high)


def holm(p_values: Sequence[float], alpha: float = ALPHA) -> tuple[list[float], list[float]]:
    """Returns Holm's adjusted p-values, and the alpha at which each comparison is tested.

    The comparison of rank k among m is tested at alpha / (m - k + 1) until one fails; all later
    ones have the alpha of the first failure. So a comparison is significant if and only if its
    unadjusted p-value is at most its alpha.
    """
    m = len(p_values)
    order, divisors = np.argsort(p_values, kind="stable"), np.arange(m, 0, -1)
    p = np.asarray(p_values, dtype=float)[order]
    adjusted, alphas = np.empty(m), np.empty(m)
    adjusted[order] = np.minimum(np.maximum.accumulate(divisors * p), 1)
    passed = np.logical_and.accumulate(p <= alpha / divisors).sum()
    alphas[order] = alpha / divisors[np.minimum(np.arange(m), passed)]
    return adjusted.tolist(), alphas.tolist()


def correct(differences: Sequence[Difference], null: float) -> tuple[list[float], list[float]]:
    """Returns the p-values and alphas of a family's comparisons with `null`.

    The finding that *some* difference lies above (or below) `null` needs Holm's correction. The
    finding that *every* difference lies below needs none: in this intersection-union test each
    comparison must pass at ALPHA.
    """
    p_values = [difference.p_value(null) for difference in differences]
    if all(difference.interval(ALPHA)[1] <= null for difference in differences):
        return p_values, [ALPHA] * len(differences)
    return holm(p_values)


@dataclasses.dataclass(frozen=True)
class PowerLaw:
    """y = factor * x**exponent, fitted to logarithms by least squares.

    Attributes:
      exponent: the slope of log y against log x.
      interval: of the exponent, at 95 %.
      factor: y at x = 1.
    """

    exponent: float
    interval: tuple[float, float]
    factor: float


def rank_correlation(x: Sequence[float], y: Sequence[float]) -> tuple[float, tuple[float, float]]:
    """Returns Kendall's tau-b and its 95 % interval.

    The interval is that of Fieller, Hartley and Pearson (1957): arctanh(tau) has variance
    0.437 / (n - 4). A perfect order of n values is taken as half a pair less than perfect.

    Args:
      x: more than four values.
      y: as many.
    """
    tau = float(scipy.stats.kendalltau(x, y).statistic)
    if math.isnan(tau):  # all values of x or y are equal
        return 0.0, (-1.0, 1.0)
    most = 1 - 1 / math.comb(len(x), 2)
    z = math.atanh(min(max(tau, -most), most))
    half = float(scipy.stats.norm.ppf(1 - ALPHA / 2)) * math.sqrt(0.437 / (len(x) - 4))
    return tau, (math.tanh(z - half), math.tanh(z + half))


LEAST_POINTS = 3  # a line through two points leaves nothing to estimate its error from


def power_law(x: Sequence[float], y: Sequence[float], step: float) -> PowerLaw | None:
    """Fits a power law to values of y that were chosen from a grid.

    Each end of the interval is the wider of two ends: of the t interval of the slope (n - 2 degrees
    of freedom), and of the slopes that are possible if every y lies within half a step of the grid.

    Args:
      x: positive.
      y: positive.
      step: the ratio of neighbouring values of the grid, above 1.

    Returns:
      The fit; None for fewer than LEAST_POINTS different x.
    """
    if len(set(x)) < LEAST_POINTS:
        return None
    log_x, log_y = np.log(x), np.log(y)
    fit = scipy.stats.linregress(log_x, log_y)
    # scipy gives NaN for equal values of y, which the line fits exactly.
    spread = float(scipy.stats.t.ppf(1 - ALPHA / 2, len(x) - 2) * np.nan_to_num(fit.stderr))
    centred = log_x - log_x.mean()
    resolution = float(math.log(step) / 2 * np.abs(centred).sum() / (centred**2).sum())
    half = max(spread, resolution)
    exponent = float(fit.slope)
    return PowerLaw(exponent, (exponent - half, exponent + half), float(np.exp(fit.intercept)))
