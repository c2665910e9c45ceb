"""Evaluation: fixed starts, metrics per episode, and the scores of the leaderboard.

Every method is evaluated on the same starts. `tune` starts are for choosing anything at all
(gains, thresholds, hyper-parameters); the other sets are touched once per table:

- `nominal`: 64 starts of the scenario.
- `wide`: A and P times a further U(0.9, 1.1), T plus U(-3, 3) K.
- `hot`: 64 states from boosted roll-outs, no violation so far; half of them doomed.

A start is doomed if the limit is violated even when feed and coolant are lowered as fast as
allowed from there on. Doomed starts are reported apart: no policy is known to save them.
"""

import functools
import json
from collections.abc import Callable
from importlib import resources
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from polycstr_jax.data import EPISODE_LENGTH, REWARD_FLOOR
from polycstr_jax.env import EnvParams, EnvState, PolyCSTR, initial_state, scenario_name
from polycstr_jax.rollout import Controller, Trajectory, rollout

START_SETS = ("nominal", "wide", "hot", "tune")
NUM_STARTS = 64
SETTLED = (2.0, 0.5)  # kg/m3, K: settling means staying within both
OFFSET_SHARE = 0.1  # steady offsets are means over the last 10 % of the episode
SCORE_EPISODES = 10_000
SCORE_PERCENTILES = (10.0, 99.0)


class Starts(NamedTuple):
    """E starts of one scenario."""

    state: np.ndarray  # (E, 5) reactor state, public units
    control: np.ndarray  # (E, 2) controls in force: kg/h, K
    doomed: np.ndarray  # (E,) bool: the safest known policy violates the limit from here


class EpisodeMetrics(NamedTuple):
    """Per-episode results, (E,) each."""

    episode_return: Any  # sum of -(e_P^2 + e_T^2)
    score: Any  # 100 (R - R_lo) / (R_hi - R_lo); not bounded below
    violation_steps: Any  # intervals whose peak exceeds the limit
    violated: Any  # bool
    runaway: Any  # bool, peak above 380 K
    peak_temperature: Any  # K
    iae_polymer: Any  # kg/m3 h, integral absolute error
    iae_temperature: Any  # K h
    settling_time: Any  # h until within 2 kg/m3 and 0.5 K for good; the horizon if never
    offset_polymer: Any  # kg/m3, mean of P - P_set over the last 10 %
    offset_temperature: Any  # K
    input_movement: Any  # sum of |increments| in units of the largest allowed, both inputs
    solver_failed: Any  # bool


def starts(scenario: str, kind: str) -> Starts:
    """The 64 fixed starts of a set, NumPy float32, from a committed file.

    Raises `ValueError` for an unknown scenario or set.
    """
    return Starts(*_committed("starts.npz", scenario, kind, Starts._fields))


def _committed(name: str, scenario: str, kind: str, fields) -> list[np.ndarray]:
    """Arrays of a committed file of start sets; `ValueError` for an unknown scenario or set."""
    scenario = scenario_name(scenario)
    if kind not in START_SETS:
        raise ValueError(f"starts = {kind!r}; allowed: {', '.join(START_SETS)}.")
    with resources.files("polycstr_jax").joinpath(name).open("rb") as file:
        content = np.load(file)
        return [content[f"{scenario}_{kind}_{field}"] for field in fields]


def start_states(chosen: Starts) -> EnvState:
    """Environment states (E, ...) at time 0."""
    return jax.vmap(initial_state)(jnp.asarray(chosen.state), jnp.asarray(chosen.control))


def score_limits(scenario: str) -> tuple[float, float]:
    """R_lo and R_hi: 10th and 99th percentile of 10,000 `pi` episodes' returns (committed)."""
    text = resources.files("polycstr_jax").joinpath("score_limits.json").read_text()
    low, high = json.loads(text)["limits"][scenario_name(scenario)]
    return low, high


def score(episode_return, scenario: str):
    """100 (R - R_lo) / (R_hi - R_lo) of a return."""
    low, high = score_limits(scenario)
    return 100.0 * (episode_return - low) / (high - low)


class References(NamedTuple):
    """Returns (E,) from each start of a set, between which every other return is placed."""

    step: np.ndarray  # the open-loop step to the steady inputs of the set-points
    oracle: np.ndarray  # the best known that keeps the limit
    unconstrained: np.ndarray  # the best known
    oracle_known: np.ndarray  # bool: that optimum converged, and keeps the limit
    unconstrained_known: np.ndarray  # bool: that optimum converged


@functools.cache
def references(scenario: str, kind: str) -> References:
    """The committed references of a start set (`benchmarks.references` makes them), float64.

    Raises `ValueError` for an unknown scenario or set.
    """
    return References(*_committed("oracle.npz", scenario, kind, References._fields))


def optimal_actions(scenario: str, kind: str, which: str) -> np.ndarray:
    """The plans (E, 200, 2) behind `references`; `which`: "oracle" or "unconstrained".

    Raises `ValueError` for another name, an unknown scenario or set.
    """
    if which not in ("oracle", "unconstrained"):
        raise ValueError(f"which = {which!r}; allowed: oracle, unconstrained.")
    return _committed("oracle.npz", scenario, kind, [f"{which}_action"])[0]


def gap_closed(episode_return, of: References) -> np.ndarray:
    """100 (R - R_step) / (R_oracle - R_step), (..., E), of returns (..., E) from a start set.

    0: the open-loop step; 100: the oracle from the same start, which knows the plant. NaN where
    no optimum that keeps the limit is known.
    """
    share = (np.asarray(episode_return, np.float64) - of.step) / (of.oracle - of.step)
    return np.where(of.oracle_known, 100.0 * share, np.nan)


def episode_metrics(trajectory: Trajectory, params: EnvParams, limits: tuple) -> EpisodeMetrics:
    """Metrics of E episodes (T, E, ...); `limits` are `score_limits` of the scenario. Jittable.

    A failure of the integrator must not pay: from its interval on, each counts as a violation
    with a reward of -20,000, and the episode as a runaway that never settles.
    """
    low, high = limits
    failed = trajectory.terminated | ~trajectory.alive
    reward = jnp.where(failed, REWARD_FLOOR, trajectory.reward)
    cost = jnp.where(failed, 1.0, trajectory.cost)
    hours = params.reactor.interval / 3600.0
    polymer_error = trajectory.state[..., 3] - params.polymer_setpoint
    temperature_error = trajectory.state[..., 4] - params.temperature_setpoint
    num_steps = polymer_error.shape[0]
    last = max(1, round(OFFSET_SHARE * num_steps))
    outside = (jnp.abs(polymer_error) > SETTLED[0]) | (jnp.abs(temperature_error) > SETTLED[1])
    outside = outside | failed
    interval_number = jnp.arange(1, num_steps + 1)[:, None]
    settled_after = jnp.max(jnp.where(outside, interval_number, 0), axis=0)
    # obs holds the controls in force before the interval, next_obs those within it.
    moves = jnp.abs(trajectory.next_obs[..., 7:] - trajectory.obs[..., 7:])
    max_increment = jnp.asarray(params.max_increment, moves.dtype)[None, None]
    peak = trajectory.peak_temperature.max(axis=0)
    episode_return = reward.sum(axis=0)
    violation_steps = cost.sum(axis=0)
    return EpisodeMetrics(
        episode_return=episode_return,
        score=100.0 * (episode_return - low) / (high - low),
        violation_steps=violation_steps,
        violated=violation_steps > 0,
        runaway=(peak > params.runaway_temperature) | failed.any(axis=0),
        peak_temperature=peak,
        iae_polymer=hours * jnp.abs(polymer_error).sum(axis=0),
        iae_temperature=hours * jnp.abs(temperature_error).sum(axis=0),
        settling_time=hours * settled_after,
        offset_polymer=polymer_error[-last:].mean(axis=0),
        offset_temperature=temperature_error[-last:].mean(axis=0),
        input_movement=(moves / max_increment).sum(axis=(0, 2)),
        solver_failed=failed.any(axis=0),
    )


@functools.partial(jax.jit, static_argnums=(0, 2, 7))
def evaluate(
    env: PolyCSTR,
    params: EnvParams,
    controller: Controller,
    controller_state: Any,
    initial: EnvState,
    limits: tuple,
    key: jax.Array,
    judge: Callable | None = None,
):
    """Roll a controller out from E starts, 200 intervals, and reduce to metrics (E,).

    `controller` is static: a module-level function, or one made once and kept, so that it is
    compiled once. `controller_state` has a leading axis E. See `rollout`. With a `judge` (static)
    it returns a pair, of the metrics and of `judge(trajectory, params)`.
    """
    keys = jax.random.split(key, initial.time.shape[0])
    trajectory = rollout(env, params, controller, controller_state, initial, keys, EPISODE_LENGTH)
    metrics = episode_metrics(trajectory, params, limits)
    return metrics if judge is None else (metrics, judge(trajectory, params))


@functools.partial(jax.jit, static_argnums=(0, 2, 7))
def evaluate_policies(
    env: PolyCSTR,
    params: EnvParams,
    policy: Callable,
    states: Any,
    initial: EnvState,
    limits: tuple,
    key: jax.Array,
    judge: Callable | None = None,
):
    """Metrics (S, E) of S trained seeds on E starts.

    `policy` (static) maps a state to `act(obs, rng) -> action`, as `Algorithm.policy`; `states`
    has a leading axis S. All seeds see the same noise. `judge`: see `evaluate`.
    """

    def of_one(state):
        act = policy(state)

        def controller(obs, lane_key):
            lane_key, now = jax.random.split(lane_key)
            return act(obs, now), lane_key

        lane_keys = jax.random.split(jax.random.fold_in(key, 1), initial.time.shape[0])
        return evaluate(env, params, controller, lane_keys, initial, limits, key, judge)

    return jax.vmap(of_one)(states)
