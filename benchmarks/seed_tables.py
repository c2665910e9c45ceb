"""How many seeds are enough; `benchmarks.tables seeds` calls it.

Width of the 95 % interval against the number of seeds, of the leaderboard's trained methods from
nominal starts.
"""

import numpy as np
import pandas as pd

import polycstr_jax
from polycstr_jax import stats

SIZES = (8, 16, 32, 64, 128, 256, 512, 1_000)
QUANTITIES = {  # -> column of the results, statistic over seeds, half-widths wanted, digits
    "score IQM": ("score", stats.iqm, (1.0, 2.0, 5.0), 1),
    "gap closed": ("gap_closed", np.mean, (1.0, 2.0, 5.0), 1),
    "P(violation)": ("violated", np.mean, (0.01, 0.02, 0.05), 3),
}
HEADER = (
    "Width of the 95 % interval of a statistic of so many seeds, drawn with replacement from the "
    "seeds that are there; and the number of seeds at which half of it is 1, 2 and 5 points (of "
    "P(violation), percentage points). `*`: more seeds than are there, an extrapolation, which "
    "takes these for all that there is: what happens to one seed in a hundred, such as a rare "
    "runaway, is in none of 8 seeds, and the width then far too small. Beyond 1,000 seeds the "
    "width falls with the square root of their number. A dash: all seeds are alike. Trained "
    "methods, nominal starts."
)


def table(results: pd.DataFrame, references) -> pd.DataFrame:
    """One row a scenario, quantity, method and data set: widths, and numbers of seeds."""
    rows = []
    chosen = results[(results.starts == "nominal") & ~results.method.isin(references)]
    for scenario in polycstr_jax.SCENARIOS:
        cells = chosen[chosen.scenario == scenario].groupby(["method", "dataset", "variant"])
        for quantity, (column, statistic, wanted, _) in QUANTITIES.items():
            for (method, dataset, variant), cell in cells:
                values = cell.sort_values("seed")[column].to_numpy()
                if values.size < stats.MIN_SEEDS:
                    continue
                widths = [stats.interval_width(values, n, statistic) for n in SIZES]
                rows.append(
                    {
                        "scenario": scenario,
                        "quantity": quantity,
                        "method": method,
                        "variant": variant,
                        "data": dataset,
                        "seeds": values.size,
                        **{f"width at {n}": w for n, w in zip(SIZES, widths, strict=True)},
                        **{f"seeds for +-{h:g}": seeds_for(h, widths) for h in wanted},
                    }
                )
    return pd.DataFrame(rows)


def seeds_for(half_width: float, widths) -> float:
    """Number of seeds at which half the interval is so wide, by the widths at `SIZES`; NaN where
    the seeds do not differ."""
    widths = np.asarray(widths)
    if not widths.any():
        return np.nan
    enough = np.flatnonzero(widths <= 2.0 * half_width)
    if not enough.size:
        return float(np.ceil(SIZES[-1] * (widths[-1] / (2.0 * half_width)) ** 2))
    at = enough[0]
    if at == 0:
        return float(SIZES[0])
    share = (widths[at - 1] - 2.0 * half_width) / (widths[at - 1] - widths[at])
    return float(np.ceil(SIZES[at - 1] * (SIZES[at] / SIZES[at - 1]) ** share))


def shown(rows: pd.DataFrame, quantity: str) -> pd.DataFrame:
    """Rows of one quantity as they are printed, extrapolations marked."""
    _, _, wanted, digits = QUANTITIES[quantity]
    unit = 100.0 if quantity.startswith("P(") else 1.0
    found = rows[["method", "data", "seeds"]].copy()
    for n in SIZES:
        found[str(n)] = [
            f"{width:.{digits}f}" + ("*" if n > seeds else "")
            for width, seeds in zip(rows[f"width at {n}"], rows["seeds"], strict=True)
        ]
    for half in wanted:
        found[f"+-{half * unit:g}"] = [
            enough_text(number, number > seeds)
            for number, seeds in zip(rows[f"seeds for +-{half:g}"], rows["seeds"], strict=True)
        ]
    return found


def enough_text(number: float, extrapolated: bool) -> str:
    """A number of seeds, with a star if it is an extrapolation; a dash for what is not known."""
    if np.isnan(number):
        return "-"
    if number == SIZES[0]:
        return f"≤ {SIZES[0]}"
    return f"{number:,.0f}" + ("*" if extrapolated else "")


def markdown(found: pd.DataFrame, text: str, to_table) -> str:
    """The tables as Markdown; `to_table(rows, columns)` writes one."""
    parts = ["# How many seeds are enough", text]
    for (scenario, quantity), rows in found.groupby(["scenario", "quantity"], sort=False):
        shown_rows = shown(rows, quantity)
        parts += [
            f"## {scenario}: {quantity}",
            to_table(shown_rows, dict.fromkeys(shown_rows, "{}")),
        ]
    return "\n\n".join(parts) + "\n"
