"""Run the benchmark and write its results; resumable.

    python -m benchmarks.run --preset quick

A cell is one method on one scenario and data set. It is written as
`<out>/<preset>/<suite>/<scenario>-<dataset>/<method>@<variant>.csv`, one row for each seed and
group of starts, with a `.json` beside it that says how it was made. A cell whose configuration
has the same hash is not run again. Cells appear whole or not at all.

Suites: `leaderboard` (every method at its default settings); `robustness` (the same, trained on
the nominal plant, under measurement noise and on changed plants: `benchmarks.conditions`);
`picnn` (the tables of arXiv 2507.22640: BC and IQL with and without the correction layer, tracks,
targets, models); `fisor` (those of arXiv 2401.10700: FISOR, its ablations, CPQ, COptiDICE, BCQ-Lag,
BC and IQL on the `mixed` data; BC and FISOR also on less of it, on parts of it, and on noisy
measurements); `marvel` (that of arXiv 2412.04426: fine-tuning in the environment, after CPQ on the
`mixed` data; `.curves.csv` has every update of every seed).

Presets: `smoke` (CI: far too short to learn anything), `quick` (full updates, few seeds, and on
the `mixed` data BC, IQL and FISOR only; of suite `fisor` all of it in start-up, less elsewhere),
`full` (1,000 seeds; for an accelerator).

Trained policies are kept in `.cache/trained`, by the hash of all that decides them, so that no
suite trains them twice.
"""

import dataclasses
import fcntl
import functools
import hashlib
import importlib
import json
import os
import platform
import subprocess
import sys
import time
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
from flax import serialization
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

import polycstr_jax
from algos import fisor, marvel
from algos.common import Algorithm, train_seeds
from benchmarks import conditions, training_sets
from benchmarks.conditions import Condition
from polycstr_jax import controllers, data, evaluate, oracle, viability
from polycstr_jax.data import check_writable, platform_key, write_atomically
from polycstr_jax.env import EnvParams, PolyCSTR, scenario_params
from polycstr_jax.evaluate import EpisodeMetrics

EVALUATION_KEY = 0
METHODS = {  # label -> file of algos/, and what its configuration differs in from the default
    "bc": ("bc", {}),
    "bc+": ("picnn", {"base": "bc"}),
    "iql": ("iql", {}),
    "iql+": ("picnn", {"base": "iql"}),
    "cpq": ("cpq", {}),
    "bearl": ("bearl", {}),
    "bcql": ("bcql", {}),
    "coptidice": ("coptidice", {}),
    "fisor": ("fisor", {}),
    "sac_lag": ("sac_lag", {}),
    "marvel": ("marvel", {}),
    "o2o": ("o2o_baselines", {}),
}
ONLINE = ("sac_lag", "marvel", "o2o")  # they train in the environment: suite marvel
OF_PI = ("bc", "bc+", "iql", "iql+")  # methods trained on the `pi` data, which know no cost
REFERENCES = (
    *("oracle", "unconstrained", "horizon10", "horizon2", "pi_tuned", "pi_tuned_all"),
    *("pi_best", "pi_safe", "pi_median", "step", "zero", "random"),
)
HORIZONS = {"horizon10": 10, "horizon2": 2}  # intervals
NUM_RANDOM_SEEDS = 8  # of the random controller
ON_AN_ACCELERATOR = ("paper", "first-commit")  # variants of FISOR too long for a CPU
LIMITS = ("limit0", "limit5")  # beside the default, 2
VARIANTS = {  # of the suites fisor and marvel
    "fisor": tuple(fisor.PRESETS),
    "cpq": ("limit0", "limit2", "limit5"),
    "bearl": ("limit0", "limit2", "limit5"),
    "bcql": ("limit0", "limit2", "limit5"),
    "coptidice": ("limit0", "limit2", "limit5"),
    "sac_lag": ("default", "apid", "more-steps", "dual", *LIMITS),
    "marvel": (
        *("default", "warm-start", "more-steps", "fqe", "random-critics"),
        *("reward-only", "cost-only", "pid", "dual", "apid-paper", "fixed", "pid-head-start"),
        *("warm-start-pid", "warm-start-dual", "warm-start-apid-paper", "warm-start-fixed"),
        *("measured-unit", "warm-start-measured-unit", "bearl", "bearl-warm-start"),
        *("masked-cpq", "masked-cpq-warm-start", *LIMITS),
    ),
    "o2o_baselines": ("jsrl", "pex", "so2"),
}
CURVES = (  # of what is trained online, kept for every update
    *("episode_return", "episode_cost", "violated", "above_limit", "peak_temperature"),
    *("multiplier", "proportional", "integral", "derivative", "temperature"),
)
SHARED = ("common", "actor_critic", "multipliers")  # files of algos/ that others import
RESTS_ON = {"marvel": ("sac_lag",), "o2o_baselines": ("marvel", "sac_lag")}  # beside its base
DECIDING_PACKAGES = ("jax", "jaxlib", "flax", "optax", "diffrax", "gymnax")  # in the hash


REPOSITORY = Path(__file__).parent.parent
PACKAGE = Path(polycstr_jax.__file__).parent
TRAINED = REPOSITORY / ".cache" / "trained"


class Preset(NamedTuple):
    """How much of everything."""

    num_seeds: int
    seed_width: int | None  # seeds in one compiled program; 8 on CPU, 64 elsewhere if None
    scenarios: tuple[str, ...]
    datasets: tuple[str, ...]
    num_updates: int | None  # None: what the algorithm's configuration says
    methods: dict[str, tuple[str, ...]] = {}  # noqa: RUF012 (by data set; all if not named)
    # Of suite `fisor`: its variants outside start-up, where changed data are left out; None: all.
    elsewhere: tuple[str, ...] | None = None
    variants: tuple[str, ...] | None = None  # of what is trained; None: all of the suite's
    without: dict[str, tuple[str, ...]] = {}  # noqa: RUF012 (variants, by method)


SCENARIOS = tuple(polycstr_jax.SCENARIOS)
PRESETS = {
    "smoke": Preset(2, 2, ("startup",), ("pi",), 20, {"pi": (*OF_PI, "cpq", "fisor")}),
    "quick": Preset(
        8, None, SCENARIOS, data.DATASETS, None, {"pi": OF_PI, "mixed": ("bc", "iql", "fisor")}
    ),
    "full": Preset(1_000, None, SCENARIOS, data.DATASETS, None),
}


class Suite(NamedTuple):
    """What is run, and under which conditions it is evaluated."""

    presets: dict[str, Preset]
    references: tuple[str, ...]
    conditions: tuple[Condition, ...]
    find_doomed: bool  # whether states that are lost already are looked for


def presets_of(num_seeds: int, methods, smoke: str) -> dict[str, Preset]:
    """Presets that train the methods of each data set, {data set: methods}; `quick` with so many
    seeds, `smoke` on one data set."""
    sets = tuple(methods)
    return {
        "smoke": Preset(2, 2, ("startup",), (smoke,), 20, methods),
        "quick": Preset(num_seeds, None, SCENARIOS, sets, None, methods),
        "full": Preset(1_000, None, SCENARIOS, sets, None, methods),
    }


ELSEWHERE = (
    *("default", "no-hj-2", "no-diffusion", "no-infeasible", "indicator", "safest", "n-1"),
    "limit2",  # CPQ, COptiDICE, BCQ-Lag
)
OF_MIXED = {name: ("bc", "fisor") for name in training_sets.NAMES if name != "pi"}
OF_MIXED["mixed"] = ("bc", "iql", "cpq", "coptidice", "bcql", "fisor")
FISOR_PRESETS = presets_of(8, OF_MIXED, "mixed10")
FISOR_PRESETS["quick"] = FISOR_PRESETS["quick"]._replace(elsewhere=ELSEWHERE)
MARVEL_PRESETS = presets_of(12, {"mixed": ("cpq", "bearl", *ONLINE)}, "mixed")
NOT_QUICK = {  # by method
    "sac_lag": ("dual", *LIMITS),
    "marvel": ("warm-start-dual", "warm-start-apid-paper", "warm-start-fixed", *LIMITS),
}
MARVEL_PRESETS["quick"] = MARVEL_PRESETS["quick"]._replace(
    scenarios=("startup",),
    seed_width=12,
    without=NOT_QUICK,
)
MARVEL_PRESETS["smoke"] = MARVEL_PRESETS["smoke"]._replace(num_updates=2, variants=("default",))
SUITES = {
    "leaderboard": Suite(PRESETS, REFERENCES, conditions.LEADERBOARD, True),
    # The unconstrained optimum of changed plants is not known.
    "robustness": Suite(
        presets_of(8, {"pi": OF_PI, "mixed": ("fisor",)}, "pi"),
        tuple(r for r in REFERENCES if r != "unconstrained"),
        conditions.SUITE,
        False,
    ),
    "picnn": Suite(
        presets_of(16, {"pi": OF_PI}, "pi"),
        REFERENCES,
        conditions.of_starts("nominal", "wide"),
        False,
    ),
    "fisor": Suite(FISOR_PRESETS, REFERENCES, conditions.FISOR, True),
    "marvel": Suite(
        MARVEL_PRESETS,
        ("oracle", "pi_tuned"),
        conditions.of_starts("nominal", "wide", "hot"),
        False,
    ),
}


class Cell(NamedTuple):
    """One method on one scenario and data set."""

    scenario: str
    dataset: str
    method: str
    variant: str
    config: dict[str, Any]  # everything that decides the numbers; hashed
    conditions: tuple[Condition, ...] = conditions.LEADERBOARD  # under which it is evaluated
    find_doomed: bool = True  # whether states that are lost already are looked for
    algorithm_config: Any = None  # the algorithm's frozen dataclass; None for a controller
    base_config: Any = None  # of the policy that a layer wraps

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
    suite: Literal["leaderboard", "robustness", "picnn", "fisor", "marvel"] = "leaderboard"
    out: Path = Path("results")  # results folder
    only: tuple[str, ...] = ()  # METHOD or METHOD@VARIANT to run; all if empty
    force: bool = False  # run finished cells again; policies trained before are kept
    episodes: bool = False  # also write per-episode arrays, <cell>.npz


def plan_cells(preset: Preset, suite: str = "leaderboard") -> list[Cell]:
    """All cells of a preset, in the order in which they run."""
    width = preset.seed_width or (8 if jax.default_backend() == "cpu" else 64)
    _, references, under, find_doomed = SUITES[suite]
    common = {
        "constants": constants_hash(suite),
        "source": source_hash(),
        "versions": {name: version(name) for name in DECIDING_PACKAGES},
        "backend": jax.default_backend(),
        "evaluation": [under, find_doomed, EVALUATION_KEY],
        "precision": jnp.dtype(jnp.result_type(float)).name,
    }
    cells = []
    for scenario in preset.scenarios:
        for method in references:
            seeds = NUM_RANDOM_SEEDS if method == "random" else 1
            config = {"method": method, "scenario": scenario, "seeds": seeds, **common}
            config["data"] = data_hash("pi")
            if method.startswith("pi_tuned"):
                config["tuned"] = file_hash([PACKAGE / "tuned_pi.json"])
            cells.append(Cell(scenario, "pi", method, "default", config, under, find_doomed))
    for dataset in preset.datasets:
        offline = tuple(method for method in METHODS if method not in ONLINE)
        methods = preset.methods.get(dataset, offline)
        for scenario in preset.scenarios:
            only = preset.elsewhere if scenario != "startup" else None
            if only and dataset not in data.DATASETS:
                continue
            for method, variant, module, settings, base in plan_methods(suite, methods, dataset):
                if only and variant not in only:
                    continue
                if preset.variants and variant not in preset.variants:
                    continue
                if variant in preset.without.get(method, ()):
                    continue
                if preset.num_updates:
                    settings, base = (
                        config and dataclasses.replace(config, num_updates=preset.num_updates)
                        for config in (settings, base)
                    )
                files = [module] if base is None else [module, METHODS[settings.base][0]]
                config = {
                    "method": method,
                    "algorithm_source": algorithm_hash(files),
                    "config": dataclasses.asdict(settings),
                    "scenario": scenario,
                    "dataset": dataset,
                    "data": data_hash(dataset),
                    "seeds": preset.num_seeds,
                    "seed_width": width,
                    **common,
                }
                if base is not None:
                    config["base_config"] = dataclasses.asdict(base)
                evaluation = (under, find_doomed)
                cells.append(
                    Cell(scenario, dataset, method, variant, config, *evaluation, settings, base)
                )
    return cells


def plan_methods(suite: str, methods, dataset: str):
    """(label, variant, file of algos/, configuration, the base's configuration or None).

    A layer comes right after the policy that it wraps, which is then still there.
    """
    for track in ("default", "published") if suite == "picnn" else ("default",):
        for method in methods:
            file, changes = METHODS[method]
            presets = importlib.import_module(f"algos.{file}").PRESETS
            if suite == "marvel" and method not in ONLINE:  # the policy that is handed over
                handed_over = dataclasses.replace(marvel.DEFAULT, base=method)
                yield method, "default", file, marvel.make_base(handed_over).config, None
                continue
            if file in VARIANTS:
                # On the changed data only as it is by default.
                whole = suite in ("fisor", "marvel") and dataset == "mixed"
                for variant in VARIANTS[file] if whole else ("default",):
                    too_long = variant in ON_AN_ACCELERATOR and jax.default_backend() == "cpu"
                    if not too_long:
                        settings = presets[variant]
                        around = hasattr(settings, "base")
                        base = marvel.make_base(settings).config if around else None
                        yield method, variant, file, settings, base
                continue
            settings = dataclasses.replace(presets["default"], track=track, **changes)
            if file != "picnn":
                yield method, track, file, settings, None
                continue
            base_presets = importlib.import_module(f"algos.{METHODS[settings.base][0]}").PRESETS
            base = dataclasses.replace(base_presets["default"], track=track)
            yield method, track, file, settings, base
            if suite == "picnn" and track == "default":
                for variant in presets:
                    if variant != "default":
                        other = dataclasses.replace(presets[variant], **changes)
                        yield method, variant, file, other, base


def file_hash(paths) -> str:
    """Hash of the contents of files."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(Path(path).read_bytes())
    return digest.hexdigest()[:16]


def algorithm_hash(files) -> str:
    """Hash of files of algos/, by name, and of those that they rest on."""
    names = [name for file in files for name in (file, *RESTS_ON.get(file, ()))]
    return file_hash(REPOSITORY / f"algos/{name}.py" for name in names)


def source_hash() -> str:
    """Hash of the code that all cells rest on: the package, what algorithms share, this file."""
    package = sorted(PACKAGE.glob("*.py"))
    shared = (REPOSITORY / f"algos/{name}.py" for name in SHARED)
    return file_hash([*package, *shared, REPOSITORY / "benchmarks/run.py"])


def constants_hash(suite: str) -> str:
    """Hash of the starts, score limits and optima that a suite rests on."""
    names = ("starts.npz", "score_limits.json", "oracle.npz")
    of_suite = [conditions.ROBUSTNESS, conditions.__file__] if suite == "robustness" else []
    return file_hash([*(PACKAGE / name for name in names), *of_suite])


@functools.cache
def data_hash(dataset: str) -> str:
    """Hash of the data sets' inputs and, of a changed version, of what changes them."""
    inputs = json.dumps(data.committed_checksums()["inputs"], sort_keys=True)
    if dataset not in data.DATASETS:
        inputs += file_hash([training_sets.__file__, conditions.__file__])
    return hashlib.sha256(inputs.encode()).hexdigest()[:16]


# --- Methods: each returns metrics (S, E) by condition, and the seconds it took ---

# Doom is None where a suite does not look for it.
Result = tuple[EpisodeMetrics, viability.Doom | None]


class Outcome(NamedTuple):
    """What a method does: metrics (S, E) by condition, and the seconds that it took."""

    results: dict[str, Result]
    seconds: dict[str, float]
    curves: dict[str, np.ndarray] = {}  # noqa: RUF012 (S, updates) each, of what trains online


class Trained(NamedTuple):
    """Seeds, without the optimiser's states."""

    states: Any
    seconds: dict[str, float]
    curves: dict[str, np.ndarray]


# One environment and one PI controller for all scenarios, which are data: compiled once.
ENV = PolyCSTR()
PI = controllers.make_pi(EnvParams())


def judge_of(cell: Cell):
    """What is found out about episodes beside their metrics, or None."""
    return viability.doom if cell.find_doomed else None


def run_reference(cell: Cell) -> Outcome:
    """A controller without training; one seed, the random controller excepted."""
    started, judge, results = time.perf_counter(), judge_of(cell), {}
    for condition in cell.conditions:
        controller, memory = reference(cell.method, cell.scenario, condition)
        seeds = [
            evaluate.evaluate(
                ENV,
                conditions.params(cell.scenario, condition),
                controller,
                memory(seed),
                evaluate.start_states(evaluate.starts(cell.scenario, condition.starts)),
                evaluate.score_limits(cell.scenario),
                jax.random.key(EVALUATION_KEY),
                judge,
            )
            for seed in range(cell.config["seeds"])
        ]
        found = jax.device_get(jax.tree.map(lambda *x: jnp.stack(x), *seeds))
        results[condition.name] = found if judge else (found, None)
    return Outcome(results, {"total": time.perf_counter() - started})


def reference(method: str, scenario: str, condition: Condition):
    """A controller, and its memory as a function of the seed, for the 64 starts of a condition."""
    lanes, params = evaluate.NUM_STARTS, scenario_params(scenario)
    if method == "random":
        return controllers.uniform_random, lambda seed: jax.random.split(
            jax.random.key(seed), lanes
        )
    if method == "zero":
        return controllers.zero, lambda _: jnp.zeros((lanes,))
    if method in HORIZONS:
        return planner(HORIZONS[method]), lambda _: jnp.zeros((lanes, HORIZONS[method], 2))
    if method in ("oracle", "unconstrained", "step"):
        if method == "step":  # to the steady inputs of the true plant
            control = evaluate.starts(scenario, condition.starts).control
            true = conditions.params(scenario, condition)
            plans = np.stack([oracle.step_to_setpoint(c, true) for c in control])
        else:
            plans = conditions.optimal_actions(scenario, condition, method)
        memory = (jnp.asarray(plans, jnp.float32), jnp.zeros((lanes,), jnp.int32))
        return controllers.follow_plan, lambda _: memory
    if method in ("pi_tuned", "pi_tuned_all"):
        chosen = controllers.tuned_pi("all" if method == "pi_tuned_all" else scenario)
        memory = jax.tree.map(lambda x: jnp.tile(x, (lanes, 1)), chosen)
        return PI, lambda _: memory
    kp, ki = (np.tile(x, (lanes, 1)) for x in choose_pi_gains(scenario, method))
    return PI, lambda _: controllers.pi_state(kp, ki, params.initial_control)


@functools.cache
def planner(horizon: int):
    """The receding-horizon controller of the nominal plant, made once so that it compiles once."""
    return oracle.receding_horizon(EnvParams(), horizon)


def choose_pi_gains(scenario: str, which: str) -> tuple[np.ndarray, np.ndarray]:
    """Gains of one of the data's 100 PI controllers, chosen by mean return on the `tune` starts.

    `pi_best`: the best, whatever it does to the limit. `pi_safe`: the best of those that violate
    it least often, which is never wherever possible. `pi_median`: the median one.
    """
    kp, ki, mean_return, violated = pi_on_tune(scenario)
    order = np.argsort(mean_return)
    if which == "pi_safe":
        index = np.lexsort((mean_return, -violated))[-1]
    else:
        index = order[-1] if which == "pi_best" else order[len(order) // 2]
    return kp[index], ki[index]


@functools.cache
def pi_on_tune(scenario: str):
    """Gains (100, 2) twice, mean return (100,) and share of violating `tune` starts (100,)."""
    params = scenario_params(scenario)
    _, plan = data.generate_trajectory(scenario, "pi")
    initial = evaluate.start_states(evaluate.starts(scenario, "tune"))
    num_gains, num_starts = plan.kp.shape[0], evaluate.NUM_STARTS
    metrics = evaluate.evaluate(
        ENV,
        params,
        PI,
        controllers.pi_state(
            np.repeat(plan.kp, num_starts, 0),
            np.repeat(plan.ki, num_starts, 0),
            params.initial_control,
        ),
        jax.tree.map(lambda x: jnp.tile(x, (num_gains, *(1,) * (x.ndim - 1))), initial),
        evaluate.score_limits(scenario),
        jax.random.key(EVALUATION_KEY),
    )

    def mean(x):
        return np.asarray(x, np.float64).reshape(num_gains, num_starts).mean(axis=1)

    return plan.kp, plan.ki, mean(metrics.episode_return), mean(metrics.violated)


@functools.cache
def build(file: str, config, base: Algorithm | None, scenario: str = "startup") -> Algorithm:
    """An algorithm's functions, made once for each configuration so that they compile once.

    `scenario`: whose environment it trains in, if it trains online.
    """
    make_train = importlib.import_module(f"algos.{file}").make_train
    layer = {} if base is None else {"base": base}
    return make_train(config, ENV, scenario_params(scenario), **layer)


def train(algorithm: Algorithm, training, cell: Cell, first: int) -> Trained:
    """The seeds `first`, `first` + 1, ... (`seed_width` of them), and the seconds it took, a
    base's apart; from `.cache/trained` if they are there. Curves are kept of what trains online,
    a point an update."""
    layers = [algorithm] if algorithm.base is None else [algorithm, algorithm.base]
    parts = [
        *(cell.config[name] for name in ("source", "data", "versions", "backend")),
        *(cell.config[name] for name in ("precision", "seed_width", "scenario", "dataset")),
        *(training_settings(layer) for layer in layers),
        algorithm_hash(layer.init.__module__.rpartition(".")[2] for layer in layers),
        platform_key(),
        first,
    ]
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]
    path = TRAINED / f"{digest}.msgpack"
    rngs = jax.vmap(jax.random.key)(first + np.arange(cell.config["seed_width"]))
    base = () if algorithm.base is None else (train(algorithm.base, training, cell, first).states,)
    in_axes = (0, None, 0)[: 2 + len(base)]
    empty = jax.eval_shape(jax.vmap(algorithm.init, in_axes), rngs, training, *base)
    online = hasattr(algorithm.config, "gradient_steps")
    num_updates = algorithm.config.num_updates
    if path.exists():
        try:
            curves = {name: np.zeros(0) for name in CURVES} if online else {}
            kept = Trained(without_what_ends(empty), {"compile": 0.0, "run": 0.0}, curves)
            return serialization.from_bytes(kept, path.read_bytes())
        except Exception:  # damaged, in one of many ways: trained again
            path.unlink()
    states, curves, seconds = train_seeds(
        algorithm,
        training,
        rngs,
        num_updates,
        num_chunks=num_updates if online else 20,
        base_states=base[0] if base else None,
    )
    curves = {name: curves[name] for name in CURVES} if online else {}
    kept = Trained(jax.device_get(without_what_ends(states)), seconds, curves)
    write_atomically(path, lambda out: out.write(serialization.to_bytes(kept)))
    return kept


def without_what_ends(states):
    """Without what only training needs: the optimisers' states, and the replay."""
    states = states._replace(opt_state=())
    return states._replace(replay=()) if hasattr(states, "replay") else states


def training_settings(algorithm: Algorithm) -> dict[str, Any]:
    """Of a configuration, what decides the trained state: not what only acting depends on."""
    acting = getattr(sys.modules[algorithm.init.__module__], "ACTING", ())
    settings = dataclasses.asdict(algorithm.config)
    return {name: value for name, value in settings.items() if name not in acting}


def algorithm_of(cell: Cell) -> Algorithm:
    """The functions of a cell's algorithm, its base's included."""
    base = None
    if cell.base_config is not None:
        base = build(METHODS[cell.algorithm_config.base][0], cell.base_config, None)
    # What learns from data alone is compiled once for all scenarios.
    scenario = cell.scenario if cell.method in ONLINE else "startup"
    return build(METHODS[cell.method][0], cell.algorithm_config, base, scenario)


def run_algorithm(cell: Cell) -> Outcome:
    """Train all seeds, `seed_width` at a time, and evaluate the last iterate."""
    algorithm, judge = algorithm_of(cell), judge_of(cell)
    training = training_sets.load(cell.scenario, cell.dataset)
    num_seeds, width = cell.config["seeds"], cell.config["seed_width"]
    seconds = {"compile": 0.0, "run": 0.0, "evaluation": 0.0}
    batches: dict[str, list] = {condition.name: [] for condition in cell.conditions}
    learned: list[dict[str, np.ndarray]] = []
    for first in range(0, num_seeds, width):
        # A last, narrower batch is padded: results depend on the width by rounding.
        states, spent, curves = train(algorithm, training, cell, first)
        learned.append(curves)
        started = time.perf_counter()
        for condition in cell.conditions:
            found = evaluate.evaluate_policies(
                ENV,
                conditions.params(cell.scenario, condition),
                algorithm.policy,
                states,
                evaluate.start_states(evaluate.starts(cell.scenario, condition.starts)),
                evaluate.score_limits(cell.scenario),
                jax.random.key(EVALUATION_KEY),
                judge,
            )
            batches[condition.name].append(jax.device_get(found if judge else (found, None)))
        # Of the first batch, the evaluation includes its compilation.
        spent["evaluation"] = time.perf_counter() - started
        seconds = {name: seconds[name] + spent[name] for name in seconds}
    results = {
        name: jax.tree.map(lambda *x: np.concatenate(x)[:num_seeds], *parts)
        for name, parts in batches.items()
    }
    curves = {
        name: np.concatenate([part[name] for part in learned])[:num_seeds] for name in learned[0]
    }
    return Outcome(results, seconds, curves)


# --- Results ---


def to_rows(cell: Cell, condition: Condition, result: Result) -> list[dict[str, Any]]:
    """One row a seed and group of starts: means over the starts, and the scores' spread.

    Doomed starts are a group of their own. `gap_closed` is over the `gap_starts` from which the
    oracle is known. Of `first_doomed` and `lead` the median over the episodes that have them.
    `excess_over_oracle`, `excess_over_unconstrained`: the largest relative saving of cost against
    these, over starts, for the oracle only episodes without a violation; above 1e-3 the optimum
    was not one.
    """
    doomed = evaluate.starts(cell.scenario, condition.starts).doomed
    metrics, doom = jax.tree.map(np.asarray, result)
    reference = conditions.references(cell.scenario, condition)
    gaps = evaluate.gap_closed(metrics.episode_return, reference)
    rows = []
    for group, members in ((condition.name, ~doomed), (f"{condition.name}_doomed", doomed)):
        if not members.any():
            continue
        of = evaluate.References(*(x[members] for x in reference))
        for seed in range(metrics.score.shape[0]):
            chosen = {name: x[seed, members] for name, x in metrics._asdict().items()}
            returns, calm = chosen["episode_return"], chosen["violated"] == 0
            row = {
                "seed": seed,
                "starts": group,
                "num_starts": int(members.sum()),
                **{name: float(np.mean(x, dtype=np.float64)) for name, x in chosen.items()},
                "score_std": float(np.std(chosen["score"], dtype=np.float64)),
                "worst_score": float(chosen["score"].min()),
                "best_score": float(chosen["score"].max()),
                "max_peak_temperature": float(chosen["peak_temperature"].max()),
                "gap_closed": nan_statistic(np.mean, gaps[seed, members]),
                "gap_closed_median": nan_statistic(np.median, gaps[seed, members]),
                "gap_starts": int(of.oracle_known.sum()),
                "excess_over_oracle": saving(returns, of.oracle, of.oracle_known & calm),
                "excess_over_unconstrained": saving(
                    returns, of.unconstrained, of.unconstrained_known
                ),
            }
            if doom is not None:
                of_seed = viability.Doom(*(x[seed, members] for x in doom))
                row |= {
                    "doomed_share": float(of_seed.doomed_share.mean()),
                    "first_doomed": nan_statistic(np.median, of_seed.first_doomed),
                    "lead": nan_statistic(np.median, of_seed.lead),
                }
            rows.append(row)
    return rows


def nan_statistic(statistic, x) -> float:
    """A statistic of the entries that are known; NaN if none is."""
    x = x[~np.isnan(x)]
    return float(statistic(x)) if x.size else np.nan


def saving(returns, bounds, counts) -> float:
    """Largest (R - R_bound) / |R_bound| over the starts that count; NaN if none does."""
    share = (np.asarray(returns, np.float64) - bounds) / np.abs(bounds)
    return float(share[counts].max()) if counts.any() else np.nan


def provenance(cell: Cell, wall_time: dict[str, float]) -> dict[str, Any]:
    """How a cell was made."""
    return {
        "hash": cell.hash,
        "config": cell.config,
        "data_returns": data_returns(cell.scenario),
        "wall_time_s": {name: round(seconds, 2) for name, seconds in wall_time.items()},
        **software(),
    }


def software() -> dict[str, Any]:
    """Commit, versions, hardware and date."""

    def git(*words):
        done = subprocess.run(
            ["git", *words], cwd=REPOSITORY, capture_output=True, text=True, check=False
        )
        return done.stdout.strip()

    try:
        commit = git("describe", "--always")
        # What a run itself overwrites does not make the code another one.
        changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!results")
        commit += "-dirty" if changed else ""
    except OSError:  # no git
        commit = ""
    packages = (*DECIDING_PACKAGES, "numpy", "scipy")
    return {
        "commit": commit or "unknown",
        "versions": {name: version(name) for name in packages} | {"python": sys.version.split()[0]},
        "hardware": hardware(),
        "date": datetime.now(UTC).date().isoformat(),
    }


@functools.cache
def data_returns(scenario: str) -> list[float]:
    """Smallest and largest return of the `pi` data's episodes: the paper's score 0 and 100."""
    reward = data.generate(scenario, "pi").reward.reshape(-1, data.EPISODE_LENGTH)
    returns = reward.sum(axis=1, dtype=np.float64)
    return [float(returns.min()), float(returns.max())]


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


def write_episodes(folder: Path, cell: Cell, results: dict[str, Any]) -> None:
    """Write every metric of every episode, arrays (seeds, starts) named <starts>_<metric>."""
    arrays = {
        f"{kind}_{name}": np.asarray(values)
        for kind, (metrics, doom) in results.items()
        for name, values in (metrics._asdict() | (doom._asdict() if doom else {})).items()
    }
    path = folder / f"{cell.name}.npz"
    write_atomically(path, lambda file: np.savez_compressed(file, **arrays))


def write_curves(folder: Path, cell: Cell, curves: dict[str, np.ndarray]) -> None:
    """Write <cell>.curves.csv: a row a seed and update."""
    num_seeds, num_updates = next(iter(curves.values())).shape
    seed, update = np.indices((num_seeds, num_updates)).reshape(2, -1)
    columns = {"seed": seed, "update": update}
    columns |= {name: np.asarray(curve).reshape(-1) for name, curve in curves.items()}
    table = pd.DataFrame(columns).to_csv(index=False, float_format="%.5g")
    path = folder / f"{cell.name}.curves.csv"
    write_atomically(path, lambda file: file.write(table.encode()))


def write_cell(folder: Path, cell: Cell, rows: list[dict], wall_time: dict[str, float]) -> None:
    """Write the .csv, then the .json that declares it finished."""
    table = pd.DataFrame(rows).to_csv(index=False, float_format="%.6g")
    path = folder / f"{cell.name}.csv"
    write_atomically(path, lambda file: file.write(table.encode()))
    text = json.dumps(provenance(cell, wall_time), indent=2, sort_keys=True) + "\n"
    write_atomically(path.with_suffix(".json"), lambda file: file.write(text.encode()))


def select(cells: list[Cell], only: tuple[str, ...]) -> list[Cell]:
    """The cells of the methods, or METHOD@VARIANT, that are named; all if none is."""
    named = [(cell.method, cell.name.rpartition("/")[2]) for cell in cells]
    unknown = set(only) - {name for names in named for name in names}
    if unknown:
        said = ", ".join(sorted(unknown))
        known = {name.partition("@")[0] for name in unknown} & {method for method, _ in named}
        allowed = dict.fromkeys(
            variant if known else method
            for method, variant in named
            if not known or method in known
        )
        raise SystemExit(f"only = {said}; allowed: {', '.join(allowed)}.")
    return [
        cell for cell, names in zip(cells, named, strict=True) if not only or {*names} & {*only}
    ]


def main(args: Args) -> None:
    jax.config.update("jax_compilation_cache_dir", str(REPOSITORY / ".cache" / "jax"))
    folder = args.out / args.preset / args.suite
    cells = plan_cells(SUITES[args.suite].presets[args.preset], args.suite)
    cells = select(cells, args.only)
    try:
        for cell in cells:
            check_writable((folder / cell.name).parent)
        lock = open(args.out / ".lock", "w")
    except OSError as error:
        raise SystemExit(f"out = {args.out}: {error}") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise SystemExit(
            f"out = {args.out} is in use by another run; wait or name another."
        ) from error

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeRemainingColumn()) as progress:
        task = progress.add_task(args.preset, total=len(cells))
        for cell in cells:
            progress.update(task, description=f"{args.preset} {cell.name}")
            if args.force or not is_finished(folder, cell):
                run = run_algorithm if cell.method in METHODS else run_reference
                results, seconds, curves = run(cell)
                if curves:
                    write_curves(folder, cell, curves)
                if args.episodes:
                    write_episodes(folder, cell, results)
                rows = [
                    row
                    for condition in cell.conditions
                    for row in to_rows(cell, condition, results[condition.name])
                ]
                write_cell(folder, cell, rows, seconds)
                # LLVM aborts once a process has mapped too many programs.
                if cell.method in METHODS:
                    jax.clear_caches()
            progress.advance(task)
    rich.print(f"results: {folder}")


if __name__ == "__main__":
    main(tyro.cli(Args))
