"""Print the leaderboard or a paper's table of a results folder, and write it as Markdown and CSV.

    python -m benchmarks.tables [leaderboard] [--results results] [--preset quick]
    python -m benchmarks.tables picnn
    python -m benchmarks.tables robustness
    python -m benchmarks.tables fisor
    python -m benchmarks.tables marvel

One table a scenario and group of starts. Doomed starts, from which the safest known policy
violates the limit, are a group of their own. Same results, same bytes. Where a row beats an
optimum of `polycstr_jax/oracle.npz`, the tables say so and the exit status is 1.
"""

import dataclasses
import json
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import rich
import tyro
from rich.table import Table

import polycstr_jax
from benchmarks import fisor_tables, marvel_tables, robustness_tables
from benchmarks.run import REFERENCES
from polycstr_jax import evaluate, stats
from polycstr_jax.data import write_atomically
from polycstr_jax.env import EnvParams

# Of an optimum's cost; a row that saves more than that has found a bug. The environment replays
# an optimum to 1e-5.
TOLERANCES = {"excess_over_oracle": 1e-3, "excess_over_unconstrained": 1e-4}
BEATEN = "A ROW BEATS AN OPTIMUM"
COST_LIMITS = (0, 2, 5)  # intervals per episode
PRESETS = ("full", "quick", "smoke")  # the largest that is there is shown
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
    "worst seed": "{:.1f}",
    "worst start": "{:.1f}",
    "P(violation)": "{:.3f}",
    "P(runaway)": "{:.3f}",
    "violation steps": "{:.2f}",
    "offset P kg/m3": "{:+.2f}",
    "settling h": "{:.1f}",
    "doomed while live": "{:.4f}",
    "first doomed h": "{:.1f}",
    "lead h": "{:.1f}",
}

TERMINAL_COLUMNS = (  # these fit into 80 characters
    "method",
    "data",
    "gap closed",
    "score IQM",
    "worst seed",
    "P(violation)",
    "P(runaway)",
)
REQUIRED = {
    *("seed", "starts", "score", "violated", "runaway"),
    *("gap_closed", "gap_closed_median", "gap_starts"),
    *("excess_over_oracle", "excess_over_unconstrained"),
}


@dataclasses.dataclass
class Args:
    """Print and write the leaderboard, or the tables of a paper."""

    table: tyro.conf.Positional[
        Literal["leaderboard", "picnn", "robustness", "fisor", "marvel"]
    ] = "leaderboard"
    results: Path = Path("results")  # folder with <preset>/<table>
    preset: str | None = None  # full, quick or smoke; the largest there is if not given


def read_results(folder: Path) -> pd.DataFrame:
    """All finished cells of a folder, one row a seed and group of starts.

    A .csv without its .json is being written, and left out. Raises `ValueError` where there is
    nothing, and for a file without `REQUIRED` columns.
    """
    frames = []
    for path in sorted(folder.glob("*/*.csv")):
        if not path.with_suffix(".json").exists():
            continue
        frame = pd.read_csv(path)
        missing = REQUIRED - set(frame.columns)
        if missing:
            raise ValueError(
                f"{path} lacks the columns {', '.join(sorted(missing))}: it is of an older "
                "version; run benchmarks.run again."
            )
        scenario, dataset = path.parent.name.split("-")
        method, variant = path.stem.split("@")
        info = json.loads(path.with_suffix(".json").read_text())
        low, high = info.get("data_returns", (np.nan, np.nan))
        frames.append(
            frame.assign(
                scenario=scenario,
                dataset=dataset,
                method=method,
                variant=variant,
                hash=info["hash"],
                data_low=low,
                data_high=high,
                hardware=info["hardware"],
                jax=info["versions"]["jax"],
                commit=info["commit"],
                date=info["date"],
            )
        )
    if not frames:
        raise ValueError(f"{folder} holds no results; run python -m benchmarks.run first.")
    return pd.concat(frames, ignore_index=True)


def summarise(cell: pd.DataFrame, baseline: pd.DataFrame | None) -> dict[str, object]:
    """One row of the leaderboard: statistics over the seeds of a cell."""
    score = cell["score"].to_numpy()
    middle = stats.seed_bootstrap(score)
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
        "score CVaR 5 %": stats.cvar(score),
        "worst seed": score.min(),
        "worst start": cell["worst_score"].min(),
        "return mean": cell["episode_return"].mean(),
        "P(violation)": cell["violated"].mean(),
        "P(runaway)": cell["runaway"].mean(),
        "P(seed has a violation)": any_violation.value,
        "P(seed has a violation) low": any_violation.low,
        "P(seed has a violation) high": any_violation.high,
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
        row["P(improvement over BC)"] = stats.probability_of_improvement(
            score, baseline["score"].to_numpy()
        ).value
    return row


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

            def order(key):
                method = key[0]
                known = METHOD_ORDER.index(method) if method in METHOD_ORDER else len(METHOD_ORDER)
                return (known, key)

            for key in sorted(cells, key=order):
                baseline = cells.get((BASELINE, key[1], "default"))
                row = summarise(cells[key].sort_values("seed"), baseline)
                if key[0] in METHOD_ORDER:
                    row["data"] = "-"
                rows.append({"scenario": scenario, "start group": group, **row})
    return pd.DataFrame(rows)


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
    if beats_an_optimum(results):
        lines.append(f"{BEATEN}: see the columns excess_over of the .csv files.")
    if results.solver_failed.any():
        lines.append("SOLVER FAILURES: see that column of the .csv files.")
    if preset == "smoke":
        lines.append("SMOKE TEST: trained for a few updates only; the numbers mean nothing.")
    return "\n\n".join(lines)


def beats_an_optimum(results: pd.DataFrame) -> bool:
    """Whether a row saves more of an optimum's cost than is tolerated: then it was not one."""
    known = TOLERANCES.keys() & set(results.columns)
    return any((results[name] > TOLERANCES[name]).any() for name in known)


def to_markdown(table: pd.DataFrame, text: str) -> str:
    """The leaderboard as Markdown."""
    parts = ["# Leaderboard", text]
    for (scenario, group), rows in table.groupby(["scenario", "start group"], sort=False):
        parts.append(f"## {scenario}, {group} starts ({rows['starts'].iloc[0]} a seed)")
        parts.append(markdown_table(rows, COLUMNS))
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


def interval_text(interval: stats.Interval) -> str:
    """[low, high], or a dash where there is none."""
    return "-" if np.isnan(interval.low) else f"[{interval.low:.1f}, {interval.high:.1f}]"


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
    fails if it is below; the mean tells of the rare runaways that the IQM trims.
    """
    rows = []
    for scenario in polycstr_jax.SCENARIOS:
        for group in PICNN_GROUPS:
            chosen = results[(results.scenario == scenario) & (results.starts == group)]
            cells = {k: c.sort_values("seed") for k, c in chosen.groupby(["method", "variant"])}
            for claim, better, worse, column in ORDERINGS:
                if better not in cells or worse not in cells:
                    continue
                difference = cells[better][column].to_numpy() - cells[worse][column].to_numpy()
                middle = stats.seed_bootstrap(difference)
                mean = stats.seed_bootstrap(difference, np.mean)
                if np.isnan(middle.low):
                    verdict = "too few seeds"
                else:
                    verdict = "holds" if middle.low > 0 else "fails" if middle.high < 0 else "open"
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
                        "verdict": verdict,
                    }
                )
    return pd.DataFrame(rows)


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
    parts += ["## Orderings", " ".join(orderings.__doc__.split()), markdown_table(claims, columns)]
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
    path = folder / "robustness.png"
    write_atomically(path, lambda file: robustness_tables.figure(found, file))
    rich.print(f"written: {path}")


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
    curves = marvel_tables.read_curves(folder / "marvel")
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
    """Print and write the leaderboard."""
    table = leaderboard(results)
    text = header(results, preset)
    for (scenario, group), rows in table.groupby(["scenario", "start group"], sort=False):
        print_table(f"{scenario}, {group} starts", rows, {c: COLUMNS[c] for c in TERMINAL_COLUMNS})
    rich.print(text)
    write_all(
        folder,
        {
            "leaderboard.md": to_markdown(table, text),
            "leaderboard.csv": table.to_csv(index=False, float_format="%.6g"),
        },
    )


def write_all(folder: Path, texts: dict[str, str]) -> None:
    """Write texts atomically to files named by the keys."""
    for name, content in texts.items():
        write_atomically(folder / name, lambda file, content=content: file.write(content.encode()))
        rich.print(f"written: {folder / name}")


def main(args: Args) -> None:
    if args.preset is not None and args.preset not in PRESETS:
        raise SystemExit(f"preset = {args.preset}; allowed: {', '.join(PRESETS)}.")
    found = [p for p in PRESETS if (args.results / p / args.table).is_dir()]
    if not found or (args.preset and args.preset not in found):
        wanted = args.preset or "quick"
        suite = "" if args.table == "leaderboard" else f" --suite {args.table}"
        raise SystemExit(
            f"results = {args.results} holds no results of preset {wanted}; run "
            f"python -m benchmarks.run --preset {wanted}{suite} --out {args.results} first."
        )
    preset = args.preset or found[0]
    try:
        results = read_results(args.results / preset / args.table)
    except ValueError as error:
        raise SystemExit(str(error)) from error
    writers = {
        "leaderboard": write_leaderboard,
        "picnn": write_picnn,
        "robustness": write_robustness,
        "fisor": write_fisor,
        "marvel": write_marvel,
    }
    writers[args.table](results, args.results / preset, preset)
    if beats_an_optimum(results):
        raise SystemExit(f"{BEATEN}: see the columns excess_over of the .csv files.")


if __name__ == "__main__":
    main(tyro.cli(Args))
