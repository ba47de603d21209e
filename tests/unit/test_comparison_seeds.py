"""The statistics of a comparison, against closed forms, tables, plain loops and simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest

from rlkit.comparison import seeds
from rlkit.comparison.seeds import (
    bootstrap,
    holm,
    interquartile_mean,
    mean_curve,
    paired_difference,
    power,
    seeds_needed,
    t_quantile,
    t_within,
)


@pytest.fixture
def random() -> np.random.Generator:
    return np.random.default_rng()


# Several seeds


def test_interquartile_mean_drops_a_quarter_from_either_end(random: np.random.Generator) -> None:
    for count in (1, 2, 3, 4, 5, 8, 11, 16):
        values = random.normal(size=count)
        cut = count // 4
        kept = sorted(values)[cut : count - cut]
        assert math.isclose(float(interquartile_mean(values)), sum(kept) / len(kept))
    assert float(interquartile_mean(np.array([1.0, 2.0, 3.0, 1000.0]))) == 2.5


@pytest.mark.parametrize("statistic", [seeds.mean_rows, interquartile_mean])
def test_bootstrap_is_what_a_plain_loop_gives(random: np.random.Generator, statistic: object) -> None:
    values = random.normal(size=7)
    resampled = sorted(float(statistic(values[rows])) for rows in seeds._draws(7, seeds.RESAMPLES))  # type: ignore[operator]
    found = bootstrap(values, statistic)  # type: ignore[arg-type]
    assert found.seeds == 7
    # Of ten thousand, the 250th from either end, up to interpolation.
    assert resampled[249] <= found.low <= resampled[250]  # type: ignore[operator]
    assert resampled[9749] <= found.high <= resampled[9750]  # type: ignore[operator]
    assert bootstrap(values, statistic) == found, "another call gives another interval"  # type: ignore[arg-type]


def test_bootstrap_draws_each_seed_equally_often() -> None:
    counts = np.bincount(seeds._draws(5, 10_000).ravel(), minlength=5)
    assert np.all(np.abs(counts - 10_000) < 5 * math.sqrt(10_000 * 0.8))


def test_bootstrap_of_one_seed_has_no_interval() -> None:
    assert bootstrap([0.4]) == seeds.Estimate(0.4, None, None, 1)
    assert bootstrap([0.4, math.nan]) == seeds.Estimate(0.4, None, None, 1)
    assert math.isnan(bootstrap([]).value)


def test_bootstrap_covers_nearly_as_often_as_it_says() -> None:
    random = np.random.default_rng(1)
    hits = sum(e.low <= 3 <= e.high for e in (bootstrap(random.normal(3, 2, 20)) for _ in range(400)))  # type: ignore[operator]
    assert 0.88 < hits / 400 < 0.98


def test_mean_curve_is_what_a_plain_loop_gives(random: np.random.Generator) -> None:
    values = random.normal(size=(6, 9))
    values[2, 4:] = np.nan  # one seed ends early
    values[:, 8] = np.nan  # nobody was measured there
    mean, low, high = mean_curve(values)
    assert low is not None
    assert high is not None
    for point in range(8):
        there = values[~np.isnan(values[:, point]), point]
        assert math.isclose(mean[point], there.mean())
        drawn = []
        for rows in seeds._draws(6, seeds.BAND_RESAMPLES):
            chosen = [values[row, point] for row in rows if not math.isnan(values[row, point])]
            drawn += [sum(chosen) / len(chosen)] if chosen else []
        assert math.isclose(low[point], np.quantile(drawn, 0.025), abs_tol=1e-9)
        assert math.isclose(high[point], np.quantile(drawn, 0.975), abs_tol=1e-9)
    assert math.isnan(mean[8])
    assert math.isnan(low[8])
    assert mean_curve(values[:1])[1:] == (None, None)


# Pairs

TABLE = [
    # two-sided 95 % and 99 % points of Student's t
    (1, 12.706, 63.657),
    (2, 4.303, 9.925),
    (3, 3.182, 5.841),
    (4, 2.776, 4.604),
    (7, 2.365, 3.499),
    (10, 2.228, 3.169),
    (15, 2.131, 2.947),
    (30, 2.042, 2.750),
    (120, 1.980, 2.617),
]


@pytest.mark.parametrize(("freedom", "at_95", "at_99"), TABLE)
def test_t_quantiles_are_those_of_the_tables(freedom: int, at_95: float, at_99: float) -> None:
    assert abs(t_quantile(0.95, freedom) - at_95) < 6e-4
    assert abs(t_quantile(0.99, freedom) - at_99) < 6e-4


def test_t_distribution_is_the_integral_of_its_density(random: np.random.Generator) -> None:
    for freedom in (1, 2, 3, 4, 5, 8, 21, 60):
        t = float(random.uniform(0.1, 6))
        x = np.linspace(0, t, 200_001)
        scale = math.exp(math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2)) / math.sqrt(freedom * math.pi)
        density = scale * (1 + x**2 / freedom) ** (-(freedom + 1) / 2)
        assert abs(t_within(t, freedom) - 2 * np.trapezoid(density, x)) < 1e-8


def test_paired_difference_is_what_the_formula_says(random: np.random.Generator) -> None:
    d = random.normal(0.3, 1, size=8)
    found = paired_difference(d)
    error = math.sqrt(sum((x - d.mean()) ** 2 for x in d) / 7 / 8)
    assert math.isclose(found.mean, d.mean())
    assert found.low is not None
    assert found.high is not None
    assert math.isclose(found.low, d.mean() - t_quantile(0.95, 7) * error)
    assert math.isclose(found.high, d.mean() + t_quantile(0.95, 7) * error)
    assert found.p is not None
    assert math.isclose(found.p, 1 - t_within(abs(d.mean()) / error, 7))
    assert (found.p < 0.05) == found.shown
    assert (found.above, found.below) == (sum(x > 0 for x in d), sum(x < 0 for x in d))


def test_paired_differences_that_all_agree() -> None:
    coarse = paired_difference([0.125, 0.125])
    assert (coarse.shown, coarse.low, coarse.p, coarse.needed, coarse.above) == (False, None, None, None, 2)
    same = paired_difference([0.0, 0.0, 0.0])
    assert (same.shown, same.p, same.needed) == (False, 1.0, None)
    # 0.3 - 0.2 and 0.7 - 0.6 differ in the last digit only.
    shifted = paired_difference([0.3 - 0.2, 0.7 - 0.6, 0.1])
    assert (shifted.shown, shifted.low, shifted.p) == (False, None, None)


def test_one_common_seed_shows_nothing() -> None:
    one = paired_difference([5.0])
    assert (one.low, one.high, one.p, one.shown) == (None, None, None, False)
    with pytest.raises(ValueError, match="no common seed"):
        paired_difference([])


@pytest.mark.parametrize("seeds", [3, 8])
def test_paired_intervals_cover_as_often_as_they_say(seeds: int) -> None:
    random = np.random.default_rng(seeds)
    found = [paired_difference(random.normal(1, 2, seeds)) for _ in range(800)]
    covered = sum(d.low <= 1 <= d.high for d in found) / len(found)  # type: ignore[operator]
    assert abs(covered - 0.95) < 4 * math.sqrt(0.95 * 0.05 / len(found))


# Sample sizes of the paired t-test at power 0.8 and a two-sided 5 %, as tables of it give them.
@pytest.mark.parametrize(("effect", "seeds"), [(0.2, 199), (0.3, 90), (0.5, 34), (0.8, 15), (1.0, 10)])
def test_seeds_needed_are_those_of_the_tables(effect: float, seeds: int) -> None:
    assert seeds_needed(effect) == seeds
    assert seeds_needed(-effect) == seeds


def test_seeds_needed_gives_up_where_nothing_would_do() -> None:
    assert seeds_needed(0.0) is None
    assert seeds_needed(1e-3) is None


@pytest.mark.parametrize(("effect", "seeds"), [(0.7, 4), (1.5, 3), (3.0, 2), (0.4, 20), (0.0, 5)])
def test_power_is_how_often_a_simulated_test_shows_it(effect: float, seeds: int) -> None:
    random = np.random.default_rng(3)
    d = random.normal(effect, 1, (40_000, seeds))
    t = d.mean(1) / (d.std(1, ddof=1) / math.sqrt(seeds))
    shown = (np.abs(t) > t_quantile(0.95, seeds - 1)).mean()
    assert abs(power(effect, seeds) - shown) < 0.011


def test_holm_is_the_step_down_of_its_paper(random: np.random.Generator) -> None:
    assert holm([0.01, 0.04, 0.03]) == [0.03, 0.06, 0.06]
    p = random.uniform(size=9) ** 3
    adjusted = holm(p.tolist())
    for level in (0.01, 0.05, 0.2):
        rejected, order = set(), np.argsort(p)
        for rank, at in enumerate(order):
            if p[at] > level / (len(p) - rank):
                break
            rejected.add(at)
        assert rejected == {at for at in range(9) if adjusted[at] <= level}
    assert holm([]) == []
