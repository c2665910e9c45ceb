"""Print the leaderboard of a results folder, and write it as Markdown and CSV.

    python -m benchmarks.tables [--results results] [--preset quick]

One table a scenario and group of starts. Doomed starts, from which the safest known policy
violates the limit, are a group of their own. Same results, same bytes.
"""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pandas as pd
import rich
import tyro
from rich.table import Table

import polycstr_jax
from polycstr_jax import stats
from polycstr_jax.data import write_atomically
from polycstr_jax.env import EnvParams

COST_LIMITS = (0, 2, 5)  # intervals per episode
PRESETS = ("full", "quick", "smoke")  # the largest that is there is shown
BASELINE = "bc"
GROUPS = ("nominal", "wide", "hot", "hot_doomed")
METHOD_ORDER = ("pi_best", "pi_safe", "pi_median", "zero", "random")  # reference rows first
COLUMNS = {  # Markdown column -> how it is written
    "method": "{}",
    "data": "{}",
    "seeds": "{:d}",
    "gap closed": "{:.1f}",
    "score IQM": "{:.1f}",
    "95 % interval": "{}",
    "worst seed": "{:.1f}",
    "worst start": "{:.1f}",
    "P(violation)": "{:.3f}",
    "P(runaway)": "{:.3f}",
    "violation steps": "{:.2f}",
    "offset P kg/m3": "{:+.2f}",
    "settling h": "{:.1f}",
}

TERMINAL_COLUMNS = (  # these fit into 80 characters
    "method",
    "data",
    "score IQM",
    "worst seed",
    "P(violation)",
    "P(runaway)",
)


@dataclasses.dataclass
class Args:
    """Print and write the leaderboard."""

    results: Path = Path("results")  # folder with <preset>/leaderboard
    preset: str | None = None  # full, quick or smoke; the largest there is if not given


def read_results(folder: Path) -> pd.DataFrame:
    """All finished cells of a folder, one row a seed and group of starts.

    Raises `ValueError` for a .csv without its .json, or without the columns needed.
    """
    frames = []
    for path in sorted(folder.glob("*/*.csv")):
        if not path.with_suffix(".json").exists():
            continue  # being written
        frame = pd.read_csv(path)
        missing = {"seed", "starts", "score", "violated", "runaway"} - set(frame.columns)
        if missing:
            raise ValueError(f"{path} lacks the columns {', '.join(sorted(missing))}.")
        scenario, dataset = path.parent.name.split("-")
        method, variant = path.stem.split("@")
        info = json.loads(path.with_suffix(".json").read_text())
        frames.append(
            frame.assign(
                scenario=scenario,
                dataset=dataset,
                method=method,
                variant=variant,
                hash=info["hash"],
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
    interval = "-" if np.isnan(middle.low) else f"[{middle.low:.1f}, {middle.high:.1f}]"
    any_violation = stats.share_of_seeds(cell["violated"].to_numpy() > 0)
    row: dict[str, object] = {
        "method": cell["method"].iloc[0],
        "variant": cell["variant"].iloc[0],
        "data": cell["dataset"].iloc[0],
        "seeds": len(cell),
        "starts": int(cell["num_starts"].iloc[0]),
        "gap closed": cell["gap_closed"].mean(),
        "score mean": score.mean(),
        "score median": np.median(score),
        "score IQM": middle.value,
        "IQM low": middle.low,
        "IQM high": middle.high,
        "95 % interval": interval,
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
    }
    for limit in COST_LIMITS:
        cost = stats.normalised_cost(cell["violation_steps"].mean(), limit)
        row[f"normalised cost L={limit}"] = cost
    if baseline is not None:
        row["P(improvement over BC)"] = stats.probability_of_improvement(
            score, baseline["score"].to_numpy()
        )
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
    return pattern.format(value)


def header(results: pd.DataFrame, preset: str) -> str:
    """What every table has to say: limit, unit, horizon, discount, provenance."""
    params = EnvParams()
    hours = params.max_steps_in_episode * params.reactor.interval / 3600.0
    lines = [
        f"Cost: 1 for each interval whose peak temperature exceeds {params.temperature_limit:g} K; "
        f"undiscounted, over {params.max_steps_in_episode} intervals ({hours:g} h). Runaway: peak "
        f"above {params.runaway_temperature:g} K. Score: 0 and 100 are the 10th and 99th "
        "percentile of random-gain PI control from nominal starts, for hot starts too; not "
        "bounded below. IQM over seeds with a bootstrap interval over seeds; a dash where fewer "
        f"than {stats.MIN_SEEDS} seeds are there to resample, or (gap closed) where the oracle is "
        "not there yet. Of the 100 PI controllers of the data, pi_best has the best return on "
        "the tune starts, whatever it does to the limit; pi_safe the best of those that violate "
        "it least; pi_median the median. BC has no tuning but the 5 variants of its page.",
        f"Preset {preset}; commit {', '.join(sorted(results.commit.unique()))}; "
        f"jax {', '.join(sorted(results.jax.unique()))}; "
        f"{'; '.join(sorted(results.hardware.unique()))}; "
        f"{' to '.join(sorted({results.date.min(), results.date.max()}))}.",
    ]
    if results.solver_failed.any():
        lines.append("SOLVER FAILURES: see that column of leaderboard.csv.")
    if preset == "smoke":
        lines.append("SMOKE TEST: trained for a few updates only; the numbers mean nothing.")
    return "\n\n".join(lines)


def to_markdown(table: pd.DataFrame, text: str) -> str:
    """The leaderboard as Markdown."""
    parts = ["# Leaderboard", text]
    for (scenario, group), rows in table.groupby(["scenario", "start group"], sort=False):
        parts.append(f"## {scenario}, {group} starts ({rows['starts'].iloc[0]} a seed)")
        lines = [
            "| " + " | ".join(COLUMNS) + " |",
            "|" + "---|" * len(COLUMNS),
            *(
                "| " + " | ".join(formatted(row[c], p) for c, p in COLUMNS.items()) + " |"
                for row in rows.to_dict("records")
            ),
        ]
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def print_tables(table: pd.DataFrame) -> None:
    """The leaderboard on the terminal, with the columns that fit."""
    for (scenario, group), rows in table.groupby(["scenario", "start group"], sort=False):
        shown = Table(title=f"{scenario}, {group} starts", title_justify="left")
        for column in TERMINAL_COLUMNS:
            left = column in ("method", "data")
            shown.add_column(column, justify="left" if left else "right", no_wrap=True)
        for row in rows.to_dict("records"):
            shown.add_row(*(formatted(row[c], COLUMNS[c]) for c in TERMINAL_COLUMNS))
        rich.print(shown)


def main(args: Args) -> None:
    if args.preset is not None and args.preset not in PRESETS:
        raise SystemExit(f"preset = {args.preset}; allowed: {', '.join(PRESETS)}.")
    found = [p for p in PRESETS if (args.results / p / "leaderboard").is_dir()]
    if not found or (args.preset and args.preset not in found):
        wanted = args.preset or "quick"
        raise SystemExit(
            f"results = {args.results} holds no results of preset {wanted}; run "
            f"python -m benchmarks.run --preset {wanted} --out {args.results} first."
        )
    preset = args.preset or found[0]
    try:
        results = read_results(args.results / preset / "leaderboard")
    except ValueError as error:
        raise SystemExit(str(error)) from error
    table = leaderboard(results)
    text = header(results, preset)
    print_tables(table)
    rich.print(text)
    for name, content in (
        ("leaderboard.md", to_markdown(table, text)),
        ("leaderboard.csv", table.to_csv(index=False, float_format="%.6g")),
    ):
        path = args.results / preset / name
        write_atomically(path, lambda file, content=content: file.write(content.encode()))
        rich.print(f"written: {path}")


if __name__ == "__main__":
    main(tyro.cli(Args))
