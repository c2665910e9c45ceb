"""Statistics against rliable, closed forms and simulation."""

import sys
import time
import types

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
    assert stats.probability_of_improvement(x, y).value == pytest.approx(expected)
    assert stats.probability_of_improvement(x, x).value == pytest.approx(0.5)
    tasks_x, tasks_y = rng.normal(0.3, 1.0, (30, 3)), rng.normal(size=(20, 3))
    found = stats.probability_of_improvement([*tasks_x.T], [*tasks_y.T])
    expected = rliable_metrics.probability_of_improvement(tasks_x, tasks_y)
    assert found.value == pytest.approx(expected)


def test_the_iqm_of_strata_is_rliables():
    tasks = np.random.default_rng(1).normal([0.0, 5.0, 50.0], 1.0, (12, 3))
    assert stats.seed_bootstrap([*tasks.T]).value == pytest.approx(
        rliable_metrics.aggregate_iqm(tasks)
    )


def test_the_performance_profile_is_rliables(monkeypatch):
    # rliable.library imports arch, which fails beside pandas 3; the point estimate needs none.
    arch = types.ModuleType("arch.bootstrap")
    arch.IIDBootstrap = arch.IndependentSamplesBootstrap = object
    parent = types.ModuleType("arch")
    parent.bootstrap = arch
    monkeypatch.setitem(sys.modules, "arch", parent)
    monkeypatch.setitem(sys.modules, "arch.bootstrap", arch)
    monkeypatch.delitem(sys.modules, "rliable.library", raising=False)
    from rliable import library

    tasks = np.random.default_rng(2).normal(size=(10, 3)).round(1)
    thresholds = np.linspace(-2.0, 2.0, 21).round(1)
    found = stats.performance_profile([*tasks.T], thresholds)
    np.testing.assert_allclose(found.value, library.score_distributions(tasks, thresholds))
    sys.modules.pop("rliable.library")


def test_the_band_of_a_profile_is_the_bootstraps():
    rng = np.random.default_rng(3)
    cells = [rng.normal(size=20), rng.normal(1.0, 1.0, 30)]
    found = stats.performance_profile(cells, [0.0, 0.7])
    for at, threshold in enumerate((0.0, 0.7)):
        above = [(cell > threshold).astype(float) for cell in cells]
        interval = stats.seed_bootstrap(above, np.mean)
        assert found.value[at] == pytest.approx(interval.value)
        assert found.low[at] == pytest.approx(interval.low, abs=0.021)  # one seed of 50
        assert found.high[at] == pytest.approx(interval.high, abs=0.021)
    sure = stats.performance_profile(cells, [-100.0, 100.0])
    assert sure.low.tolist() == sure.high.tolist() == [1.0, 0.0]
    assert np.isnan(stats.performance_profile(cells[0][:7], [0.0]).low).all()


def coverage(draw, interval, truth, trials):
    """Share of trials whose interval holds the truth."""
    found = [interval(draw(), trial) for trial in range(trials)]
    return np.mean([x.low <= truth <= x.high for x in found])


def test_the_interval_of_an_improvement_covers_as_often_as_it_says():
    rng = np.random.default_rng(5)
    truth = scipy_stats.norm.cdf(0.5 / np.sqrt(2.0))  # of N(0.5, 1) over N(0, 1)

    def draw():
        return [*rng.normal(0.5, 1.0, (2, 20))], [*rng.normal(size=(2, 20))]

    def interval(cells, trial):
        return stats.probability_of_improvement(*cells, rng=trial)

    assert 0.88 < coverage(draw, interval, truth, 150) <= 1.0
    whole = stats.probability_of_improvement(*draw())
    assert 0.1 < whole.high - whole.low < 0.5


def test_the_interval_of_an_improvement_is_narrow_only_where_strata_are_resampled_apart():
    """In each stratum every seed beats the baseline's; across strata most would not."""
    x, y = [np.full(10, 1.0), np.full(10, 101.0)], [np.full(10, 0.0), np.full(10, 100.0)]
    assert stats.probability_of_improvement(x, y) == (1.0, 1.0, 1.0)


def test_intervals_of_the_tail_are_given_where_it_has_seeds():
    rng = np.random.default_rng(6)
    assert np.isnan(stats.cvar_bootstrap(rng.normal(size=180)).low)  # 9 in the tail
    truth = -scipy_stats.norm.pdf(scipy_stats.norm.ppf(0.05)) / 0.05
    share = coverage(lambda: rng.normal(size=400), stats.cvar_bootstrap, truth, 60)
    assert 0.8 < share <= 1.0
    assert stats.cvar(np.zeros(140)) == 0.0 and stats.tail_size(140) == 7


def test_a_share_of_violations_has_an_interval_over_seeds_not_episodes():
    """Seeds that violate always or never: episodes would make it far too narrow."""
    violated = np.repeat([0.0, 1.0], 10)
    interval = stats.seed_bootstrap(violated, np.mean)
    expected = scipy_stats.binom(20, 0.5).ppf([0.025, 0.975]) / 20.0
    assert interval[1:] == pytest.approx(expected, abs=0.051)


def test_of_many_comparisons_all_intervals_hold_together():
    """20 true nulls, 8 seeds each: percentiles alone err in most families, ours in few."""
    rng = np.random.default_rng(7)
    wrong = {1: 0, 20: 0}
    for _ in range(25):
        cells = rng.normal(size=(20, 8))
        for comparisons in wrong:
            found = [stats.seed_bootstrap(x, np.mean, comparisons=comparisons) for x in cells]
            wrong[comparisons] += any(x.low > 0.0 or x.high < 0.0 for x in found)
    assert wrong[1] >= 15 and wrong[20] <= 5


def test_a_corrected_interval_holds_the_plain_one_and_grows_with_the_comparisons():
    rng = np.random.default_rng(8)
    x, y = rng.exponential(size=12), rng.normal(size=9)
    for interval in (
        lambda m: stats.seed_bootstrap(x, comparisons=m),
        lambda m: stats.difference_of_means(x, y, comparisons=m),
    ):
        plain, few, many = (interval(m) for m in (1, 2, 60))
        assert many.low < few.low <= plain.low and plain.high <= few.high < many.high
        assert plain.value == few.value == many.value
    # Of a mean it is nearly Student's.
    found = stats.seed_bootstrap(x, np.mean, comparisons=60)
    student = scipy_stats.ttest_1samp(x, 0.0).confidence_interval(1.0 - 0.05 / 60.0)
    assert found.low == pytest.approx(student.low, rel=0.1)


def test_thirty_thousand_rows_are_summarised_in_seconds():
    cells = np.random.default_rng(9).normal(size=(5, 1_000))  # a sixth of it
    started = time.process_time()
    for cell in cells:
        stats.seed_bootstrap(cell)
        stats.cvar_bootstrap(cell)
        stats.seed_bootstrap(cell, np.mean)
        stats.probability_of_improvement(cell, cells[0])
    assert time.process_time() - started < 5.0  # 1.3 s where it was measured


def test_cvar_is_the_mean_of_the_worst_share():
    values = np.arange(100.0)[::-1]
    assert stats.cvar(values) == pytest.approx(2.0)  # mean of 0..4
    assert stats.cvar(values[:3]) == 97.0  # at least one entry
    assert stats.cvar(np.stack([values, -values]), axis=-1).tolist() == [2.0, -97.0]
    with pytest.raises(ValueError, match="share = 0"):
        stats.cvar(values, 0.0)
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
