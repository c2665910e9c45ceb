"""Make the references that every table rests on: the oracle's plans and the tuned PI controllers.

    python -m benchmarks.references oracle      # polycstr_jax/oracle.npz and .json
    python -m benchmarks.references pi          # polycstr_jax/tuned_pi.json
    python -m benchmarks.references robustness  # benchmarks/robustness.npz and .json

Changing them changes the gap closed of every row. `benchmarks.ground_truth` checks them.
"""

import dataclasses
import functools
import json
import time
import warnings
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import rich
import tyro

import polycstr_jax
from benchmarks import conditions
from benchmarks.plan import EVALUATION_KEY, REPOSITORY
from benchmarks.run import software
from benchmarks.worker import ENV, PI
from polycstr_jax import controllers, evaluate, oracle, viability
from polycstr_jax.data import check_writable, write_atomically
from polycstr_jax.env import initial_state, scenario_params
from polycstr_jax.rollout import rollout

PACKAGE = Path(polycstr_jax.__file__).parent
SCENARIOS = tuple(polycstr_jax.SCENARIOS)
HORIZON = 200

# Tuning of PI controllers: cross-entropy method over log gains and biases.
TRAINING_SEED, NUM_TRAINING_STARTS = 356, 256
POPULATION, ELITE, GENERATIONS = 256, 32, 30
NUM_RESTARTS, NUM_SEARCH_STARTS = 4, 32  # the searches see a part of the training starts
NUM_REFINED, REFINED_STD = 10, 0.2  # generations on all of them, from the searches' best
VIOLATION_PENALTY = 1_000.0  # score points for a violation in every episode


@dataclasses.dataclass
class Args:
    """Make the oracle's plans, the tuned PI controllers, or the robustness suite's oracle."""

    what: tyro.conf.Positional[Literal["oracle", "pi", "robustness"]]
    only: tuple[str, ...] = ()  # such as "grade_up wide": these alone, the other optima are kept


# --- The oracle ---


class Best(NamedTuple):
    """The best plans from the starts of a set, over several guesses."""

    action: np.ndarray  # (E, 200, 2)
    cost: np.ndarray  # (E,)
    excess: np.ndarray  # (E,) K, largest peak above the limit
    known: np.ndarray  # (E,) bool: converged, and the limit is kept
    spread: np.ndarray  # (E,) relative, of the costs that the guesses came to; NaN: only one
    num_tried: list[int]  # starts, of each guess
    num_converged: list[int]  # the same, to a plan that keeps the limit


def solve_all(states, controls, params, limit=None, disturbances=None, others=None) -> Best:
    """The oracle from three guesses: the cheapest of the converged plans that keep the limit.

    Where none converged, it is started once more, from the best of them; where that does not
    converge either, the plan that exceeds the limit least, then the cheapest. `others` (E,) bool:
    the starts for which more than the first guess is tried; if None, the first 8, and all from
    which no optimum is known yet.
    """
    states, controls = np.asarray(states), np.asarray(controls)
    num, horizon = len(states), HORIZON if disturbances is None else disturbances.shape[1]
    every = np.arange(num)
    plans = None  # (guesses so far, E, ...)
    for guess in (*guesses(states, controls, params, horizon), None):
        if plans is None:
            tried = np.ones(num, bool)
        else:
            best, good = choose(plans)
            unknown = ~good.any(axis=0)
            if guess is None:  # once more
                tried = unknown if others is None else unknown & others
                guess = plans.action[best, every]
            else:
                tried = (every < 8) | unknown if others is None else others
        if not tried.any():
            continue
        lanes = np.resize(np.flatnonzero(tried), 8 * -(-tried.sum() // 8))  # few sizes to compile
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # counted in the summary
            found = oracle.solve(
                states[lanes],
                controls[lanes],
                params,
                limit=limit,
                horizon=horizon,
                guesses=guess[lanes],
                disturbances=None if disturbances is None else disturbances[lanes],
            )
        whole = oracle.Plan(*(np.zeros((1, num, *x.shape[1:]), x.dtype) for x in found))
        whole.excess[:] = np.nan  # not tried
        for mine, new in zip(whole, found, strict=True):
            mine[0, lanes] = new
        if plans is not None:
            whole = oracle.Plan(*(np.concatenate(x) for x in zip(plans, whole, strict=True)))
        plans = whole
    best, good = choose(plans)
    cost = plans.cost[best, every]
    highest = np.where(good, plans.cost, -np.inf).max(axis=0)
    several = good.sum(axis=0) > 1
    return Best(
        action=plans.action[best, every],
        cost=cost,
        excess=plans.excess[best, every],
        known=good.any(axis=0),
        spread=np.where(several, highest / cost - 1.0, np.nan),
        num_tried=np.isfinite(plans.excess).sum(axis=1).tolist(),
        num_converged=good.sum(axis=1).tolist(),
    )


def choose(plans: oracle.Plan) -> tuple[np.ndarray, np.ndarray]:
    """Of plans (guesses, E, ...), which is best from each start (E,), and which are optima."""
    good = plans.converged & (plans.excess <= 0.0)
    tried = np.isfinite(plans.excess)  # a plan that the integrator failed on comes last
    rank = np.where(good, -1.0, np.where(tried, np.maximum(plans.excess, 0.0), np.inf))
    return np.lexsort((np.where(tried, plans.cost, np.inf), rank), axis=0)[0], good


def guesses(states, controls, params, horizon):
    """Three guesses (N, H, 2): the cautious one, and lowering the controls as fast as allowed for
    5 or 24 intervals and holding them there. None of them ignites but from doomed starts."""
    lowered = np.zeros((2, len(states), horizon, 2))
    for guess, steps in zip(lowered, (5, viability.SAFEST_STEPS), strict=True):
        guess[:, :steps] = controllers.SAFEST
    return oracle.guess_all(states, controls, params, horizon), *lowered


def summary_of(best: Best) -> dict[str, Any]:
    """What of a set of optima goes into the summary."""
    known = best.known
    spread = best.spread[~np.isnan(best.spread)]
    return {
        "known": int(known.sum()),
        "tried, of each guess": best.num_tried,
        "converged, of each guess": best.num_converged,
        "largest relative spread over the guesses": float(spread.max()) if spread.size else None,
        "mean cost of the known": float(best.cost[known].mean()) if known.any() else None,
    }


def make_oracle(say, only=()) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Arrays of oracle.npz, `<scenario>_<starts>_<field>`, and a summary."""
    arrays: dict[str, np.ndarray] = {}
    summary: dict[str, Any] = {}
    for scenario in SCENARIOS:
        for kind in evaluate.START_SETS:
            started, name = time.perf_counter(), f"{scenario} {kind}"
            if only and name not in only:
                continue
            starts, params = evaluate.starts(scenario, kind), scenario_params(scenario)
            fields = {"step": step_returns(starts, params)}
            summary[name] = {"doomed": int(starts.doomed.sum())}
            for which, limit in (("oracle", None), ("unconstrained", np.inf)):
                # From doomed starts no plan keeps the limit, whatever the guess.
                others = ~starts.doomed if limit is None else np.ones_like(starts.doomed)
                best = solve_all(starts.state, starts.control, params, limit, others=others)
                fields |= {which: -best.cost, f"{which}_known": best.known}
                fields[f"{which}_action"] = np.float32(best.action)
                summary[name][which] = summary_of(best)
            summary[name]["seconds"] = round(time.perf_counter() - started, 1)
            arrays |= {f"{scenario}_{kind}_{field}": value for field, value in fields.items()}
            say(f"{name}: {summary[name]}")
    return arrays, summary


def make_robustness(say, only=()) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The same of the changed plants of the robustness suite, arrays of robustness.npz."""
    arrays: dict[str, np.ndarray] = {}
    summary: dict[str, Any] = {}
    for scenario in SCENARIOS:
        for condition in conditions.SUITE:
            started, name = time.perf_counter(), f"{scenario} {condition.name}"
            if not condition.changes_plant or (only and name not in only):
                continue
            starts, params = (
                evaluate.starts(scenario, "nominal"),
                conditions.params(scenario, condition),
            )
            best = solve_changed(starts, params)
            fields = {
                "step": step_returns(starts, params),
                "oracle": -best.cost,
                "oracle_known": best.known,
                "oracle_action": np.float32(best.action),
            }
            arrays |= {f"{name} {field}": value for field, value in fields.items()}
            summary[name] = summary_of(best)
            summary[name]["seconds"] = round(time.perf_counter() - started, 1)
            say(f"{name}: {summary[name]}")
    return arrays, summary


def solve_changed(starts, params) -> Best:
    """`solve_all` on a plant with disturbances, which the oracle foresees, and an input delay.

    With a delay of d intervals the controls stand still for the first d, whatever is asked for;
    what is optimised is the rest, and what is asked for in the last d has no effect.
    """
    delay = int(params.action_delay)
    disturbances = np.asarray(realised_disturbances(params, len(starts.state)), np.float64)
    at_once = params.replace(action_delay=0)
    hold = np.zeros((len(starts.state), delay, 2))
    waiting = replay(starts, params, hold) if delay else None
    states = waiting.state[-1] if delay else starts.state
    best = solve_all(states, starts.control, at_once, None, disturbances[:, delay:])
    if not delay:
        return best
    over = waiting.peak_temperature.max(axis=0) - params.temperature_limit
    return best._replace(
        action=np.concatenate([best.action, hold], axis=1),
        cost=best.cost - waiting.reward.sum(axis=0, dtype=np.float64),
        excess=np.maximum(best.excess, over),
        known=best.known & (over <= 0.0),
    )


@functools.partial(jax.jit, static_argnums=1)
def realised_disturbances(params, num_lanes: int):
    """Disturbances (E, T, 2) of feed temperature [K] and monomer feed [kg/h] in an evaluation.

    They do not depend on what is done: the environment's own draws, in its own precision.
    """
    keys = jax.random.split(jax.random.key(EVALUATION_KEY), num_lanes)

    def of_lane(key):
        def interval(state, index):
            draws = ENV.draw(jax.random.split(jax.random.fold_in(key, index))[0], params)
            now = ENV.begin_interval(state, jnp.zeros((2,)), draws, params).disturbance
            return state.replace(disturbance=now), now

        state = initial_state(params.start_mean, params.initial_control)
        return jax.lax.scan(interval, state, jnp.arange(HORIZON))[1]

    return jax.vmap(of_lane)(keys)


def step_returns(starts, params) -> np.ndarray:
    """Return (E,) of the open-loop step to the steady inputs of the plant's set-points."""
    plans = np.stack([oracle.step_to_setpoint(c, params) for c in starts.control])
    reward = replay(starts, params, np.float32(plans)).reward
    return reward.sum(axis=0, dtype=np.float64)


def replay(starts, params, plans):
    """Roll-out (T, E) of the environment under plans (E, T, 2), with the evaluation's noise."""
    memory = (jnp.asarray(plans), jnp.zeros((len(starts.state),), int))
    return roll(controllers.follow_plan, memory, params, starts, plans.shape[1])


def roll(controller, memory, params, starts, num_steps: int = HORIZON):
    """Roll-out (T, E) of a controller from starts, with the evaluation's noise, on the host."""
    keys = jax.random.split(jax.random.key(EVALUATION_KEY), len(starts.state))
    initial = evaluate.start_states(starts)
    return jax.device_get(run_controller(controller, params, memory, initial, keys, num_steps))


@functools.partial(jax.jit, static_argnums=(0, 5))
def run_controller(controller, params, memory, initial, keys, num_steps):
    return rollout(ENV, params, controller, memory, initial, keys, num_steps)


# --- Tuned PI controllers ---


def training_starts(scenario: str):
    """Starts of the scenario, none of them of any start set."""
    params = scenario_params(scenario)
    rng = np.random.default_rng([TRAINING_SEED, SCENARIOS.index(scenario)])
    state = params.start_mean + params.start_width * rng.uniform(
        -1.0, 1.0, (NUM_TRAINING_STARTS, 5)
    )
    return np.float32(state), np.tile(np.float32(params.initial_control), (NUM_TRAINING_STARTS, 1))


@functools.partial(jax.jit, static_argnums=4)
def pi_scores(theta, state, control, params, limits):
    """Mean score and share of violating episodes, (C,) each, of C controllers `theta` (C, 6)."""
    initial = jax.vmap(initial_state)(state, control)

    def of_one(theta):
        memory = pi_of(theta)
        lanes = jax.tree.map(lambda x: jnp.tile(x, (len(state), 1)), memory)
        metrics = evaluate.evaluate(ENV, params, PI, lanes, initial, limits, jax.random.key(0))
        return metrics.score.mean(), metrics.violated.mean()

    return jax.lax.map(of_one, theta, batch_size=16)


def pi_of(theta):
    """The PI controller of log Kp (2), log Ki (2), bias (2)."""
    return controllers.pi_state(jnp.exp(theta[:2]), jnp.exp(theta[2:4]), theta[4:])


def tune_pi(scenarios) -> dict[str, Any]:
    """Cross-entropy method: gains and bias with the best mean score without a violation.

    Over the training starts of one scenario, or of several together. Several searches from the
    published ranges of the gains and the steady inputs of the set-point, on a few of the starts;
    the best of all that they tried is refined on all starts.
    """
    started = time.perf_counter()
    ranges = np.log(
        [[controllers.KP_LOW, controllers.KP_HIGH], [controllers.KI_LOW, controllers.KI_HIGH]]
    )
    steady = [oracle.steady_inputs(scenario_params(s)) for s in scenarios]
    mean = np.concatenate([*ranges.mean(axis=1), np.mean(steady, axis=0)])
    std = np.concatenate([*np.ptp(ranges, axis=1), [0.5, 2.0]])
    found = [
        search_pi(scenarios, NUM_SEARCH_STARTS, mean, std, GENERATIONS, n)
        for n in range(NUM_RESTARTS)
    ]
    finalists = np.concatenate([theta for theta, _ in found])
    value = np.asarray(value_of(finalists, scenarios, NUM_TRAINING_STARTS)[0])
    best, std = finalists[np.argmax(value)], REFINED_STD * std
    elite, _ = search_pi(scenarios, NUM_TRAINING_STARTS, best, std, NUM_REFINED, NUM_RESTARTS)
    _, score, violated = value_of(elite[:1], scenarios, NUM_TRAINING_STARTS)
    memory = jax.tree.map(lambda x: np.asarray(x).tolist(), pi_of(jnp.asarray(elite[0])))
    return {
        "kp": memory.kp,
        "ki": memory.ki,
        "bias": memory.bias,
        "training_score": float(score[0]),
        "training_violated": float(violated[0]),
        "searches": [float(v) for _, v in found],
        "seconds": round(time.perf_counter() - started, 1),
    }


def value_of(theta, scenarios, num_starts: int):
    """What is maximised, mean score and share of violating episodes, (C,) each, of `theta`."""
    lanes = np.resize(np.arange(len(theta)), 16 * -(-len(theta) // 16))  # few sizes to compile
    found = [
        pi_scores(
            jnp.asarray(theta[lanes], jnp.float32),
            *(x[:num_starts] for x in training_starts(s)),
            scenario_params(s),
            evaluate.score_limits(s),
        )
        for s in scenarios
    ]
    score, violated = (
        np.mean([np.asarray(x[n], float) for x in found], axis=0)[: len(theta)] for n in (0, 1)
    )
    return score - VIOLATION_PENALTY * violated, score, violated


def search_pi(scenarios, num_starts: int, mean, std, generations: int, seed: int):
    """One cross-entropy search: the best `ELITE` of all that it tried (ELITE, 6), the best first,
    and the value of the best."""
    rng = np.random.default_rng(seed)
    kept, values = mean[None], value_of(mean[None], scenarios, num_starts)[0]
    for _ in range(generations):
        theta = mean + std * rng.standard_normal((POPULATION, 6))
        value = value_of(theta, scenarios, num_starts)[0]
        elite = theta[np.argsort(-value)[:ELITE]]
        mean = 0.3 * mean + 0.7 * elite.mean(axis=0)
        std = 0.3 * std + 0.7 * elite.std(axis=0)
        kept, values = np.concatenate([kept, theta]), np.concatenate([values, value])
        order = np.argsort(-values)[:ELITE]
        kept, values = kept[order], values[order]
    return kept, values[0]


def make_tuned_pi(say) -> dict[str, Any]:
    """One PI controller a scenario, and one for all three."""
    found = {}
    for name, scenarios in (*((s, (s,)) for s in SCENARIOS), ("all", SCENARIOS)):
        found[name] = tune_pi(scenarios)
        say(f"{name}: {found[name]}")
    return found


# --- Writing ---


def write_json(path: Path, content: dict) -> None:
    text = json.dumps(content, indent=2, sort_keys=True) + "\n"
    write_atomically(path, lambda file: file.write(text.encode()))
    rich.print(f"written: {path.name}")


def main(args: Args) -> None:
    path = {
        "oracle": PACKAGE / "oracle.npz",
        "pi": PACKAGE / "tuned_pi.json",
        "robustness": conditions.ROBUSTNESS,
    }[args.what]
    try:
        check_writable(path.parent)
    except OSError as error:
        raise SystemExit(str(error)) from error
    jax.config.update("jax_compilation_cache_dir", str(REPOSITORY / ".cache" / "jax"))
    words = [args.what, *(["--only", *map(repr, args.only)] if args.only else [])]
    made = {"command": f"python -m benchmarks.references {' '.join(words)}"} | software()
    if args.what == "pi":
        write_json(path, {"made": made, "controllers": make_tuned_pi(rich.print)})
    else:
        make = make_oracle if args.what == "oracle" else make_robustness
        arrays, summary = make(rich.print, args.only)
        unknown = set(args.only) - set(summary)
        if unknown:
            raise SystemExit(f"only = {', '.join(unknown)}; allowed: such as grade_up wide.")
        summary = {name: row | {"made": made} for name, row in summary.items()}
        if args.only:
            with np.load(path) as content:
                arrays = dict(content) | arrays
            summary = json.loads(path.with_suffix(".json").read_text())["summary"] | summary
        write_atomically(path, lambda file: np.savez_compressed(file, **arrays))
        write_json(path.with_suffix(".json"), {"summary": summary})


if __name__ == "__main__":
    main(tyro.cli(Args))
