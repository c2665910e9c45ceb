"""What Marvel (arXiv 2412.04426) left open: its critics, its multiplier's rule, a changing plant.

    python -m benchmarks.marvel                 # everything
    python -m benchmarks.marvel --only values

Writes `<out>/marvel.json` and `.md`, a section with its own provenance each:

- `tuning`: every rule of the multiplier at as many settings, on the `tune` starts;
- `sweeps`: one setting of the alignment or of the controller at a time;
- `values`: rank correlation of the critics with Monte-Carlo values of the offline policy, before
  and after the alignment, from restored states of the data and of random episodes;
- `coverage`: how much of the offline policy's episodes the data cover, against what the alignment
  brings, on the mixed data and on parts of them;
- `fouling`: fine-tuning in a plant that loses a fifth of its heat transfer half-way;
- `trajectories`: the first seed from the nominal starts, handed over, after fine-tuning, and
  trained from scratch; figure `marvel-trajectories-<scenario>.png`.

Seeds are from 10,000 on, which no table evaluates. Trained policies are kept in `.cache/trained`.
"""

import dataclasses
import functools
from pathlib import Path
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import pandas as pd
import rich
import tyro

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from scipy import spatial
from scipy import stats as scipy_stats

from algos import marvel, multipliers, sac_lag
from algos.actor_critic import SquashedActor, reduce_heads, squashed_sample, twin_values
from algos.common import LAYER_KEY, MLP, from_unit, jitted_over_seeds, to_unit, train_seeds
from benchmarks import conditions, plan, training_sets, worker
from benchmarks.comparisons import difference, interval_text
from benchmarks.figures import BLUE, LABELS, draw, policy_trajectory, save
from benchmarks.plan import SUITES, plan_cells
from benchmarks.sections import check_folders, gap_of, measure, on_starts
from benchmarks.worker import ENV
from polycstr_jax import controllers, evaluate
from polycstr_jax import data as data_module
from polycstr_jax.data import REWARD_FLOOR
from polycstr_jax.env import EnvParams, initial_state, scenario_params, state_from_obs
from polycstr_jax.rollout import rollout

Section = Literal["tuning", "sweeps", "values", "coverage", "fouling", "trajectories"]
SECTIONS = get_args(Section)
FIRST_SEED = 10_000  # seeds that no table evaluates
ONLINE = {"marvel": marvel, "sac_lag": sac_lag}


def gains(factor: float) -> dict[str, float]:
    """Of a PID, all of them."""
    return dict.fromkeys(("proportional", "integral", "derivative"), factor)


SIZES = (0.003, 0.01, 0.03, 0.1)
RULES = {  # settings of the multiplier's controller; as many of every rule
    "dual": [{"rule": "dual", "rate": x} for x in SIZES],
    "pid": [{"rule": "pid", **gains(x)} for x in SIZES],
    "apid symmetric": [{"rule": "apid", "adaptation": "symmetric", **gains(x)} for x in SIZES],
    "apid paper": [{"rule": "apid", "adaptation": "paper", **gains(x)} for x in SIZES],
    "fixed": [{"rule": "fixed", "initial": x} for x in (0.03, 0.1, 0.3, 1.0)],
    "pid from scratch": [{"rule": "pid", **gains(x)} for x in (0.0003, 0.001, 0.003, 0.01)],
}
SWEPT = {  # one change at a time
    "default": {},
    "no alignment, its steps online": {"align": "none", "gradient_steps": 250},
    "K = 1,000": {"vpa_updates": 1_000},
    "K = 20,000": {"vpa_updates": 20_000},
    "alpha_c = 0.1": {"cost_entropy_weight": 0.1},
    "alpha_c = -0.1": {"cost_entropy_weight": -0.1},
    "smoothing 0": {"smoothing": 0.0},
    "smoothing 0.97": {"smoothing": 0.97},
}
ALIGNED = {  # whose critics are judged
    "offline": {"align": "none"},
    "aligned": {},
    "aligned, alpha = 0": {"entropy_weight": 0.0, "cost_entropy_weight": 0.0},
    "aligned from random": {"critics": "random"},
}
COVERED = ("mixed", "mixed10", "mixed_noboost")
NEAR = 0.95  # quantile of the mixed data's own distances, within which a pair is covered
NEIGHBOURS = 10
NUM_POINTS = 10_000  # of a policy's episodes, of a coverage
SHOWN = (  # of `trajectories`: title, file, changes; None is the policy that is handed over
    ("CPQ", None, {}),
    ("Marvel", "marvel", {}),
    ("no alignment", "marvel", {"align": "none"}),
    ("from scratch", "sac_lag", {}),
)
FOULED = 0.8  # of the heat-transfer coefficient is left
FOULING = {  # rules of the multiplier
    "pid": {"controller": marvel.PID},
    "apid symmetric": {"controller": marvel.APID},
    "apid paper": {"controller": marvel.APID_PAPER},
}


@dataclasses.dataclass
class Args:
    """Measure what Marvel learns, and what its parts are worth."""

    only: tuple[Section, ...] = SECTIONS
    out: Path = Path("results/marvel")
    figures: Path = Path("docs/figures")
    scenario: Literal["startup", "grade_down", "grade_up"] = "startup"
    num_seeds: int = 8
    num_updates: int = marvel.DEFAULT.num_updates  # of fine-tuning
    num_pairs: int = 512  # situations of each source whose values are simulated
    num_repeats: int = 20  # episodes of each
    horizon: int = 600  # their intervals: 0.99^600 = 0.002


# --- Training ---


def configured(args: Args, changes: dict[str, Any], file: str = "marvel"):
    """A file's default with these changes, of itself or of its controller."""
    names = {field.name for field in dataclasses.fields(multipliers.Controller)}
    of_file = {k: v for k, v in changes.items() if k not in names}
    of_rule = {k: v for k, v in changes.items() if k in names}
    config = dataclasses.replace(ONLINE[file].DEFAULT, num_updates=args.num_updates, **of_file)
    return dataclasses.replace(config, controller=dataclasses.replace(config.controller, **of_rule))


def cell_of(args: Args, dataset: str) -> plan.Cell:
    """What a trained policy is kept by, for our seeds."""
    planned = plan_cells(SUITES["marvel"].presets["full"], "marvel")
    cell = next(c for c in planned if c.scenario == args.scenario and c.method == "marvel")
    of_data = {"dataset": dataset, "data": plan.data_hash(dataset), "seed_width": args.num_seeds}
    return cell._replace(dataset=dataset, config=cell.config | of_data)


def base_of(config):
    """The offline algorithm, made once; None from scratch."""
    if not isinstance(config, marvel.Config):
        return None
    return worker.build(config.base, marvel.make_base(config).config, None)


def fine_tuned(args: Args, config, dataset: str = "mixed"):
    """The algorithm, and its trained seeds with their curves."""
    file = "marvel" if isinstance(config, marvel.Config) else "sac_lag"
    algorithm = worker.build(file, config, base_of(config), args.scenario)
    training = training_sets.load(args.scenario, dataset)
    return algorithm, worker.train(algorithm, training, cell_of(args, dataset), FIRST_SEED)


def of_seeds(args: Args, config, dataset: str = "mixed"):
    """Violating intervals in training and gap closed on the `tune` starts, (S,) each; and a row of
    means over seeds."""
    algorithm, found = fine_tuned(args, config, dataset)
    starts = evaluate.starts(args.scenario, "tune")
    judged = on_starts(algorithm, found.states, args.scenario, starts)
    gap = gap_of(judged, evaluate.references(args.scenario, "tune"))
    curves = {name: np.asarray(curve) for name, curve in found.curves.items()}
    hot, half = curves["peak_temperature"] > EnvParams().runaway_temperature, args.num_updates // 2
    scale = np.asarray(found.states.multiplier.scale)
    violating = curves["episode_cost"].sum(axis=1)
    jax.clear_caches()
    row = {
        "violating intervals": float(violating.mean()),
        "in the second half": float(curves["episode_cost"][:, half:].sum(axis=1).mean()),
        "above the limit": float(curves["above_limit"].mean()),
        "runaways": float(hot.sum(axis=1).mean()),
        "mean return": float(curves["episode_return"].mean()),
        "gap closed": float(gap.mean()),
        "worst seed": float(gap.min()),
        "P(violation)": float(judged.violated.mean()),
        "last lambda": float(curves["multiplier"][:, -10:].mean()),
        "unit of lambda": float(np.median(scale)),
    }
    return violating, gap, row


def measure_tuning(args: Args) -> list[dict]:
    """A row for each rule and setting; `chosen` is one a rule."""
    rows = []
    for rule, settings in RULES.items():
        file, of_rule = ("sac_lag" if "scratch" in rule else "marvel"), []
        for changes in settings:
            size = next(v for k, v in changes.items() if k not in ("rule", "adaptation"))
            row = {"rule": rule, "size": size}
            of_rule.append(row | of_seeds(args, configured(args, changes, file))[2])
            rich.print(of_rule[-1])
        best = choose(of_rule)
        rows += [row | {"chosen": row is best} for row in of_rule]
    return rows


def choose(rows: list[dict]) -> dict:
    """Of the settings within 5 % of the gap of the best one, the one that violates the least."""
    best = max(row["gap closed"] for row in rows)
    good = [row for row in rows if row["gap closed"] >= best - 5.0]
    return min(good, key=lambda row: row["violating intervals"])


def measure_sweeps(args: Args) -> list[dict]:
    """A row for each change, with the differences from the first, of the same seeds."""
    rows, first = [], None
    for name, changes in SWEPT.items():
        violating, gap, row = of_seeds(args, configured(args, changes))
        first = (violating, gap) if first is None else first
        more = {
            "violating intervals, more": paired(violating, first[0]),
            "gap closed, more": paired(gap, first[1]),
        }
        rows.append({"setting": name} | more | row)
        rich.print(rows[-1])
    return rows


def seed_of(states, seed: int):
    """One of several seeds."""
    return jax.tree.map(lambda x: x[seed], states)


def paired(values, baseline, digits: int = 1) -> str:
    """Mean difference of two arms (S,) of the same seeds, with its 95 % interval."""
    found = difference(pd.Series(values), pd.Series(baseline), paired=True)
    return f"{found.value:+.{digits}f} {interval_text(found, digits)}"


# --- Values of the critics ---


def sampler(config: marvel.Config, state, obs, key):
    """One action (A,) drawn from a policy, for a raw observation (S,), and log of its density as
    networks see it."""
    actor = SquashedActor(config.hidden, state.normaliser.action_mean.shape[-1])
    mean, log_std = actor.apply(state.params.actor, state.normaliser.obs(obs)[None])
    action, log_density = squashed_sample(mean, log_std, key)
    return from_unit(config.action_unit, action, state.normaliser.action_std)[0], log_density[0]


@functools.partial(jax.jit, static_argnums=(0, 6, 7))
def simulated(config, state, obs, action, rng, params: EnvParams, num_repeats: int, horizon: int):
    """Discounted sums of training rewards, of costs and of -log pi (num_repeats, N) each: `action`
    (N, A) at raw `obs` (N, S), from there on the policy of `state`.

    The given action has no entropy. A failure of the integrator ends an episode as in the critics'
    targets: the least reward and a cost, and nothing after it.
    """
    many, first = (jnp.tile(x, (num_repeats, 1)) for x in (obs, action))
    initial = jax.vmap(lambda o: initial_state(*state_from_obs(o)))(many)
    keys = jax.random.split(rng, (2, many.shape[0]))

    def controller(obs, memory):
        key, given, is_first = memory
        key, now = jax.random.split(key)
        drawn, _ = sampler(config, state, obs, now)
        return jnp.where(is_first, given, drawn), (key, given, jnp.zeros((), bool))

    memory = (keys[0], first, jnp.ones((many.shape[0],), bool))
    found = rollout(ENV, params, controller, memory, initial, keys[1], horizon)

    def surprise(lane_keys, obs):
        """-log pi (N,) of what the controller drew: the same keys again."""
        lane_keys, now = jnp.moveaxis(jax.vmap(jax.random.split)(lane_keys), 1, 0)
        drawn = jax.vmap(lambda o, k: sampler(config, state, o, k)[1])
        return lane_keys, -drawn(obs, now)

    entropy = jax.lax.scan(surprise, keys[0], found.obs)[1].at[0].set(0.0)
    reward = jnp.where(found.terminated, REWARD_FLOOR, found.reward)
    cost = (found.constraints[..., 0] > 0.0) | found.terminated
    weights = (config.discount ** jnp.arange(horizon))[:, None] * found.alive
    rows = (state.normaliser.reward(reward), cost.astype(reward.dtype), entropy)
    return tuple(jnp.sum(weights * x, axis=0).reshape(num_repeats, -1) for x in rows)


@functools.partial(jax.jit, static_argnums=0)
def predicted(config: marvel.Config, state, obs, action):
    """What the critics of `state` say of raw pairs: values and cost values (N,)."""
    scalar, seen = MLP(config.hidden, 1), state.normaliser.obs(obs)
    inner = to_unit(config.action_unit, action, state.normaliser.action_std)
    value = twin_values(scalar, state.params.critic, seen, inner).min(axis=0)
    cost = twin_values(scalar, state.params.cost_critic, seen, inner)
    return value, reduce_heads(config.cost_target, cost)


def pairs(args: Args, source: str, rng: np.random.Generator):
    """Raw observations (N, S) and actions (N, A): of the data, or of episodes of random actions."""
    if source == "data":
        found = data_module.generate(args.scenario, "mixed")
        obs, action = found.obs, found.action
    else:
        found = jax.device_get(random_episodes(args.scenario))
        there = found.alive.reshape(-1)
        obs, action = (x.reshape(-1, x.shape[-1])[there] for x in (found.obs, found.action))
    chosen = rng.choice(len(obs), args.num_pairs, replace=False)
    return jnp.asarray(obs[chosen]), jnp.asarray(action[chosen])


@functools.partial(jax.jit, static_argnums=0)
def random_episodes(scenario: str):
    """Roll-out (200, 64) of actions drawn uniformly from their box."""
    key, num = jax.random.key(FIRST_SEED), evaluate.NUM_STARTS
    _, lane_keys = jax.random.split(key, (2, num))
    random = controllers.uniform_random
    return sac_lag.play(ENV, scenario_params(scenario), random, lane_keys, key, num)


def aligned_states(args: Args, config: marvel.Config):
    """States (S, ...) at the hand-over, around the same offline ones."""
    algorithm = worker.build("marvel", config, base_of(config), args.scenario)
    training = mixed(args)
    base = worker.train(algorithm.base, training, cell_of(args, "mixed"), FIRST_SEED).states
    rngs = jax.vmap(jax.random.key)(FIRST_SEED + np.arange(args.num_seeds))
    keys = jax.vmap(lambda r: jax.random.split(jax.random.fold_in(r, LAYER_KEY))[0])(rngs)
    found = jitted_over_seeds(algorithm)[0](keys, training, base)
    return jax.device_get(found._replace(opt_state=(), replay=(), base=()))


def mixed(args: Args):
    """The mixed data of the scenario."""
    return training_sets.load(args.scenario, "mixed")


def measure_values(args: Args) -> list[dict]:
    """A row for each kind of critics and source of pairs: Spearman's rho of predictions with
    simulated values, mean over seeds with a 95 % interval, and by how much it is above that of the
    offline critics of the same seeds; the median error, in standard deviations of the truth.

    The truth has the entropies that the critics were fitted to. `ceiling`: rho of one half of the
    simulated episodes with the other.
    """
    given = {name: configured(args, changes) for name, changes in ALIGNED.items()}
    states = {name: aligned_states(args, config) for name, config in given.items()}
    params, rows = scenario_params(args.scenario), []
    for source in ("data", "random"):
        found: dict[tuple[str, str], list[dict[str, float]]] = {}
        for seed in range(args.num_seeds):
            obs, action = pairs(args, source, np.random.default_rng(seed))
            ours = seed_of(states["offline"], seed)
            sizes = (args.num_repeats, args.horizon)
            played = simulated(
                given["offline"], ours, obs, action, jax.random.key(seed), params, *sizes
            )
            reward, cost, entropy = (np.asarray(x, np.float64) for x in played)
            for name, config in given.items():
                said = predicted(config, seed_of(states[name], seed), obs, action)
                soft = 0.0 if config.align == "none" else 1.0
                truth = (
                    reward + soft * config.entropy_weight * entropy,
                    cost + soft * config.cost_entropy_weight * entropy,
                )
                for what, x, true in zip(("Q", "Q_c"), said, truth, strict=True):
                    found.setdefault((what, name), []).append(agreement(np.asarray(x), true))
        for (what, name), of_seeds in found.items():
            rho = np.array([x["rho"] for x in of_seeds])
            before = np.array([x["rho"] for x in found[what, "offline"]])
            known = ~np.isnan(rho) & ~np.isnan(before)
            row = {"pairs": source, "critic": what, "critics": name, "seeds": int(known.sum())}
            row["rho"] = float(rho[known].mean()) if known.any() else np.nan
            if known.any():
                row["more than offline"] = paired(rho[known], before[known], 2)
            for key in ("ceiling", "off", "said", "true", "share of zeros"):
                row[key] = float(np.median([x[key] for x in of_seeds]))
            rows.append(row)
            rich.print(row)
    return rows


def agreement(said, episodes) -> dict[str, float]:
    """Of predictions (N,) with simulated values (R, N), R episodes each: Spearman's rho, NaN if
    either is constant; rho of both halves of the episodes; the median error in standard deviations
    of the truth; means; and how many values are 0."""
    true = episodes.mean(axis=0)
    halves = (episodes[::2].mean(axis=0), episodes[1::2].mean(axis=0) if len(episodes) > 1 else 0)
    off = np.median(np.abs(said - true)) / max(float(true.std()), 1e-6)
    return {
        "rho": rank_correlation(said, true),
        "ceiling": rank_correlation(*halves) if len(episodes) > 1 else np.nan,
        "off": float(off),
        "said": float(said.mean()),
        "true": float(true.mean()),
        "share of zeros": float((true == 0.0).mean()),
    }


def rank_correlation(x, y) -> float:
    """Spearman's rho of (N,) with (N,); NaN if either is constant."""
    constant = np.ptp(x) == 0.0 or np.ptp(y) == 0.0
    return np.nan if constant else float(scipy_stats.spearmanr(x, y).statistic)


# --- Coverage ---


def divergence(sample, other) -> float:
    """KL divergence, nats, of the density behind `sample` (N, D) from that behind `other` (M, D),
    by distances to their tenth neighbours (Wang, Kulkarni and Verdu, 2009)."""
    own, theirs = spatial.KDTree(sample), spatial.KDTree(other)
    near = own.query(sample, k=NEIGHBOURS + 1)[0][:, -1]  # the first is the point itself
    far = theirs.query(sample, k=NEIGHBOURS)[0][:, -1]
    small = np.finfo(np.float32).tiny
    ratio = np.log(np.maximum(far, small) / np.maximum(near, small))
    size = np.log(len(other) / (len(sample) - 1))
    return float(sample.shape[1] * ratio.mean() + size)


def own_distance(data) -> float:
    """The distance within which 0.95 of one half of the data (M, D) are from the other."""
    return float(np.quantile(spatial.KDTree(data[::2]).query(data[1::2])[0], NEAR))


def covered(sample, data, radius: float) -> float:
    """Share of `sample` (N, D) no further than `radius` from the data (M, D)."""
    return float(np.mean(spatial.KDTree(data).query(sample)[0] <= radius))


def features(config: marvel.Config, state, obs, action) -> np.ndarray:
    """Pairs as networks see them (N, 9), without the control errors of polymer and temperature,
    which are these once more."""
    inner = to_unit(config.action_unit, action, state.normaliser.action_std)
    obs = np.delete(np.asarray(obs), (5, 6), axis=-1)
    return np.concatenate([obs, inner], axis=-1, dtype=np.float64)


@functools.partial(jax.jit, static_argnums=(0, 2))
def own_episodes(config: marvel.Config, state, scenario: str):
    """Roll-out (200, 64) of a stochastic policy."""
    config = dataclasses.replace(config, num_episodes=evaluate.NUM_STARTS)
    act_key, play_key = jax.random.split(jax.random.key(FIRST_SEED))
    acts = sac_lag.stochastic(config, state, act_key)
    return sac_lag.play(ENV, scenario_params(scenario), *acts, play_key, config.num_episodes)


def measure_coverage(args: Args) -> list[dict]:
    """A row for each data set: the share of the offline policy's pairs that it covers, within what
    is near in the mixed data; their KL divergence from it, an index of concentrability, whose
    logarithm is at least the divergence; and what the alignment brings, of the same seeds, against
    its gradient steps spent online."""
    rows, radius = [], None
    rng = np.random.default_rng(0)
    for dataset in COVERED:
        training, arms = training_sets.load(args.scenario, dataset), []
        for changes in ({}, {"align": "none", "gradient_steps": 250}):
            config = configured(args, changes)
            arms.append(of_seeds(args, config, dataset))
        base = worker.train(base_of(config), training, cell_of(args, dataset), FIRST_SEED).states
        found = []
        for seed in range(args.num_seeds):
            state = seed_of(base, seed)
            played = jax.device_get(own_episodes(config, state, args.scenario))
            there = played.alive.reshape(-1)
            obs = np.asarray(state.normaliser.obs(played.obs.reshape(-1, 9)[there]))
            mine = features(config, state, obs, played.action.reshape(-1, 2)[there])
            theirs = features(config, state, training.obs, training.action)
            radius = own_distance(theirs) if radius is None else radius
            mine = mine[rng.choice(len(mine), min(NUM_POINTS, len(mine)), replace=False)]
            found.append((covered(mine, theirs, radius), divergence(mine, theirs)))
        share, nats = np.mean(found, axis=0)
        row = {"data": dataset, "transitions": len(theirs), "seeds": args.num_seeds}
        row |= {"covered": float(share), "KL, nats": float(nats)}
        (violating, gap, _), (other, other_gap, _) = arms
        row["violating intervals, more"] = paired(violating, other)
        row["gap closed, more"] = paired(gap, other_gap)
        rows.append(row)
        rich.print(row)
    return rows


# --- A plant that changes ---


def measure_fouling(args: Args) -> list[dict]:
    """A row for each rule and second half of the fine-tuning: in the plant as it was, in the fouled
    one, and there with K_d and the past costs reset, by somebody who knows of the change. Then
    what came of it in that plant, from the nominal starts."""
    level = round(100 * (1 - FOULED))
    fouled = next(c for c in conditions.SUITE if c.name == f"fouling {level}")
    plants = (  # what is changed, and whether the multiplier is told
        ("nothing", conditions.of_starts("nominal")[0], False),
        ("fouled", fouled, False),
        ("fouled", fouled, True),
    )
    training, half, rows = mixed(args), args.num_updates // 2, []
    rngs = jax.vmap(jax.random.key)(FIRST_SEED + np.arange(args.num_seeds))
    layer = jax.vmap(lambda rng: jax.random.fold_in(rng, LAYER_KEY))(rngs)
    run_keys = jax.vmap(jax.random.split)(layer)[:, 1]
    for name, changes in FOULING.items():
        config = configured(args, changes)
        base = base_of(config)
        algorithm = worker.build("marvel", config, base, args.scenario)
        offline = worker.train(base, training, cell_of(args, "mixed"), FIRST_SEED).states
        states, before, _ = train_seeds(
            algorithm, training, rngs, half, num_chunks=half, base_states=offline
        )
        states, baseline = jax.device_get(states), None
        for change, condition, reset in plants:
            params = conditions.params(args.scenario, condition)
            after = marvel.make_train(config, ENV, params, base=base)
            told = jax.vmap(multipliers.reset)(states.multiplier) if reset else states.multiplier
            # Copies, for they are given away, and what is reset shares arrays.
            begun = jax.tree.map(jnp.array, states._replace(multiplier=told))
            curves = []
            for _ in range(args.num_updates - half):
                begun, metrics = jitted_over_seeds(after)[1](begun, training, run_keys, 1)
                curves.append(jax.device_get(metrics))
            late = {k: np.concatenate([c[k][:, None] for c in curves], axis=1) for k in curves[0]}
            starts = evaluate.starts(args.scenario, "nominal")
            judged = on_starts(after, begun, args.scenario, starts, params)
            gap = gap_of(judged, conditions.references(args.scenario, condition))
            violating = late["episode_cost"].sum(axis=1)
            baseline = baseline if reset else violating
            rows.append(
                {
                    "rule": name,
                    "change": change,
                    "reset": reset,
                    "before": float(before["episode_cost"].sum(axis=1).mean()),
                    "first ten after": float(late["episode_cost"][:, :10].sum(axis=1).mean()),
                    "after": float(violating.mean()),
                    "more than without the reset": paired(violating, baseline) if reset else "",
                    "above the limit": float(late["above_limit"].mean()),
                    "gap closed": float(gap.mean()),
                    "P(violation)": float(judged.violated.mean()),
                }
            )
            rich.print(rows[-1])
        jax.clear_caches()
    return rows


# --- Trajectories ---


def measure_trajectories(args: Args) -> list[dict]:
    """A row and a column of the figure for each policy."""
    params, rows = scenario_params(args.scenario), []
    fig, axes = plt.subplots(
        4,
        len(SHOWN),
        figsize=(3.7 * len(SHOWN), 8),
        sharex=True,
        sharey="row",
        layout="constrained",
    )
    for column, (title, file, changes) in zip(axes.T, SHOWN, strict=True):
        algorithm, found = fine_tuned(args, configured(args, changes, file or "marvel"))
        states = found.states
        if file is None:
            algorithm, states = algorithm.base, found.states.base
        played = policy_trajectory(algorithm, seed_of(states, 0), args.scenario)
        draw(column, played, params, f"{title}, seed {FIRST_SEED}", BLUE)
        peak = played.peak_temperature.max(axis=0)
        row = {"policy": title, "median peak, K": float(np.median(peak))}
        row |= {"hottest, K": float(peak.max())}
        row |= {"P(violation)": float((peak > params.temperature_limit).mean())}
        row |= {"median P at the end, kg/m3": float(np.median(played.state[-1, :, 3]))}
        rows.append(row)
        jax.clear_caches()
    for axis, label in zip(axes[:, 0], LABELS, strict=True):
        axis.set_ylabel(label)
    axes[0, 0].set_ylim(top=params.temperature_limit + 10.0)
    save(fig, args.figures / f"marvel-trajectories-{args.scenario}.png")
    return rows


# --- Files ---


def main(args: Args) -> None:
    at_least = {"num_seeds": 1, "num_updates": 2, "num_pairs": 2, "num_repeats": 1, "horizon": 1}
    for name, least in at_least.items():
        if getattr(args, name) < least:
            flag = name.replace("_", "-")
            raise SystemExit(f"{flag} = {getattr(args, name)}; allowed: {least} or more.")
    check_folders(args.out, args.figures)
    measures = {name: globals()[f"measure_{name}"] for name in SECTIONS}
    measure(args.out / "marvel.json", "What Marvel's parts are worth", measures, args.only, args)


if __name__ == "__main__":
    main(tyro.cli(Args))
