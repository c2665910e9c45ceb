"""Run the benchmark and write its results; resumable.

    python -m benchmarks.run --preset quick

A cell is one method on one scenario and data set. It is written as
`<out>/<preset>/leaderboard/<scenario>-<dataset>/<method>@<variant>.csv`, one row for each seed
and group of starts, with a `.json` beside it that says how it was made. A cell whose
configuration has the same hash is not run again. Cells appear whole or not at all.

Presets: `smoke` (CI: far too short to learn anything), `quick` (full updates, few seeds),
`full` (1,000 seeds; for an accelerator).
"""

import dataclasses
import fcntl
import hashlib
import importlib
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import rich
import tyro
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

import polycstr_jax
from algos.common import load_training_data, train_seeds
from polycstr_jax import controllers, data, evaluate
from polycstr_jax.data import write_atomically
from polycstr_jax.env import PolyCSTR, scenario_params
from polycstr_jax.evaluate import EpisodeMetrics

EVALUATION_SETS = ("nominal", "wide", "hot")
EVALUATION_KEY = 0
ALGORITHMS = ("bc",)  # files of algos/ with PRESETS and make_train
REFERENCES = ("pi_best", "pi_median", "zero", "random")
NUM_RANDOM_SEEDS = 8  # of the random controller


class Preset(NamedTuple):
    """How much of everything."""

    num_seeds: int
    seed_width: int | None  # seeds in one compiled program; 8 on CPU, 64 elsewhere if None
    scenarios: tuple[str, ...]
    datasets: tuple[str, ...]
    num_updates: int | None  # None: what the algorithm's configuration says


SCENARIOS = tuple(polycstr_jax.SCENARIOS)
PRESETS = {
    "smoke": Preset(2, 2, ("startup",), ("pi",), 20),
    "quick": Preset(8, None, SCENARIOS, data.DATASETS, None),
    "full": Preset(1_000, None, SCENARIOS, data.DATASETS, None),
}


class Cell(NamedTuple):
    """One method on one scenario and data set."""

    scenario: str
    dataset: str
    method: str
    variant: str
    config: dict[str, Any]  # everything that decides the numbers; hashed

    @property
    def name(self) -> str:
        return f"{self.scenario}-{self.dataset}/{self.method}@{self.variant}"

    @property
    def hash(self) -> str:
        return hashlib.sha256(json.dumps(self.config, sort_keys=True).encode()).hexdigest()[:16]


@dataclasses.dataclass
class Args:
    """Run the benchmark; finished cells are skipped."""

    preset: Literal["smoke", "quick", "full"] = "quick"
    out: Path = Path("results")  # results folder
    only: tuple[str, ...] = ()  # methods to run; all if empty
    force: bool = False  # run finished cells again


def plan_cells(preset: Preset) -> list[Cell]:
    """All cells of a preset, in the order in which they run."""
    width = preset.seed_width or (8 if jax.default_backend() == "cpu" else 64)
    common = {
        "version": polycstr_jax.__version__,
        "constants": constants_hash(),
        "evaluation": [EVALUATION_SETS, EVALUATION_KEY],
        "precision": jnp.dtype(jnp.result_type(float)).name,
    }
    cells = []
    for scenario in preset.scenarios:
        for method in REFERENCES:
            seeds = NUM_RANDOM_SEEDS if method == "random" else 1
            config = {"method": method, "scenario": scenario, "seeds": seeds, **common}
            cells.append(Cell(scenario, "pi", method, "default", config))
    for method in ALGORITHMS:
        module = importlib.import_module(f"algos.{method}")
        source = hashlib.sha256(Path(module.__file__).read_bytes()).hexdigest()[:16]
        for dataset in preset.datasets:
            for scenario in preset.scenarios:
                algorithm_config = module.PRESETS["default"]
                if preset.num_updates:
                    algorithm_config = dataclasses.replace(
                        algorithm_config, num_updates=preset.num_updates
                    )
                config = {
                    "method": method,
                    "source": source,
                    "config": dataclasses.asdict(algorithm_config),
                    "scenario": scenario,
                    "dataset": dataset,
                    "seeds": preset.num_seeds,
                    "seed_width": width,
                    **common,
                }
                cells.append(Cell(scenario, dataset, method, "default", config))
    return cells


def constants_hash() -> str:
    """Hash of the evaluation starts, score limits and data checksums that scores rest on."""
    package = Path(polycstr_jax.__file__).parent
    digest = hashlib.sha256((package / "starts.npz").read_bytes())
    digest.update((package / "score_limits.json").read_bytes())
    digest.update(json.dumps(data.committed_checksums()["inputs"], sort_keys=True).encode())
    return digest.hexdigest()[:16]


# --- Methods: each returns metrics (S, E) for a function that evaluates on one set of starts ---


def run_reference(cell: Cell) -> Callable[[str], EpisodeMetrics]:
    """A controller without training; one seed, the random controller excepted."""
    env, params = PolyCSTR(cell.scenario), scenario_params(cell.scenario)
    limits = evaluate.score_limits(cell.scenario)
    controller, make_memory, num_seeds = reference_controller(cell, env, params)

    def on(kind: str) -> EpisodeMetrics:
        initial = evaluate.start_states(evaluate.starts(cell.scenario, kind))
        num_starts = initial.time.shape[0]
        results = [
            evaluate.evaluate(
                env,
                params,
                controller,
                make_memory(seed, num_starts),
                initial,
                limits,
                jax.random.key(EVALUATION_KEY),
            )
            for seed in range(num_seeds)
        ]
        return jax.tree.map(lambda *x: jnp.stack(x), *results)

    return on


def reference_controller(cell: Cell, env: PolyCSTR, params):
    """(controller, memory of (seed, number of lanes), number of seeds) of a reference row."""
    if cell.method == "zero":
        return controllers.zero, lambda seed, n: jnp.zeros((n,)), 1
    if cell.method == "random":
        return (
            controllers.uniform_random,
            lambda seed, n: jax.random.split(jax.random.key(seed), n),
            NUM_RANDOM_SEEDS,
        )
    kp, ki = choose_pi_gains(cell.scenario, cell.method)
    pi = controllers.make_pi(params)

    def memory(seed, n):
        return controllers.pi_state(
            np.tile(kp, (n, 1)), np.tile(ki, (n, 1)), params.initial_control
        )

    return pi, memory, 1


def choose_pi_gains(scenario: str, which: str) -> tuple[np.ndarray, np.ndarray]:
    """Gains of the data's 100 PI controllers: best or median by mean return on `tune` starts."""
    env, params = PolyCSTR(scenario), scenario_params(scenario)
    _, plan = data.generate_trajectory(scenario, "pi")
    initial = evaluate.start_states(evaluate.starts(scenario, "tune"))
    num_gains, num_starts = plan.kp.shape[0], initial.time.shape[0]
    metrics = evaluate.evaluate(
        env,
        params,
        controllers.make_pi(params),
        controllers.pi_state(
            np.repeat(plan.kp, num_starts, 0),
            np.repeat(plan.ki, num_starts, 0),
            params.initial_control,
        ),
        jax.tree.map(lambda x: jnp.tile(x, (num_gains, *(1,) * (x.ndim - 1))), initial),
        evaluate.score_limits(scenario),
        jax.random.key(EVALUATION_KEY),
    )
    mean_return = np.asarray(metrics.episode_return).reshape(num_gains, num_starts).mean(axis=1)
    order = np.argsort(mean_return)
    index = order[-1] if which == "pi_best" else order[num_gains // 2]
    return plan.kp[index], plan.ki[index]


def run_algorithm(cell: Cell) -> Callable[[str], EpisodeMetrics]:
    """Train all seeds, `seed_width` at a time, and evaluate the last iterate."""
    module = importlib.import_module(f"algos.{cell.method}")
    settings = cell.config
    config = type(module.PRESETS["default"])(
        **{k: tuple(v) if isinstance(v, list) else v for k, v in settings["config"].items()}
    )
    env, params = PolyCSTR(cell.scenario), scenario_params(cell.scenario)
    algorithm = module.make_train(config, env, params)
    training = load_training_data(cell.scenario, cell.dataset)
    num_seeds, width = settings["seeds"], settings["seed_width"]
    batches = []
    for first in range(0, num_seeds, width):
        # A last, narrower batch is padded: results depend on the width by rounding.
        rngs = jax.vmap(jax.random.key)(first + np.arange(width))
        states, _ = train_seeds(algorithm, training, rngs, config.num_updates)
        batches.append(states)

    def on(kind: str) -> EpisodeMetrics:
        initial = evaluate.start_states(evaluate.starts(cell.scenario, kind))
        results = [
            evaluate.evaluate_policies(
                env,
                params,
                algorithm.policy,
                states,
                initial,
                evaluate.score_limits(cell.scenario),
                jax.random.key(EVALUATION_KEY),
            )
            for states in batches
        ]
        return jax.tree.map(lambda *x: jnp.concatenate(x)[:num_seeds], *results)

    return on


# --- Results ---


def to_rows(cell: Cell, kind: str, metrics: EpisodeMetrics) -> list[dict[str, Any]]:
    """One row a seed and group of starts: means over the starts, and the worst start's score.

    Doomed starts are a group of their own.
    """
    doomed = evaluate.starts(cell.scenario, kind).doomed
    metrics = jax.tree.map(np.asarray, metrics)
    rows = []
    for group, members in ((kind, ~doomed), (f"{kind}_doomed", doomed)):
        if not members.any():
            continue
        for seed in range(metrics.score.shape[0]):
            chosen = {name: x[seed, members] for name, x in metrics._asdict().items()}
            rows.append(
                {
                    "seed": seed,
                    "starts": group,
                    "num_starts": int(members.sum()),
                    **{name: float(np.mean(x, dtype=np.float64)) for name, x in chosen.items()},
                    "worst_score": float(chosen["score"].min()),
                    "max_peak_temperature": float(chosen["peak_temperature"].max()),
                    "gap_closed": np.nan,  # needs the oracle, which is not there yet
                }
            )
    return rows


def provenance(cell: Cell, wall_time: dict[str, float]) -> dict[str, Any]:
    """How a cell was made."""
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    ).stdout.strip()
    packages = ("jax", "jaxlib", "flax", "optax", "diffrax", "gymnax", "numpy", "scipy")
    return {
        "hash": cell.hash,
        "config": cell.config,
        "commit": commit or "unknown",
        "versions": {name: version(name) for name in packages} | {"python": sys.version.split()[0]},
        "hardware": hardware(),
        "wall_time_s": {name: round(seconds, 2) for name, seconds in wall_time.items()},
        "date": datetime.now(UTC).date().isoformat(),
    }


def hardware() -> str:
    """Model of the device and number of CPU cores."""
    device = jax.devices()[0]
    model = device.device_kind
    if device.platform == "cpu":
        model = platform.processor() or platform.machine()
        if os.path.exists("/proc/cpuinfo"):
            lines = Path("/proc/cpuinfo").read_text().splitlines()
            model = next((x.split(":")[1].strip() for x in lines if "model name" in x), model)
    return f"{model}, {os.cpu_count()} CPU cores, {jax.local_device_count()} JAX device(s)"


def is_finished(folder: Path, cell: Cell) -> bool:
    """Whether this cell's files are there with the same hash."""
    description = folder / f"{cell.name}.json"
    try:
        return (
            json.loads(description.read_text())["hash"] == cell.hash
            and description.with_suffix(".csv").exists()
        )
    except (OSError, ValueError, KeyError):
        return False


def write_cell(folder: Path, cell: Cell, rows: list[dict], wall_time: dict[str, float]) -> None:
    """Write the .csv, then the .json that declares it finished."""
    table = pd.DataFrame(rows).to_csv(index=False, float_format="%.6g")
    path = folder / f"{cell.name}.csv"
    write_atomically(path, lambda file: file.write(table.encode()))
    text = json.dumps(provenance(cell, wall_time), indent=2, sort_keys=True) + "\n"
    write_atomically(path.with_suffix(".json"), lambda file: file.write(text.encode()))


def main(args: Args) -> None:
    cache = Path(__file__).parent.parent / ".cache" / "jax"
    jax.config.update("jax_compilation_cache_dir", str(cache))
    folder = args.out / args.preset / "leaderboard"
    try:
        args.out.mkdir(parents=True, exist_ok=True)
        lock = open(args.out / ".lock", "w")
    except OSError as error:
        raise SystemExit(f"out = {args.out} cannot be written to: {error}.") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise SystemExit(
            f"out = {args.out} is in use by another run; wait or name another."
        ) from error
    cells = plan_cells(PRESETS[args.preset])
    unknown = set(args.only) - {cell.method for cell in cells}
    if unknown:
        allowed = ", ".join([*REFERENCES, *ALGORITHMS])
        raise SystemExit(f"only = {', '.join(sorted(unknown))}; allowed: {allowed}.")
    cells = [cell for cell in cells if not args.only or cell.method in args.only]

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeRemainingColumn()) as progress:
        task = progress.add_task(args.preset, total=len(cells))
        for cell in cells:
            progress.update(task, description=f"{args.preset} {cell.name}")
            if args.force or not is_finished(folder, cell):
                started = time.perf_counter()
                run = run_algorithm if cell.method in ALGORITHMS else run_reference
                on = run(cell)
                trained = time.perf_counter()
                rows = [row for kind in EVALUATION_SETS for row in to_rows(cell, kind, on(kind))]
                wall_time = {
                    "training": trained - started,
                    "evaluation": time.perf_counter() - trained,
                }
                write_cell(folder, cell, rows, wall_time)
            progress.advance(task)
    rich.print(f"results: {folder}")


if __name__ == "__main__":
    main(tyro.cli(Args))
