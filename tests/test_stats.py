"""Statistics against rliable, closed forms and simulation."""

import numpy as np
import pytest
from rliable import metrics as rliable_metrics
from scipy import stats as scipy_stats

from polycstr_jax import stats


@pytest.mark.parametrize("size", [4, 10, 37])
def test_iqm_is_rliables(size):
    values = np.random.default_rng(size).normal(size=size)
    assert stats.iqm(values) == pytest.approx(rliable_metrics.aggregate_iqm(values[:, None]))


def test_probability_of_improvement_is_rliables():
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 5, 30).astype(float), rng.integers(0, 5, 20).astype(float)  # with ties
    expected = rliable_metrics.probability_of_improvement(x[:, None], y[:, None])
    assert stats.probability_of_improvement(x, y) == pytest.approx(expected)
    assert stats.probability_of_improvement(x, x) == pytest.approx(0.5)


def test_cvar_is_the_mean_of_the_worst_share():
    values = np.arange(100.0)[::-1]
    assert stats.cvar(values) == pytest.approx(2.0)  # mean of 0..4
    assert stats.cvar(values[:3]) == 97.0  # at least one entry
    assert stats.cvar(values, 1.0) == pytest.approx(values.mean())


def test_bootstrap_interval_of_the_mean_covers_as_often_as_it_says():
    rng = np.random.default_rng(1)
    hits = 0
    for trial in range(100):
        interval = stats.seed_bootstrap(rng.normal(size=30), np.mean, rng=trial)
        hits += interval.low <= 0.0 <= interval.high
    low, high = scipy_stats.binom(100, 0.95).ppf([1e-4, 1 - 1e-4])
    assert low <= hits <= high


def test_interval_of_the_iqm_holds_at_the_fewest_seeds_for_which_it_is_given():
    rng = np.random.default_rng(4)
    intervals = [stats.seed_bootstrap(rng.normal(size=stats.MIN_SEEDS), rng=n) for n in range(150)]
    assert np.mean([x.low <= 0.0 <= x.high for x in intervals]) > 0.85
    few = stats.seed_bootstrap(rng.normal(size=stats.MIN_SEEDS - 1))
    assert np.isfinite(few.value) and np.isnan(few.low) and np.isnan(few.high)


def test_strata_are_resampled_apart():
    """Two scenarios far apart: mixing their seeds would make the interval enormous."""
    rng = np.random.default_rng(2)
    cells = [rng.normal(0.0, 0.1, 20), rng.normal(100.0, 0.1, 20)]
    interval = stats.seed_bootstrap(cells, np.mean)
    assert interval.value == pytest.approx(50.0, abs=0.1)
    assert interval.high - interval.low < 0.2


def test_the_resampling_seed_matters_and_repeats():
    values = np.random.default_rng(3).normal(size=15)
    assert stats.seed_bootstrap(values, rng=1) == stats.seed_bootstrap(values, rng=1)
    assert stats.seed_bootstrap(values, rng=1) != stats.seed_bootstrap(values, rng=2)


def test_a_single_seed_has_no_interval():
    interval = stats.seed_bootstrap([3.0])
    assert interval.value == 3.0 and np.isnan(interval.low) and np.isnan(interval.high)


def test_share_of_seeds_has_the_clopper_pearson_interval():
    interval = stats.share_of_seeds([False] * 10)
    assert interval.value == 0.0 and interval.low == 0.0
    assert interval.high == pytest.approx(1.0 - 0.025 ** (1 / 10))  # closed form at 0 of n


def test_normalised_cost_is_safe_at_one():
    assert stats.normalised_cost(5.0, 5) == 1.0
    assert stats.normalised_cost(0.0, 0) == 1.0
    assert stats.normalised_cost(0.5, 0) == 1.5
    with pytest.raises(ValueError, match="limit = -1"):
        stats.normalised_cost(1.0, -1)


@pytest.mark.parametrize("bad", [[], [[[1.0, 2.0]]], [1.0, np.nan]])
def test_bad_cells_are_refused(bad):
    with pytest.raises(ValueError, match=r"values"):
        stats.seed_bootstrap(np.asarray(bad, float))


def test_the_difference_of_two_cells_has_the_interval_of_both():
    rng = np.random.default_rng(0)
    x, y = rng.normal(3.0, 2.0, 400), rng.normal(1.0, 1.0, 100)
    found = stats.difference_of_means(x, y)
    assert found.value == pytest.approx(x.mean() - y.mean())
    half = 1.96 * np.hypot(x.std() / 20.0, y.std() / 10.0)
    assert found.high - found.low == pytest.approx(2.0 * half, rel=0.15)
    assert found.low < found.value < found.high
    assert np.isnan(stats.difference_of_means(x, y[:7]).low)  # too few seeds
    same = stats.difference_of_means(np.zeros(8), np.ones(8))
    assert same == (-1.0, -1.0, -1.0)
