"""What the correction layer of arXiv 2507.22640 does, and why: diagnostics, tuning, figures.

    python -m benchmarks.picnn
    python -m benchmarks.picnn --only surface    # the synthetic surface alone: surface.json and .md

Trains BC, IQL and the cost models for a few seeds on each scenario and writes
`<out>/diagnostics.json` and `.md`, and figures `picnn-*.png`:

- tuning of K, eta and gate on the `tune` starts, the whole grid, and what else was tried there;
- R^2 on 100 fresh episodes, for each model and target;
- convexity: Hessian eigenvalues at random (s, a) and along roll-outs, and what convexity costs on
  a synthetic surface that is not convex;
- gradients along episodes: size, and whether their direction persists;
- size of the correction, the model's cost before and after, optimality gap of K steps;
- starts widened step by step.
"""

import dataclasses
import functools
import json
import time
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import optax
import pandas as pd
import rich
import tyro

matplotlib.use("Agg")

import matplotlib.pyplot as plt

from algos import bc, iql, picnn
from algos.common import action_units, load_training_data, track_obs, train_seeds
from benchmarks.constants import is_doomed
from benchmarks.figures import BLUE, GREY, LABELS, RED, draw, policy_trajectory, save
from benchmarks.run import software
from benchmarks.sections import on_starts
from benchmarks.tables import markdown_table
from polycstr_jax import data, evaluate
from polycstr_jax.data import check_writable, write_atomically
from polycstr_jax.env import SCENARIOS, scenario_params

BASES = {"bc": bc, "iql": iql}
MODELS = {
    "PICNN": {},
    "linear state path": {"state_path": "linear"},
    "standard network": {"model": "nn"},
}
COLOURS = {"PICNN": BLUE, "linear state path": GREY, "standard network": RED}
TARGETS = ("one_step", "n_step", "discounted")
GRID_STEPS = (1, 3, 5, 10)
GRID_ETA = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
GRID_GATE = (0.0, 10.0)
PAPER_ETA = (1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2)  # of plain steps down the one-step cost
OPTIONS = {  # what else was tried on the `tune` starts
    "default": {},
    "no gate": {"gate": 0.0},
    "Newton, K = 1": {"correction": "newton", "num_steps": 1, "eta": 1.0},
    "Newton, K = 3": {"correction": "newton", "num_steps": 3, "eta": 1.0},
    "exact minimiser": {"correction": "exact"},
    "5 models, k = 0": {"num_models": 5},
    "5 models, k = 0.5": {"num_models": 5, "uncertainty": 0.5},
    "one-step target": {"target": "one_step"},
    "10-step target": {"target": "n_step"},
    "discount 0.95": {"discount": 0.95},
    "linear state path": {"state_path": "linear"},
    "standard network": {"model": "nn"},
}
TUNED = {  # variant: model and target; each with its own best setting of the same grid
    "default": ("PICNN", "discounted"),
    "one-step": ("PICNN", "one_step"),
    "linear": ("linear state path", "discounted"),
    "nn": ("standard network", "discounted"),
}
FIRST_SEED = 10_000  # seeds that no table evaluates
WIDENING = (0.0, 1.0, 2.0, 3.0)  # multiples of A and P x U(0.9, 1.1), T + U(-3, 3) K
NUM_RANDOM = 10_000
AMPLITUDES = (0.0, 0.25, 0.5, 1.0)


@dataclasses.dataclass
class Args:
    """Diagnostics of the correction layer."""

    out: Path = Path("results/picnn")
    figures: Path = Path("docs/figures")
    num_seeds: int = 4
    only: Literal["surface"] | None = None
    scenarios: tuple[Literal["startup", "grade_down", "grade_up"], ...] = tuple(SCENARIOS)


def train(algorithm, scenario: str, num_seeds: int, base_states=None):
    """Trained states of seeds 10,000, 10,001, ..., on the host."""
    keys = jax.vmap(jax.random.key)(FIRST_SEED + np.arange(num_seeds))
    states, _, _ = train_seeds(
        algorithm,
        training_set(scenario),
        keys,
        algorithm.config.num_updates,
        base_states=base_states,
    )
    return jax.device_get(states)


@functools.cache
def training_set(scenario: str):
    """The scenario's `pi` set."""
    return load_training_data(scenario, "pi")


@functools.cache
def held_out(scenario: str):
    """100 fresh episodes of the same recipe, normalised like the training set."""
    scales = data.normaliser(data.generate(scenario, "pi"))
    return data.training_data(data.generate(scenario, "pi", seed=data.DATA_SEED + 1), scales)


def layer(config, base: str):
    """The layer around a base policy, and the configuration it has then."""
    return picnn.make_train(dataclasses.replace(config, base=base))


# --- Tuning, on the `tune` starts ---


def sweep(config, etas, gates, bases, costs, scenarios) -> list[dict[str, Any]]:
    """Scores over the grid of K, eta and gate: one row a base, scenario and setting.

    `bases[scenario][base]` and `costs[scenario]` are trained states. Eta and gate are part of the
    state, so all their settings run as lanes of one program.
    """
    rows = []
    eta, gate = (x.ravel() for x in np.meshgrid(etas, gates, indexing="ij"))
    for num_steps in GRID_STEPS:
        for base in BASES:
            algorithm = layer(dataclasses.replace(config, num_steps=num_steps), base)
            for scenario in scenarios:
                states = costs[scenario]._replace(base=bases[scenario][base])
                num_seeds = states.eta.shape[0]
                lanes = jax.tree.map(lambda x: np.repeat(x, eta.size, axis=0), states)
                lanes = lanes._replace(
                    eta=np.tile(np.float32(eta), num_seeds),
                    gate=np.tile(np.float32(gate), num_seeds),
                )
                starts = evaluate.starts(scenario, "tune")
                metrics = on_starts(algorithm, lanes, scenario, starts)
                score = metrics.score.reshape(num_seeds, eta.size, -1)
                violated = metrics.violated.reshape(num_seeds, eta.size, -1)
                for i in range(eta.size):
                    rows.append(
                        {
                            "scenario": scenario,
                            "base": base,
                            "num_steps": num_steps,
                            "eta": float(eta[i]),
                            "gate": float(gate[i]),
                            "mean": float(score[:, i].mean(dtype=np.float64)),
                            "min": float(score[:, i].min()),
                            "violated": float(violated[:, i].mean()),
                        }
                    )
        jax.clear_caches()  # roll-outs compiled by the dozen exhaust the compiler's memory maps
    return rows


def best_setting(rows: list[dict[str, Any]]) -> dict[str, float]:
    """The setting with the highest mean score over all scenarios and bases."""
    settings: dict[tuple, list[float]] = {}
    for row in rows:
        key = (row["num_steps"], row["eta"], row["gate"])
        settings.setdefault(key, []).append(row["mean"])
    num_steps, eta, gate = max(settings, key=lambda key: np.mean(settings[key]))
    mean = float(np.mean(settings[num_steps, eta, gate]))
    return {"num_steps": num_steps, "eta": eta, "gate": gate, "mean": mean}


def try_options(bases, num_seeds: int, scenarios) -> list[dict[str, Any]]:
    """Scores of `OPTIONS` on the `tune` starts, one row an option, base and scenario."""
    rows = []
    for name in ("base alone", *OPTIONS):
        algorithms = {base: layer(option_config(name), base) for base in BASES}
        for scenario in scenarios:
            starts = evaluate.starts(scenario, "tune")
            states = train(algorithms["bc"], scenario, num_seeds, bases[scenario]["bc"])
            for base in BASES:
                own = states._replace(base=bases[scenario][base])
                metrics = on_starts(algorithms[base], own, scenario, starts)
                rows.append(
                    {
                        "option": name,
                        "base": base,
                        "scenario": scenario,
                        "mean": float(metrics.score.mean(dtype=np.float64)),
                        "min": float(metrics.score.min()),
                        "violated": float(metrics.violated.mean()),
                    }
                )
        jax.clear_caches()
    return rows


def option_config(name: str):
    """The configuration of an option; K = 0 is the base alone."""
    if name == "base alone":
        return picnn.Config(num_steps=0, num_updates=1)
    return dataclasses.replace(picnn.PRESETS["default"], **OPTIONS[name])


# --- Prediction, convexity, gradients ---


def r_squared(predicted, target):
    """1 - residual variance / variance, over the last axis."""
    residual = np.sum((np.asarray(predicted) - np.asarray(target)) ** 2, axis=-1)
    return 1.0 - residual / np.sum((target - np.mean(target)) ** 2)


def model_inputs(transitions, config):
    """What the cost network sees of transitions: observations and actions in its units."""
    shift, scale = action_units(config.track, transitions.normaliser)
    obs = track_obs(config.track, transitions.obs)
    return obs, (transitions.action - shift[None]) / scale[None]


def predictions(config, states, transitions):
    """Predicted and true targets (S, N), (N,) in the units of the cost."""
    ends = transitions.terminated | transitions.truncated
    settings = (config.target, config.discount, config.num_target_steps)
    target = picnn.cost_targets(transitions.tracking_cost, ends, *settings)
    cost, (obs, b) = picnn.make_cost(config), model_inputs(transitions, config)

    def predict(state):
        return state.target_mean + state.target_std * cost(state.params, obs, b)

    return np.asarray(jax.jit(jax.vmap(predict))(states)), np.asarray(target)


def eigenvalues(config, states, obs, b):
    """Smallest and largest Hessian eigenvalue in the action, (S, N) each; obs, b (N, ...)."""
    cost = picnn.make_cost(config)

    def of_one(params, obs, b):
        return jnp.linalg.eigvalsh(jax.hessian(lambda x: cost(params, obs, x))(b))

    over_points = jax.vmap(of_one, in_axes=(None, 0, 0))
    values = np.asarray(
        jax.jit(jax.vmap(over_points, in_axes=(0, None, None)))(states.params, obs, b)
    )
    return values[..., 0], values[..., -1]


def gradients(config, states, obs, b):
    """Gradient in the action, (S, N, 2), of the standardised cost in the network's units."""
    cost = picnn.make_cost(config)

    def of_one(params, obs, b):
        return jax.grad(lambda x: cost(params, obs, x))(b)

    over_points = jax.vmap(of_one, in_axes=(None, 0, 0))
    over_seeds = jax.vmap(over_points, in_axes=(0, None, None))
    return np.asarray(jax.jit(over_seeds)(states.params, obs, b))


def random_points(normaliser, config):
    """Random standardised observations (N, 9), far beyond the data, and actions in the box."""
    rng = np.random.default_rng(0)
    obs = np.clip(3.0 * rng.standard_normal((NUM_RANDOM, 9)), -10.0, 10.0)
    shift, scale = (np.asarray(x) for x in action_units(config.track, normaliser))
    b = (rng.uniform(-1.0, 1.0, (NUM_RANDOM, 2)) - shift) / scale
    return np.float32(obs), np.float32(b)


def convexity(config, states, trajectory, scales) -> dict[str, float]:
    """Smallest eigenvalues, relative to the largest anywhere, at random points and roll-outs."""
    row = {}
    along = visited(trajectory, scales, config)
    for name, points in (("random", random_points(scales, config)), ("roll-out", along)):
        low, high = eigenvalues(config, states, *points)
        row[f"{name}: smallest eigenvalue"] = float(low.min())
        row[f"{name}: largest eigenvalue"] = float(high.max())
        # Rounding: an eigenvalue of zero is computed as a few 1e-7 of the largest.
        row[f"{name}: share negative"] = float(np.mean(low < -1e-5 * max(1.0, high.max())))
    return row


def visited(trajectory, scales, config):
    """Standardised observations and actions (N, ...) of a roll-out (T, E)."""
    shift, scale = action_units(config.track, scales)
    obs = scales.obs(jnp.asarray(trajectory.obs.reshape(-1, 9)))
    return obs, (trajectory.action.reshape(-1, 2) - shift[None]) / scale[None]


def gradient_course(config, states, trajectory, scales):
    """Along episodes (T, E): size of the gradient (T,), and cosine with the next one (T - 1,).

    The median of the size and the mean of the cosine over seeds and starts.
    """
    num_steps, num_starts = trajectory.reward.shape
    g = gradients(config, states, *visited(trajectory, scales, config))
    g = g.reshape(-1, num_steps, num_starts, 2)
    size = np.linalg.norm(g, axis=-1)
    dot = np.sum(g[:, 1:] * g[:, :-1], axis=-1)
    cosine = dot / np.maximum(size[:, 1:] * size[:, :-1], 1e-12)
    return np.median(size, axis=(0, 2)), np.mean(cosine, axis=(0, 2))


def correction_quality(config, states, trajectory, scales) -> dict[str, float]:
    """Where the layer acts along a base policy's roll-out: the model's cost before, after K steps,
    and at its minimum.

    Only points beyond the gate count. Costs in kg/m3 + K. Gap of K steps: (c_K - c*) / (c_0 - c*),
    0 at the minimum over the box, 1 where nothing was gained; median and 95th percentile over
    points with c_0 - c* > 0.01.
    """
    cost = picnn.make_cost(config)
    obs, b = visited(trajectory, scales, config)
    raw = trajectory.obs.reshape(-1, 9)
    acts = np.flatnonzero(np.abs(raw[:, 5]) + np.abs(raw[:, 6]) > config.gate)[::37]
    obs, b = obs[acts], b[acts]
    shift, scale = action_units(config.track, scales)
    low, high = (-1.0 - shift) / scale, (1.0 - shift) / scale

    def of_one(state, obs, b):
        def c(x):
            return cost(state.params, obs, x)

        found, residual, iterations = picnn.minimise_over_box(c, b, low, high)
        values = {"before": c(b), "minimum": c(found)}
        moves = {"minimum": found - b}
        for steps in GRID_STEPS:
            x = picnn.gradient_steps(c, b, low, high, config.eta, steps)
            values[f"K = {steps}"], moves[f"K = {steps}"] = c(x), x - b
        for steps in (1, 3):
            x = picnn.newton_steps(c, b, low, high, 1.0, config.damping, steps)
            values[f"Newton {steps}"], moves[f"Newton {steps}"] = c(x), x - b
        values = {k: state.target_mean + state.target_std * v for k, v in values.items()}
        moves = {k: jnp.linalg.norm(v) for k, v in moves.items()}
        return values, moves, residual, iterations

    over_points = jax.vmap(of_one, in_axes=(None, 0, 0))
    over_seeds = jax.jit(jax.vmap(over_points, in_axes=(0, None, None)))
    values, moves, residual, iterations = jax.device_get(over_seeds(states, obs, b))
    row = {
        "cost before": float(values["before"].mean()),
        "cost at the minimum": float(values["minimum"].mean()),
        "largest projected gradient at the minimum": float(residual.max()),
        "most Newton iterations": int(iterations.max()),
    }
    gain = values["before"] - values["minimum"]
    for name in values:
        if name in ("before", "minimum"):
            continue
        gap = ((values[name] - values["minimum"]) / np.maximum(gain, 1e-9))[gain > 0.01]
        row[f"{name}: cost after"] = float(values[name].mean())
        row[f"{name}: median gap"] = float(np.median(gap))
        row[f"{name}: 95 % gap"] = float(np.percentile(gap, 95))
        row[f"{name}: median move, std of the data"] = float(np.median(moves[name]))
    row["minimum: median move, std of the data"] = float(np.median(moves["minimum"]))
    return row


def synthetic_surface() -> list[dict[str, float]]:
    """What convexity costs where it is wrong: f = |a - m(s)|^2 + k cos(pi a_1) cos(pi a_2).

    Four times the updates of the cost models: with fewer the standard network does not fit it
    either. R^2 on fresh points, and how much worse the model's best action is than the best: the
    mean of f(argmin model) - min f over states, both over a grid of the box [-1, 1]^2.
    """
    rng = np.random.default_rng(0)
    axis = np.linspace(-1.0, 1.0, 41, dtype=np.float32)
    grid = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2)

    def surface(obs, a, amplitude):
        centre = 0.5 * np.tanh(obs[..., :2])
        ripple = np.prod(np.cos(np.pi * a), axis=-1)
        return np.sum((a - centre) ** 2, axis=-1) + amplitude * ripple

    obs = np.float32(rng.standard_normal((2, 20_000, 9)))
    a = np.float32(rng.uniform(-1.0, 1.0, (2, 20_000, 2)))
    rows = []
    for amplitude in AMPLITUDES:
        target = np.float32(surface(obs, a, amplitude))
        for name, changes in MODELS.items():
            network = picnn.make_network(picnn.Config(**changes))
            params = fit(network, obs[0], a[0], target[0], 4 * picnn.Config.num_updates)
            predicted = jax.jit(network.apply)(params, obs[1], a[1])
            states = obs[1, :200]
            costs = jax.vmap(
                lambda s, p=params, n=network: n.apply(p, jnp.tile(s[None], (len(grid), 1)), grid)
            )(states)
            true = surface(states[:, None], grid[None], amplitude)
            chosen = np.take_along_axis(true, np.asarray(costs).argmin(1)[:, None], 1)[:, 0]
            rows.append(
                {
                    "amplitude": amplitude,
                    "model": name,
                    "R^2": float(r_squared(predicted, target[1])),
                    "regret": float(np.mean(chosen - true.min(axis=1))),
                }
            )
    return rows


def fit(network, obs, action, target, num_updates: int):
    """Regress targets with the cost model's optimiser settings."""
    config = picnn.PRESETS["default"]
    optimiser = optax.adam(optax.cosine_decay_schedule(config.learning_rate, num_updates))
    params = network.init(jax.random.key(0), obs[0], action[0])

    def step(carry, key):
        params, opt_state = carry
        index = jax.random.randint(key, (config.batch_size,), 0, len(target))

        def loss(p):
            return jnp.mean((network.apply(p, obs[index], action[index]) - target[index]) ** 2)

        updates, opt_state = optimiser.update(jax.grad(loss)(params), opt_state)
        return (optax.apply_updates(params, updates), opt_state), None

    obs, action, target = (jnp.asarray(x) for x in (obs, action, target))
    keys = jax.random.split(jax.random.key(1), num_updates)
    return jax.jit(lambda carry: jax.lax.scan(step, carry, keys)[0])(
        (params, optimiser.init(params))
    )[0]


# --- Roll-outs ---


def widened(scenario: str, factor: float) -> evaluate.Starts:
    """The nominal starts, A and P times a further U(1 - 0.1 f, 1 + 0.1 f), T + U(-3 f, 3 f) K.

    With their own doomed flags.
    """
    starts = evaluate.starts(scenario, "nominal")
    draws = np.random.default_rng(0).uniform(-1.0, 1.0, (3, len(starts.doomed)))
    state = starts.state.copy()
    state[:, 0] *= 1.0 + 0.1 * factor * draws[0]
    state[:, 3] *= 1.0 + 0.1 * factor * draws[1]
    state[:, 4] += 3.0 * factor * draws[2]
    starts = starts._replace(state=np.float32(state))
    return starts._replace(doomed=is_doomed(starts, scenario_params(scenario)))


def decision_seconds(num_obs: int = 512) -> dict[int, float]:
    """Seconds an observation for K = 0, 1, 3, 5, 10: calls on 512 at once; best of 20 x 20."""
    seconds = {}
    obs = 300.0 + jax.random.normal(jax.random.key(0), (num_obs, 9))
    for num_steps in (0, *GRID_STEPS):
        algorithm = layer(dataclasses.replace(picnn.PRESETS["default"], num_steps=num_steps), "bc")
        training = training_set("startup")
        base_state = algorithm.base.init(jax.random.key(0), training)
        state = algorithm.init(jax.random.key(1), training, base_state)
        act = jax.jit(functools.partial(act_on_all, algorithm.policy))
        act(state, obs).block_until_ready()
        times = []
        for _ in range(20):
            started = time.perf_counter()
            for _ in range(20):
                action = act(state, obs)
            action.block_until_ready()
            times.append((time.perf_counter() - started) / 20)
        seconds[num_steps] = min(times) / num_obs
    return seconds


def act_on_all(policy, state, obs):
    """Actions (N, 2) for observations (N, 9)."""
    return jax.vmap(lambda o: policy(state)(o, jax.random.key(0)))(obs)


# --- Figures ---


def figure_trajectories(scenario: str, algorithms, states):
    """Median and 5 to 95 % band over the nominal starts, seed 0 of each method."""
    params = scenario_params(scenario)
    fig, axes = plt.subplots(4, 4, figsize=(13, 8), sharex=True, sharey="row", layout="constrained")
    for column, name in enumerate(algorithms):
        first = jax.tree.map(lambda x: x[0], states[name])
        trajectory = policy_trajectory(algorithms[name], first, scenario)
        colour = RED if name.startswith("bc") else BLUE
        draw(axes[:, column], trajectory, params, name.upper(), colour)
    for axis, label in zip(axes[:, 0], LABELS, strict=True):
        axis.set_ylabel(label)
    fig.suptitle(f"{scenario}: 64 nominal starts, seed 0; limit dashed, set-points dotted")
    return fig


def figure_distributions(scores):
    """Empirical distributions of episode scores; `scores[scenario][starts][method]` (S, E)."""
    fig, axes = plt.subplots(
        2, len(scores), figsize=(4.2 * len(scores), 6.5), squeeze=False, layout="constrained"
    )
    for column, (scenario, by_starts) in enumerate(scores.items()):
        for row, (kind, methods) in enumerate(by_starts.items()):
            axis = axes[row, column]
            for name, score in methods.items():
                colour = RED if name.startswith("bc") else BLUE
                style = "-" if name.endswith("+") else ":"
                values = np.sort(np.maximum(score.ravel(), -100.0))
                share = np.arange(1, values.size + 1) / values.size
                axis.step(values, share, color=colour, ls=style, label=name.upper())
            axis.set_xlim(-105, 108)
            axis.set_title(f"{scenario}, {kind} starts", fontsize=10)
            axis.grid(alpha=0.25)
    axes[0, 0].legend(fontsize=8)
    for axis in axes[:, 0]:
        axis.set_ylabel("share of episodes below")
    for axis in axes[-1]:
        axis.set_xlabel("score (below -100: drawn at -100)")
    return fig


def figure_scatter(pairs):
    """Predicted against true on fresh episodes; `pairs[target][model] = (predicted, true)`."""
    fig, axes = plt.subplots(
        len(pairs), len(MODELS), figsize=(10, 3.2 * len(pairs)), squeeze=False, layout="constrained"
    )
    for row, (target, models) in enumerate(pairs.items()):
        for column, (model, (predicted, true)) in enumerate(models.items()):
            axis = axes[row, column]
            axis.plot(true[::7], predicted[::7], ".", ms=1.5, color=COLOURS[model], alpha=0.4)
            ends = [true.min(), true.max()]
            axis.plot(ends, ends, color="black", lw=0.7)
            axis.set_title(f"{model}, {target}: R2 {r_squared(predicted, true):.3f}", fontsize=9)
            axis.grid(alpha=0.25)
    fig.supxlabel("true, kg/m3 + K")
    fig.supylabel("predicted")
    return fig


def figure_gradients(courses):
    """Size and persistence of the gradient; `courses[panel][model] = (size, cosine)`."""
    fig, axes = plt.subplots(
        2, len(courses), figsize=(3.2 * len(courses), 5.5), squeeze=False, layout="constrained"
    )
    for column, (scenario, models) in enumerate(courses.items()):
        for model, (size, cosine) in models.items():
            hours = 0.5 * np.arange(1, size.size + 1)
            axes[0, column].plot(hours, size, color=COLOURS[model], label=model)
            axes[1, column].plot(hours[:-1], cosine, color=COLOURS[model])
        axes[0, column].set_title(scenario, fontsize=10)
        axes[1, column].set_ylim(-1.05, 1.05)
        axes[1, column].set_xlabel("time, h")
    axes[0, 0].set_ylabel("|gradient|, median")
    axes[1, 0].set_ylabel("cosine with the next gradient, mean")
    axes[0, 0].legend(fontsize=8)
    for axis in axes.ravel():
        axis.grid(alpha=0.25)
    return fig


def figure_sweep(rows, seconds):
    """Score against eta for each K with and without gate, and against computing time."""
    scenarios = list(dict.fromkeys(row["scenario"] for row in rows))
    fig, axes = plt.subplots(2, 3, figsize=(13, 7), layout="constrained")
    shades = plt.get_cmap("viridis")(np.linspace(0.0, 0.85, len(GRID_STEPS)))
    for line, base in enumerate(BASES):
        for column, gate in enumerate(GRID_GATE):
            axis = axes[line, column]
            for num_steps, colour in zip(GRID_STEPS, shades, strict=True):
                means = [mean_of(rows, base, num_steps, eta, gate, scenarios) for eta in GRID_ETA]
                axis.semilogx(GRID_ETA, means, "o-", ms=3, color=colour, label=f"K = {num_steps}")
            axis.set_ylim(-100, 102)
            axis.set_title(f"{base}+, gate {gate:g}", fontsize=10)
            axis.set_xlabel("eta")
            axis.grid(alpha=0.25)
        axis = axes[line, 2]
        for num_steps, colour in zip(GRID_STEPS, shades, strict=True):
            best = max(
                mean_of(rows, base, num_steps, eta, gate, scenarios)
                for eta in GRID_ETA
                for gate in GRID_GATE
            )
            axis.plot(1e6 * seconds[num_steps], best, "o", color=colour, label=f"K = {num_steps}")
        axis.axvline(1e6 * seconds[0], color=GREY, ls=":", label="policy alone")
        axis.set_title(f"{base}+, best eta and gate", fontsize=10)
        axis.set_xlabel("time a decision, microseconds (512 at once)")
        axis.grid(alpha=0.25)
        axes[line, 0].set_ylabel("mean score, tune starts, all scenarios")
    axes[0, 0].legend(fontsize=8)
    axes[0, 2].legend(fontsize=8)
    return fig


def mean_of(rows, base, num_steps, eta, gate, scenarios) -> float:
    """Mean score of a setting over scenarios."""
    found = [
        row["mean"]
        for row in rows
        if (row["base"], row["num_steps"], row["eta"], row["gate"]) == (base, num_steps, eta, gate)
    ]
    if len(found) != len(scenarios):
        raise ValueError(f"{len(found)} rows of a setting; allowed: one a scenario.")
    return float(np.mean(found))


def figure_stress(stress):
    """Share of runaways and median score against widening; `stress[scenario][method]`."""
    fig, axes = plt.subplots(
        2, len(stress), figsize=(4.2 * len(stress), 6), squeeze=False, layout="constrained"
    )
    for column, (scenario, methods) in enumerate(stress.items()):
        for name, rows in methods.items():
            colour = RED if name.startswith("bc") else BLUE
            style = "-" if name.endswith("+") else ":"
            for line, key in enumerate(("runaway", "median")):
                values = [row[key] for row in rows]
                axes[line, column].plot(
                    WIDENING, values, color=colour, ls=style, marker="o", ms=3, label=name.upper()
                )
        axes[0, column].set_title(scenario, fontsize=10)
        axes[1, column].set_ylim(-100, 102)
        axes[1, column].set_xlabel("widening, x (10 % of A and P, 3 K)")
    axes[0, 0].set_ylabel("share of runaways")
    axes[1, 0].set_ylabel("median score")
    axes[0, 0].legend(fontsize=8)
    for axis in axes.ravel():
        axis.grid(alpha=0.25)
    return fig


# --- All of it ---


def write_report(folder: Path, name: str, report: dict[str, Any], title: str, text: str) -> None:
    """Write the report as `<name>.json`, and its tables as `<name>.md`."""
    content = json.dumps(report, indent=1, sort_keys=True) + "\n"
    write_atomically(folder / f"{name}.json", lambda file: file.write(content.encode()))
    parts = [f"# {title}", text]
    for title, rows in report["tables"].items():
        frame = pd.DataFrame(rows)
        columns = {
            name: "{:.3g}" if pd.api.types.is_float_dtype(frame[name]) else "{}" for name in frame
        }
        parts += [f"## {title}", markdown_table(frame, columns)]
    markdown = "\n\n".join(parts) + "\n"
    write_atomically(folder / f"{name}.md", lambda file: file.write(markdown.encode()))
    rich.print(f"written: {folder / name}.md")


def train_all(methods, num_seeds: int, scenarios, say):
    """Base policies `[scenario][base]`, and cost models `[scenario, target, model]`.

    The cost models do not depend on the base that they are held with.
    """
    bases: dict[str, dict[str, Any]] = {}
    models: dict[tuple, Any] = {}
    for scenario in scenarios:
        say(f"training on {scenario}")
        bases[scenario] = {b: train(methods[b], scenario, num_seeds) for b in BASES}
        for target in TARGETS:
            for model, changes in MODELS.items():
                chosen = dataclasses.replace(picnn.PRESETS["default"], target=target, **changes)
                base_states = bases[scenario]["bc"]
                states = train(layer(chosen, "bc"), scenario, num_seeds, base_states)
                models[scenario, target, model] = states
    jax.clear_caches()
    return bases, models


def tune(bases, models, scenarios):
    """The grids, `{variant: rows}`, of `TUNED` and of the paper's preset."""
    grids = {}
    for name, (model, target) in TUNED.items():
        config = dataclasses.replace(picnn.PRESETS["default"], target=target, **MODELS[model])
        costs = {s: models[s, target, model] for s in scenarios}
        grids[name] = sweep(config, GRID_ETA, GRID_GATE, bases, costs, scenarios)
    costs = {s: models[s, "one_step", "PICNN"] for s in scenarios}
    grids["paper"] = sweep(picnn.PRESETS["paper"], PAPER_ETA, (0.0,), bases, costs, scenarios)
    return grids


def diagnose(methods, bases, models, figures: Path, scenarios) -> dict[str, list]:
    """Tables and figures of predictions, Hessians, gradients and corrections."""
    default = picnn.PRESETS["default"]
    fits: list[dict] = []
    hessians: list[dict] = []
    courses: list[dict] = []
    quality: dict[str, dict] = {}
    pairs: dict[str, Any] = {}
    drawn: dict[str, dict[str, Any]] = {}
    for scenario in scenarios:
        first = jax.tree.map(lambda x: x[0], bases[scenario]["iql"])
        trajectory = policy_trajectory(methods["iql"], first, scenario)
        scales = training_set(scenario).normaliser
        for target in TARGETS:
            row: dict[str, Any] = {"scenario": scenario, "target": target}
            for model, changes in MODELS.items():
                config = dataclasses.replace(default, target=target, **changes)
                states = models[scenario, target, model]
                predicted, true = predictions(config, states, held_out(scenario))
                row[model] = float(r_squared(predicted, true).mean())
                if target == "n_step":
                    continue
                if scenario == scenarios[0]:
                    pairs.setdefault(target, {})[model] = (predicted[0], true)
                names = {"scenario": scenario, "target": target, "model": model}
                hessians.append(names | convexity(config, states, trajectory, scales))
                size, cosine = gradient_course(config, states, trajectory, scales)
                drawn.setdefault(f"{scenario}, {target}", {})[model] = (size, cosine)
                courses.append(
                    names
                    | {
                        "size, first 25 h": float(np.median(size[:50])),
                        "size, last 50 h": float(np.median(size[100:])),
                        "cosine, first 25 h": float(np.mean(cosine[:50])),
                        "cosine, last 50 h": float(np.mean(cosine[100:])),
                    }
                )
            fits.append(row)
        states = models[scenario, "discounted", "PICNN"]
        for name, value in correction_quality(default, states, trajectory, scales).items():
            quality.setdefault(name, {"quantity": name})[scenario] = float(value)
    save(figure_scatter(pairs), figures / "picnn-prediction.png")
    save(figure_gradients(drawn), figures / "picnn-gradients.png")
    return {
        "R^2 on 100 fresh episodes, mean over seeds (paper: PICNN 0.73, standard 0.99)": fits,
        "Hessian in the action, standardised cost and action": hessians,
        "Gradient along IQL's episodes, standardised cost and action": courses,
        "Correction along IQL's episodes, PICNN, discounted target": list(quality.values()),
    }


def roll_out(methods, bases, models, figures: Path, scenarios):
    """Figures of trajectories, scores and stress; the stress `[scenario][method]`."""
    scores: dict[str, Any] = {}
    stress: dict[str, dict[str, list]] = {}
    for scenario in scenarios:
        costs = models[scenario, "discounted", "PICNN"]
        states = {
            name: costs._replace(base=bases[scenario][name[:-1]])
            if name.endswith("+")
            else bases[scenario][name]
            for name in methods
        }
        fig = figure_trajectories(scenario, methods, states)
        save(fig, figures / f"picnn-trajectories-{scenario}.png")

        def on(name, starts, scenario=scenario, states=states):
            return on_starts(methods[name], states[name], scenario, starts)

        scores[scenario] = {
            kind: {name: on(name, evaluate.starts(scenario, kind)).score for name in methods}
            for kind in ("nominal", "wide")
        }
        stress[scenario] = {name: [] for name in methods}
        for factor in WIDENING:
            starts = widened(scenario, factor)
            for name in methods:
                metrics = on(name, starts)
                metrics = jax.tree.map(lambda x, alive=~starts.doomed: x[:, alive], metrics)
                stress[scenario][name].append(
                    {
                        "widening": factor,
                        "starts": int((~starts.doomed).sum()),
                        "median": float(np.median(metrics.score)),
                        "mean": float(metrics.score.mean(dtype=np.float64)),
                        "violated": float(metrics.violated.mean()),
                        "runaway": float(metrics.runaway.mean()),
                    }
                )
    save(figure_distributions(scores), figures / "picnn-distributions.png")
    save(figure_stress(stress), figures / "picnn-stress.png")
    return stress


def write_surface(folder: Path, provenance: dict[str, Any]) -> None:
    """What convexity costs on a surface that is not convex, surface.json and .md."""
    rows = synthetic_surface()
    text = (
        f"`python -m benchmarks.picnn --only surface`; {provenance['hardware']}; jax "
        f"{provenance['versions']['jax']}; {provenance['date']}. Seed 0."
    )
    tables = {"f = |a - m(s)|^2 + amplitude cos(pi a1) cos(pi a2)": rows}
    report = {"provenance": provenance, "tables": tables}
    write_report(folder, "surface", report, "A surface that is not convex", text)


def main(args: Args) -> None:
    if args.num_seeds < 1:
        raise SystemExit(f"num-seeds = {args.num_seeds}; allowed: 1 or more.")
    for folder in (args.out, args.figures):
        try:
            check_writable(folder)
        except OSError as error:
            raise SystemExit(str(error)) from error
    started = time.perf_counter()

    def say(text):
        rich.print(f"[{time.perf_counter() - started:5.0f} s] {text}")

    provenance = software()
    write_surface(args.out, provenance)
    if args.only == "surface":
        return
    scenarios = args.scenarios
    methods = {}
    for name, module in BASES.items():
        methods[name] = module.make_train(module.PRESETS["default"])
        methods[f"{name}+"] = layer(picnn.PRESETS["default"], name)
    bases, models = train_all(methods, args.num_seeds, scenarios, say)
    say("diagnostics")
    tables = diagnose(methods, bases, models, args.figures, scenarios)
    jax.clear_caches()
    say("tuning of K, eta and gate")
    grids = tune(bases, models, scenarios)
    seconds = decision_seconds()
    save(figure_sweep(grids["default"], seconds), args.figures / "picnn-sweep.png")
    budget = f"{len(GRID_STEPS) * len(GRID_ETA) * len(GRID_GATE)} settings of K, eta and gate"
    budget += f" (paper: {len(GRID_STEPS) * len(PAPER_ETA)} of K and eta)"
    tables[f"Best of {budget}, mean score on the tune starts, all scenarios, BC+ and IQL+"] = [
        {"variant": name} | best_setting(rows) for name, rows in grids.items()
    ]
    say("options")
    options = try_options(bases, args.num_seeds, scenarios)
    tables["Options, at the default's K, eta and gate: mean score (least), tune starts"] = [
        {"option": name}
        | {
            f"{row['base']}+ {row['scenario']}": f"{row['mean']:.1f} ({row['min']:.0f})"
            for row in options
            if row["option"] == name
        }
        for name in dict.fromkeys(row["option"] for row in options)
    ]
    say("roll-outs")
    stress = roll_out(methods, bases, models, args.figures, scenarios)
    tables["Widened starts that are not doomed: median score, share of runaways"] = [
        {"scenario": scenario, "method": name}
        | {f"x {row['widening']:g}": "{median:.1f}, {runaway:.3f}".format(**row) for row in rows}
        | {"starts": " / ".join(str(row["starts"]) for row in rows)}
        for scenario, by_method in stress.items()
        for name, rows in by_method.items()
    ]
    report = {
        "provenance": provenance | {"args": {k: str(v) for k, v in vars(args).items()}},
        "config": dataclasses.asdict(picnn.PRESETS["default"]),
        "tables": tables,
        "grids": grids,
        "options": options,
        "stress": stress,
        "decision_seconds": {str(k): v for k, v in seconds.items()},
    }
    text = (
        f"`python -m benchmarks.picnn --num-seeds {args.num_seeds}`; seeds from {FIRST_SEED}; "
        f"{provenance['hardware']}; jax {provenance['versions']['jax']}; {provenance['date']}; "
        f"{(time.perf_counter() - started) / 60:.0f} minutes."
    )
    write_report(args.out, "diagnostics", report, "Diagnostics of the correction layer", text)


if __name__ == "__main__":
    main(tyro.cli(Args))
