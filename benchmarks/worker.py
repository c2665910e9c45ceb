"""How a cell's numbers come about: its method is trained, rolled out from the starts, and reduced
to a row a seed and group of starts.

A cell is worked on in parts: a fixed number of seeds that one program trains. Trained policies are
kept in `.cache/trained`, by the hash of all that decides them, so that no suite trains them twice;
in `.cache/training` what a training that is under way needs to go on. The environment variable
`POLYCSTR_CACHE` names another folder than `.cache`.
"""

import contextlib
import dataclasses
import fcntl
import functools
import hashlib
import importlib
import json
import shutil
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import serialization

from algos import checkpoints
from algos.common import Algorithm, Batch, train_batches
from benchmarks import conditions, scale, training_sets
from benchmarks.conditions import Condition
from benchmarks.plan import (
    CACHE,
    CURVES,
    EVALUATION_KEY,
    HORIZONS,
    METHODS,
    ONLINE,
    Cell,
    algorithm_hash,
)
from polycstr_jax import controllers, data, evaluate, oracle, viability
from polycstr_jax.data import platform_key, write_atomically
from polycstr_jax.env import EnvParams, PolyCSTR, scenario_params
from polycstr_jax.evaluate import EpisodeMetrics
from polycstr_jax.rollout import Trajectory

TRAINED, TRAINING = CACHE / "trained", CACHE / "training"
CHANNELS = ("polymer", "temperature", "peak_temperature", "initiator_feed", "coolant_temperature")
NUM_SHOWN = 64  # seeds whose trajectories are kept for a band
NUM_WORST = 3  # seeds whose worst episode is kept

# Doom is None where a suite does not look for it.
Result = tuple[EpisodeMetrics, viability.Doom | None]


class Outcome(NamedTuple):
    """What a method does, of S seeds."""

    results: dict[str, Result]  # metrics (S, E) by condition
    seconds: dict[str, float]
    curves: dict[str, np.ndarray] = {}  # noqa: RUF012 (S, updates) each, of what trains online
    shown: np.ndarray = np.zeros((0, 200, 64, 5), np.float32)  # nominal, of the first seeds
    worst: dict[str, np.ndarray] = {}  # noqa: RUF012 (of the worst seeds: `worst_episodes`)


class Trained(NamedTuple):
    """Seeds, without the optimiser's states."""

    states: Any
    seconds: dict[str, float]
    curves: dict[str, np.ndarray]


# One environment and one PI controller for all scenarios, which are data: compiled once.
ENV = PolyCSTR()
PI = controllers.make_pi(EnvParams())


# --- Evaluation ---


def channels(trajectory: Trajectory):
    """What is shown of E episodes: `CHANNELS` (T, E, 5), in kg/m3, K, K, kg/h, K."""
    state, control = trajectory.state, trajectory.control
    peak = trajectory.peak_temperature
    columns = (state[..., 3], state[..., 4], peak, control[..., 0], control[..., 1])
    return jnp.stack(columns, axis=-1).astype(jnp.float32)


def see(trajectory: Trajectory, params: EnvParams):
    """A judge of `evaluate`: no doom, and the channels."""
    return None, channels(trajectory)


def see_doom(trajectory: Trajectory, params: EnvParams):
    """A judge of `evaluate`: doom and channels."""
    return viability.doom(trajectory, params), channels(trajectory)


def outcome_of(found: dict[str, Any], seconds, curves, first: int, num_seeds: int) -> Outcome:
    """Of seeds from `first` on, what was found under each condition: (metrics, (doom, channels)),
    arrays (S, ...). The seeds beyond `num_seeds`, of the cell, are padding."""
    results = {name: (metrics, doom) for name, (metrics, (doom, _)) in found.items()}
    metrics, (_, seen) = found["nominal"]
    return Outcome(
        results,
        seconds,
        curves,
        seen[: max(0, NUM_SHOWN - first)],
        worst_episodes(metrics.score[: num_seeds - first], seen, first),
    )


def worst_episodes(score, seen, first: int) -> dict[str, np.ndarray]:
    """Of the seeds with the worst mean score (S, E), the worst episode each, worst seed first:
    channels (K, 5, T), `seed` counted from `first`, `start`, `score`."""
    seeds = np.argsort(score.mean(axis=1), kind="stable")[:NUM_WORST]
    starts = score[seeds].argmin(axis=1)
    return {
        "channels": np.moveaxis(seen[seeds, :, starts], -1, 1),
        "seed": seeds + first,
        "start": starts,
        "score": score[seeds, starts],
        "mean_score": score[seeds].mean(axis=1),
    }


def joined(parts: list[Outcome], num_seeds: int) -> Outcome:
    """The parts of a cell, in the order of their seeds; those beyond `num_seeds` are padding."""
    results, curves, shown = (
        jax.tree.map(lambda *x: np.concatenate(x)[:num_seeds], *(part[i] for part in parts))
        for i in (0, 2, 3)
    )
    seconds = {name: sum(part.seconds[name] for part in parts) for name in parts[0].seconds}
    worst = jax.tree.map(lambda *x: np.concatenate(x), *(part.worst for part in parts))
    order = np.argsort(worst["mean_score"], kind="stable")[:NUM_WORST]
    return Outcome(results, seconds, curves, shown, {k: x[order] for k, x in worst.items()})


def to_bytes(part: Outcome) -> bytes:
    """A part as it is written and sent."""
    results = {
        name: {"metrics": metrics._asdict(), "doom": doom._asdict() if doom else {}}
        for name, (metrics, doom) in part.results.items()
    }
    tree = jax.tree.map(np.asarray, part._replace(results=results)._asdict())
    return serialization.msgpack_serialize(tree)


def from_bytes(content: bytes) -> Outcome:
    """A part from `to_bytes`."""
    part = Outcome(**serialization.msgpack_restore(content))
    results = {
        name: (
            EpisodeMetrics(**found["metrics"]),
            viability.Doom(**found["doom"]) if found["doom"] else None,
        )
        for name, found in part.results.items()
    }
    seconds = {name: float(x) for name, x in part.seconds.items()}
    return part._replace(results=results, seconds=seconds)


# --- Controllers without training ---


def run_reference(cell: Cell) -> Outcome:
    """A controller without training, on a CPU; one seed, the random controller excepted."""
    with jax.default_device(data.host_device()):
        return _run_reference(cell)


def _run_reference(cell: Cell) -> Outcome:
    started, found = time.perf_counter(), {}
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
                see_doom if cell.find_doomed else see,
            )
            for seed in range(cell.config["seeds"])
        ]
        found[condition.name] = jax.device_get(jax.tree.map(lambda *x: jnp.stack(x), *seeds))
    spent = {"total": time.perf_counter() - started}
    return outcome_of(found, spent, {}, 0, cell.config["seeds"])


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


# --- Training ---


def train(algorithm: Algorithm, training, cell: Cell, first: int) -> Trained:
    """The seeds `first`, `first` + 1, ... (`seed_width` of them), and the seconds it took, a
    base's apart; from `.cache/trained` if they are there. Curves are kept of what trains online,
    a point an update."""
    return train_parts(algorithm, training, cell, [first], jax.local_devices()[:1])[0]


def train_parts(
    algorithm: Algorithm, training, cell: Cell, firsts: list[int], devices: list
) -> list[Trained]:
    """`train` of several parts at once, on these devices in turn."""
    places = [devices[i % len(devices)] for i in range(len(firsts))]
    layer = algorithm.base is not None
    bases = train_parts(algorithm.base, training, cell, firsts, devices) if layer else None
    online = hasattr(algorithm.config, "gradient_steps")
    paths = [TRAINED / f"{trained_hash(algorithm, cell, first)}.msgpack" for first in firsts]
    batches = []
    for i, (first, place) in enumerate(zip(firsts, places, strict=True)):
        rngs = jax.vmap(jax.random.key)(first + np.arange(cell.config["seed_width"]))
        batch = Batch(rngs, training, bases[i].states if layer else None)
        batches.append(jax.device_put(batch, place))
    found = [
        read_trained(path, algorithm, batch, online)
        for path, batch in zip(paths, batches, strict=True)
    ]
    absent = [i for i, trained in enumerate(found) if trained is None]
    if absent:
        num_updates = algorithm.config.num_updates
        with contextlib.ExitStack() as stack:
            keep = [stack.enter_context(kept_in(TRAINING / paths[i].stem)) for i in absent]
            trained, seconds = train_batches(
                algorithm,
                [batches[i] for i in absent],
                num_updates,
                num_chunks=num_updates if online else 20,
                keep=keep,
            )
        share = {name: spent / len(absent) for name, spent in seconds.items()}
        for i, (states, curves) in zip(absent, trained, strict=True):
            curves = {name: curves[name] for name in CURVES} if online else {}
            states = jax.device_get(checkpoints.without_what_ends(states))
            kept = found[i] = Trained(states, share, curves)
            write_atomically(paths[i], lambda out, x=kept: out.write(serialization.to_bytes(x)))
            shutil.rmtree(TRAINING / paths[i].stem, ignore_errors=True)
    return found


@contextlib.contextmanager
def kept_in(folder: Path):
    """The folder, for this process alone; None if another is training the same."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(folder.with_suffix(".lock"), "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
            return
        yield folder


def trained_hash(algorithm: Algorithm, cell: Cell, first: int) -> str:
    """Hash of all that decides the seeds from `first` on."""
    layers = [algorithm] if algorithm.base is None else [algorithm, algorithm.base]
    parts = [
        *(cell.config[name] for name in ("source", "data", "versions", "backend", "threads")),
        *(cell.config[name] for name in ("precision", "seed_width", "scenario", "dataset")),
        *(training_settings(layer) for layer in layers),
        algorithm_hash(layer.init.__module__.rpartition(".")[2] for layer in layers),
        platform_key(),
        first,
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def read_trained(path: Path, algorithm: Algorithm, batch: Batch, online: bool) -> Trained | None:
    """Seeds that were trained before; None if they were not, or are damaged."""
    if not path.exists():
        return None
    base = () if algorithm.base is None else (batch.base_states,)
    in_axes = (0, None, 0)[: 2 + len(base)]
    empty = jax.eval_shape(jax.vmap(algorithm.init, in_axes), batch.rngs, batch.data, *base)
    curves = {name: np.zeros(0) for name in CURVES} if online else {}
    form = Trained(checkpoints.without_what_ends(empty), {"compile": 0.0, "run": 0.0}, curves)
    try:
        return serialization.from_bytes(form, path.read_bytes())
    except Exception:  # in one of many ways: trained again
        path.unlink()
        return None


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


def run_parts(cell: Cell, firsts: list[int], devices: list) -> list[Outcome]:
    """Train the parts that begin with these seeds, side by side, and evaluate the last iterates."""
    algorithm = algorithm_of(cell)
    training = training_sets.load(cell.scenario, cell.dataset)
    parts = train_parts(algorithm, training, cell, firsts, devices)
    started, found = time.perf_counter(), [{} for _ in firsts]
    for condition in cell.conditions:
        waiting = [
            evaluate.evaluate_policies(
                ENV,
                conditions.params(cell.scenario, condition),
                algorithm.policy,
                jax.device_put(part.states, devices[i % len(devices)]),
                evaluate.start_states(evaluate.starts(cell.scenario, condition.starts)),
                evaluate.score_limits(cell.scenario),
                jax.random.key(EVALUATION_KEY),
                see_doom if cell.find_doomed else see,
            )
            for i, part in enumerate(parts)
        ]
        for one, result in zip(found, waiting, strict=True):
            one[condition.name] = jax.device_get(result)
    # Of the first parts, the evaluation includes its compilation.
    spent = {"evaluation": (time.perf_counter() - started) / len(firsts)}
    return [
        outcome_of(one, part.seconds | spent, part.curves, first, cell.config["seeds"])
        for one, part, first in zip(found, parts, firsts, strict=True)
    ]


def run_algorithm(cell: Cell, devices: list | None = None, folder: Path | None = None) -> Outcome:
    """Train and evaluate all seeds of a cell, on these devices, the first if None.

    `folder`: where the parts are kept until the cell is written, so that what is done is not done
    again. With several processes each works on its own parts; all return the whole.
    """
    devices = jax.local_devices()[:1] if devices is None else devices
    num_seeds, width = cell.config["seeds"], cell.config["seed_width"]
    # A last, narrower part is padded: results depend on the width by rounding.
    mine, parts = scale.own([*range(0, num_seeds, width)]), {}
    for first in mine if folder is not None else ():
        try:
            content = (folder / f"{first}.msgpack").read_bytes()
            from_bytes(content)
        except Exception:  # not there, or damaged in one of many ways
            continue
        parts[first] = content
    left = [first for first in mine if first not in parts]
    size = len(devices) * in_flight(cell, devices)
    for at in range(0, len(left), size):
        group = left[at : at + size]
        for first, part in zip(group, run_parts(cell, group, devices), strict=True):
            parts[first] = to_bytes(part)
            if folder is not None:
                path = folder / f"{first}.msgpack"
                write_atomically(path, lambda out, first=first: out.write(parts[first]))
    whole = [from_bytes(part) for _, part in sorted(scale.gathered(parts).items())]
    return joined(whole, num_seeds)


def in_flight(cell: Cell, devices: list) -> int:
    """How many programs of a cell a device holds: by its data and, thrice, its states, of which a
    program has those it is given, those it returns, and what it works with."""
    algorithm = algorithm_of(cell)
    training = training_sets.load(cell.scenario, cell.dataset)
    keys = jax.eval_shape(lambda: jax.vmap(jax.random.key)(jnp.arange(cell.config["seed_width"])))

    def begin(algorithm):
        base = () if algorithm.base is None else (begin(algorithm.base),)
        axes = (0, None, 0)[: 2 + len(base)]
        return jax.eval_shape(jax.vmap(algorithm.init, axes), keys, training, *base)

    num_bytes = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(training))
    num_bytes += 3 * sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(begin(algorithm)))
    return scale.in_flight(num_bytes, devices[0])


# --- Rows ---


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
