"""Behaviour cloning: supervised imitation of the data's actions.

    L = E_(s,a)~D [ |pi(s) - (a - mean) / std|^2 ]          (sum over the action's entries)

A deterministic MLP of 2 x 256 (arXiv 2507.22640) with a linear head; when acting, its output is
scaled back and clipped to [-1, 1]. It knows neither reward nor cost: what it does about the
temperature limit is what the data did. Track `published` is the set-up of the paper's data code:
6 observations (without A, I and R), actions scaled to [-1, 1] by the data's range, a tanh head.

Deviations from the paper, which states neither optimiser, learning rate, batch size nor number
of updates: Adam, 3e-4 with cosine decay to 0, 256, 10,000; actions in units of their standard
deviation in the `pi` set. Decay and units decide the result here (docs/algorithms/bc.md): most
increments are a few hundredths, and an error of that size, made 200 times, ends anywhere.

Run: python algos/bc.py --scenario startup --dataset pi --num-seeds 8 [--track published]
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


@dataclass(frozen=True)
class Config:
    """Hyper-parameters."""

    track: Track = "default"
    num_updates: int = 10_000  # ours
    batch_size: int = 256  # ours
    learning_rate: float = 3e-4  # ours
    cosine_decay: bool = True  # ours: of the learning rate, to 0 over num_updates
    standardise_actions: bool = True  # ours; of the default track
    hidden: tuple[int, ...] = (256, 256)  # paper


PRESETS = {"default": Config()}


class State(NamedTuple):
    """What training carries."""

    params: Any
    opt_state: Any
    normaliser: Normaliser
    step: jax.Array


def bc_loss(predicted, action):
    """Squared error summed over the action's entries; mean over the batch (B, 2)."""
    return jnp.mean(jnp.sum((predicted - action) ** 2, axis=-1))


def make_train(config: Config, env=None, env_params=None) -> Algorithm:
    """BC's pure functions; the environment is not needed."""
    check_choice("track", config.track, Track)
    check_counts(config)
    network = MLP(config.hidden, ACTION_SIZE)
    learning_rate = config.learning_rate
    if config.cosine_decay:
        learning_rate = optax.cosine_decay_schedule(learning_rate, config.num_updates)
    optimiser = optax.adam(learning_rate)

    def units(normaliser):
        if config.track == "default" and not config.standardise_actions:
            return jnp.zeros(ACTION_SIZE), jnp.ones(ACTION_SIZE)
        return action_units(config.track, normaliser)

    def predict(params, obs):
        return policy_head(config.track, network.apply(params, track_obs(config.track, obs)))

    def init(rng, data):
        params = network.init(rng, track_obs(config.track, data.obs[0]))
        return State(params, optimiser.init(params), data.normaliser, jnp.zeros((), jnp.int32))

    def update(state, batch, rng):
        # --- Imitate the batch's actions ---
        shift, scale = units(state.normaliser)
        target = (batch.action - shift[None]) / scale[None]

        def loss(params):
            return bc_loss(predict(params, batch.obs), target)

        value, gradient = jax.value_and_grad(loss)(state.params)
        updates, opt_state = optimiser.update(gradient, state.opt_state)
        params = optax.apply_updates(state.params, updates)
        return State(params, opt_state, state.normaliser, state.step + 1), {"bc_loss": value}

    def policy(state):
        shift, scale = units(state.normaliser)

        def act(obs, rng):
            output = predict(state.params, state.normaliser.obs(obs))
            return jnp.clip(shift + scale * output, -1.0, 1.0)

        return act

    def run(state, data, rng, num_updates):
        return scan_updates(update, state, data, rng, num_updates, config.batch_size)

    def train(rng, data):
        init_key, run_key = jax.random.split(rng)
        return run(init(init_key, data), data, run_key, config.num_updates)

    return Algorithm(init, run, policy, train, config)


if __name__ == "__main__":
    command_line("bc", PRESETS, make_train)
