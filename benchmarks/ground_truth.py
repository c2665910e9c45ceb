"""The facts of docs/ground-truth.md: is the oracle right, and what does the limit ask for?

    python -m benchmarks.ground_truth                     # everything
    python -m benchmarks.ground_truth --only price slices # some sections; the others are kept

Writes `<out>/ground_truth.json` and `.md`, `feasible_set.npz`, and figures `ground-truth-*.png`.
A section is kept in the file with its own provenance until it is measured again.

- `scipy`: the oracle's plans replayed by SciPy. (What other guesses lead to is in
  `polycstr_jax/oracle.json`.)
- `price`: what the limit costs at 354, 356, 358 and 360 K.
- `horizon`: receding-horizon control with 1 to 20 intervals of foresight.
- `agents`: controllers and trained agents as they are, behind the shield, and behind a tuned
  thermometer alarm; live-but-doomed states, and how long before the violation they began.
- `accuracy`: peaks under the safest policy, against rtol 1e-8 in float64 and 100 intervals.
- `conjecture`: optimised sequences of actions against the safest policy.
- `thermometer`: the best a temperature alone can do at telling feasible from doomed states.
- `shield`: 10,000 episodes of a random agent behind the shield.
- `slices`: the largest feasible set, in the planes (A, T), (I, T), (P, T).
"""

import dataclasses
import functools
import time
from pathlib import Path
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import rich
import tyro
from scipy.integrate import solve_ivp

matplotlib.use("Agg")

import matplotlib.pyplot as plt

import polycstr_jax
from algos.common import load_training_data
from benchmarks.conditions import Condition
from benchmarks.figures import BLUE, GREY, LABELS, RED, draw, save
from benchmarks.plan import METHODS, PRESETS, plan_cells
from benchmarks.references import replay, roll, solve_all
from benchmarks.sections import check_folders, measure
from benchmarks.solvers import scipy_rhs
from benchmarks.tables import BEATEN, TOLERANCES
from benchmarks.worker import algorithm_of, nan_statistic, reference, saving, train
from polycstr_jax import controllers, evaluate, oracle, reactor, viability
from polycstr_jax.controllers import SAFEST
from polycstr_jax.data import write_atomically
from polycstr_jax.env import EnvParams, scenario_params

SCENARIOS = tuple(polycstr_jax.SCENARIOS)
COLOURS = dict(zip(SCENARIOS, (BLUE, GREY, RED), strict=True))
LIMITS = (354.0, 356.0, 358.0, 360.0)
HORIZONS = (1, 2, 3, 5, 10, 20)
THRESHOLDS = tuple(np.arange(350.25, 356.01, 0.25).tolist())  # K, of the thermometer alarm
AGENTS = ("random", "zero", "pi_best", "pi_tuned", "unconstrained", "bc", "bc+", "iql", "iql+")
Section = Literal[
    *("scipy", "price", "horizon", "agents"),
    *("accuracy", "conjecture", "thermometer", "shield", "slices"),
]
SECTIONS = get_args(Section)


@dataclasses.dataclass
class Args:
    """Measure the facts about oracle, viability, shield and alarm."""

    only: tuple[Section, ...] = SECTIONS
    out: Path = Path("results/ground_truth")
    figures: Path = Path("docs/figures")
    num_episodes: int = 10_000  # of the shielded random agent
    num_states: int = 400  # near the boundary, of the conjecture
    num_scipy: int = 4  # plans a scenario that SciPy replays
    num_starts: int = 64  # nominal starts from which the limit's price is found


# --- The oracle ---


def scipy_replay(state, control, actions, params) -> tuple[float, np.ndarray]:
    """Cost and peaks (T,) of a plan by SciPy Radau at rtol 1e-9, in the published equations."""
    scale = np.array([1.0, 1.0, 1e-6, 1.0, 1.0])
    state, control = np.array(state, float) / scale, np.array(control, float)
    cost, peaks = 0.0, []
    for action in np.asarray(actions, float):
        previous_feed, control = control[0], control + action * params.max_increment
        solution = solve_ivp(
            lambda t, z, *held: np.asarray(scipy_rhs(t, z * scale, *held)) / scale,
            (0.0, 1800.0),
            state,
            method="Radau",
            rtol=1e-9,
            atol=1e-9,
            args=(*control, previous_feed),
            dense_output=True,
        )
        state = solution.y[:, -1]
        cost += (params.polymer_setpoint - state[3]) ** 2
        cost += (params.temperature_setpoint - state[4]) ** 2
        peaks.append(solution.sol(np.linspace(0.0, 1800.0, 181))[4].max())
    return cost, np.array(peaks)


def scipy(args) -> list[dict]:
    """The committed plans from some nominal starts, replayed by SciPy."""
    rows = []
    for scenario in SCENARIOS:
        starts, params = evaluate.starts(scenario, "nominal"), scenario_params(scenario)
        actions = evaluate.optimal_actions(scenario, "nominal", "oracle")
        expected = -evaluate.references(scenario, "nominal").oracle
        plan_peaks = replay(starts, params, np.float32(actions)).peak_temperature
        errors = []
        for start in range(args.num_scipy):
            cost, peaks = scipy_replay(
                starts.state[start], starts.control[start], actions[start], params
            )
            error = abs(cost / expected[start] - 1.0), np.abs(peaks - plan_peaks[:, start]).max()
            errors.append((*error, peaks.max()))
        cost_error, peak_error, peak = np.max(errors, axis=0)
        rows.append(
            {
                "scenario": scenario,
                "plans": args.num_scipy,
                "cost, relative": float(cost_error),
                "peak, K": float(peak_error),
                "highest peak by SciPy, K": float(peak),
            }
        )
    return rows


def price(args) -> list[dict]:
    """Cost of the optimum under several limits, relative to the unconstrained one.

    Over the starts from which all limits can be kept, and from the scenario's middle start.
    """
    rows = []
    for scenario in SCENARIOS:
        starts, params = evaluate.starts(scenario, "nominal"), scenario_params(scenario)
        # The middle start comes last.
        first = slice(args.num_starts)
        states = np.concatenate([starts.state[first], np.asarray(params.start_mean)[None]])
        controls = np.concatenate([starts.control[first], np.asarray(params.initial_control)[None]])
        best = {limit: solve_all(states, controls, params, limit) for limit in (np.inf, *LIMITS)}
        counts = np.all([found.known for found in best.values()], axis=0)[:-1]
        free = best[np.inf].cost
        row = {
            "scenario": scenario,
            "unconstrained cost of the middle start": known(free[-1], best[np.inf].known[-1]),
            "unconstrained cost, mean": float(free[:-1][counts].mean()),
            "starts": int(counts.sum()),
        }
        for limit in LIMITS:
            cost, good = best[limit].cost, best[limit].known & best[np.inf].known
            row[f"{limit:g} K"] = float(cost[:-1][counts].sum() / free[:-1][counts].sum() - 1.0)
            row[f"{limit:g} K, middle"] = known(cost[-1] / free[-1] - 1.0, good[-1])
        rows.append(row)
    return rows


def known(value, is_known) -> float:
    """The value, or NaN."""
    return float(value) if is_known else float("nan")


# --- Foresight ---


def measured(trajectory, scenario: str, kind: str) -> dict[str, float]:
    """Score, gap closed, violations and doom of a roll-out from a start set's feasible starts."""
    starts, params = evaluate.starts(scenario, kind), scenario_params(scenario)
    limits = evaluate.score_limits(scenario)
    metrics = jax.device_get(evaluate.episode_metrics(trajectory, params, limits))
    doom = jax.device_get(viability.doom(trajectory, params))
    of, returns = evaluate.references(scenario, kind), metrics.episode_return
    gap, alive = evaluate.gap_closed(returns, of), ~starts.doomed
    calm = of.oracle_known & ~metrics.violated
    return {
        "excess over oracle": saving(returns, of.oracle, calm),
        "excess over unconstrained": saving(returns, of.unconstrained, of.unconstrained_known),
        "score": float(metrics.score[alive].mean(dtype=np.float64)),
        "gap closed": nan_statistic(np.mean, gap),
        "gap closed, median": nan_statistic(np.median, gap),
        "P(violation)": float(metrics.violated[alive].mean()),
        "violating intervals": float(metrics.violation_steps[alive].mean()),
        "P(runaway)": float(metrics.runaway[alive].mean()),
        "doomed while live": float(doom.doomed_share[alive].mean()),
        "first doomed, h": nan_statistic(np.median, doom.first_doomed[alive]),
        "lead, h": nan_statistic(np.median, doom.lead[alive]),
    }


def horizon(args) -> list[dict]:
    """Receding-horizon control from the nominal starts."""
    rows = []
    for length in HORIZONS:
        controller = oracle.receding_horizon(EnvParams(), length)
        for scenario in SCENARIOS:
            starts = evaluate.starts(scenario, "nominal")
            memory = jnp.zeros((len(starts.state), length, 2))
            trajectory = roll(controller, memory, scenario_params(scenario), starts)
            row = {"horizon": length, "scenario": scenario}
            rows.append(row | measured(trajectory, scenario, "nominal"))
        jax.clear_caches()
    return rows


def trained_states(scenario: str):
    """{method: (algorithm, states)} of 8 seeds on the `pi` data, as in `benchmarks.run`."""
    found = {}
    for cell in plan_cells(PRESETS["cpu"]):
        if (cell.scenario, cell.dataset) == (scenario, "pi") and cell.method in METHODS:
            algorithm = algorithm_of(cell)
            found[cell.method] = (
                algorithm,
                train(algorithm, load_training_data(scenario, "pi"), cell, 0)[0],
            )
    return found


NOMINAL = EnvParams()
LIMIT = NOMINAL.temperature_limit  # K
GUARDS = ("as it is", "shield", "alarm")


@functools.cache
def guarded(controller, guard: str):
    """A controller behind a guard, made once so that it compiles once.

    That of the alarm remembers the pair of the controller's own memory and the threshold.
    """

    def alarm(obs, memory):
        own, threshold = memory
        action, own = viability.alarmed(controller, threshold)(obs, own)
        return action, (own, threshold)

    shielded = viability.shielded(controller, NOMINAL)
    return {"as it is": controller, "shield": shielded, "alarm": alarm}[guard]


@functools.cache
def policy_controller(policy):
    """A deterministic policy as a controller; its memory is the trained state."""

    def act(obs, state):
        return policy(state)(obs, jax.random.key(0)), state

    return act


def agent(name: str, scenario: str, kind: str, states):
    """A controller and its memory for the 64 starts; of trained agents seed 0."""
    if name in states:
        algorithm, all_seeds = states[name]
        memory = jax.tree.map(lambda x: np.repeat(np.asarray(x)[:1], 64, axis=0), all_seeds)
        return policy_controller(algorithm.policy), memory
    controller, memory = reference(name, scenario, Condition(kind, kind))
    return controller, memory(0)


def tune_alarm(name: str, scenario: str, states) -> float:
    """The threshold with the best mean score among those with the fewest violations, `tune`."""
    starts, params = evaluate.starts(scenario, "tune"), scenario_params(scenario)
    controller, memory = agent(name, scenario, "tune", states)
    act, found = guarded(controller, "alarm"), []
    for threshold in THRESHOLDS:
        lanes = (memory, jnp.full((64,), threshold, jnp.float32))
        trajectory = roll(act, lanes, params, starts)
        alive = ~starts.doomed
        violated = (trajectory.peak_temperature > LIMIT).any(axis=0)[alive].mean()
        found.append((-violated, trajectory.reward.sum(axis=0)[alive].mean(), threshold))
    return max(found)[2]


def agents(args) -> list[dict]:
    """Agents as they are, shielded, and with a tuned alarm; nominal and feasible hot starts."""
    rows = []
    for scenario in SCENARIOS:
        states = trained_states(scenario)
        for name in AGENTS:
            threshold = tune_alarm(name, scenario, states)
            for guard in GUARDS:
                for kind in ("nominal", "hot"):
                    controller, memory = agent(name, scenario, kind, states)
                    if guard == "alarm":
                        memory = (memory, jnp.full((64,), threshold, jnp.float32))
                    starts, params = evaluate.starts(scenario, kind), scenario_params(scenario)
                    trajectory = roll(guarded(controller, guard), memory, params, starts)
                    row = {"scenario": scenario, "starts": kind, "agent": name, "guard": guard}
                    row["threshold, K"] = threshold if guard == "alarm" else float("nan")
                    rows.append(row | measured(trajectory, scenario, kind))
            jax.clear_caches()
        rich.print(f"agents: {scenario} done")
    return rows


# --- Viability ---


@functools.cache
def near_boundary(num_states: int, scenarios: tuple[str, ...] = tuple(SCENARIOS)):
    """States, controls and peaks under the safest policy, of random and greedy agents, where that
    peak is within 5 K of the limit and the temperature is not above it yet.

    Random agents from the scenarios' starts, and the unconstrained optima, which are greedy.
    """
    found = []
    for scenario in scenarios:
        for kind in ("nominal", "hot"):
            starts, params = evaluate.starts(scenario, kind), scenario_params(scenario)
            for name in ("random", "unconstrained"):
                controller, memory = reference(name, scenario, Condition(kind, kind))
                trajectory = roll(controller, memory(1), params, starts, 60)
                found.append((trajectory.state.reshape(-1, 5), trajectory.control.reshape(-1, 2)))
    states, controls = (np.concatenate(x) for x in zip(*found, strict=True))
    live = states[:, 4] <= LIMIT
    states, controls = states[live], controls[live]
    order = np.random.default_rng(0).permutation(len(states))
    states, controls = states[order], controls[order]
    peak = peaks_of(states, controls)
    near = np.flatnonzero(np.abs(peak - LIMIT) < viability.BAND)[:num_states]
    return states[near], controls[near], peak[near]


@jax.jit
def _peaks(states, controls):
    given = (states, controls)
    return jax.lax.map(lambda x: viability.peak_under_safest(*x), given, batch_size=4_096)


def peaks_of(states, controls) -> np.ndarray:
    return np.asarray(_peaks(jnp.asarray(states, jnp.float32), jnp.asarray(controls, jnp.float32)))


NUM_SEQUENCES, NUM_ROUNDS, NUM_ELITE = 256, 8, 16


def raised() -> np.ndarray:
    """The safest policy with one control held instead of lowered in one interval, (48, 24, 2)."""
    steps = viability.SAFEST_STEPS
    sequences = np.full((2, steps, steps, 2), -1.0, np.float32)
    for control in range(2):
        sequences[control, np.arange(steps), np.arange(steps), control] = 0.0
    return sequences.reshape(2 * steps, steps, 2)


@jax.jit
def search(states, controls, key):
    """Lowest peak (N,) that a cross-entropy search over 24 actions finds from N states."""
    step = viability.make_step(NOMINAL)

    def peak_of(state, control, sequence):
        def interval(carry, action):
            *rest, peak = step(*carry[:3], action)
            return (*rest, jnp.maximum(carry[3], peak)), None

        start = (state, control, jnp.asarray(reactor.FIRST_STEP), state[4])
        return jax.lax.scan(interval, start, sequence)[0][3]

    def of_one(args):
        state, control, key = args
        peaks_of_all = jax.vmap(peak_of, (None, None, 0))
        mean = jnp.zeros((viability.SAFEST_STEPS, 2))

        def improve(carry, key):
            mean, std, best = carry
            noise = jax.random.normal(key, (NUM_SEQUENCES, *mean.shape))
            sequences = jnp.clip(mean[None] + std[None] * noise, -1.0, 1.0)
            peak = peaks_of_all(state, control, sequences)
            elite = sequences[jnp.argsort(peak)[:NUM_ELITE]]
            best = jnp.minimum(best, peak.min())
            return (elite.mean(axis=0), elite.std(axis=0) + 0.05, best), None

        keys = jax.random.split(key, NUM_ROUNDS)
        best = peaks_of_all(state, control, jnp.asarray(raised())).min()
        return jax.lax.scan(improve, (mean, jnp.ones_like(mean), best), keys)[0][2]

    return jax.lax.map(of_one, (states, controls, jax.random.split(key, states.shape[0])))


def conjecture(args) -> list[dict]:
    """Optimised sequences against the safest policy, from states near the boundary.

    Not from those that are no cooler than they will ever be: no action changes what has been.
    """
    states, controls, peak = near_boundary(10 * args.num_states)
    chosen = np.flatnonzero(peak > states[:, 4] + 0.01)
    doomed = chosen[peak[chosen] > LIMIT][: args.num_states // 2]
    feasible = chosen[peak[chosen] <= LIMIT][: args.num_states - len(doomed)]
    chosen = np.concatenate([doomed, feasible])
    states, controls, peak = states[chosen], controls[chosen], peak[chosen]
    arrays = (jnp.asarray(x, jnp.float32) for x in (states, controls))
    found = np.asarray(search(*arrays, jax.random.key(0)))
    below = peak - found
    return [
        {
            "states": len(peak),
            "of them doomed": int((peak > LIMIT).sum()),
            "sequences a state": NUM_ROUNDS * NUM_SEQUENCES + len(raised()),
            "safest policy's peak, K": f"{peak.min():.1f} to {peak.max():.1f}",
            "best sequence below the safest policy, K": float(below.max()),
            "median of that, K": float(np.median(below)),
            "called doomed, saved by a sequence": int(((peak > LIMIT) & (found <= LIMIT)).sum()),
        }
    ]


def accuracy(args) -> list[dict]:
    """Peaks of the states near the boundary against those of a finer integration, and of a longer
    one; 0.01 K is the shield's margin."""
    states, controls, peak = near_boundary(10 * args.num_states)

    rows = []
    with jax.enable_x64(True):
        given = jnp.asarray(states, jnp.float64), jnp.asarray(controls, jnp.float64)
        for num_steps in (viability.SAFEST_STEPS, 100):
            finest = functools.partial(viability.peak_under_safest, num_steps=num_steps, rtol=1e-8)
            exact = np.asarray(jax.jit(jax.vmap(finest))(*given))
            error = np.abs(peak - exact)
            rows.append(
                {
                    "against": f"rtol 1e-8, float64, {num_steps} intervals",
                    "states": len(peak),
                    "largest difference, K": float(error.max()),
                    "99.9th percentile, K": float(np.percentile(error, 99.9)),
                    "median, K": float(np.median(error)),
                    "other verdict": int(((peak > LIMIT) != (exact > LIMIT)).sum()),
                }
            )
    return rows


def thermometer(args) -> list[dict]:
    """How well the best temperature threshold tells feasible states from doomed ones, in the band
    of 5 K: false alarms and misses together are fewest."""
    states, _, peak = near_boundary(10 * args.num_states)
    found = {
        threshold: viability.agreement(states[:, 4] <= threshold, LIMIT - peak)
        for threshold in np.arange(345.0, 360.01, 0.25)
    }
    best = min(found, key=lambda threshold: found[threshold].false_alarms + found[threshold].misses)
    return [
        {
            "feasible": found[best].num_feasible,
            "doomed": found[best].num_doomed,
            "threshold, K": float(best),
            "false alarms, share of the feasible": found[best].false_alarms,
            "misses, share of the doomed": found[best].misses,
        }
    ]


def shield(args) -> list[dict]:
    """Random agents behind the shield, from feasible nominal and hot starts."""
    rows = []
    for scenario in SCENARIOS:
        chosen = []
        for kind in ("nominal", "hot"):
            starts = evaluate.starts(scenario, kind)
            peak = peaks_of(starts.state, starts.control)
            chosen.append([x[peak < LIMIT - viability.SHIELD_MARGIN] for x in starts])
        starts = evaluate.Starts(*(np.concatenate(x) for x in zip(*chosen, strict=True)))
        share = args.num_episodes // len(SCENARIOS) + 1
        again = np.resize(np.arange(len(starts.state)), share)
        starts = evaluate.Starts(*(x[again] for x in starts))
        controller = guarded(controllers.uniform_random, "shield")
        violated, highest, moved, started = 0, 0.0, [], time.perf_counter()
        for first in range(0, share, 512):
            part = evaluate.Starts(*(x[first : first + 512] for x in starts))
            lanes = len(part.state)
            keys = jax.random.split(jax.random.fold_in(jax.random.key(2), first), lanes)
            trajectory = roll(controller, keys, scenario_params(scenario), part)
            peak = trajectory.peak_temperature.max(axis=0)
            violated += int((peak > LIMIT).sum())
            highest = max(highest, float(peak.max()))
            moved.append(np.mean(np.abs(trajectory.action - np.asarray(SAFEST)).max(axis=2) > 0.01))
        rows.append(
            {
                "scenario": scenario,
                "episodes": share,
                "violating episodes": violated,
                "highest peak, K": highest,
                "intervals not at the safest action": float(np.mean(moved)),
                "seconds": time.perf_counter() - started,
            }
        )
        rich.print(f"shield: {rows[-1]}")
    return rows


# --- The feasible set ---

PLANES = {"monomer": (0, 0.0, 600.0), "initiator": (1, 0.0, 40.0), "polymer": (3, 0.0, 250.0)}
SLICE_CONTROLS = {"cold": (0.5, 335.0), "steady": None, "hot": (2.5, 350.0)}  # kg/h, K
NUM_POINTS = 61


def slices_arrays(slice_controls=None) -> dict[str, np.ndarray]:
    """Peaks under the safest policy over the planes; all else at the steady state of 100 kg/m3.

    Radicals are those in balance with initiator and temperature. `slice_controls`: {name: feed
    [kg/h] and coolant temperature [K] in force, or None for the steady ones}.
    """
    slice_controls = SLICE_CONTROLS if slice_controls is None else slice_controls
    plant = NOMINAL.reactor
    steady, inputs = reactor.nominal_steady_state(100.0, 350.0, plant)
    temperature = np.linspace(335.0, 375.0, NUM_POINTS)
    arrays = {"temperature": temperature, "limit": np.asarray(LIMIT), "steady_state": steady}
    chosen = {name: inputs if x is None else x for name, x in slice_controls.items()}
    arrays |= {f"controls_{name}": np.asarray(x, float) for name, x in chosen.items()}
    for plane, (_, low, high) in PLANES.items():
        arrays[plane] = np.linspace(low, high, NUM_POINTS)
        for name in chosen:
            states, controls = slice_states(arrays, plane, name)
            shape = (NUM_POINTS, NUM_POINTS)
            arrays[f"peak_{plane}_{name}"] = peaks_of(states, controls).reshape(shape)
    return arrays


def slice_states(arrays, plane: str, name: str):
    """States and controls (61 * 61, ...) of a plane, temperature last."""
    plant = NOMINAL.reactor
    x, t = np.meshgrid(arrays[plane], arrays["temperature"], indexing="ij")
    states = np.tile(arrays["steady_state"], (x.size, 1))
    states[:, PLANES[plane][0]], states[:, 4] = x.ravel(), t.ravel()
    heat = plant.gas_constant * states[:, 4]
    k_d = plant.decomposition_rate * np.exp(-plant.decomposition_energy / heat)
    k_t = plant.termination_rate * np.exp(-plant.termination_energy / heat)
    states[:, 2] = np.sqrt(k_d * states[:, 1] / plant.initiator_molar_mass / k_t)
    return states, np.tile(arrays[f"controls_{name}"], (x.size, 1))


def slices(args) -> list[dict]:
    """The feasible set over three planes: a data file, a figure, and its highest temperature."""
    arrays = slices_arrays()
    path = args.out / "feasible_set.npz"
    write_atomically(path, lambda file: np.savez_compressed(file, **arrays))
    rows = []
    fig, axes = plt.subplots(1, 3, figsize=(12, 4), layout="constrained", sharey=True)
    units = {"monomer": "kg/m3", "initiator": "kg/m3", "polymer": "kg/m3"}
    for axis, plane in zip(axes, PLANES, strict=True):
        for name, colour in zip(SLICE_CONTROLS, (BLUE, GREY, RED), strict=True):
            peak = arrays[f"peak_{plane}_{name}"].T
            grid = (arrays[plane], arrays["temperature"])
            axis.contour(*grid, peak, levels=[LIMIT], colors=[colour])
            axis.plot([], [], color=colour, label=f"{name} controls")
            feasible = peak <= LIMIT
            top = np.where(feasible, arrays["temperature"][:, None], 0.0).max(axis=0)
            rows.append(
                {
                    "plane": plane,
                    "controls": name,
                    "feasible up to, K (lowest)": known(top.min(), top.min() > 0.0),
                    "feasible up to, K (highest)": known(top.max(), top.max() > 0.0),
                    "share feasible": float(feasible.mean()),
                }
            )
        axis.axhline(LIMIT, color=RED, ls="--", lw=1)
        axis.set_xlabel(f"{plane}, {units[plane]}")
        axis.grid(alpha=0.25)
    axes[0].set_ylabel("temperature, K: feasible below the line")
    axes[0].legend(fontsize=8)
    save(fig, args.figures / "ground-truth-feasible-set.png")
    return rows


# --- Figures and files ---


def figure_plans(folder: Path) -> None:
    """The oracle, with and without the limit, from the nominal starts."""
    fig, axes = plt.subplots(4, 6, figsize=(16, 8), sharex=True, sharey="row", layout="constrained")
    for row, scenario in enumerate(SCENARIOS):
        for column, name in enumerate(("unconstrained", "oracle")):
            starts, params = evaluate.starts(scenario, "nominal"), scenario_params(scenario)
            trajectory = replay(starts, params, evaluate.optimal_actions(scenario, "nominal", name))
            colour = BLUE if name == "oracle" else GREY
            title = f"{scenario}, {'limit 356 K' if name == 'oracle' else 'no limit'}"
            axis = axes[:, 2 * row + column]
            draw(axis, trajectory, params, title, colour)
            axis[0].set_xlim(0, 30)
    for axis, label in zip(axes[:, 0], LABELS, strict=True):
        axis.set_ylabel(label)
    save(fig, folder / "ground-truth-plans.png")


def figure_price(rows, folder: Path) -> None:
    fig, axis = plt.subplots(figsize=(5, 3.5), layout="constrained")
    for row in rows:
        values = [100.0 * row[f"{limit:g} K"] for limit in LIMITS]
        colour = COLOURS[row["scenario"]]
        axis.plot(LIMITS, values, "o-", color=colour, label=row["scenario"])
    axis.set_xlabel("temperature limit, K")
    axis.set_ylabel("price, % of the unconstrained cost")
    axis.legend(fontsize=8)
    axis.grid(alpha=0.25)
    save(fig, folder / "ground-truth-price.png")


def figure_horizon(rows, folder: Path) -> None:
    fig, axes = plt.subplots(1, 2, figsize=(9, 3.5), layout="constrained")
    for scenario in SCENARIOS:
        own = [row for row in rows if row["scenario"] == scenario]
        lengths = [row["horizon"] for row in own]
        for axis, key in zip(axes, ("gap closed, median", "P(violation)"), strict=True):
            values, colour = [row[key] for row in own], COLOURS[scenario]
            axis.plot(lengths, values, "o-", color=colour, label=scenario)
    for axis, label in zip(
        axes, ("gap closed, median, %", "share of violating episodes"), strict=True
    ):
        axis.set_xscale("log")
        axis.set_xlabel("foresight, intervals of half an hour")
        axis.set_ylabel(label)
        axis.grid(alpha=0.25)
    axes[0].set_ylim(-20, 105)
    axes[0].legend(fontsize=8)
    save(fig, folder / "ground-truth-horizon.png")


def main(args: Args) -> None:
    for name in ("num_episodes", "num_states", "num_scipy", "num_starts"):
        if getattr(args, name) < 1:
            raise SystemExit(
                f"{name.replace('_', '-')} = {getattr(args, name)}; allowed: 1 or more."
            )
    check_folders(args.out, args.figures)
    measures = {name: globals()[name] for name in SECTIONS}
    path = args.out / "ground_truth.json"
    found = measure(path, "Ground truth", measures, args.only, args)
    beaten = [
        f"{name}: {row}"
        for name, section in found.items()
        for row in section["rows"]
        for key, tolerance in TOLERANCES.items()
        if (row.get(key.replace("_", " ")) or 0.0) > tolerance
    ]
    if "price" in args.only:
        figure_price(found["price"]["rows"], args.figures)
    if "horizon" in args.only:
        figure_horizon(found["horizon"]["rows"], args.figures)
    if "scipy" in args.only:
        figure_plans(args.figures)
    if beaten:
        raise SystemExit(f"{BEATEN}: {beaten[0]}")


if __name__ == "__main__":
    main(tyro.cli(Args))
