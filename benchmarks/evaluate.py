"""Evaluate trained policies again: from other starts, on other plants.

    python -m benchmarks.run --preset quick --only iql --save-params --out results/local
    python -m benchmarks.evaluate results/local/quick/leaderboard/startup-pi/iql@default.params

Reads what `benchmarks.run --save-params` has written, plays it under every condition that is named
(start sets, and the changed plants of `benchmarks.conditions`), and prints a row a condition; with
`--out` it also writes a row a seed and group of starts, as `benchmarks.run` does. From the same
starts the rows are those of the cell.
"""

import dataclasses
import json
import sys
from pathlib import Path

import jax
import numpy as np
import pandas as pd
import rich
import tyro

from algos import checkpoints
from benchmarks import conditions, training_sets
from benchmarks.plan import CACHE, EVALUATION_KEY, Cell
from benchmarks.results import check_known
from benchmarks.tables import print_table
from benchmarks.worker import ENV, see_doom, to_rows
from polycstr_jax import evaluate
from polycstr_jax.data import write_atomically
from polycstr_jax.pipes import end_with_the_reader

CONDITIONS = {
    c.name: c
    for c in (*conditions.of_starts(*evaluate.START_SETS), *conditions.SUITE, *conditions.FISOR)
}
COLUMNS = {
    "starts": "{}",
    "seeds": "{:d}",
    "gap_closed": "{:.1f}",
    "score": "{:.1f}",
    "violated": "{:.3f}",
    "runaway": "{:.3f}",
    "violation_steps": "{:.2f}",
}


@dataclasses.dataclass
class Args:
    """Evaluate policies that benchmarks.run --save-params has written.

    Conditions: starts (nominal, wide, hot, tune), and changed plants, from nominal starts: "noise
    0.1", "fouling 10", "kinetics -10", "feed 2", "delay 1" and so on (docs/robustness.md); the name
    of none makes it list them all. Exit codes: 0, done; 1 or 2, not, and stderr says why.
    """

    params: tyro.conf.Positional[Path]  # <cell>.params
    conditions: tuple[str, ...] = ("nominal", "wide", "hot")  # under which they act, in this order
    out: Path | None = None  # .csv of a row a seed and group of starts
    json: bool = False  # print the means as JSON, and nothing else


def load(path: Path):
    """The `Algorithm`, the states of each part, and how they were made. `SystemExit` if there is
    nothing, or it is damaged or of another version."""
    parts = sorted((p for p in path.glob("*") if p.name.isdigit()), key=lambda p: int(p.name))
    if not parts:
        raise SystemExit(
            f"params = {path} holds no policies; allowed: a folder <cell>.params that "
            "python -m benchmarks.run --save-params has written."
        )
    states, seeds, settings_of = [], 0, None
    try:
        for part in parts:
            made = checkpoints.described(part)
            if made["seed"] != seeds or settings_of not in (None, of_algorithm(made)):
                raise ValueError(
                    f"{part} begins with seed {made['seed']}; allowed: parts of one run, with all "
                    f"seeds, so {seeds} here. (Hosts without a common folder keep their own.)"
                )
            seeds, settings_of = seeds + made["num_seeds"], of_algorithm(made)
            data = training_sets.load(made["scenario"], made["dataset"])
            same = {name: made[name] for name in ("algorithm", "num_seeds")}
            algorithm, state = checkpoints.load(part, data, acting=True, **same)
            states.append(state)
    except ValueError as error:
        raise SystemExit(f"params = {error}") from error
    return algorithm, states, made


def play(algorithm, states, cell: Cell, condition) -> list[dict]:
    """Rows of all seeds under one condition."""
    found = [
        jax.device_get(
            evaluate.evaluate_policies(
                ENV,
                conditions.params(cell.scenario, condition),
                algorithm.policy,
                state,
                evaluate.start_states(evaluate.starts(cell.scenario, condition.starts)),
                evaluate.score_limits(cell.scenario),
                jax.random.key(EVALUATION_KEY),
                see_doom,
            )
        )
        for state in states
    ]
    metrics, (doom, _) = jax.tree.map(lambda *x: np.concatenate(x), *found)
    return to_rows(cell, condition, (metrics, doom))


def main(args: Args) -> None:
    if not args.conditions:
        raise SystemExit(f"conditions: none; allowed: {', '.join(CONDITIONS)}.")
    for name in args.conditions:
        check_known("conditions", name, list(CONDITIONS))
    jax.config.update("jax_compilation_cache_dir", str(CACHE / "jax"))
    algorithm, states, made = load(args.params)
    cell = Cell(made["scenario"], made["dataset"], made["algorithm"], args.params.stem, {})
    rows = [row for c in args.conditions for row in play(algorithm, states, cell, CONDITIONS[c])]
    table = pd.DataFrame(rows)
    if args.out is not None:
        text = table.to_csv(index=False, float_format="%.6g")
        try:
            write_atomically(args.out, lambda file: file.write(text.encode()))
        except OSError as error:
            raise SystemExit(f"out = {args.out}: {error}") from error
    numbers = [name for name in table.columns if name not in ("seed", "starts")]
    means = table.groupby("starts", sort=False)[numbers].mean()
    means.insert(0, "seeds", table.groupby("starts", sort=False).size())
    means = means.reset_index()
    if args.json:
        json.dump(
            {"made": settings(made), "rows": json.loads(means.to_json(orient="records"))},
            sys.stdout,
        )
        return
    title = f"{made['algorithm']} on {made['scenario']} ({made['dataset']}): means over seeds"
    print_table(title, means, COLUMNS)
    if args.out is not None:
        rich.print(f"written: {args.out}")


def of_algorithm(made: dict) -> list:
    """What the parts of a run have in common."""
    names = ("algorithm", "scenario", "dataset", "config", "base_config")
    return [made.get(name) for name in names]


def settings(made: dict) -> dict:
    """How policies were made, without the form of their states."""
    return {name: value for name, value in made.items() if name != "tree"}


if __name__ == "__main__":
    end_with_the_reader()
    main(tyro.cli(Args))
