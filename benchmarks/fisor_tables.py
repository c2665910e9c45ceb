"""The tables of arXiv 2401.10700 on this benchmark; `benchmarks.tables fisor` calls it."""

from pathlib import Path

import numpy as np
import pandas as pd

import polycstr_jax
from algos import fisor
from benchmarks import conditions, training_sets
from benchmarks.comparisons import correction, difference, interval_text, verdict
from benchmarks.plan import ON_AN_ACCELERATOR, SUITES, plan_cells
from polycstr_jax import stats

PAPER = Path(__file__).parent / "fisor_paper_table.csv"
COST_LIMITS = (0, 2, 5)  # intervals an episode
LIMITED = ("cpq", "coptidice", "bcql")  # methods that are trained for one cost limit
PER_LIMIT = {  # trained for one each
    **{(method, f"limit{limit}"): limit for method in LIMITED for limit in COST_LIMITS},
    **{("fisor", f"no-hj-{limit}"): limit for limit in COST_LIMITS},
}
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
METHODS = ("bc", "iql", *LIMITED, "fisor")
# FISOR at its default against (method, variant), on the same data.
CLAIMS = (
    ("bc", "default"),
    ("iql", "default"),
    *(key for key in PER_LIMIT if key[0] != "fisor"),
    *(("fisor", variant) for variant in fisor.PRESETS if variant != "default"),
)
HEADER = (
    "Everything is trained on `mixed`, FISOR and BC also on changed versions of it: the first "
    "half and tenth of its episodes of each behaviour, without the boosted or the random ones, "
    "and measured with noise (0.3 K on the temperature), which makes the limit a stochastic "
    "constraint in training; `noise 0.3` is the same noise when acting. Reward is the score / "
    "100, IQM over seeds with a bootstrap interval; cost is the normalised (C + e) / (L + e) for "
    "limits L of 0, 2 and 5 violating intervals an episode, safe at most 1. FISOR does not depend "
    "on L, so one row is normalised three times; CPQ, COptiDICE, BCQ-Lag, and `no-hj-L` with a "
    "discounted cost value in place of reachability, are trained for each. P(violation): of an "
    "episode; P(any violation): of a seed, in any of its episodes, with a Clopper-Pearson "
    "interval. Hot starts: the 32 that can be saved. Settings: BC and IQL keep those that were "
    "chosen on the `pi` data (5 each), CPQ's and COptiDICE's on `mixed` in start-up (26 and 6), "
    "FISOR's were chosen on `mixed`, by hand (11, not all in every scenario: 8 in start-up, 4 in "
    "grade-down, 1 in grade-up; 7 ways of choosing an action), all on the tune starts: BC and IQL "
    "are at a disadvantage here. Presets smaller than `full` run everything in start-up at most, "
    "and the main variants in the grade changes."
)


def cell_row(cell: pd.DataFrame) -> dict[str, object]:
    """One method: statistics over its seeds."""
    reward, steps = cell["score"].to_numpy() / 100.0, cell["violation_steps"].mean()
    middle = stats.seed_bootstrap(reward)
    any_violation = stats.share_of_seeds(cell["violated"].to_numpy() > 0)
    method, variant = cell["method"].iloc[0], cell["variant"].iloc[0]
    own = PER_LIMIT.get((method, variant))
    row = {
        "method": method,
        "variant": variant,
        "data": cell["dataset"].iloc[0],
        "seeds": len(cell),
        "gap closed": cell["gap_closed"].mean(),
        "reward": middle.value,
        "95 % interval": interval_text(middle, 3),
        "P(violation)": cell["violated"].mean(),
        "P(any violation)": any_violation.value,
        "its interval": interval_text(any_violation, 2),
        "P(runaway)": cell["runaway"].mean(),
        "worst seed": reward.min(),
        "violating intervals": steps,
        "doomed while live": cell["doomed_share"].mean(),
    }
    for limit in COST_LIMITS:
        cost = stats.normalised_cost(steps, limit)
        row[f"cost L={limit}"] = cost if own is None or own == limit else np.nan
    return row


def table(results: pd.DataFrame, references) -> pd.DataFrame:
    """One row a scenario, condition, method, variant and data set; `references` come first."""
    variants = list(fisor.PRESETS)

    def order(key):
        method, variant, dataset = key
        # Controllers first, then by data set; what is not known of comes last.
        known = references.index(method) if method in references else len(references)
        at = variants.index(variant) if variant in variants else len(variants)
        trained = METHODS.index(method) if method in METHODS else len(METHODS)
        return known, training_sets.NAMES.index(dataset), trained, method, at, variant

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
    """FISOR at its default minus another method on `mixed`: means over seeds, with 95 % intervals.

    Variants of FISOR share the seeds' keys, and those that only act differently the networks, so
    their differences are paired; the others share nothing with it, and both are resampled.
    `fewer violations`: whether the interval of the difference in P(violation) is below 0;
    `corrected`: whether it still is where all rows are to hold together.
    """
    pairs = list(compared_cells(results))
    judged = number_judged(pairs)
    rows = []
    for scenario, condition, other, ours, theirs in pairs:
        paired = other[0] == "fisor"
        violated, corrected = (
            difference(ours["violated"], theirs["violated"], paired, m) for m in (1, judged)
        )
        reward = difference(ours["score"], theirs["score"], paired)
        reward = stats.Interval(*(x / 100.0 for x in reward))
        rows.append(
            {
                "scenario": scenario,
                "condition": condition,
                "against": other[0],
                "variant": other[1],
                "P(violation)": violated.value,
                "P(violation), interval": interval_text(violated, 3),
                "fewer violations": verdict(violated, above="no", below="yes"),
                "corrected": verdict(corrected, above="no", below="yes"),
                "corrected interval": interval_text(corrected, 3),
                "mean reward": reward.value,
                "mean reward, interval": interval_text(reward, 3),
            }
        )
    found = pd.DataFrame(rows)
    found.attrs["comparisons"] = judged
    return found


def compared_cells(results: pd.DataFrame):
    """(scenario, condition, (method, variant), FISOR's cell, the other's), cells by seed."""
    for scenario in polycstr_jax.SCENARIOS:
        for condition in conditions.FISOR:
            chosen = results[
                (results.scenario == scenario)
                & (results.starts == condition.name)
                & (results.dataset == "mixed")
            ]
            cells = {k: c.set_index("seed") for k, c in chosen.groupby(["method", "variant"])}
            ours = cells.get(("fisor", "default"))
            for other in CLAIMS:
                if ours is not None and other in cells:
                    yield scenario, condition.name, other, ours, cells[other]


def number_judged(pairs) -> int:
    """How many comparisons have the seeds for a verdict."""
    return sum(min(len(ours), len(theirs)) >= stats.MIN_SEEDS for *_, ours, theirs in pairs)


def missing(results: pd.DataFrame) -> list[str]:
    """What the suite trains at its full size and the results lack, the variants for an accelerator
    included, as `method@variant`; where others have it, with the scenarios and data sets
    that lack it."""
    keys = ["method", "variant", "scenario", "dataset"]
    there = set(results[keys].itertuples(index=False, name=None))
    anywhere = {key[:2] for key in there}
    wanted = [("fisor", variant) for variant in ON_AN_ACCELERATOR]
    absent: dict[str, list[str]] = {f"{m}@{v}": [] for m, v in wanted if (m, v) not in anywhere}
    for cell in plan_cells(SUITES["fisor"].presets["full"], "fisor"):
        key = (cell.method, cell.variant, cell.scenario, cell.dataset)
        if cell.algorithm_config is not None and key not in there:
            places = absent.setdefault(f"{cell.method}@{cell.variant}", [])
            if key[:2] in anywhere:
                places.append(f"{cell.scenario}-{cell.dataset}")
    return [f"{name} ({', '.join(p)})" if p else name for name, p in absent.items()]


def paper_table() -> pd.DataFrame:
    """Table 1 of the paper."""
    return pd.read_csv(PAPER)


def markdown(found: pd.DataFrame, compared: pd.DataFrame, text: str, to_table) -> str:
    """The tables as Markdown; `to_table(rows, columns)` writes one."""
    parts = ["# Tables of arXiv 2401.10700", text]
    for (scenario, name), rows in found.groupby(["scenario", "condition"], sort=False):
        parts += [f"## {scenario}, {name}", to_table(rows, COLUMNS)]
    if len(compared):
        numbers = {"P(violation)": "{:+.3f}", "mean reward": "{:+.3f}"}
        columns = {name: numbers.get(name, "{}") for name in compared.columns}
        parts += ["## FISOR minus the others", " ".join(claims.__doc__.split())]
        parts += filter(None, [correction(compared.attrs["comparisons"])])
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
