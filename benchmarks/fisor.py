"""What FISOR (arXiv 2401.10700) learns, against known answers: region, violations, toys, speed.

    python -m benchmarks.fisor                  # everything
    python -m benchmarks.fisor --only region

Writes `<out>/fisor.json` and `.md`, a section with its own provenance each, and figures
`fisor-*.png`:

- `toys`: the double integrator and the paper's reach-avoid problem (`benchmarks/toys.py`);
- `region`: V_h on the reactor against the answer key (`viability`): false alarms and misses in
  the band of 5 K, intersection over union on slices;
- `causes`: of every violation from a start that could be saved, what was wrong at the last state
  that could be (see `causes_of`), and trajectories;
- `tuning`: what was tried on the `tune` starts;
- `speed`: updates/s, and intervals/s of closed loops with N candidates.

`region` and `causes` judge the policies of the suite `fisor` of `benchmarks.run`, and train them
where `.cache/trained` does not hold them.
"""

import dataclasses
import functools
from pathlib import Path
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import rich
import tyro

matplotlib.use("Agg")

import matplotlib.pyplot as plt

from algos import bc, fisor
from algos.common import jitted_over_seeds, train_seeds
from benchmarks import ground_truth, toys, training_sets, worker
from benchmarks.figures import BLUE, LABELS, RED, draw, evaluation_keys, policy_trajectory, save
from benchmarks.ground_truth import LIMIT, PLANES, SLICE_CONTROLS, slices_arrays
from benchmarks.plan import SUITES, plan_cells
from benchmarks.sections import check_folders, gap_of, measure, on_starts
from benchmarks.training_speed import take_turns, training
from benchmarks.worker import ENV
from polycstr_jax import data as data_module
from polycstr_jax import evaluate, viability
from polycstr_jax.env import SCENARIOS, initial_state, scenario_params, state_from_obs
from polycstr_jax.rollout import rollout

Section = Literal["toys", "region", "causes", "tuning", "speed"]
SECTIONS = get_args(Section)
FIRST_SEED = 10_000  # of tuning and toys: seeds that no table evaluates
REGION_VARIANTS = (
    *("default", "indicator", "tau-0.7", "tau-0.5", "terminal"),
    *("no-hj-0", "no-hj-2", "no-hj-5"),
)
TOY = fisor.Config(
    hidden=(128, 128), width=16, num_blocks=1, action_unit="box", timeouts="terminal"
)
PROBLEMS = ("double integrator", "point robot")
TOY_SETTINGS = {  # what is changed in the two problems; h is the depth beyond the boundary
    "tau 0.9, gamma 0.99": {},
    "tau 0.5": {"safety_expectile": 0.5},
    "tau 0.97": {"safety_expectile": 0.97},
    "gamma 0.95": {"discount": 0.95},
    "h = +25 or -1": {"constraint": "indicator"},
}
TUNED = {  # settings tried on the tune starts; each is trained once, and acts in several ways
    "default": {},
    "indicator": {"constraint": "indicator"},
    "beta 1": {"reward_temperature": 1.0},
    "beta 10": {"reward_temperature": 10.0},
    "expectile 0.7": {"expectile": 0.7},
    "12,000 updates": {"num_updates": 12_000},
    "3e-4": {"learning_rate": 3e-4},
    "critics 2 x 256": {"hidden": (256, 256)},
    "denoiser 128": {"width": 128},
    "actions in their box": {"action_unit": "box"},
}
ACTING = {
    "safest of 4": {"num_samples": 4, "selection": "safest"},
    "safest of 16": {"num_samples": 16, "selection": "safest"},
    "1": {"num_samples": 1},
    "4": {"num_samples": 4},
    "16": {"num_samples": 16},
}
NUM_LOOPED = (1, 4, 16)  # candidates in the closed loops of `speed`
SECONDS = 2.0  # of each measurement of `speed`
KINDS = ("nominal", "wide", "hot")  # starts of `causes`
CAUSES = ("coverage", "called safe", "called unsafe", "extraction", "tolerance")


@dataclasses.dataclass
class Args:
    """Measure what FISOR learns."""

    only: tuple[Section, ...] = SECTIONS
    out: Path = Path("results/fisor")
    figures: Path = Path("docs/figures")
    scenarios: tuple[Literal["startup", "grade_down", "grade_up"], ...] = tuple(SCENARIOS)
    preset: Literal["cpu", "smoke"] = "cpu"
    """Whose trained policies are judged"""
    num_seeds: int = 2
    """Of tuning and toys"""
    num_states: int = 4_000
    """Near the boundary, of `region`"""
    toy_updates: int = 20_000
    seeds: tuple[int, ...] = (1, 8, 64)
    """Of `speed`"""


# --- Known answers: two small problems ---


def toy_problem(name: str):
    """Training data, and slices [(title, observations (M, S), feasible (M,), inside (M,), shape,
    extent)]; inside: not violated now, which h of the state reached does not tell."""
    if name == "double integrator":
        grid = toys.integrator_grid()
        flat = grid.reshape(-1, 2)
        data = toys.training_data(toys.integrator_data(50_000), toys.INTEGRATOR_STD)
        feasible = toys.integrator_feasible(flat)
        inside, extent = np.abs(flat[:, 0]) <= 1.0, (-1.3, 1.3, -1.8, 1.8)
        obs = flat / toys.INTEGRATOR_STD
        return data, [("x, v", obs, feasible, inside, grid.shape[:2], extent)]
    data = toys.training_data(toys.robot_data(100_000), toys.ROBOT_STD)
    slices = []
    for speed, heading in toys.SLICES:
        grid = toys.robot_grid(speed, heading)
        flat = jnp.asarray(grid.reshape(-1, 4), jnp.float32)
        feasible, inside = (np.asarray(f(flat)) <= 0.0 for f in (toys.robot_depth, toys.robot_h))
        obs = np.asarray(toys.robot_obs(flat)) / toys.ROBOT_STD
        title = f"v = {speed:g}, heading {np.degrees(heading):.0f} deg"
        shape, extent = grid.shape[:2], (-2.7, 2.7, -2.7, 2.7)
        slices.append((title, obs, feasible, inside, shape, extent))
    return data, slices


def measure_toys(args: Args) -> list[dict]:
    """V_h <= 0, where the limit is kept now, against what is feasible; and a figure."""
    rows, shown = [], []
    keys = jax.vmap(jax.random.key)(FIRST_SEED + np.arange(args.num_seeds))
    for problem in PROBLEMS:
        data, slices = toy_problem(problem)
        for name, changes in TOY_SETTINGS.items():
            settings = {"num_updates": args.toy_updates} | changes
            config = dataclasses.replace(TOY, **settings)
            states, _, _ = train_seeds(fisor.make_train(config), data, keys, config.num_updates)
            values = jax.jit(jax.vmap(functools.partial(fisor.feasibility, config), (0, None)))
            for title, obs, feasible, inside, shape, extent in slices:
                found = np.asarray(values(states, jnp.asarray(obs, jnp.float32)))
                called = (found <= 0.0) & inside[None]
                rows.append(
                    {
                        "problem": problem,
                        "slice": title,
                        "settings": name,
                        "IoU of the infeasible": mean(
                            toys.intersection_over_union(~x, ~feasible) for x in called
                        ),
                        "IoU of the feasible": mean(
                            toys.intersection_over_union(x, feasible) for x in called
                        ),
                        "correct": mean(x == feasible for x in called),
                        "false alarms, share of the feasible": mean(~called[:, feasible]),
                        "misses, share of the infeasible": mean(called[:, ~feasible]),
                    }
                )
                if name == next(iter(TOY_SETTINGS)):
                    shown.append((f"{problem}, {title}", found[0], feasible, shape, extent))
            rich.print(rows[-1])
            jax.clear_caches()  # LLVM aborts once a process has mapped too many programs
    figure_toys(shown, args.figures)
    return rows


def mean(values) -> float:
    return float(np.mean([*values]))


def figure_toys(shown, folder: Path) -> None:
    size = (4 * len(shown), 3.9)
    fig, axes = plt.subplots(1, len(shown), figsize=size, layout="constrained", squeeze=False)
    for axis, (title, value, feasible, shape, extent) in zip(axes[0], shown, strict=True):
        grid = [np.linspace(*extent[:2], shape[0]), np.linspace(*extent[2:], shape[1])]
        image = axis.contourf(*grid, value.reshape(shape).T, levels=20, cmap="viridis")
        axis.contour(*grid, feasible.reshape(shape).T.astype(float), levels=[0.5], colors="white")
        axis.contour(*grid, value.reshape(shape).T, levels=[0.0], colors=[RED])
        axis.set_title(title, fontsize=9)
        fig.colorbar(image, ax=axis)
    axes[0, 0].plot([], [], color=RED, label="learned: V_h = 0")
    axes[0, 0].plot([], [], color="white", label="where it can be kept")
    axes[0, 0].legend(fontsize=8, facecolor="0.5")
    save(fig, folder / "fisor-toys.png")


# --- The reactor ---


@functools.cache
def trained(scenario: str, variant: str, preset: str):
    """Algorithm and states of the suite's seeds, trained or from `.cache/trained`."""
    dataset = "mixed" if preset == "cpu" else "mixed10"
    for cell in plan_cells(SUITES["fisor"].presets[preset], "fisor"):
        if cell.name == f"{scenario}-{dataset}/fisor@{variant}":
            algorithm = worker.algorithm_of(cell)
            data = training_sets.load(scenario, dataset)
            return algorithm, worker.train(algorithm, data, cell, 0)[0]
    return None


def observations(scenario: str, states, controls):
    """Of states (N, 5) and the controls in force (N, 2), on the scenario's set-points (N, 9)."""
    params = scenario_params(scenario)

    def one(state, control):
        return ENV.observation(initial_state(state, control), jnp.zeros((7,)), params)

    return jax.jit(jax.vmap(one))(jnp.asarray(states), jnp.asarray(controls))


def safety_values(algorithm, states, obs):
    """V_h (S, N) of raw observations (N, 9), for all seeds."""

    def of_seed(state):
        return fisor.feasibility(algorithm.config, state, state.normaliser.obs(obs))

    return np.asarray(jax.jit(jax.vmap(of_seed))(states))


def measure_region(args: Args) -> list[dict]:
    """False alarms and misses of V_h <= 0 near the boundary, in states that random and greedy
    agents reach in the scenario, and IoU on slices."""
    arrays = slices_arrays()
    rows = []
    for scenario in args.scenarios:
        states, controls, peak = ground_truth.near_boundary(args.num_states, (scenario,))
        obs = observations(scenario, states, controls)
        for variant in REGION_VARIANTS:
            found = trained(scenario, variant, args.preset)
            if found is None:
                continue
            called = safety_values(*found, obs) <= 0.0
            judged = [viability.agreement(x, LIMIT - peak) for x in called]
            row = {
                "scenario": scenario,
                "variant": variant,
                "seeds": len(called),
                "feasible": judged[0].num_feasible,
                "doomed": judged[0].num_doomed,
                "false alarms": mean(x.false_alarms for x in judged),
                "misses": mean(x.misses for x in judged),
                "their sum, worst seed": max(x.false_alarms + x.misses for x in judged),
            }
            for plane in PLANES:
                values = slice_values(scenario, found, arrays, plane, "steady")
                true = arrays[f"peak_{plane}_steady"] <= LIMIT
                row[f"IoU, {plane}"] = mean(
                    toys.intersection_over_union(v <= 0.0, true) for v in values
                )
            rows.append(row)
            rich.print(row)
        figure_region(scenario, arrays, args)
    return rows


def slice_values(scenario: str, found, arrays, plane: str, name: str):
    """V_h (S, axis, temperature) over a plane of the answer key's slices."""
    states, controls = ground_truth.slice_states(arrays, plane, name)
    values = safety_values(*found, observations(scenario, states, controls))
    return values.reshape(-1, *arrays[f"peak_{plane}_{name}"].shape)


def figure_region(scenario: str, arrays, args: Args) -> None:
    """The boundary of the feasible set, and each seed's V_h = 0."""
    fig, axes = plt.subplots(
        len(SLICE_CONTROLS), len(PLANES), figsize=(11, 9), layout="constrained", sharey=True
    )
    found = trained(scenario, "default", args.preset)
    for row, name in zip(axes, SLICE_CONTROLS, strict=True):
        for axis, plane in zip(row, PLANES, strict=True):
            grid = (arrays[plane], arrays["temperature"])
            for value in slice_values(scenario, found, arrays, plane, name):
                axis.contour(*grid, value.T, levels=[0.0], colors=[BLUE], linewidths=0.7)
            peak = arrays[f"peak_{plane}_{name}"].T
            axis.contour(*grid, peak, levels=[LIMIT], colors=["black"], linewidths=2)
            axis.axhline(LIMIT, color=RED, ls="--", lw=0.8)
            axis.set_xlabel(f"{plane}, kg/m3")
            axis.set_title(f"{name} controls in force", fontsize=9)
        row[0].set_ylabel("temperature, K")
    axes[0, 0].plot([], [], color="black", lw=2, label="answer key")
    axes[0, 0].plot([], [], color=BLUE, label="V_h = 0, each seed")
    axes[0, 0].legend(fontsize=8)
    save(fig, args.figures / f"fisor-region-{scenario}.png")


def measure_causes(args: Args) -> list[dict]:
    """Violations from starts that can be saved, and what was wrong at the last state that could.

    An action is safe if the safest policy keeps the limit after it (`viability.action_margin`).
    """
    rows = []
    for scenario in args.scenarios:
        algorithm, states = trained(scenario, "default", args.preset)
        for kind in KINDS:
            causes = [
                causes_of(algorithm, jax.tree.map(lambda x, n=n: x[n], states), scenario, kind)
                for n in range(len(jax.tree.leaves(states)[0]))
            ]
            total = {k: sum(c[k] for c in causes) for k in causes[0]}
            rows.append({"scenario": scenario, "starts": kind, **total})
            rich.print(rows[-1])
        figure_trajectories(scenario, args)
    return rows


def figure_trajectories(scenario: str, args: Args) -> None:
    """Seed 0 of the default and of the paper's choice of an action, nominal and hot starts."""
    shown, params = [], scenario_params(scenario)
    for variant, title in (("default", "FISOR"), ("safest", "the safest of 16")):
        found = trained(scenario, variant, args.preset)
        if found is not None:
            state = jax.tree.map(lambda x: x[0], found[1])
            for kind in ("nominal", "hot"):
                trajectory = policy_trajectory(found[0], state, scenario, kind)
                alive = np.flatnonzero(~evaluate.starts(scenario, kind).doomed)
                trajectory = data_module.select_episodes(trajectory, alive, 1)
                shown.append((trajectory, f"{title}, {kind} starts"))
    fig, axes = plt.subplots(
        4,
        len(shown),
        figsize=(3.7 * len(shown), 8),
        sharex=True,
        sharey="row",
        layout="constrained",
    )
    for column, (trajectory, title) in enumerate(shown):
        draw(axes[:, column], trajectory, params, title, BLUE)
    for axis, label in zip(axes[:, 0], LABELS, strict=True):
        axis.set_ylabel(label)
    save(fig, args.figures / f"fisor-trajectories-{scenario}.png")


def causes_of(algorithm, state, scenario: str, kind: str) -> dict[str, int]:
    """Counts over the evaluation's episodes of one seed, by what was wrong at the last state that
    could be saved, among the candidates that were drawn there:

    - `coverage`: none of them saves it;
    - `called safe`: the one taken is not safe, and was called so (Q_h <= 0);
    - `called unsafe`: one would have saved it, but none was called safe;
    - `extraction`: one that saves it was called safe, and not taken;
    - `tolerance`: the one taken is safe by the key, which has an error of 1e-3 K.
    """
    config, params = algorithm.config, scenario_params(scenario)
    trajectory = policy_trajectory(algorithm, state, scenario, kind)
    alive = ~evaluate.starts(scenario, kind).doomed
    violates = trajectory.peak_temperature > LIMIT
    lanes = np.flatnonzero(violates.any(axis=0) & alive)
    counts = {"episodes": int(alive.sum()), "violating": int(lanes.size)} | dict.fromkeys(CAUSES, 0)
    if not lanes.size:
        return counts
    plants, controls = jax.jit(jax.vmap(jax.vmap(state_from_obs)))(trajectory.obs)
    peak = ground_truth.peaks_of(plants.reshape(-1, 5), controls.reshape(-1, 2))
    # Up to and with the first violating interval; the start, if none of them counts as saved.
    saved = (peak <= LIMIT).reshape(violates.shape) & (np.cumsum(violates, axis=0) == violates)
    last = np.where(saved.any(axis=0), len(saved) - 1 - np.argmax(saved[::-1], axis=0), 0)
    obs = trajectory.obs[last, np.arange(last.size)]
    judged = judge(config, params, state, obs, action_keys(last))
    for safe, called_safe, taken in zip(*(np.asarray(x)[lanes] for x in judged), strict=True):
        counts[cause(safe, called_safe, int(taken))] += 1
    return counts


def cause(safe, called_safe, taken: int) -> str:
    """One of `CAUSES`, from what the candidates (N,) are and are called, and which was taken."""
    if safe[taken]:
        return "tolerance"
    if not safe.any():
        return "coverage"
    if called_safe[taken]:
        return "called safe"
    return "extraction" if (safe & called_safe).any() else "called unsafe"


def action_keys(steps):
    """The key that the evaluation gives lane n's policy at step `steps[n]`, (E,) keys."""

    def of_lane(key, step):
        following = lambda _, pair: tuple(jax.random.split(pair[0]))  # noqa: E731
        return jax.lax.fori_loop(0, step + 1, following, (key, key))[1]

    return jax.jit(jax.vmap(of_lane))(evaluation_keys(len(steps)), jnp.asarray(steps))


@functools.partial(jax.jit, static_argnums=0)
def judge(config, params, state, obs, keys):
    """Of the candidate actions (E, N) at observations (E, 9): whether they are safe, and called
    so; and which is taken (E,)."""

    def one(obs, key):
        inner, q, q_safety = fisor.candidates(config, state, obs, key)
        actions = fisor.from_unit(config.action_unit, inner, state.normaliser.action_std)
        margin = jax.vmap(lambda a: viability.action_margin(*state_from_obs(obs), a, params))
        taken = jnp.argmax(fisor.rank(config, q, q_safety))
        return margin(actions) >= 0.0, q_safety <= 0.0, taken

    return jax.vmap(one)(obs, keys)


# --- What was tried ---


def measure_tuning(args: Args) -> list[dict]:
    """Mean over seeds and `tune` starts, for each setting and way of acting."""
    rows = []
    keys = jax.vmap(jax.random.key)(FIRST_SEED + np.arange(args.num_seeds))
    for scenario in args.scenarios:
        data = training_sets.load(scenario, "mixed")
        starts = evaluate.starts(scenario, "tune")
        for name, changes in TUNED.items():
            config = dataclasses.replace(fisor.PRESETS["default"], **changes)
            states, _, seconds = train_seeds(
                fisor.make_train(config), data, keys, config.num_updates
            )
            for acting, how in ACTING.items() if name in ("default", "indicator") else [("4", {})]:
                acts = fisor.make_train(dataclasses.replace(config, **how))
                found = on_starts(acts, states, scenario, starts)
                gap = gap_of(found, evaluate.references(scenario, "tune"))
                rows.append(
                    {
                        "scenario": scenario,
                        "setting": name,
                        "acts by": acting,
                        "gap closed": float(gap.mean()),
                        "worst seed": float(gap.min()),
                        "P(violation)": float(found.violated.mean()),
                        "P(runaway)": float(found.runaway.mean()),
                        "offset P kg/m3": float(found.offset_polymer.mean()),
                        "s a seed": seconds["run"] / args.num_seeds,
                    }
                )
                rich.print(rows[-1])
            jax.clear_caches()
    return rows


# --- Speed ---


def measure_speed(args: Args) -> list[dict]:
    """Updates/s of seeds at once, and intervals/s of closed loops; the best of 3, in turns."""
    data, calls = training_sets.load("startup", "mixed"), {}
    algorithms = {
        "bc": bc.make_train(bc.PRESETS["default"]),
        "fisor": fisor.make_train(fisor.PRESETS["default"]),
    }
    updates = {num: max(5, 200 // num) for num in args.seeds}
    for name, algorithm in algorithms.items():
        run_seeds = jitted_over_seeds(algorithm)[1]
        for num in args.seeds:
            call = training(algorithm, run_seeds, data, num, updates[num])
            jax.block_until_ready(call())
            calls["updates", name, num] = (call, num * updates[num])
    for name in ("bc", "fisor"):
        algorithm = algorithms[name]
        state = jax.jit(algorithm.init)(jax.random.key(0), data)
        for num in NUM_LOOPED if name == "fisor" else (1,):
            policy = algorithm.policy
            if name == "fisor":
                config = dataclasses.replace(algorithm.config, num_samples=num)
                policy = fisor.make_train(config).policy
            call = functools.partial(closed_loop, policy, state)
            jax.block_until_ready(call())
            calls["intervals", name, num] = (call, NUM_LANES * NUM_INTERVALS)
    rates, _ = take_turns({k: call for k, (call, _) in calls.items()}, 3, SECONDS)
    rows = []
    for key, (_, amount) in calls.items():
        what, name, num = key
        best = max(rates[key]) * amount
        row = {"what": what, "method": name}
        row["seeds at once" if what == "updates" else "candidates"] = num
        rows.append(
            row | {"a second": best, "times bc's": best / rate_of_bc(rates, calls, what, num)}
        )
    return rows


def rate_of_bc(rates, calls, what: str, num: int) -> float:
    """What BC does at the same number of seeds, or in its closed loop."""
    key = (what, "bc", num if what == "updates" else 1)
    return max(rates[key]) * calls[key][1]


NUM_LANES, NUM_INTERVALS = 512, 20


@functools.partial(jax.jit, static_argnums=0)
def closed_loop(policy, state):
    """Peaks of 512 start-ups over 20 intervals under a policy, whose actions are scaled down: an
    untrained one would ignite the reactor, and its integration would be timed."""
    act, params = policy(state), scenario_params("startup")
    keys = jax.random.split(jax.random.key(0), NUM_LANES)
    starts = jax.vmap(lambda key: ENV.reset_env(key, params)[1])(keys)

    def controller(obs, key):
        key, now = jax.random.split(key)
        return 1e-3 * act(obs, now), key

    found = rollout(ENV, params, controller, keys, starts, keys, NUM_INTERVALS)
    return found.peak_temperature


# --- Files ---


def main(args: Args) -> None:
    for name in ("num_seeds", "num_states", "toy_updates"):
        if getattr(args, name) < 1:
            flag = name.replace("_", "-")
            raise SystemExit(f"{flag} = {getattr(args, name)}; allowed: 1 or more.")
    if min(args.seeds, default=0) < 1:
        raise SystemExit(f"seeds = {args.seeds}; allowed: numbers, 1 or more each.")
    if args.preset == "smoke" and set(args.scenarios) != {"startup"}:
        raise SystemExit("preset smoke trains on start-up alone: add --scenarios startup.")
    check_folders(args.out, args.figures)
    measures = {name: globals()[f"measure_{name}"] for name in SECTIONS}
    measure(args.out / "fisor.json", "FISOR against known answers", measures, args.only, args)


if __name__ == "__main__":
    main(tyro.cli(Args))
