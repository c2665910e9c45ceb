"""The tables of arXiv 2401.10700 on this benchmark; `benchmarks.tables fisor` calls it."""

from pathlib import Path

import numpy as np
import pandas as pd

import polycstr_jax
from algos import fisor
from benchmarks import conditions, training_sets
from polycstr_jax import stats

PAPER = Path(__file__).parent / "fisor_paper_table.csv"
COST_LIMITS = (0, 2, 5)  # intervals an episode
PER_LIMIT = {f"no-hj-{limit}": limit for limit in COST_LIMITS}  # trained for one limit each
NOT_RUN = ("paper", "first-commit", "cpq")  # where a results folder does not hold them
COLUMNS = {
    "method": "{}",
    "variant": "{}",
    "data": "{}",
    "seeds": "{:d}",
    "gap closed": "{:.1f}",
    "reward": "{:.3f}",
    "95 % interval": "{}",
    "cost L=0": "{:.2f}",
    "cost L=2": "{:.2f}",
    "cost L=5": "{:.2f}",
    "P(violation)": "{:.3f}",
    "P(any violation)": "{:.2f}",
    "its interval": "{}",
    "P(runaway)": "{:.4f}",
    "worst seed": "{:.3f}",
}
CLAIMS = (  # FISOR at its default against (method, variant), on the same data
    ("bc", "default"),
    ("iql", "default"),
    ("fisor", "bc-weights"),
    ("fisor", "no-diffusion"),
    ("fisor", "no-infeasible"),
    ("fisor", "no-hj-0"),
    ("fisor", "no-hj-2"),
    ("fisor", "no-hj-5"),
    ("fisor", "indicator"),
    ("fisor", "safest"),
)
HEADER = (
    "Everything is trained on `mixed`, FISOR and BC also on changed versions of it: the first half "
    "and tenth of its episodes, without the boosted or the random ones, and measured with noise "
    "(0.3 K on the temperature), which makes the limit a stochastic constraint in training; "
    "`noise 0.3` is the same noise when acting. Reward is the score / 100, IQM over seeds with a "
    "bootstrap interval; cost is the normalised (C + e) / (L + e) for limits L of 0, 2 and 5 "
    "violating intervals an episode, safe at most 1. FISOR does not depend on L, so one row is "
    "normalised three times; `no-hj-L`, with a discounted cost value in place of reachability, is "
    "trained for each. P(violation): of an episode; P(any violation): of a seed, in any of its "
    "episodes, with a Clopper-Pearson interval. Hot starts: the 32 that can be saved."
)


def cell_row(cell: pd.DataFrame) -> dict[str, object]:
    """One method: statistics over its seeds."""
    reward, steps = cell["score"].to_numpy() / 100.0, cell["violation_steps"].mean()
    middle = stats.seed_bootstrap(reward)
    any_violation = stats.share_of_seeds(cell["violated"].to_numpy() > 0)
    variant = cell["variant"].iloc[0]
    own = PER_LIMIT.get(variant)
    row = {
        "method": cell["method"].iloc[0],
        "variant": variant,
        "data": cell["dataset"].iloc[0],
        "seeds": len(cell),
        "gap closed": cell["gap_closed"].mean(),
        "reward": middle.value,
        "95 % interval": interval(middle, 3),
        "P(violation)": cell["violated"].mean(),
        "P(any violation)": any_violation.value,
        "its interval": interval(any_violation, 2),
        "P(runaway)": cell["runaway"].mean(),
        "worst seed": reward.min(),
        "violating intervals": steps,
        "doomed while live": cell["doomed_share"].mean(),
    }
    for limit in COST_LIMITS:
        cost = stats.normalised_cost(steps, limit)
        row[f"cost L={limit}"] = cost if own is None or own == limit else np.nan
    return row


def interval(found: stats.Interval, digits: int) -> str:
    if np.isnan(found.low):
        return "-"
    return f"[{found.low:.{digits}f}, {found.high:.{digits}f}]"


def table(results: pd.DataFrame, references) -> pd.DataFrame:
    """One row a scenario, condition, method, variant and data set; `references` come first."""
    variants = list(fisor.PRESETS)

    def order(key):
        method, variant, dataset = key
        known = references.index(method) if method in references else len(references)
        rank = ("bc", "iql", "fisor").index(method) if method not in references else 0
        at = variants.index(variant) if variant in variants else len(variants)
        return known, training_sets.NAMES.index(dataset), rank, at

    rows = []
    for scenario in polycstr_jax.SCENARIOS:
        for condition in conditions.FISOR:
            chosen = results[(results.scenario == scenario) & (results.starts == condition.name)]
            cells = dict(list(chosen.groupby(["method", "variant", "dataset"])))
            for key in sorted(cells, key=order):
                row = cell_row(cells[key].sort_values("seed"))
                if key[0] in references:
                    row |= {"variant": "-", "data": "-"}
                rows.append({"scenario": scenario, "condition": condition.name, **row})
    return pd.DataFrame(rows)


def claims(results: pd.DataFrame) -> pd.DataFrame:
    """FISOR minus another method: P(violation) and reward, with intervals over seeds.

    Seeds of different methods share nothing, so both are resampled. `fewer violations`: whether
    the interval of the difference in P(violation) is below 0.
    """
    rows = []
    for scenario in polycstr_jax.SCENARIOS:
        for condition in conditions.FISOR:
            chosen = results[
                (results.scenario == scenario)
                & (results.starts == condition.name)
                & (results.dataset == "mixed")
            ]
            cells = {k: c.sort_values("seed") for k, c in chosen.groupby(["method", "variant"])}
            ours = cells.get(("fisor", "default"))
            for other in CLAIMS:
                if ours is None or other not in cells:
                    continue
                row = {"scenario": scenario, "condition": condition.name, "against": other[0]}
                row["variant"] = other[1]
                for name, column, scale in (
                    ("P(violation)", "violated", 1.0),
                    ("reward", "score", 100.0),
                ):
                    pair = (x[column].to_numpy() / scale for x in (ours, cells[other]))
                    found = stats.difference_of_means(*pair)
                    row |= {name: found.value, f"{name}, interval": interval(found, 3)}
                    if name == "P(violation)":
                        row["fewer violations"] = verdict(found)
                rows.append(row)
    return pd.DataFrame(rows)


def verdict(found: stats.Interval) -> str:
    if np.isnan(found.low):
        return "too few seeds"
    return "yes" if found.high < 0.0 else "no" if found.low > 0.0 else "open"


def missing(results: pd.DataFrame) -> list[str]:
    """What the tables should hold and the folder does not, as `method@variant`."""
    there = set(zip(results.method, results.variant, strict=True))
    wanted = [("fisor", variant) for variant in fisor.PRESETS] + [("cpq", "default")]
    return [f"{method}@{variant}" for method, variant in wanted if (method, variant) not in there]


def paper_table() -> pd.DataFrame:
    """Table 1 of the paper."""
    return pd.read_csv(PAPER)


def markdown(found: pd.DataFrame, compared: pd.DataFrame, text: str, to_table) -> str:
    """The tables as Markdown; `to_table(rows, columns)` writes one."""
    parts = ["# Tables of arXiv 2401.10700", text]
    for (scenario, name), rows in found.groupby(["scenario", "condition"], sort=False):
        parts += [f"## {scenario}, {name}", to_table(rows, COLUMNS)]
    if len(compared):
        numbers = {"P(violation)": "{:+.3f}", "reward": "{:+.3f}"}
        columns = {name: numbers.get(name, "{}") for name in compared.columns}
        parts += ["## FISOR minus the others", " ".join(claims.__doc__.split())]
        parts.append(to_table(compared, columns))
    paper = paper_table()
    columns = {n: "{}" if n in ("suite", "task") else "{:.2f}" for n in paper.columns}
    parts += [
        "## The paper's Table 1: another benchmark, for orientation",
        "Normalised reward and cost of the DSRL tasks, as published; cost at most 1 is safe. None "
        "of these numbers can be compared with ours.",
        to_table(paper, columns),
    ]
    return "\n\n".join(parts) + "\n"
