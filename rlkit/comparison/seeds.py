"""What several seeds show: pure numpy, float64. What one run comes to is said by rlkit/records/statistics.py.

Intervals of one arm are bootstrap percentiles over its seeds; differences between two arms are paired by seed and
have Student's t interval, since a bootstrap of a handful of differences covers too little.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

LEVEL = 0.95
"""Of every interval."""
RESAMPLES = 10_000
BAND_RESAMPLES = 1_000
"""For bands around curves, which nobody reads to the third digit."""
POWER = 0.8
MOST_SEEDS = 10_000
"""Beyond it, `seeds_needed` stops looking."""


@dataclass(frozen=True)
class Estimate:
    """A number over seeds. Without an interval where there is one seed only."""

    value: float
    low: float | None
    high: float | None
    seeds: int


@dataclass(frozen=True)
class Difference:
    """What a - b is over the seeds that both arms have."""

    mean: float
    low: float | None
    """Ends of the t interval; None where there is one seed only, or the same difference, not 0, in all."""
    high: float | None
    p: float | None
    """Two-sided, of the paired t-test; None where there is no interval."""
    seeds: int
    above: int
    """In how many seeds a is above b."""
    below: int
    needed: int | None
    """Seeds that would show a true difference as large as this one; None where it is 0, or more than MOST_SEEDS."""

    @property
    def shown(self) -> bool:
        """Whether the interval leaves 0 out."""
        return self.low is not None and self.high is not None and not self.low <= 0 <= self.high


# Several seeds -----------------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=64)
def _draws(seeds: int, resamples: int) -> NDArray[np.int64]:
    """[resamples, seeds] row numbers drawn with replacement: always the same ones, so that a result can be repeated."""
    return np.random.default_rng(20210813).integers(0, seeds, (resamples, seeds))


@functools.lru_cache(maxsize=64)
def _shares(seeds: int, resamples: int) -> Array:
    """[resamples, seeds] how often each seed was drawn."""
    rows = np.arange(resamples)[:, None] * seeds
    return (
        np.bincount((_draws(seeds, resamples) + rows).ravel(), minlength=resamples * seeds)
        .reshape(resamples, seeds)
        .astype(np.float64)
    )


def mean_rows(values: Array) -> Array:
    """Mean of the last axis."""
    return np.asarray(values.mean(axis=-1))


def interquartile_mean(values: Array) -> Array:
    """Mean of the middle half along the last axis: a quarter of the n values, rounded down, is cut from either end
    (arXiv 2108.13264). So with fewer than four it is the mean."""
    count = values.shape[-1]
    cut = count // 4
    return mean_rows(np.sort(values, axis=-1)[..., cut : count - cut])


def bootstrap(values: Sequence[float] | Array, statistic: Callable[[Array], Array] = mean_rows) -> Estimate:
    """A statistic of the last axis, with its percentile bootstrap interval over seeds (Efron and Tibshirani, An
    Introduction to the Bootstrap, 1993, chapter 13). With few seeds it is somewhat too narrow.

    values: [seeds]; NaN is left out. One seed only: no interval.
    """
    there = np.asarray(values, dtype=np.float64)
    there = there[np.isfinite(there)]
    if len(there) == 0:
        return Estimate(math.nan, None, None, 0)
    value = float(statistic(there))
    if len(there) == 1:
        return Estimate(value, None, None, 1)
    low, high = np.quantile(statistic(there[_draws(len(there), RESAMPLES)]), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(value, float(low), float(high), len(there))


def mean_curve(values: Array) -> tuple[Array, Array | None, Array | None]:
    """The mean over seeds at each point, and the ends of its pointwise percentile bootstrap band.

    values: [seeds, points]; NaN is left out. Each result is [points]; no band with one seed.
    """
    there = np.isfinite(values)
    filled = np.where(there, values, 0.0)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = filled.sum(0) / there.sum(0)
        if len(values) == 1:
            return mean, None, None
        shares = _shares(len(values), BAND_RESAMPLES)
        counts = np.full((1, 1), len(values)) if there.all() else shares @ there
        means = (shares @ filled) / counts
    # nanquantile is slow by an order of magnitude; NaN sorts last, so that only columns that hold one need it.
    ends = [(1 - LEVEL) / 2, (1 + LEVEL) / 2]
    broken = np.isnan(means).any(0)
    low, high = np.full((2, values.shape[1]), np.nan)
    if not broken.all():
        low[~broken], high[~broken] = np.quantile(means[:, ~broken], ends, axis=0)
    some = broken & there.any(0)
    if some.any():
        low[some], high[some] = np.nanquantile(means[:, some], ends, axis=0)
    return mean, low, high


# Pairs -------------------------------------------------------------------------------------------------------------


def t_within(t: float, freedom: int) -> float:
    """P(|T| <= t) for Student's t with a whole number of degrees of freedom: the finite sums of Abramowitz and
    Stegun 26.7.3 and 26.7.4."""
    if math.isinf(t):
        return 1.0
    angle = math.atan2(t, math.sqrt(freedom))
    sine, cosine = math.sin(angle), math.cos(angle)
    if freedom % 2:
        k = np.arange(1, (freedom - 1) // 2)
        terms = np.cumprod(np.concatenate([[1.0], 2 * k / (2 * k + 1) * cosine**2])) if freedom > 1 else np.zeros(1)
        return 2 / math.pi * (angle + sine * cosine * float(terms.sum()))
    k = np.arange(1, freedom // 2)
    return sine * float(np.cumprod(np.concatenate([[1.0], (2 * k - 1) / (2 * k) * cosine**2])).sum())


@functools.lru_cache(maxsize=4096)
def t_quantile(within: float, freedom: int) -> float:
    """The t with P(|T| <= t) = `within`, so 2.776 for 0.95 and 4 degrees of freedom."""
    low, high = 0.0, 1.0
    while t_within(high, freedom) < within:
        low, high = high, 2 * high
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if t_within(middle, freedom) < within else (low, middle)
    return (low + high) / 2


def paired_difference(differences: Sequence[float] | Array) -> Difference:
    """Of the differences a - b, one a common seed: mean, t interval and test, signs, and the seeds that would show it.

    ValueError without any.
    """
    d = np.asarray(differences, dtype=np.float64)
    if len(d) == 0:
        raise ValueError("no common seed, so no difference")
    mean, above, below = float(d.mean()), int((d > 0).sum()), int((d < 0).sum())
    if len(d) == 1:
        return Difference(mean, None, None, None, 1, above, below, None)
    spread = float(d.std(ddof=1))
    if spread <= 1e-12 * float(np.abs(d).max()):  # what differs by rounding alone does not differ
        if mean != 0:
            # Coarse values, such as a pass rate over a few problems, agree by chance: that is no certainty.
            return Difference(mean, None, None, None, len(d), above, below, None)
        spread = 0.0
    error = spread / math.sqrt(len(d))
    half = t_quantile(LEVEL, len(d) - 1) * error
    t = abs(mean) / error if error > 0 else math.inf
    p = 1.0 if mean == 0 else max(0.0, 1 - t_within(t, len(d) - 1))
    needed = seeds_needed(mean / spread) if spread > 0 else None
    return Difference(mean, mean - half, mean + half, p, len(d), above, below, needed)


def power(effect: float, seeds: int) -> float:
    """The chance that a two-sided paired t-test at 5 % shows a true mean difference of `effect` standard deviations
    of the differences: the noncentral t, by quadrature over the chi-distributed estimate of that deviation."""
    freedom = seeds - 1
    critical = t_quantile(LEVEL, freedom)
    shift = abs(effect) * math.sqrt(seeds)
    # s / sigma is chi / sqrt(freedom): all but a negligible part lies within eight of its deviations of 1.
    reach = 8 / math.sqrt(2 * freedom)
    low, high = max(0.0, 1 - reach), 1 + reach
    nodes, weights = _legendre()
    s = low + (high - low) * (nodes + 1) / 2
    half = freedom / 2
    log_density = math.log(2) + half * math.log(half) - math.lgamma(half) + (freedom - 1) * np.log(s) - half * s**2
    shown = _normal_cdf(shift - critical * s) + _normal_cdf(-shift - critical * s)
    return float((np.exp(log_density) * shown * weights).sum() * (high - low) / 2)


@functools.lru_cache(maxsize=1)
def _legendre() -> tuple[Array, Array]:
    return np.polynomial.legendre.leggauss(200)


def _normal_cdf(x: Array) -> Array:
    return np.array([0.5 * math.erfc(-value / math.sqrt(2)) for value in x])


@functools.lru_cache(maxsize=4096)
def seeds_needed(effect: float) -> int | None:
    """The least number of seeds with which `power` is at least POWER; None for an effect of 0, or where more than
    MOST_SEEDS would be needed."""
    if effect == 0 or not math.isfinite(effect) or power(effect, MOST_SEEDS) < POWER:
        return None
    low, high = 1, 2
    while power(effect, high) < POWER:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if power(effect, middle) < POWER else (low, middle)
    return high


def holm(p: Sequence[float]) -> list[float]:
    """P values adjusted for all being looked at together (Holm, 1979): each stays below 0.05 with at most 5 % chance
    of a single wrong one among them."""
    order = sorted(range(len(p)), key=lambda at: p[at])
    adjusted, most = [0.0] * len(p), 0.0
    for rank, at in enumerate(order):
        most = max(most, min(1.0, (len(p) - rank) * p[at]))
        adjusted[at] = most
    return adjusted
