"""SAC of Stable-Baselines3 learns on our Gymnasium environment; run by a Python of its own.

    .venv-clients/bin/python -m benchmarks.clients_sb3 [--seeds 0 1] [--steps 4000] [--json]

The environment is asked for by its id, as a user of Stable-Baselines3 would, and nothing is
adapted: `check_env`, `make_vec_env`, `VecNormalize` and `SAC` are Stable-Baselines3's. Rewards
reach from about -1 to below -100,000, so `VecNormalize` scales them (and the observations) and
clips them at 10; returns below are of the raw rewards. Policies are compared on the 64 nominal
starts, without exploration noise. Of this project only polycstr_jax is imported.
"""

import dataclasses
import json
import time
import warnings
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import gymnasium
import numpy as np
import rich
import tyro

import polycstr_jax
from polycstr_jax import evaluate

ID = polycstr_jax.SCENARIOS["startup"]
PACKAGES = ("stable-baselines3", "torch", "gymnasium", "gymnax", "jax", "flax", "numpy")


@dataclasses.dataclass(frozen=True)
class Args:
    """Train SB3's SAC on PolyCSTR-Startup-v0, and compare it with random actions."""

    seeds: tuple[int, ...] = (0, 1)
    steps: int = 4_000  # intervals of training, each followed by one gradient step
    num_starts: int = 64  # of the nominal ones, to compare on
    json: bool = False  # print JSON instead of a table


def check(args: Args) -> None:
    """`SystemExit` naming the argument that makes no sense."""
    if not args.seeds:
        raise SystemExit("seeds = none; allowed: one or more.")
    if args.steps < 1:
        raise SystemExit(f"steps = {args.steps}; allowed: 1 or more.")
    if not 1 <= args.num_starts <= 64:
        raise SystemExit(f"num-starts = {args.num_starts}; allowed: 1 to 64.")


def play(env: gymnasium.Env, act: Callable[[np.ndarray], np.ndarray], num_starts: int):
    """One episode from each of the first nominal starts.

    `act` maps an observation (9,) to an action (2,). Returns the episodes' returns, numbers of
    violating intervals and whether they ran away, (num_starts,) each.
    """
    starts = evaluate.starts("startup", "nominal")
    episodes = []
    for state, control in zip(starts.state[:num_starts], starts.control, strict=False):
        obs, _ = env.reset(seed=0, options={"state": state, "control": control})
        total, cost, runaway, done = 0.0, 0.0, False, False
        while not done:
            obs, reward, terminated, truncated, info = env.step(act(obs))
            total, cost = total + reward, cost + info["cost"]
            runaway |= info["runaway"]
            done = terminated or truncated
        episodes.append((total, cost, runaway))
    returns, costs, runaways = zip(*episodes, strict=True)
    return np.asarray(returns), np.asarray(costs), np.asarray(runaways)


def summary(returns, costs, runaways) -> dict[str, float]:
    """What is reported of episodes: means, and the median of the returns."""
    return {
        "mean_return": float(np.mean(returns)),
        "median_return": float(np.median(returns)),
        "cost": float(np.mean(costs)),
        "violated": float(np.mean(np.asarray(costs) > 0)),
        "runaway": float(np.mean(runaways)),
    }


def complaints() -> list[str]:
    """What SB3's `check_env` warns of; it raises where the interface is wrong."""
    from stable_baselines3.common.env_checker import check_env  # here: other functions go without

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        check_env(gymnasium.make(ID))
    return [str(warning.message) for warning in caught]


def train(seed: int, args: Args) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Train one seed; rows of the untrained and the trained policy, and seconds."""
    from stable_baselines3 import SAC
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.vec_env import VecNormalize

    training = VecNormalize(make_vec_env(ID, n_envs=1, seed=seed))
    model = SAC("MlpPolicy", training, seed=seed)
    env = gymnasium.make(ID)

    def act(obs):
        return model.predict(training.normalize_obs(obs), deterministic=True)[0]

    started = time.perf_counter()
    untrained = summary(*play(env, act, args.num_starts))
    played = time.perf_counter()
    model.learn(args.steps)
    learned = time.perf_counter()
    trained = summary(*play(env, act, args.num_starts))
    rows = [
        {"algorithm": "SAC", "policy": policy, "seed": seed} | result
        for policy, result in (("untrained", untrained), ("trained", trained))
    ]
    return rows, {"training": learned - played, "evaluation": played - started}


def random_row(args: Args) -> dict[str, Any]:
    """The row of uniform random actions."""
    env = gymnasium.make(ID)
    env.action_space.seed(0)
    result = summary(*play(env, lambda _: env.action_space.sample(), args.num_starts))
    return {"algorithm": "random", "policy": "random", "seed": 0} | result


def main(args: Args) -> None:
    check(args)
    found = {
        "client": "Stable-Baselines3",
        "versions": {name: version(name) for name in PACKAGES},
        "settings": {"steps": args.steps, "num_starts": args.num_starts, "normalised": True},
        "check_env": complaints(),
        "rows": [random_row(args)],
        "seconds": [],
    }
    for seed in args.seeds:
        rows, seconds = train(seed, args)
        found["rows"] += rows
        found["seconds"].append({"algorithm": "SAC", "seeds": 1} | seconds)
    if args.json:
        print(json.dumps(found))
        return
    for row in found["rows"]:
        rich.print(row)
    rich.print(found["check_env"] or "check_env: nothing to complain about", found["seconds"])


if __name__ == "__main__":
    main(tyro.cli(Args))
