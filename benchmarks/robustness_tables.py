"""The robustness suite as tables and degradation curves; `benchmarks.tables robustness` calls it.

Nothing was trained or tuned for the changed plants. Level 0 of every family is the nominal plant.
"""

import matplotlib
import numpy as np
import pandas as pd

matplotlib.use("Agg")

import matplotlib.pyplot as plt

import polycstr_jax
from benchmarks import conditions
from benchmarks.figures import save
from polycstr_jax import evaluate, stats

SHOWN = ("gap closed, median", "gap closed", "P(violation)", "P(runaway)")
CURVES = ("gap closed, median", "P(violation)")
STYLES = {  # methods drawn -> colour, line
    "horizon10": ("0.55", "-"),
    "pi_tuned": ("0.1", "-"),
    "pi_safe": ("0.1", ":"),
    "bc": ("#d97706", ":"),
    "bc+": ("#d97706", "-"),
    "iql": ("#1f5fa8", ":"),
    "iql+": ("#1f5fa8", "-"),
}
HEADER = (
    "Methods as they are on the leaderboard, none of them trained or tuned again. From the 64 "
    "nominal starts, but `wide`. The step and the oracle know the true plant, the oracle the "
    "disturbances to come, too; `horizon10` and `horizon2` believe in the nominal one. Levels: "
    "{levels}. Over seeds the IQM, of the median and of the mean over the starts from which an "
    "optimum is known: {known}. P(violation) and P(runaway) are over all starts, those included "
    "that cannot be saved on the changed plant."
)


def table(results: pd.DataFrame, order) -> pd.DataFrame:
    """One row a scenario, method and condition. `order`: the methods that come first."""
    rows, names = [], [condition.name for condition in conditions.SUITE]
    for (scenario, method, name), cell in results.groupby(["scenario", "method", "starts"]):
        if name not in names:
            continue  # doomed starts
        family, _, level = name.partition(" ")
        gap = cell["gap_closed_median"].dropna()  # nothing is known where no start has an optimum
        low, high = stats.seed_bootstrap(gap)[1:] if gap.size else (np.nan, np.nan)
        rows.append(
            {
                "scenario": scenario,
                "method": method,
                "condition": name,
                "family": family,
                "level": float(level or 0),
                "seeds": len(cell),
                "starts behind the gap": int(cell["gap_starts"].iloc[0]),
                "gap closed, median": known_iqm(gap),
                "gap closed, median, low": low,
                "gap closed, median, high": high,
                "gap closed": known_iqm(cell["gap_closed"]),
                "score": known_iqm(cell["score"]),
                "P(violation)": cell["violated"].mean(),
                "P(runaway)": cell["runaway"].mean(),
            }
        )
    found = pd.DataFrame(rows)
    methods = [*order, *sorted(set(found.method) - set(order))]
    ranks = {
        "scenario": list(polycstr_jax.SCENARIOS).index,
        "method": methods.index,
        "condition": names.index,
    }
    return found.sort_values(list(ranks), key=lambda x: x.map(ranks[x.name]), ignore_index=True)


def known_iqm(values: pd.Series) -> float:
    """IQM over the seeds of which it is known; NaN if of none."""
    values = values.dropna()
    return stats.iqm(values) if values.size else np.nan


def wide(found: pd.DataFrame, scenario: str, column: str) -> pd.DataFrame:
    """Methods by conditions."""
    chosen = found[found.scenario == scenario]
    return chosen.pivot(index="method", columns="condition", values=column).reindex(
        index=chosen.method.unique(), columns=chosen.condition.unique()
    )


def header(found: pd.DataFrame) -> str:
    """What the table has to say, the levels' units included."""
    units = "; ".join(f"`{name}`, {unit}" for name, (_, unit) in conditions.FAMILIES.items())
    starts = found.drop_duplicates(["scenario", "condition"])
    few = starts[starts["starts behind the gap"] < evaluate.NUM_STARTS]
    exceptions = [
        f"{row['starts behind the gap']} in {row['scenario']}, {row['condition']}"
        for row in few.to_dict("records")
    ]
    known = f"all {evaluate.NUM_STARTS}" + (f", but {'; '.join(exceptions)}" if exceptions else "")
    return HEADER.format(levels=units, known=known)


def figure(found: pd.DataFrame, path) -> None:
    """Degradation curves: a column a family, two rows a scenario."""
    scenarios = list(found.scenario.unique())
    fig, axes = plt.subplots(
        2 * len(scenarios),
        len(conditions.FAMILIES),
        figsize=(15, 4.4 * len(scenarios)),
        sharex="col",
        sharey="row",
        squeeze=False,
        layout="constrained",
    )
    for row, (scenario, column) in enumerate((s, c) for s in scenarios for c in CURVES):
        for axis, (family, (_, unit)) in zip(axes[row], conditions.FAMILIES.items(), strict=True):
            chosen = found[(found.scenario == scenario) & found.family.isin([family, "nominal"])]
            for method, (colour, line) in STYLES.items():
                own = chosen[chosen.method == method].sort_values("level")
                style = dict(color=colour, ls=line, marker="o", ms=3, label=method)
                axis.plot(own.level, own[column], **style)
            axis.grid(alpha=0.25)
            if row == 0:
                axis.set_title(family)
            if row == 2 * len(scenarios) - 1:
                axis.set_xlabel(unit.split(",")[0], fontsize=8)
        axes[row, 0].set_ylabel(f"{scenario}\n{column}", fontsize=9)
        if column == "P(violation)":
            axes[row, 0].set_ylim(-0.03, 1.03)
        else:
            axes[row, 0].set_ylim(-20, 105)
    fig.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=7)
    save(fig, path)


def markdown(found: pd.DataFrame, text: str, to_table) -> str:
    """The tables as Markdown; `to_table(rows, columns)` writes one."""
    parts = ["# Robustness", text]
    for scenario in found.scenario.unique():
        for column in SHOWN:
            rows = wide(found, scenario, column)
            pattern = "{:.1f}" if column.startswith("gap") else "{:.2f}"
            columns = {"method": "{}"} | dict.fromkeys(rows.columns, pattern)
            parts += [f"## {scenario}: {column}", to_table(rows.reset_index(), columns)]
    return "\n\n".join(parts) + "\n"
