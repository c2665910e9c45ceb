"""From an offline policy to online training without alignment: the baselines of arXiv 2412.04426.

All are SAC-Lag (`algos/sac_lag.py`) with one thing changed, around the same offline algorithm as
Marvel (`algos/marvel.py`), with its multiplier, its episodes and its gradient steps:

    jsrl   jump-start (Uchendu et al., 2022): the offline policy pi0 acts in the first share of an
           episode, a new one in the rest; the share goes from 1 to 0 over the first `guided` of
           the updates. Policy and critics are new.
    pex    policy expansion (Zhang et al., 2023): at each step pi0 and a new policy propose an
           action each; the one is drawn with probability softmax(min_i Qbar_i / `pex_temperature`).
           The critics are the offline ones.
    so2    (Zhang et al., 2023): policy and critics are the offline ones; the target's next action
           has Gaussian noise of `target_noise`, clipped to twice that.

PEX's choice asks the reward alone, as published: cost plays no part in it.

Deviations from the paper: its release gives each of them fewer gradient steps an episode than
Marvel, 5 to 27 times, and divides JSRL's cost by 25; here all have as many, with those of its
alignment. SO2's other part, many more gradient steps, is `gradient_steps`; its noise is not clipped
in the release. What is evaluated is the new policy's mean action, of PEX, too.

Run: python algos/o2o_baselines.py --preset pex --scenario startup --dataset mixed --num-seeds 8
"""

from dataclasses import dataclass, replace
from typing import Literal

import jax
import jax.numpy as jnp

from algos import checkpoints, marvel, sac_lag
from algos.actor_critic import SquashedActor, mean_action, squashed_sample, twin_values
from algos.common import LAYER_KEY, MLP, Algorithm, check_range, command_line, from_unit
from algos.multipliers import Controller

Method = Literal["jsrl", "pex", "so2"]


@dataclass(frozen=True)
class Config(sac_lag.Config):
    """SAC-Lag's hyper-parameters, and the method's."""

    method: Method = "jsrl"
    base: marvel.Base = "cpq"
    base_preset: str = "default"  # of the base's file
    guided: float = 1.0  # share of the updates over which pi0's share falls to 0, of jsrl
    pex_temperature: float = 1.0  # of min Q, in training rewards (release)
    gradient_steps: int = 250  # as many in all as Marvel with its alignment
    controller: Controller = marvel.APID


DEFAULT = Config()
PRESETS = {
    "default": DEFAULT,
    "jsrl": DEFAULT,
    "pex": replace(DEFAULT, method="pex"),
    # Its policy is the offline one: Marvel's temperature.
    "so2": replace(
        DEFAULT,
        method="so2",
        target_noise=0.1,
        initial_temperature=marvel.DEFAULT.initial_temperature,
    ),
}


# --- Who acts ---


def guided_share(config: Config, step):
    """Share of an episode (), from its start, in which pi0 acts: from 1 to 0, linearly."""
    return jnp.clip(1.0 - step / (config.guided * config.num_updates), 0.0, 1.0)


def jump_start(config: Config, state, rng, horizon: int):
    """A controller, pi0 until its share of the episode is over; memory: a key and the interval."""
    actor = SquashedActor(config.hidden, state.normaliser.action_mean.shape[-1])
    learner, keys = sac_lag.stochastic(config, state, rng)
    until = guided_share(config, state.step) * horizon

    def controller(obs, memory):
        key, interval = memory
        ours, key = learner(obs, key)
        guide = state.base.params.actor
        theirs = mean_action(config.action_unit, actor, guide, state.normaliser, obs)
        return jnp.where(interval < until, theirs, ours), (key, interval + 1)

    return controller, (keys, jnp.zeros((config.num_episodes,), jnp.int32))


def expand(config: Config, state, rng):
    """A controller that chooses between an action of pi0 and one of the new policy by their
    values; memory: a key."""
    actor = SquashedActor(config.hidden, state.normaliser.action_mean.shape[-1])
    scalar = MLP(config.hidden, 1)

    def controller(obs, key):
        key, *now = jax.random.split(key, 4)
        seen = state.normaliser.obs(obs)[None]
        theirs, _ = squashed_sample(*actor.apply(state.base.params.actor, seen), now[0])
        ours, _ = squashed_sample(*actor.apply(state.params.actor, seen), now[1])
        proposed, twice = jnp.concatenate([theirs, ours]), jnp.tile(seen, (2, 1))
        value = twin_values(scalar, state.target_critic, twice, proposed).min(axis=0)
        chosen = jax.random.categorical(now[2], value / config.pex_temperature)
        action = from_unit(config.action_unit, proposed, state.normaliser.action_std)
        return action[chosen], key

    return controller, jax.random.split(rng, config.num_episodes)


# --- The algorithm ---


def check_config(config: Config, env_params) -> None:
    """`ValueError` naming the setting, its value and what is allowed."""
    sac_lag.check_config(config, env_params)
    check_range(config, ("guided",), "above 0, at most 1", lambda x: 0.0 < x <= 1.0)
    check_range(config, ("pex_temperature",), "above 0", lambda x: x > 0.0)


def make_train(config: Config, env=None, env_params=None, base: Algorithm | None = None):
    """The pure functions around `base`; `config.base`'s if None. `ValueError` for bad settings."""
    check_config(config, env_params)
    base = marvel.make_base(config) if base is None else base
    marvel.check_base(config, base)
    start, control, improve = sac_lag.parts(config)
    horizon = int(env_params.max_steps_in_episode)

    def behave(config, state, rng):
        if config.method == "jsrl":
            return jump_start(config, state, rng, horizon)
        return (expand if config.method == "pex" else sac_lag.stochastic)(config, state, rng)

    update = sac_lag.make_update(config, env, env_params, control, improve, behave)

    def init(rng, data, base_state):
        fresh, given = start(rng, data), base_state.params
        taken = {"jsrl": (), "pex": ("critic", "cost_critic"), "so2": marvel.NETWORKS}
        params = fresh.params._replace(
            **{name: getattr(given, name) for name in taken[config.method]}
        )
        offline = fresh.params._replace(**{name: getattr(given, name) for name in marvel.NETWORKS})
        checkpoints.check_form(offline, fresh.params, f"the offline state of {config.base}")
        return marvel.begin(fresh, params, base_state)

    def policy(state):
        return sac_lag.mean_policy(config, state)

    def run(state, data, rng, num_updates):
        return sac_lag.scan_online(update, state, rng, num_updates)

    def train(rng, data):
        base_state, _ = base.train(rng, data)
        init_key, run_key = jax.random.split(jax.random.fold_in(rng, LAYER_KEY))
        return run(init(init_key, data, base_state), data, run_key, config.num_updates)

    return Algorithm(init, run, policy, train, config, base)


if __name__ == "__main__":
    command_line("o2o_baselines", PRESETS, make_train)
