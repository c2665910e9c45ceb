"""Trajectories of each scenario, as docs/figures/trajectories-<scenario>.png.

    python -m benchmarks.figures

Left: a PI controller that keeps the limit (the median one of those in the `mixed` set). Middle:
an episode of the `mixed` set that runs away; under PI alone in start-up, after a boost in the
grade changes, where PI alone does not run away. Right: BC trained on the `pi` set (seed 0, full
updates), median and 5 to 95 % band over the 64 nominal starts.
"""

import dataclasses
import functools
from pathlib import Path

import jax
import matplotlib
import numpy as np
import tyro

matplotlib.use("Agg")

import matplotlib.pyplot as plt

import polycstr_jax
from algos import bc
from algos.common import load_training_data, train_seeds
from benchmarks.plan import EVALUATION_KEY
from benchmarks.worker import ENV
from polycstr_jax import data, evaluate
from polycstr_jax.data import check_writable, write_atomically
from polycstr_jax.env import EnvParams, scenario_params
from polycstr_jax.rollout import rollout

BLUE, RED, GREY = "#1f5fa8", "#b3261e", "0.45"
LABELS = ("peak temperature, K", "polymer, kg/m3", "initiator feed, kg/h", "coolant, K")


@dataclasses.dataclass
class Args:
    """Draw the trajectory figures; about 2 minutes on 2 cores."""

    out: Path = Path("docs/figures")
    num_updates: int = bc.PRESETS["default"].num_updates  # of BC


def bc_trajectory(scenario: str, num_updates: int):
    """Roll-out of one BC seed from the nominal starts."""
    config = dataclasses.replace(bc.PRESETS["default"], num_updates=num_updates)
    algorithm = bc.make_train(config)
    rngs = jax.vmap(jax.random.key)(np.arange(1))
    training = load_training_data(scenario, "pi")
    states, _, _ = train_seeds(algorithm, training, rngs, num_updates)
    return policy_trajectory(algorithm, jax.tree.map(lambda x: x[0], states), scenario)


def policy_trajectory(algorithm, state, scenario: str, kind: str = "nominal"):
    """Roll-out (T, 64) of one trained seed from a set of starts: the evaluation's episodes."""
    initial = evaluate.start_states(evaluate.starts(scenario, kind))
    keys = jax.random.split(jax.random.key(EVALUATION_KEY), evaluate.NUM_STARTS)
    params = scenario_params(scenario)
    return jax.device_get(run_policy(algorithm.policy, state, params, initial, keys))


@functools.partial(jax.jit, static_argnums=0)
def run_policy(policy, state, params: EnvParams, initial, keys):
    act = policy(state)

    def controller(obs, key):
        key, now = jax.random.split(key)
        return act(obs, now), key

    lane_keys = evaluation_keys(keys.shape[0])
    return rollout(ENV, params, controller, lane_keys, initial, keys, data.EPISODE_LENGTH)


def evaluation_keys(num_lanes: int):
    """The keys that `evaluate_policies` gives the policies of its lanes."""
    return jax.random.split(jax.random.fold_in(jax.random.key(EVALUATION_KEY), 1), num_lanes)


def panels(trajectory):
    """The four plotted series (T, E)."""
    return (
        trajectory.peak_temperature,
        trajectory.state[..., 3],
        trajectory.control[..., 0],
        trajectory.control[..., 1],
    )


def draw(axes, trajectory, params: EnvParams, title: str, colour: str) -> None:
    """One column: temperature, polymer, feed, coolant; a line, or a median with a band."""
    hours = 0.5 * np.arange(1, trajectory.reward.shape[0] + 1)
    for axis, series in zip(axes, panels(trajectory), strict=True):
        if series.shape[1] > 1:
            low, high = np.percentile(series, [5, 95], axis=1)
            axis.fill_between(hours, low, high, color=colour, alpha=0.25, lw=0)
        axis.plot(hours, np.median(series, axis=1), color=colour)
        axis.grid(alpha=0.25)
    axes[0].axhline(params.temperature_limit, color=RED, ls="--", lw=1)
    axes[0].axhline(params.temperature_setpoint, color=GREY, ls=":", lw=1)
    axes[1].axhline(params.polymer_setpoint, color=GREY, ls=":", lw=1)
    axes[0].set_title(title, fontsize=10)
    axes[-1].set_xlabel("time, h")


def save(fig, path: Path) -> None:
    """Write a figure as PNG, whole or not at all, and close it. Same figure, same bytes."""
    metadata = {"Software": None}  # else it holds the version of matplotlib
    write_atomically(path, lambda file: fig.savefig(file, format="png", dpi=80, metadata=metadata))
    plt.close(fig)
    print(f"written: {path}")


def figure(scenario: str, num_updates: int):
    """One scenario's figure."""
    _, params = polycstr_jax.make(scenario)
    trajectory, plan = data.generate_trajectory(scenario, "mixed")
    peak, returns = trajectory.peak_temperature.max(axis=0), trajectory.reward.sum(axis=0)
    calm = np.flatnonzero((plan.kind == data.PI) & (peak <= params.temperature_limit))
    safe = calm[np.argsort(returns[calm])[len(calm) // 2]]
    kind = data.PI if scenario == "startup" else data.BOOST
    runaway = np.flatnonzero((plan.kind == kind) & (peak > params.runaway_temperature))[0]
    cause = "PI" if kind == data.PI else "PI interrupted by a boost"

    fig, axes = plt.subplots(4, 3, figsize=(11, 8), sharex=True, layout="constrained")
    columns = (
        (data.select_episodes(trajectory, [safe], 1), "PI, within the limit", BLUE),
        (data.select_episodes(trajectory, [runaway], 1), f"{cause}: runaway", RED),
        (bc_trajectory(scenario, num_updates), "BC on pi data, 64 nominal starts", BLUE),
    )
    for column, (shown, title, colour) in enumerate(columns):
        draw(axes[:, column], shown, params, title, colour)
    for axis, label in zip(axes[:, 0], LABELS, strict=True):
        axis.set_ylabel(label)
    fig.suptitle(f"{scenario}: limit {params.temperature_limit:g} K dashed, set-points dotted")
    return fig


def main(args: Args) -> None:
    check_writable(args.out)
    for scenario in polycstr_jax.SCENARIOS:
        save(figure(scenario, args.num_updates), args.out / f"trajectories-{scenario}.png")


if __name__ == "__main__":
    main(tyro.cli(Args))
