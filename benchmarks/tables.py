"""Print the leaderboard or a paper's table of a results folder, and write it as Markdown and CSV.

    python -m benchmarks.tables [leaderboard] [--results results] [--preset full]
    python -m benchmarks.tables leaderboard --readme README.md
    python -m benchmarks.tables seeds
    python -m benchmarks.tables picnn
    python -m benchmarks.tables robustness
    python -m benchmarks.tables fisor
    python -m benchmarks.tables marvel

One table a scenario and group of starts. Doomed starts, from which the safest known policy
violates the limit, are a group of their own. `seeds`: how many are enough, by the leaderboard's
results. Same results, same bytes. Damaged cells are named on stderr and left out; results of
mixed versions are refused without `--force`. Where a row beats an optimum of
`polycstr_jax/oracle.npz`, the tables say so and the exit status is 1.
"""

import contextlib
import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import rich
import tyro
from rich.table import Table

import polycstr_jax
from benchmarks import fisor_tables, marvel_tables, profiles, robustness_tables, seed_tables
from benchmarks.comparisons import correction, interval_text, verdict
from benchmarks.plan import REFERENCES
from benchmarks.results import PRESETS, check_known, presets_there, read_results
from polycstr_jax import evaluate, stats
from polycstr_jax.data import write_atomically
from polycstr_jax.env import EnvParams
from polycstr_jax.pipes import end_with_the_reader

# Of an optimum's cost; a row that saves more than that has found a bug. The environment replays
# an optimum to 1e-5.
TOLERANCES = {"excess_over_oracle": 1e-3, "excess_over_unconstrained": 1e-4}
BEATEN = "A ROW BEATS AN OPTIMUM"
COST_LIMITS = (0, 2, 5)  # intervals per episode
BASELINE = "bc"
GROUPS = ("nominal", "wide", "hot", "hot_doomed")
METHOD_ORDER = REFERENCES  # reference rows first
COLUMNS = {  # Markdown column -> how it is written
    "method": "{}",
    "data": "{}",
    "seeds": "{:d}",
    "gap closed": "{:.1f}",
    "gap closed, median": "{:.1f}",
    "of starts": "{:d}",
    "score IQM": "{:.1f}",
    "95 % interval": "{}",
    "CVaR 5 %": "{}",
    "worst seed": "{:.1f}",
    "worst start": "{:.1f}",
    "P(improvement over BC)": "{}",
    "P(violation)": "{}",
    "P(runaway)": "{:.3f}",
    "violation steps": "{:.2f}",
    "offset P kg/m3": "{:+.2f}",
    "settling h": "{:.1f}",
    "doomed while live": "{:.4f}",
    "first doomed h": "{:.1f}",
    "lead h": "{:.1f}",
}

TERMINAL_COLUMNS = {  # these fit into 80 characters
    "method": "{}",
    "data": "{}",
    "gap closed": "{:.1f}",
    "score IQM": "{:.1f}",
    "worst seed": "{:.1f}",
    "P(violation)": "{:.3f}",
    "P(runaway)": "{:.3f}",
}
AGGREGATE_COLUMNS = {
    "method": "{}",
    "data": "{}",
    "seeds": "{:d}",
    "gap closed": "{:.1f}",
    "score IQM": "{}",
    "CVaR 5 %": "{}",
    "P(improvement over BC)": "{}",
    "P(violation)": "{}",
    "P(runaway)": "{:.3f}",
}
# Of the .csv, with bounds beside it, -> how it is written with them, and the digits.
WITH_INTERVAL = {
    "score CVaR 5 %": ("CVaR 5 %", 1),
    "P(improvement over BC)": ("P(improvement over BC)", 2),
    "P(violation)": ("P(violation)", 3),
}
README_COLUMNS = {  # README's column -> the leaderboard's, and how it is written
    "method": ("method", "{}"),
    "data": ("data", "{}"),
    "gap closed": ("gap closed", "{:.1f}"),
    "score IQM": ("score IQM", "{:.1f}"),
    "95 % interval": ("95 % interval", "{}"),
    "worst seed": ("worst seed", "{:.1f}"),
    "P(violation)": ("P(violation)", "{:.3f}"),
    "P(runaway)": ("P(runaway)", "{:.3f}"),
    "violating intervals": ("violation steps", "{:.2f}"),
}
README_BEGIN = "<!-- leaderboard: made by `python -m benchmarks.tables leaderboard --readme` -->"
README_END = "<!-- leaderboard: end -->"
TABLES = ("leaderboard", "seeds", "picnn", "robustness", "fisor", "marvel")
SUITE_OF = {"seeds": "leaderboard"}  # whose results a table shows, if not of its own name


@dataclasses.dataclass
class Args:
    """Print and write the leaderboard, or the tables of a paper, from what benchmarks.run wrote.

    Same results, same bytes. Exit codes: 0, written; 1, stderr says why not: no results, mixed
    versions, a name that is not known, an optimum that was beaten; 2, no such option.
    """

    # leaderboard, seeds, picnn, robustness, fisor or marvel
    table: tyro.conf.Positional[str] = "leaderboard"
    results: Path = Path("results")  # folder with <preset>/<table>
    preset: str | None = None  # that with the most cells if not given
    force: bool = False  # show results of mixed versions; the table says so
    readme: Path | None = None  # also write the leaderboard between this file's markers
    beside: Path | None = None  # also show what only this results folder's leaderboard has, marked
    json: bool = False  # print the rows that the .csv holds as JSON, and nothing else


def summarise(cell: pd.DataFrame, baseline: pd.DataFrame | None) -> dict[str, object]:
    """One row of the leaderboard: statistics over the seeds of a cell."""
    score = cell["score"].to_numpy()
    middle, tail = stats.seed_bootstrap(score), stats.cvar_bootstrap(score)
    violated = stats.seed_bootstrap(cell["violated"].to_numpy(), np.mean)
    any_violation = stats.share_of_seeds(cell["violated"].to_numpy() > 0)
    row: dict[str, object] = {
        "method": cell["method"].iloc[0],
        "variant": cell["variant"].iloc[0],
        "data": cell["dataset"].iloc[0],
        "seeds": len(cell),
        "starts": int(cell["num_starts"].iloc[0]),
        "gap closed": cell["gap_closed"].mean(),
        "gap closed, median": cell["gap_closed_median"].median(),
        "of starts": int(cell["gap_starts"].iloc[0]),
        "score mean": score.mean(),
        "score median": np.median(score),
        "score IQM": middle.value,
        "IQM low": middle.low,
        "IQM high": middle.high,
        "95 % interval": interval_text(middle),
        **with_bounds("score CVaR 5 %", tail),
        "worst seed": score.min(),
        "worst start": cell["worst_score"].min(),
        "return mean": cell["episode_return"].mean(),
        **with_bounds("P(violation)", violated),
        "P(runaway)": cell["runaway"].mean(),
        **with_bounds("P(seed has a violation)", any_violation),
        "violation steps": cell["violation_steps"].mean(),
        "peak K": cell["max_peak_temperature"].max(),
        "offset P kg/m3": cell["offset_polymer"].mean(),
        "offset T K": cell["offset_temperature"].mean(),
        "settling h": cell["settling_time"].mean(),
        "IAE P kg h/m3": cell["iae_polymer"].mean(),
        "IAE T K h": cell["iae_temperature"].mean(),
        "input movement": cell["input_movement"].mean(),
        "solver failures": cell["solver_failed"].mean(),
        "doomed while live": cell["doomed_share"].mean(),
        "first doomed h": cell["first_doomed"].median(),
        "lead h": cell["lead"].median(),
        "excess over oracle": cell["excess_over_oracle"].max(),
        "excess over unconstrained": cell["excess_over_unconstrained"].max(),
    }
    for limit in COST_LIMITS:
        cost = stats.normalised_cost(cell["violation_steps"].mean(), limit)
        row[f"normalised cost L={limit}"] = cost
    if baseline is not None:
        row |= with_bounds("P(improvement over BC)", improvement([cell], [baseline]))
    return row


def with_bounds(name: str, found: stats.Interval) -> dict[str, float]:
    """A statistic and the bounds of its interval as three columns."""
    return {name: found.value, f"{name} low": found.low, f"{name} high": found.high}


def improvement(cells: list[pd.DataFrame], baselines: list[pd.DataFrame]) -> stats.Interval:
    """P(a seed scores above one of the baseline), a cell a scenario; of the baseline itself 0.5,
    without an interval."""
    scores, others = ([cell["score"].to_numpy() for cell in x] for x in (cells, baselines))
    if all(x["hash"].iloc[0] == y["hash"].iloc[0] for x, y in zip(cells, baselines, strict=True)):
        return stats.Interval(0.5, np.nan, np.nan)
    return stats.probability_of_improvement(scores, others)


def method_order(key: tuple[str, ...]):
    """Sorts (method, data set, variant): reference rows first, in their order."""
    method = key[0]
    return METHOD_ORDER.index(method) if method in METHOD_ORDER else len(METHOD_ORDER), key


def with_committed(results: pd.DataFrame, folder: Path) -> pd.DataFrame:
    """Results, and the cells that only another folder has, in its preset with the most cells,
    marked by the column `beside`. `ValueError` where there are none."""
    there = presets_of(Args("leaderboard", folder))[0]
    others = read_results(folder / there / "leaderboard", force=True)
    cell = ["scenario", "dataset", "method", "variant"]
    own = set(results[cell].itertuples(index=False, name=None))
    new = [key not in own for key in others[cell].itertuples(index=False, name=None)]
    found = pd.concat([results.assign(beside=False), others[new].assign(beside=True)])
    found.attrs = {
        name: [*results.attrs[name], *(f"committed: {line}" for line in others.attrs[name])]
        for name in ("left_out", "mixed")
    }
    return found.reset_index(drop=True)


def leaderboard(results: pd.DataFrame) -> pd.DataFrame:
    """All rows of all tables: one a scenario, group of starts, data set and method."""
    unknown = set(results.starts) - set(GROUPS)
    if unknown:
        raise ValueError(f"starts = {', '.join(sorted(unknown))}; allowed: {', '.join(GROUPS)}.")
    rows = []
    for scenario in polycstr_jax.SCENARIOS:
        for group in GROUPS:
            chosen = results[(results.scenario == scenario) & (results.starts == group)]
            cells = dict(list(chosen.groupby(["method", "dataset", "variant"])))
            for key in sorted(cells, key=method_order):
                baseline = cells.get((BASELINE, key[1], "default"))
                row = summarise(cells[key].sort_values("seed"), baseline)
                if key[0] in METHOD_ORDER:
                    row["data"] = "-"
                elif "beside" in cells[key] and cells[key]["beside"].all():
                    row["data"] += " (committed)"
                rows.append({"scenario": scenario, "start group": group, **row})
    return pd.DataFrame(rows)


def aggregate(results: pd.DataFrame) -> pd.DataFrame:
    """All scenarios together: one row a group of starts, data set and method that every scenario
    has. Seeds of all scenarios count alike, and are resampled scenario by scenario."""
    scenarios = [s for s in polycstr_jax.SCENARIOS if s in set(results.scenario)]
    rows = []
    for group in GROUPS if len(scenarios) > 1 else ():
        chosen = results[results.starts == group]
        found = {
            key: cell.sort_values("seed")
            for key, cell in chosen.groupby(["scenario", "method", "dataset", "variant"])
        }
        for key in sorted({key[1:] for key in found}, key=method_order):
            if any((scenario, *key) not in found for scenario in scenarios):
                continue
            cells = [found[scenario, *key] for scenario in scenarios]
            baselines = [found.get((s, BASELINE, key[1], "default")) for s in scenarios]
            row = aggregate_row(cells, baselines)
            if key[0] in METHOD_ORDER:
                row["data"] = "-"
            rows.append({"start group": group, **row})
    return pd.DataFrame(rows)


def aggregate_row(cells: list[pd.DataFrame], baselines: list) -> dict[str, object]:
    """One method: statistics over the seeds of all scenarios, a cell each."""
    scores, violated = ([cell[name].to_numpy() for cell in cells] for name in ("score", "violated"))
    over = stats.Interval(np.nan, np.nan, np.nan)
    if all(baseline is not None for baseline in baselines):
        over = improvement(cells, baselines)
    return {
        "method": cells[0]["method"].iloc[0],
        "variant": cells[0]["variant"].iloc[0],
        "data": cells[0]["dataset"].iloc[0],
        "scenarios": len(cells),
        "seeds": sum(len(cell) for cell in cells),
        "gap closed": np.mean([cell["gap_closed"].mean() for cell in cells]),
        **with_bounds("score IQM", stats.seed_bootstrap(scores)),
        **with_bounds("score CVaR 5 %", stats.cvar_bootstrap(scores)),
        **with_bounds("P(improvement over BC)", over),
        **with_bounds("P(violation)", stats.seed_bootstrap(violated, np.mean)),
        "P(runaway)": np.mean([cell["runaway"].mean() for cell in cells]),
    }


def written(rows: pd.DataFrame, columns: dict[str, tuple[str, int]]) -> pd.DataFrame:
    """Rows whose `columns` are texts, with their intervals where they have one."""
    rows = rows.reset_index(drop=True)
    for name, (shown, digits) in columns.items():
        bounds = rows.reindex(columns=[name, f"{name} low", f"{name} high"])
        texts = []
        for value, *interval in bounds.itertuples(index=False):
            text = formatted(value, f"{{:.{digits}f}}")
            texts.append(
                text if np.isnan(interval[0]) else f"{text} {interval_text(interval, digits)}"
            )
        rows[shown] = texts
    return rows


def formatted(value, pattern: str) -> str:
    """A cell of a printed table; a dash for what is not known."""
    if isinstance(value, float) and np.isnan(value):
        return "-"
    text = pattern.format(value)
    is_zero = isinstance(value, float) and not text.strip("-0.")
    return text.lstrip("-") if is_zero else text  # no -0.0


def rules() -> str:
    """What every table has to say: limit, unit, discount, horizon, scales."""
    params = EnvParams()
    hours = params.max_steps_in_episode * params.reactor.interval / 3600.0
    return (
        f"Cost: 1 for each interval whose peak temperature exceeds {params.temperature_limit:g} K; "
        f"undiscounted, over {params.max_steps_in_episode} intervals ({hours:g} h). Runaway: peak "
        f"above {params.runaway_temperature:g} K. Score: 0 and 100 are the 10th and 99th "
        "percentile of random-gain PI control from nominal starts; gap closed: 0 is the open-loop "
        "step to the new steady inputs, 100 the oracle from the same start, which knows the plant; "
        "neither is bounded below."
    )


def header(results: pd.DataFrame, preset: str) -> str:
    """What stands above the leaderboard."""
    lines = [
        rules(),
        "Gap closed: mean over seeds of the mean, median over seeds of the median, over the starts "
        "from which an optimum is known, whose number is beside it. IQM over seeds with a "
        f"bootstrap interval over seeds; a dash where fewer than {stats.MIN_SEEDS} seeds are there "
        "to resample, or where nothing is known. Doomed while live: share of the intervals, up to "
        "the first violation, from which even the safest policy known violates; first doomed: "
        "when the first of them began, lead: hours from there to the end of the first violating "
        "interval, medians over the episodes that have one.",
        "CVaR 5 %: mean score of the worst twentieth of the seeds. P(improvement over BC): that a "
        "seed scores above one of BC on the same data. Intervals are bootstrap intervals over "
        f"seeds, of the CVaR where it has {stats.MIN_TAIL} seeds; they are not corrected for their "
        "number, no verdict is drawn from them. Where no seed violates, an interval of "
        "P(violation) is a point: the bound then is P(seed has a violation) of the .csv "
        "(docs/statistics.md).",
        "Rows without training: oracle and unconstrained, optimal control with and without the "
        "limit; horizon10 and horizon2, replanning at each interval with that much foresight; "
        "pi_tuned, tuned for the scenario (30,720 candidates on 32 starts, the best 128 and 2,560 "
        "more on 256), pi_tuned_all, one controller for all three; of the 100 PI controllers of "
        "the data, pi_best has the best return on the tune starts, whatever it does to the limit, "
        "pi_safe the best of those that violate it least, pi_median the median; step, the "
        "open-loop step. The other methods were tuned on the tune starts as their pages in "
        "docs/algorithms say: BC 5 variants, IQL 5 (start-up only), the layer of bc+ and iql+ 48 "
        "settings and 12 options, FISOR 11 settings, 8 in start-up, 4 in grade-down, 1 in "
        "grade-up, and 7 ways of choosing an action.",
        provenance_line(results, preset),
    ]
    return "\n\n".join(lines)


def provenance_line(results: pd.DataFrame, preset: str) -> str:
    """Preset, commit, jax, hardware and date of results, and what is wrong with them."""
    lines = [
        f"Preset {preset}; commit {', '.join(sorted(results.commit.unique()))}; "
        f"jax {', '.join(sorted(results.jax.unique()))}; "
        f"{'; '.join(sorted(results.hardware.unique()))}; "
        f"{' to '.join(sorted({results.date.min(), results.date.max()}))}.",
    ]
    if results.attrs.get("mixed"):
        lines.append(mixed_line(results))
    if results.attrs.get("left_out"):
        lines.append(f"LEFT OUT, damaged: {' | '.join(results.attrs['left_out'])}.")
    if beats_an_optimum(results):
        lines.append(f"{BEATEN}: see the columns excess_over of the .csv files.")
    if results.solver_failed.any():
        lines.append("SOLVER FAILURES: see that column of the .csv files.")
    if preset == "smoke":
        lines.append("SMOKE TEST: trained for a few updates only; the numbers mean nothing.")
    return "\n\n".join(lines)


def mixed_line(results: pd.DataFrame) -> str:
    """In what the versions of the cells differ."""
    return f"MIXED VERSIONS: {' | '.join(results.attrs.get('mixed', ()))}."


def beats_an_optimum(results: pd.DataFrame) -> bool:
    """Whether a row saves more of an optimum's cost than is tolerated: then it was not one."""
    known = TOLERANCES.keys() & set(results.columns)
    return any((results[name] > TOLERANCES[name]).any() for name in known)


def to_markdown(table: pd.DataFrame, together: pd.DataFrame, text: str) -> str:
    """The leaderboard as Markdown, `together` of all scenarios."""
    parts = ["# Leaderboard", text]
    for (scenario, group), rows in table.groupby(["scenario", "start group"], sort=False):
        parts.append(f"## {scenario}, {group} starts ({rows['starts'].iloc[0]} a seed)")
        parts.append(markdown_table(written(rows, WITH_INTERVAL), COLUMNS))
    if len(together):
        parts += ["## All scenarios together", " ".join(aggregate.__doc__.split())]
        parts.append("![performance profiles](profiles.png)")
        columns = {"score IQM": ("score IQM", 1), **WITH_INTERVAL}
        for group, rows in together.groupby("start group", sort=False):
            parts.append(f"### {group} starts")
            parts.append(markdown_table(written(rows, columns), AGGREGATE_COLUMNS))
    return "\n\n".join(parts) + "\n"


def markdown_table(rows: pd.DataFrame, columns: dict[str, str]) -> str:
    """Rows as a Markdown table; `columns` says how each column is written."""
    lines = [
        "| " + " | ".join(columns) + " |",
        "|" + "---|" * len(columns),
        *(
            "| " + " | ".join(formatted(row[c], p) for c, p in columns.items()) + " |"
            for row in rows.to_dict("records")
        ),
    ]
    return "\n".join(lines)


def print_table(title: str, rows: pd.DataFrame, columns: dict[str, str]) -> None:
    """A table on the terminal; numbers to the right."""
    shown = Table(title=title, title_justify="left")
    for name, pattern in columns.items():
        is_text = pattern == "{}" and "interval" not in name
        shown.add_column(name, justify="left" if is_text else "right", no_wrap=True)
    for row in rows.to_dict("records"):
        shown.add_row(*(formatted(row[c], p) for c, p in columns.items()))
    rich.print(shown)


# --- The tables of arXiv 2507.22640 ---

PAPER_SCORES = {  # (scenario, method, statistic) -> the paper's normalised reward, where known
    ("startup", "bc", "mean"): 41.2,
    ("startup", "iql", "mean"): 98.6,
    ("startup", "iql", "min"): 72.7,
    ("startup", "iql+", "min"): 81.1,
    ("grade_up", "bc", "mean"): 4.7,
    ("grade_up", "bc+", "mean"): 66.9,
}
PICNN_GROUPS = ("nominal", "wide")
PICNN_VARIANTS = ("default", "published", "paper", "one-step", "linear", "nn")
PICNN_METHODS = (*REFERENCES, "bc", "bc+", "iql", "iql+")
PICNN_COLUMNS = {
    "method": "{}",
    "variant": "{}",
    "seeds": "{:d}",
    "gap closed": "{:.1f}",
    "mean": "{:.1f}",
    "std": "{:.1f}",
    "min": "{:.1f}",
    "max": "{:.1f}",
    "mean, data's min-max": "{:.1f}",
    "min, data's min-max": "{:.1f}",
    "paper mean": "{:.1f}",
    "paper min": "{:.1f}",
    "IQM": "{:.1f}",
    "95 % interval": "{}",
    "worst seed": "{:.1f}",
    "CVaR 5 %": "{:.1f}",
    "P(violation)": "{:.3f}",
    "P(runaway)": "{:.3f}",
    "offset P kg/m3": "{:+.2f}",
}


def picnn_row(cell: pd.DataFrame, scenario: str) -> dict[str, object]:
    """The paper's statistics over all episodes of a cell, and ours over its seeds."""
    score, method = cell["score"].to_numpy(), cell["method"].iloc[0]
    middle = stats.seed_bootstrap(score)
    low, high = cell["data_low"].iloc[0], cell["data_high"].iloc[0]
    # Both scores are linear in the return, so one is linear in the other.
    zero, hundred = evaluate.score(np.asarray([low, high]), scenario)
    variant = cell["variant"].iloc[0]
    known = PAPER_SCORES if cell["starts"].iloc[0] == "nominal" else {}
    return {
        "method": method,
        "variant": "-" if method in METHOD_ORDER else variant,
        "seeds": len(cell),
        "gap closed": cell["gap_closed"].mean(),
        "mean": score.mean(),
        "std": np.sqrt(np.mean(cell["score_std"] ** 2) + np.var(score)),
        "min": cell["worst_score"].min(),
        "max": cell["best_score"].max(),
        "mean, data's min-max": 100.0 * (score.mean() - zero) / (hundred - zero),
        "min, data's min-max": 100.0 * (cell["worst_score"].min() - zero) / (hundred - zero),
        "paper mean": known.get((scenario, method, "mean"), np.nan),
        "paper min": known.get((scenario, method, "min"), np.nan),
        "IQM": middle.value,
        "95 % interval": interval_text(middle),
        "worst seed": score.min(),
        "CVaR 5 %": stats.cvar(score),
        "P(violation)": cell["violated"].mean(),
        "P(runaway)": cell["runaway"].mean(),
        "offset P kg/m3": cell["offset_polymer"].mean(),
    }


ORDERINGS = (  # claim, (method, variant) that should be better, the other, column compared
    ("IQL over BC", ("iql", "default"), ("bc", "default"), "score"),
    ("IQL over BC, published track", ("iql", "published"), ("bc", "published"), "score"),
    ("BC+ over BC", ("bc+", "default"), ("bc", "default"), "score"),
    ("BC+ over BC, published track", ("bc+", "published"), ("bc", "published"), "score"),
    ("IQL+ over IQL", ("iql+", "default"), ("iql", "default"), "score"),
    ("minimum of IQL+ over IQL's", ("iql+", "default"), ("iql", "default"), "worst_score"),
    ("discounted target over one-step, BC+", ("bc+", "default"), ("bc+", "one-step"), "score"),
    ("discounted target over one-step, IQL+", ("iql+", "default"), ("iql+", "one-step"), "score"),
    ("PICNN over standard network, BC+", ("bc+", "default"), ("bc+", "nn"), "score"),
    ("PICNN over standard network, IQL+", ("iql+", "default"), ("iql+", "nn"), "score"),
)


CLAIM_KEYS = ["scenario", "start group"]


def orderings(results: pd.DataFrame) -> pd.DataFrame:
    """Differences seed by seed: their IQM and mean over seeds, with bootstrap intervals.

    A layer wraps the policy of the same seed, so these differences are paired; BC and IQL of a
    seed share no more than their batches. A claim holds if the interval of the IQM is above 0,
    fails if it is below; `corrected` is the verdict where all rows are to hold together. The mean
    tells of the rare runaways that the IQM trims.
    """
    pairs = list(ordered_pairs(results))
    judged = sum(difference.size >= stats.MIN_SEEDS for *_, difference in pairs)
    rows = []
    for scenario, group, claim, difference in pairs:
        middle = stats.seed_bootstrap(difference)
        corrected = stats.seed_bootstrap(difference, comparisons=judged)
        mean = stats.seed_bootstrap(difference, np.mean)
        rows.append(
            {
                "scenario": scenario,
                "start group": group,
                "claim": claim,
                "IQM of the difference": middle.value,
                "95 % interval": interval_text(middle),
                "mean of the difference": mean.value,
                "95 % interval of the mean": interval_text(mean),
                "seeds better": f"{(difference > 0).sum()} of {difference.size}",
                "verdict": verdict(middle, above="holds", below="fails"),
                "corrected interval": interval_text(corrected),
                "corrected": verdict(corrected, above="holds", below="fails"),
            }
        )
    found = pd.DataFrame(rows)
    found.attrs["comparisons"] = judged
    return found


def ordered_pairs(results: pd.DataFrame):
    """(scenario, group of starts, claim, differences (S,)) of the claims whose cells are there."""
    for scenario in polycstr_jax.SCENARIOS:
        for group in PICNN_GROUPS:
            chosen = results[(results.scenario == scenario) & (results.starts == group)]
            cells = {k: c.set_index("seed") for k, c in chosen.groupby(["method", "variant"])}
            for claim, better, worse, column in ORDERINGS:
                if better in cells and worse in cells:
                    difference = (cells[better][column] - cells[worse][column]).dropna()
                    yield scenario, group, claim, difference.to_numpy()


def picnn_tables(results: pd.DataFrame) -> pd.DataFrame:
    """One row a scenario, group of starts, method and variant."""
    rows = []
    for scenario in polycstr_jax.SCENARIOS:
        for group in PICNN_GROUPS:
            chosen = results[(results.scenario == scenario) & (results.starts == group)]
            cells = dict(list(chosen.groupby(["method", "variant"])))
            for variant in PICNN_VARIANTS:
                for method in PICNN_METHODS:
                    if (method, variant) in cells:
                        row = picnn_row(cells[method, variant], scenario)
                        rows.append({"scenario": scenario, "start group": group, **row})
    return pd.DataFrame(rows)


def picnn_markdown(table: pd.DataFrame, claims: pd.DataFrame, text: str) -> str:
    """The tables and the orderings as Markdown."""
    parts = ["# Tables of arXiv 2507.22640", text]
    for (scenario, group), rows in table.groupby(["scenario", "start group"], sort=False):
        parts.append(f"## {scenario}, {group} starts")
        parts.append(markdown_table(rows, PICNN_COLUMNS))
    columns = {n: "{:.1f}" if n.endswith("of the difference") else "{}" for n in claims.columns}
    parts += ["## Orderings", " ".join(orderings.__doc__.split())]
    parts += filter(None, [correction(claims.attrs["comparisons"])])
    parts.append(markdown_table(claims, columns))
    return "\n\n".join(parts) + "\n"


PICNN_HEADER = (
    "64 starts a seed. Mean, std, min and max are over all episodes of all seeds; the score's 0 "
    "and 100 are the 10th and 99th percentile of random-gain PI control, and the paper's are, as "
    "far as known, the least and the largest return of its data's 100 episodes: the columns "
    "`data's min-max` are so scaled by ours. The paper's absolute numbers rest on set-points, "
    "starts and training that it does not state: compare orderings. IQM, interval, worst seed and "
    "CVaR are over seeds. Variants: `default`; `published` track (6 observations, min-max actions, "
    "tanh head); `paper` (plain steps down the one-step cost); `one-step` target, `linear` state "
    "path and standard network `nn`. Of the default and these three, each has the best of the same "
    "48 settings of K, eta and gate, `paper` of 24, on the tune starts and on other seeds; the "
    "published track takes the default's."
)


def write_picnn(results: pd.DataFrame, folder: Path, preset: str) -> None:
    """Print and write the tables of arXiv 2507.22640."""
    results = results[results.starts.isin(PICNN_GROUPS)]
    table, claims = picnn_tables(results), orderings(results)
    shown = ("method", "variant", "mean", "std", "min", "paper mean", "P(runaway)")
    for (scenario, group), rows in table.groupby(["scenario", "start group"], sort=False):
        print_table(f"{scenario}, {group} starts", rows, {c: PICNN_COLUMNS[c] for c in shown})
    for (scenario, group), rows in claims.groupby(CLAIM_KEYS, sort=False) if len(claims) else ():
        columns = {"claim": "{}", "95 % interval": "{}", "verdict": "{}"}
        print_table(f"{scenario}, {group} starts", rows, columns)
    text = "\n\n".join([rules(), PICNN_HEADER, provenance_line(results, preset)])
    rich.print(text)
    write_all(
        folder,
        {
            "picnn.md": picnn_markdown(table, claims, text),
            "picnn.csv": table.to_csv(index=False, float_format="%.6g"),
            "picnn-orderings.csv": claims.to_csv(index=False, float_format="%.6g"),
        },
    )


def write_robustness(results: pd.DataFrame, folder: Path, preset: str) -> None:
    """Print and write the tables of the robustness suite, and its figure."""
    found = robustness_tables.table(results, METHOD_ORDER)
    for scenario in found.scenario.unique():
        for column in robustness_tables.CURVES:
            rows = robustness_tables.wide(found, scenario, column).reset_index()
            pattern = "{:.0f}" if column.startswith("gap") else "{:.2f}"
            columns = {"method": "{}"} | dict.fromkeys(rows.columns[1:], pattern)
            print_table(f"{scenario}: {column}", rows, columns)
    text = "\n\n".join([rules(), robustness_tables.header(found), provenance_line(results, preset)])
    rich.print(text)
    write_all(
        folder,
        {
            "robustness.md": robustness_tables.markdown(found, text, markdown_table),
            "robustness.csv": found.to_csv(index=False, float_format="%.6g"),
        },
    )
    robustness_tables.figure(found, folder / "robustness.png")


def write_fisor(results: pd.DataFrame, folder: Path, preset: str) -> None:
    """Print and write the tables of arXiv 2401.10700."""
    found, compared = fisor_tables.table(results, METHOD_ORDER), fisor_tables.claims(results)
    shown = ("method", "variant", "data", "gap closed", "cost L=0", "P(violation)", "P(runaway)")
    columns = {name: fisor_tables.COLUMNS[name] for name in shown}
    for (scenario, name), rows in found.groupby(["scenario", "condition"], sort=False):
        print_table(f"{scenario}, {name}", rows, columns)
    absent = fisor_tables.missing(results)
    not_run = [f"Not run: {'; '.join(absent)}."] if absent else []
    text = "\n\n".join([rules(), fisor_tables.HEADER, *not_run, provenance_line(results, preset)])
    rich.print(text)
    write_all(
        folder,
        {
            "fisor.md": fisor_tables.markdown(found, compared, text, markdown_table),
            "fisor.csv": found.to_csv(index=False, float_format="%.6g"),
            "fisor-comparisons.csv": compared.to_csv(index=False, float_format="%.6g"),
        },
    )


def write_marvel(results: pd.DataFrame, folder: Path, preset: str) -> None:
    """Print and write the tables of arXiv 2412.04426, with a figure a scenario."""
    whole = set(results[["scenario", "method", "variant"]].itertuples(index=False, name=None))
    curves = marvel_tables.read_curves(folder / "marvel", whole)
    found, compared = marvel_tables.table(results, curves), marvel_tables.claims(results, curves)
    shown = ("method", "variant", "violating intervals", "runaways", "gap closed")
    for scenario, rows in found.groupby("scenario", sort=False):
        print_table(scenario, rows, {name: marvel_tables.COLUMNS[name] for name in shown})
        path = folder / f"marvel-{scenario}.png"
        marvel_tables.figure(curves, scenario, path)
    absent = marvel_tables.missing(results)
    not_run = [f"Not run: {'; '.join(absent)}."] if absent else []
    text = "\n\n".join([rules(), marvel_tables.HEADER, *not_run, provenance_line(results, preset)])
    rich.print(text)
    write_all(
        folder,
        {
            "marvel.md": marvel_tables.markdown(found, compared, text, markdown_table),
            "marvel.csv": found.to_csv(index=False, float_format="%.6g"),
            "marvel-comparisons.csv": compared.to_csv(index=False),
        },
    )


def write_leaderboard(results: pd.DataFrame, folder: Path, preset: str) -> None:
    """Print and write the leaderboard, its aggregate over scenarios, and performance profiles."""
    table, together = leaderboard(results), aggregate(results)
    text = header(results, preset)
    for (scenario, group), rows in table.groupby(["scenario", "start group"], sort=False):
        print_table(f"{scenario}, {group} starts", rows, TERMINAL_COLUMNS)
    rich.print(text)
    texts = {
        "leaderboard.md": to_markdown(table, together, text),
        "leaderboard.csv": table.to_csv(index=False, float_format="%.6g"),
    }
    if len(together):
        texts["leaderboard-aggregate.csv"] = together.to_csv(index=False, float_format="%.6g")
    write_all(folder, texts)
    profiles.figure(results, METHOD_ORDER, folder / "profiles.png")


def write_seeds(results: pd.DataFrame, folder: Path, preset: str) -> None:
    """Print and write how many seeds are enough."""
    found = seed_tables.table(results, METHOD_ORDER)
    if not len(found):
        raise SystemExit(f"no trained method has {stats.MIN_SEEDS} seeds in {folder}.")
    for (scenario, quantity), rows in found.groupby(["scenario", "quantity"], sort=False):
        shown = seed_tables.shown(rows, quantity)
        columns = dict.fromkeys([c for c in shown if not c.isdigit()], "{}")
        print_table(f"{scenario}: {quantity}, seeds for a half-width of", shown, columns)
    text = "\n\n".join([rules(), seed_tables.HEADER, provenance_line(results, preset)])
    rich.print(text)
    write_all(
        folder,
        {
            "seeds.md": seed_tables.markdown(found, text, markdown_table),
            "seeds.csv": found.to_csv(index=False, float_format="%.6g"),
        },
    )


def readme_block(results: pd.DataFrame, preset: str) -> str:
    """The README's leaderboard, nominal starts: a table a scenario, and what it is made from."""
    table = leaderboard(results[results.starts == "nominal"])
    parts = []
    for scenario, rows in table.groupby("scenario", sort=False):
        shown = pd.DataFrame({name: rows[column] for name, (column, _) in README_COLUMNS.items()})
        patterns = {name: pattern for name, (_, pattern) in README_COLUMNS.items()}
        parts += [f"**{scenario}**", markdown_table(shown, patterns)]
    made = provenance_line(results, preset)
    if results.attrs.get("mixed"):
        there = f"results/{preset}/leaderboard.md"
        short = f"The cells are of several versions of the code: [{there}]({there})."
        made = made.replace(mixed_line(results), short)
    return "\n\n".join([*parts, made])


def between_markers(text: str, path: Path) -> tuple[str, str, str]:
    """A file's text before, between and after its markers; `ValueError` unless each is there
    once, in order."""
    counts = text.count(README_BEGIN), text.count(README_END)
    if counts != (1, 1) or text.index(README_BEGIN) > text.index(README_END):
        raise ValueError(
            f"{path} has to hold these two lines once each, in this order, with the leaderboard "
            f"between them:\n{README_BEGIN}\n{README_END}"
        )
    before, rest = text.split(README_BEGIN)
    block, after = rest.split(README_END)
    return before, block.strip("\n"), after


def write_readme(path: Path, results: pd.DataFrame, preset: str) -> None:
    """Rewrite the README's leaderboard, whole or not at all."""
    before, _, after = between_markers(path.read_text(), path)
    block = readme_block(results, preset)
    text = f"{before}{README_BEGIN}\n\n{block}\n\n{README_END}{after}"
    write_atomically(path, lambda file: file.write(text.encode()))
    rich.print(f"written: {path}")


def write_all(folder: Path, texts: dict[str, str]) -> None:
    """Write texts atomically to files named by the keys."""
    for name, content in texts.items():
        write_atomically(folder / name, lambda file, content=content: file.write(content.encode()))
        rich.print(f"written: {folder / name}")


def check_readme(args: Args, preset: str, fullest: str) -> None:
    """`SystemExit` unless the README's leaderboard can be written from this preset."""
    if args.table != "leaderboard":
        raise SystemExit(f"--readme is of the table leaderboard, not of {args.table}.")
    if preset == "smoke" or preset != fullest:
        raise SystemExit(
            f"--readme shows the preset with the most cells, and no smoke test; of {args.results} "
            f"that is {fullest}, asked for is {preset}."
        )
    try:
        between_markers(args.readme.read_text(), args.readme)
    except (OSError, ValueError) as error:
        raise SystemExit(f"readme: {error}") from error


def presets_of(args: Args) -> list[str]:
    """Presets of which the suite has results, that with the most first; `SystemExit` if not that
    which is asked for."""
    check_known("table", args.table, TABLES)
    if args.preset is not None:
        check_known("preset", args.preset, PRESETS)
    suite = SUITE_OF.get(args.table, args.table)
    found = presets_there(args.results, (suite,))
    if not found or (args.preset and args.preset not in found):
        of = f" of preset {args.preset}" if args.preset else ""
        wanted = f" --preset {args.preset}" if args.preset else ""
        raise SystemExit(
            f"results = {args.results} holds no results of suite {suite}{of}; run python -m "
            f"benchmarks.run{wanted} --suite {suite} --out {args.results} first."
        )
    return found


def main(args: Args) -> None:
    found = presets_of(args)
    preset = args.preset or found[0]
    if args.readme is not None:
        check_readme(args, preset, found[0])
    folder = args.results / preset
    try:
        results = read_results(folder / SUITE_OF.get(args.table, args.table), args.force)
        if args.beside is not None:
            if args.table != "leaderboard":
                raise SystemExit(f"--beside is of the table leaderboard, not of {args.table}.")
            results = with_committed(results, args.beside)
    except ValueError as error:
        raise SystemExit(str(error)) from error
    writers = {
        "leaderboard": write_leaderboard,
        "seeds": write_seeds,
        "picnn": write_picnn,
        "robustness": write_robustness,
        "fisor": write_fisor,
        "marvel": write_marvel,
    }
    # What is for people goes to stderr if what is for machines is asked for.
    said = contextlib.redirect_stdout(sys.stderr) if args.json else contextlib.nullcontext()
    with said:
        writers[args.table](results, folder, preset)
    if beats_an_optimum(results):
        raise SystemExit(f"{BEATEN}: see the columns excess_over of the .csv files.")
    if args.readme is not None:
        with said:
            write_readme(args.readme, results, preset)
    if args.json:
        rows = pd.read_csv(folder / f"{args.table}.csv").to_json(orient="records")
        about = {"table": args.table, "preset": preset, **results.attrs}
        print(json.dumps(about | {"rows": json.loads(rows)}, indent=1))


if __name__ == "__main__":
    end_with_the_reader()
    main(tyro.cli(Args))
