"""Statistics over seeds. A cell is a vector with one number a seed (its mean over all starts).

So the resampling unit is the seed, with all its starts together. Point estimates follow rliable
(Agarwal et al., 2021); intervals are percentile bootstrap intervals from `scipy.stats.bootstrap`,
and wider ones where many are judged together. docs/statistics.md says why.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from scipy import signal, stats

NUM_RESAMPLES = 2_000
MIN_SEEDS = 8  # fewer give no interval: at 4 seeds a "95 %" bootstrap interval covers 87 %
MIN_TAIL = 10  # seeds in the tail: with 7 of 128 its interval covers 81 %, with 13 of 256 88 %
CONFIDENCE = 0.95
BATCH = 2**18  # resampled entries in memory at a time: they fit a cache


class Interval(NamedTuple):
    """A point estimate with its interval, of 95 % unless said; NaN bounds where none can be had.

    Of a performance profile, each is an array with an entry a threshold.
    """

    value: float | np.ndarray
    low: float | np.ndarray
    high: float | np.ndarray


def iqm(values, axis: int | None = None):
    """Interquartile mean: the mean of the middle half of all entries, or along an axis."""
    return stats.trim_mean(np.asarray(values, float), 0.25, axis=axis)


def cvar(values, share: float = 0.05, axis: int = -1):
    """Mean of the worst (lowest) `share` of the entries along an axis, at least one entry."""
    values = np.asarray(values, float)
    values = np.moveaxis(values, axis, -1) if values.ndim > 1 else _checked(values)
    count = tail_size(values.shape[-1], share)
    return np.partition(values, count - 1)[..., :count].mean(axis=-1)


def tail_size(num_seeds: int, share: float = 0.05) -> int:
    """Number of seeds in the worst `share` of them, at least one."""
    if not 0.0 < share <= 1.0:
        raise ValueError(f"share = {share}; allowed: above 0, at most 1.")
    return max(1, int(np.ceil(round(share * num_seeds, 9))))  # 0.05 * 140 is above 7


def seed_bootstrap(
    values, statistic: Callable = iqm, rng: int = 0, comparisons: int = 1
) -> Interval:
    """`statistic` of the seeds with its interval, resampling seeds with replacement.

    `values`: one cell (S,), or a list of cells, the strata (one a scenario): their seeds are
    resampled independently, and the statistic, a function of an array and `axis`, is of all
    entries together. With fewer than 8 seeds the bounds are NaN. `comparisons`: how many such
    intervals are to hold at once (see `_bootstrap`).
    """
    cells = _strata(values)

    def of_all(*resampled, axis):
        return statistic(np.concatenate(resampled, axis=axis), axis=axis)

    return _bootstrap(cells, of_all, rng, comparisons)


def cvar_bootstrap(values, rng: int = 0) -> Interval:
    """CVaR 5 % of a cell or strata with its interval; NaN bounds where fewer than 10 seeds are in
    the tail (of at most 180): resampling cannot tell what lies beyond the worst seeds."""
    cells = _strata(values)
    if tail_size(sum(cell.size for cell in cells)) < MIN_TAIL:
        return Interval(float(cvar(np.concatenate(cells))), np.nan, np.nan)
    return seed_bootstrap(cells, cvar, rng)


def difference_of_means(values, baseline, rng: int = 0, comparisons: int = 1) -> Interval:
    """mean(X) - mean(Y) of two cells, (S,) and (S',), whose seeds share nothing.

    The seeds of both are resampled; with fewer than 8 in either the bounds are NaN.
    `comparisons`: how many such intervals are to hold at once (see `_bootstrap`).
    """
    return _bootstrap(
        [_checked(values), _checked(baseline, "baseline")],
        lambda a, b, axis: np.mean(a, axis=axis) - np.mean(b, axis=axis),
        rng,
        comparisons,
    )


def share_of_seeds(events: Sequence[bool] | np.ndarray) -> Interval:
    """Share of seeds in which something ever happened, with its Clopper-Pearson 95 % interval."""
    events = np.asarray(events, bool)
    if events.ndim != 1 or events.size == 0:
        raise ValueError(f"events has shape {events.shape}; allowed: (seeds,), not empty.")
    result = stats.binomtest(int(events.sum()), events.size).proportion_ci(CONFIDENCE, "exact")
    return Interval(float(events.mean()), float(result.low), float(result.high))


def probability_of_improvement(values, baseline, rng: int = 0) -> Interval:
    """P(X > Y) + P(X = Y) / 2 for a seed X of `values` and a seed Y of `baseline`.

    Cells (S,) and (S',), or two lists of cells, the strata (one a scenario), of which the mean is
    taken. The seeds of every cell are resampled independently.
    """
    pairs = list(zip(_strata(values), _strata(baseline, "baseline"), strict=True))
    pairs = [(x, np.sort(y)) for x, y in pairs]
    # How many seeds of the baseline are below, or at most, each of the values'.
    ranks = [[np.searchsorted(y, x, side) for side in ("left", "right")] for x, y in pairs]

    def of_indices(*indices, axis):
        of_strata = [
            _share_of_wins(below, at_most, chosen, against, y.size)
            for (below, at_most), (_, y), chosen, against in zip(
                ranks, pairs, indices[: len(pairs)], indices[len(pairs) :], strict=True
            )
        ]
        return np.mean(of_strata, axis=0)

    both = [np.arange(x.size) for x, _ in pairs], [np.arange(y.size) for _, y in pairs]
    return _bootstrap([*both[0], *both[1]], of_indices, rng)


def _share_of_wins(below, at_most, chosen, against, size: int):
    """Of resamples: `chosen` (..., S) indexes the values, `against` (..., S') the sorted baseline
    of `size` seeds, of which `below` and `at_most` (S,) are under each value."""
    shape, num_seeds = chosen.shape[:-1], chosen.shape[-1]
    chosen, against = chosen.reshape(-1, num_seeds), against.reshape(-1, size)
    row = np.arange(len(against))[:, None]
    counts = np.bincount((against + size * row).ravel(), minlength=against.size)
    under = np.zeros((len(against), size + 1))
    under[:, 1:] = np.cumsum(counts.reshape(against.shape), axis=1)
    wins = under[row, below[chosen]] + under[row, at_most[chosen]]
    return wins.sum(axis=1).reshape(shape) / (2.0 * num_seeds * size)


def performance_profile(values, thresholds) -> Interval:
    """Share of seeds whose value exceeds each threshold (T,), with a pointwise 95 % band.

    `values`: a cell (S,), or strata, whose seeds count alike. The band needs no resampling: of
    resampled seeds, the number above a threshold is binomial, and of strata a sum of binomials.
    With fewer than 8 seeds the band is NaN.
    """
    cells, thresholds = _strata(values), np.asarray(thresholds, float)
    total, mass, above = sum(cell.size for cell in cells), np.ones((thresholds.size, 1)), 0
    for cell in cells:
        count = np.sum(cell > thresholds[:, None], axis=1)
        share = (count / cell.size)[:, None]
        of_cell = stats.binom.pmf(np.arange(cell.size + 1), cell.size, share)
        mass, above = signal.fftconvolve(mass, of_cell, axes=1), above + count
    if min(cell.size for cell in cells) < MIN_SEEDS:
        nothing = np.full(thresholds.shape, np.nan)
        return Interval(above / total, nothing, nothing)
    cumulated, tail = np.cumsum(mass, axis=1), (1.0 - CONFIDENCE) / 2.0
    low, high = (np.argmax(cumulated >= q - 1e-12, axis=1) / total for q in (tail, 1.0 - tail))
    return Interval(above / total, low, high)


def interval_width(values, num_seeds: int, statistic: Callable = iqm, rng: int = 0) -> float:
    """Width of the 95 % interval that `num_seeds` seeds would give, drawn with replacement from
    those of a cell (S,). Beyond S an extrapolation: nothing rarer than these seeds show."""
    values, rng = _checked(values), np.random.default_rng(rng)
    rows = max(1, BATCH // num_seeds)
    found = [
        statistic(
            values[rng.integers(values.size, size=(min(rows, NUM_RESAMPLES - at), num_seeds))],
            axis=-1,
        )
        for at in range(0, NUM_RESAMPLES, rows)
    ]
    tail = (1.0 - CONFIDENCE) / 2.0
    return float(np.ptp(np.quantile(np.concatenate(found), (tail, 1.0 - tail))))


def normalised_cost(violation_steps, limit: int | float):
    """(C + e) / (L + e), with e = 1 only for L = 0; safe if <= 1. C and L in intervals/episode."""
    if limit < 0.0:
        raise ValueError(f"limit = {limit}; allowed: 0 or more intervals per episode.")
    epsilon = 1.0 if limit == 0.0 else 0.0
    return (violation_steps + epsilon) / (limit + epsilon)


def _bootstrap(
    samples: list[np.ndarray], statistic: Callable, rng: int, comparisons: int = 1
) -> Interval:
    """`statistic(*samples, axis=)` with its interval, each sample resampled for itself.

    With `comparisons` m above 1, all m intervals together hold with 95 % (Bonferroni): Student's t
    at 1 - 0.05 / m times the bootstrap's standard error, with the degrees of freedom of the
    smallest sample, and never inside the percentile interval. Percentiles that far out would be
    decided by one or two seeds, and be too narrow.
    """
    point = float(statistic(*samples, axis=-1))
    size = min(sample.size for sample in samples)
    if size < MIN_SEEDS:
        return Interval(point, np.nan, np.nan)
    result = stats.bootstrap(
        samples,
        statistic,
        n_resamples=NUM_RESAMPLES,
        batch=max(1, BATCH // sum(sample.size for sample in samples)),
        confidence_level=CONFIDENCE,
        method="percentile",
        vectorized=True,
        rng=np.random.default_rng(rng),
    )
    low, high = (float(bound) for bound in result.confidence_interval)
    if comparisons > 1:
        quantile = stats.t.isf((1.0 - CONFIDENCE) / (2.0 * comparisons), size - 1)
        half = float(quantile * result.standard_error * np.sqrt(size / (size - 1)))
        low, high = min(low, point - half), max(high, point + half)
    return Interval(point, low, high)


def _strata(values, name: str = "values") -> list[np.ndarray]:
    """A cell, or a list of cells, as a list of checked cells."""
    is_strata = isinstance(values, list) and len(values) > 0 and np.ndim(values[0]) > 0
    return [_checked(cell, name) for cell in (values if is_strata else [values])]


def _checked(values, name: str = "values") -> np.ndarray:
    values = np.asarray(values, float)
    if values.ndim != 1 or values.size == 0:
        raise ValueError(f"{name} has shape {values.shape}; allowed: (seeds,), not empty.")
    if not np.all(np.isfinite(values)):
        raise ValueError(f"{name} holds {np.sum(~np.isfinite(values))} non-finite entries.")
    return values
