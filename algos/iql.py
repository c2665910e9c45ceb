"""Implicit Q-learning (Kostrikov et al., 2021; a base policy of arXiv 2507.22640).

    L_V  = E[ |tau - 1(d < 0)| d^2 ],                d = min_i Qbar_i(s, a) - V(s)
    L_Q  = E[ sum_i (r + gamma (1 - terminated) V(s') - Q_i(s, a))^2 ]
    L_pi = -E[ min(exp(beta (min_i Qbar_i(s, a) - V(s))), 100) log pi(a|s) ]
    Qbar <- Qbar + 0.005 (Q - Qbar)

Every action that is evaluated comes from the data, so no value is ever asked of an action that
nobody took. Separate networks of 2 x 256 for policy, V and the twin Q; expectile tau = 0.9
(the paper). The policy is a Gaussian with a standard deviation that does not depend on the
state; when acting, its mean is scaled back and clipped to [-1, 1]. Time-outs bootstrap. It knows
the reward but no cost. Track `published` is the set-up of the paper's data code: 6 observations
(without A, I and R), actions scaled to [-1, 1] by the data's range, a tanh head.

Deviations from the paper, which states neither optimiser, learning rate, batch size, temperature,
discount nor number of updates: Adam, 3e-4 with cosine decay to 0 (Kostrikov et al. decay the
policy's only), 256, beta = 3, gamma = 0.99, 6,000. Rewards are divided by their standard deviation
in the `pi` set, and actions enter in units of theirs (docs/algorithms/iql.md).

Run: python algos/iql.py --scenario startup --dataset pi --num-seeds 8 [--track published]
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from algos.common import (
    MLP,
    Algorithm,
    Track,
    action_units,
    check_choice,
    check_counts,
    command_line,
    policy_head,
    scan_updates,
    track_obs,
)
from polycstr_jax.data import Normaliser
from polycstr_jax.env import ACTION_SIZE

LOG_STD_RANGE = (-5.0, 2.0)


@dataclass(frozen=True)
class Config:
    """Hyper-parameters."""

    track: Track = "default"
    num_updates: int = 6_000  # ours
    batch_size: int = 256  # ours
    learning_rate: float = 3e-4  # Kostrikov et al.
    cosine_decay: bool = True  # Kostrikov et al., there of the policy's only; to 0
    expectile: float = 0.9  # paper
    temperature: float = 3.0  # beta; ours
    max_weight: float = 100.0  # Kostrikov et al.
    discount: float = 0.99  # Kostrikov et al.
    target_rate: float = 0.005  # Kostrikov et al.
    hidden: tuple[int, ...] = (256, 256)  # paper


PRESETS = {"default": Config()}


class Params(NamedTuple):
    """Everything that is optimised."""

    policy: Any
    log_std: jax.Array  # (2,)
    value: Any
    critic: Any  # of both critics, leading axis 2


class State(NamedTuple):
    """What training carries."""

    params: Params
    target_critic: Any
    opt_state: Any
    normaliser: Normaliser
    step: jax.Array


def expectile_loss(difference, expectile: float):
    """|tau - 1(d < 0)| d^2, mean over the batch (B,)."""
    weight = jnp.where(difference < 0.0, 1.0 - expectile, expectile)
    return jnp.mean(weight * difference**2)


def advantage_weight(advantage, temperature: float, max_weight: float):
    """min(exp(beta A), max_weight), clipped before the exponential: nothing overflows."""
    return jnp.exp(jnp.minimum(temperature * advantage, jnp.log(max_weight)))


def negative_log_likelihood(mean, log_std, action):
    """-log N(action; mean, exp(log_std)^2), summed over the action's entries (B, 2) -> (B,)."""
    log_std = jnp.clip(log_std, *LOG_STD_RANGE)[None]
    error = (action - mean) * jnp.exp(-log_std)
    return jnp.sum(0.5 * error**2 + log_std + 0.5 * jnp.log(2.0 * jnp.pi), axis=-1)


def make_train(config: Config, env=None, env_params=None) -> Algorithm:
    """IQL's pure functions; the environment is not needed. `ValueError` for bad settings."""
    check_choice("track", config.track, Track)
    check_counts(config)
    if not 0.0 < config.expectile < 1.0:
        raise ValueError(f"expectile = {config.expectile}; allowed: above 0, below 1.")
    if not 0.0 <= config.discount < 1.0:
        raise ValueError(f"discount = {config.discount}; allowed: 0 or more, below 1.")
    if not config.temperature >= 0.0:
        raise ValueError(f"temperature = {config.temperature}; allowed: 0 or more.")
    if not config.max_weight > 0.0:
        raise ValueError(f"max_weight = {config.max_weight}; allowed: above 0.")
    actor, scalar = MLP(config.hidden, ACTION_SIZE), MLP(config.hidden, 1)
    learning_rate = config.learning_rate
    if config.cosine_decay:
        learning_rate = optax.cosine_decay_schedule(learning_rate, config.num_updates)
    optimiser = optax.adam(learning_rate)

    def mean_action(params, obs):
        return policy_head(config.track, actor.apply(params, obs))

    def value(params, obs):
        return scalar.apply(params, obs)[..., 0]

    def twin_q(params, obs, action):
        inputs = jnp.concatenate([obs, action], axis=-1)
        return jax.vmap(lambda p: scalar.apply(p, inputs)[..., 0])(params)

    def init(rng, data):
        key_policy, key_value, key_critic = jax.random.split(rng, 3)
        obs = track_obs(config.track, data.obs[0])
        inputs = jnp.concatenate([obs, data.action[0]])
        params = Params(
            policy=actor.init(key_policy, obs),
            log_std=jnp.zeros(ACTION_SIZE),
            value=scalar.init(key_value, obs),
            critic=jax.vmap(lambda key: scalar.init(key, inputs))(jax.random.split(key_critic)),
        )
        return State(
            params,
            params.critic,
            optimiser.init(params),
            data.normaliser,
            jnp.zeros((), jnp.int32),
        )

    def update(state, batch, rng):
        # --- What does not depend on the parameters ---
        shift, scale = action_units(config.track, state.normaliser)
        action = (batch.action - shift[None]) / scale[None]
        obs, next_obs = (track_obs(config.track, x) for x in (batch.obs, batch.next_obs))
        target_q = twin_q(state.target_critic, obs, action).min(axis=0)
        next_value = value(state.params.value, next_obs)
        not_terminated = 1.0 - batch.terminated.astype(jnp.float32)
        backup = batch.reward + config.discount * not_terminated * next_value

        def loss(params):
            # --- V: expectile of the target critics over the data's actions ---
            state_value = value(params.value, obs)
            value_loss = expectile_loss(target_q - state_value, config.expectile)

            # --- Q: one-step backup through V ---
            error = twin_q(params.critic, obs, action) - backup[None]
            critic_loss = jnp.mean(jnp.sum(error**2, axis=0))

            # --- Policy: advantage-weighted likelihood of the data's actions ---
            advantage = jax.lax.stop_gradient(target_q - state_value)
            weight = advantage_weight(advantage, config.temperature, config.max_weight)
            nll = negative_log_likelihood(mean_action(params.policy, obs), params.log_std, action)
            policy_loss = jnp.mean(weight * nll)

            metrics = {
                "value_loss": value_loss,
                "critic_loss": critic_loss,
                "policy_loss": policy_loss,
                "value": state_value.mean(),
                "clipped_weights": jnp.mean(weight >= 0.999 * config.max_weight),
            }
            return value_loss + critic_loss + policy_loss, metrics

        gradient, metrics = jax.grad(loss, has_aux=True)(state.params)

        # --- Apply; move the target critics ---
        updates, opt_state = optimiser.update(gradient, state.opt_state)
        params = optax.apply_updates(state.params, updates)
        target = optax.incremental_update(params.critic, state.target_critic, config.target_rate)
        return State(params, target, opt_state, state.normaliser, state.step + 1), metrics

    def policy(state):
        shift, scale = action_units(config.track, state.normaliser)

        def act(obs, rng):
            seen = track_obs(config.track, state.normaliser.obs(obs))
            return jnp.clip(shift + scale * mean_action(state.params.policy, seen), -1.0, 1.0)

        return act

    def run(state, data, rng, num_updates):
        return scan_updates(update, state, data, rng, num_updates, config.batch_size)

    def train(rng, data):
        init_key, run_key = jax.random.split(rng)
        return run(init(init_key, data), data, run_key, config.num_updates)

    return Algorithm(init, run, policy, train, config)


if __name__ == "__main__":
    command_line("iql", PRESETS, make_train)
