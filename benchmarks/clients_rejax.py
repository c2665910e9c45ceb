"""PPO and SAC of rejax learn on our JAX environment; for a virtual environment of its own.

    .venv-clients/bin/python -m benchmarks.clients_rejax [--seeds 0 1 2 3] [--json]

rejax takes an environment as an object, and unpacks five values of its step: it gets
`LegacyStepAPI(LogWrapper(env))` and is otherwise as it comes. All seeds are trained by one program,
`jit(vmap(train))`. Observations and rewards are normalised by rejax's own options, as rewards reach
from about -1 to below -100,000; returns below are of the raw rewards. Policies are compared on the
64 nominal starts, with rejax's `make_act`, which draws actions. Of this project only polycstr_jax
is imported.
"""

import dataclasses
import json
import time
from importlib.metadata import version
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import rich
import tyro

import polycstr_jax
from polycstr_jax import evaluate
from polycstr_jax.wrappers import LegacyStepAPI, LogWrapper

PACKAGES = ("rejax", "distrax", "gymnax", "jax", "flax", "optax", "numpy")
NORMALISED = {"normalize_observations": True, "normalize_rewards": True}
SETTINGS = {
    "PPO": {
        "num_envs": 16,
        "num_steps": 64,
        "num_minibatches": 8,
        "num_epochs": 8,
        "learning_rate": 1e-3,
        "ent_coef": 0.0,
        **NORMALISED,
    },
    "SAC": {
        "num_envs": 4,
        "num_epochs": 4,
        "buffer_size": 8_192,
        "fill_buffer": 512,
        "learning_rate": 1e-3,
        **NORMALISED,
    },
}


@dataclasses.dataclass(frozen=True)
class Args:
    """Train rejax's PPO and SAC on the start-up, all seeds at once, and compare with random."""

    seeds: tuple[int, ...] = (0, 1, 2, 3)
    ppo_steps: int = 65_536  # intervals of each seed
    sac_steps: int = 6_144
    num_starts: int = 64  # of the nominal ones, to compare on
    json: bool = False  # print JSON instead of a table


def check(args: Args) -> None:
    """`SystemExit` naming the argument that makes no sense."""
    if not args.seeds:
        raise SystemExit("seeds = none; allowed: one or more.")
    for name in ("ppo_steps", "sac_steps"):
        if getattr(args, name) < 1:
            raise SystemExit(
                f"{name.replace('_', '-')} = {getattr(args, name)}; allowed: 1 or more."
            )
    if not 1 <= args.num_starts <= 64:
        raise SystemExit(f"num-starts = {args.num_starts}; allowed: 1 to 64.")


def on_starts(policy, states, num_starts: int) -> list[dict[str, float]]:
    """Results of S policies on the first nominal starts, one for each seed.

    `policy` maps one of `states` (leading axis S) to `act(obs, rng)`, as rejax's `make_act`.
    """
    env, params = polycstr_jax.make("startup")
    chosen = jax.tree.map(lambda x: x[:num_starts], evaluate.starts("startup", "nominal"))
    metrics = jax.device_get(
        evaluate.evaluate_policies(
            env,
            params,
            policy,
            states,
            evaluate.start_states(chosen),
            evaluate.score_limits("startup"),
            jax.random.key(0),
        )
    )
    return [
        {
            "mean_return": float(np.mean(metrics.episode_return[i], dtype=np.float64)),
            "median_return": float(np.median(metrics.episode_return[i])),
            "cost": float(metrics.violation_steps[i].mean()),
            "violated": float(metrics.violated[i].mean()),
            "runaway": float(metrics.runaway[i].mean()),
        }
        for i in range(metrics.violated.shape[0])
    ]


def random_policy(_):
    """Uniform random actions, for `on_starts`."""
    return lambda obs, rng: jax.random.uniform(rng, (2,), minval=-1.0, maxval=1.0)


def train(name: str, args: Args) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Train all seeds; rows of the untrained and the trained policies, and seconds."""
    import rejax  # here: other functions go without

    env, params = polycstr_jax.make("startup")
    steps = {"PPO": args.ppo_steps, "SAC": args.sac_steps}[name]
    algorithm = getattr(rejax, name).create(
        env=LegacyStepAPI(LogWrapper(env)),
        env_params=params,
        total_timesteps=steps,
        eval_freq=steps,  # rejax evaluates before and after, 128 episodes of each seed
        **SETTINGS[name],
    )
    keys = jax.vmap(jax.random.key)(jnp.asarray(args.seeds))
    states = jax.jit(jax.vmap(algorithm.init_state))(keys)  # what train begins with

    started = time.perf_counter()
    program = jax.jit(jax.vmap(algorithm.train)).lower(keys).compile()
    compiled = time.perf_counter()
    trained, (lengths, returns) = jax.block_until_ready(program(keys))
    seconds = {"compilation": compiled - started, "training": time.perf_counter() - compiled}

    episodes = jax.device_get(trained.env_state)  # a `LogState` (S, num_envs)
    rows = []
    for policy, state, own in (("untrained", states, 0), ("trained", trained, -1)):
        found = on_starts(lambda state: algorithm.make_act(state), state, args.num_starts)
        for i, result in enumerate(found):
            row = {"algorithm": name, "policy": policy, "seed": args.seeds[i]} | result
            rows.append(row | {"rejax_return": float(returns[i, own].mean())})
            assert (lengths[i] == 200).all(), "every episode has 200 intervals"
    last = {
        "last_training_return": episodes.returned_episode_return.mean(axis=1).tolist(),
        "last_training_cost": episodes.returned_episode_cost.mean(axis=1).tolist(),
    }
    return rows, {"algorithm": name, "seeds": len(args.seeds)} | seconds | last


def main(args: Args) -> None:
    check(args)
    found = {
        "client": "rejax",
        "versions": {name: version(name) for name in PACKAGES},
        "settings": dataclasses.asdict(args) | SETTINGS,
        "rows": [
            {"algorithm": "random", "policy": "random", "seed": 0} | result
            for result in on_starts(random_policy, jnp.zeros((1,)), args.num_starts)
        ],
        "seconds": [],
    }
    for name in SETTINGS:
        rows, seconds = train(name, args)
        found["rows"] += rows
        found["seconds"].append(seconds)
    if args.json:
        print(json.dumps(found))
        return
    for row in (*found["rows"], *found["seconds"]):
        rich.print(row)


if __name__ == "__main__":
    main(tyro.cli(Args))
