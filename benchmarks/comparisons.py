"""Differences between methods, how they are judged, and what is said where many are judged."""

import numpy as np
import pandas as pd

from polycstr_jax import stats


def difference(
    first: pd.Series, second: pd.Series, paired: bool, comparisons: int = 1
) -> stats.Interval:
    """mean(first) - mean(second) of two cells, indexed by seed; `paired`: seed by seed."""
    if paired:
        found = (first - second).dropna().to_numpy()
        return stats.seed_bootstrap(found, np.mean, comparisons=comparisons)
    return stats.difference_of_means(first.to_numpy(), second.to_numpy(), comparisons=comparisons)


def verdict(found: stats.Interval, above: str, below: str) -> str:
    """Which word holds, if the interval has 0 on one side only."""
    if np.isnan(found.low):
        return "too few seeds"
    return above if found.low > 0.0 else below if found.high < 0.0 else "open"


def interval_text(found, digits: int = 1) -> str:
    """[low, high], or a dash where there is none."""
    low, high = found[-2:]
    return "-" if np.isnan(low) else f"[{low:.{digits}f}, {high:.{digits}f}]"


def correction(comparisons: int) -> str:
    """What a table says of intervals that are to hold together, `comparisons` of them."""
    if comparisons < 2:
        return ""
    level = 100.0 * (1.0 - (1.0 - stats.CONFIDENCE) / comparisons)
    return (
        f"Corrected: {comparisons} comparisons are judged here, so each at {level:.3f} % "
        f"(Bonferroni: 1 - 0.05 / {comparisons}), by Student's t times the bootstrap's standard "
        "error, and never inside the plain interval; with 95 % all of these hold together. A "
        "verdict that is not corrected is wrong in one of 20 even where nothing differs "
        "(docs/statistics.md)."
    )
