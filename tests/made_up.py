"""Training sets that are made up: for tests of algorithms."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import scipy.integrate
import scipy.stats

from algos.common import discounted_limit
from polycstr_jax.data import EPISODE_LENGTH, Normaliser, TrainingData


def transitions(obs, action, cost, next_obs, *, constraint=None, reward=None, ended=False):
    """A data set of standardised observations (N, S), none of it in need of scaling."""
    num = obs.shape[0]
    cost = jnp.broadcast_to(jnp.asarray(cost, jnp.float32), (num,))
    return TrainingData(
        obs=obs,
        action=action,
        reward=jnp.zeros(num) if reward is None else reward,
        cost=cost,
        constraint=jnp.where(cost > 0, 0.5, -0.5) if constraint is None else constraint,
        next_obs=next_obs,
        terminated=jnp.broadcast_to(jnp.asarray(ended), (num,)),
        truncated=jnp.zeros(num, bool),
        tracking_cost=jnp.zeros(num),
        normaliser=Normaliser(
            obs_mean=jnp.zeros(obs.shape[1]),
            obs_std=jnp.ones(obs.shape[1]),
            action_mean=jnp.zeros(action.shape[1]),
            action_std=jnp.full(action.shape[1], 0.2),
            action_low=action.min(axis=0),
            action_high=action.max(axis=0),
            reward_std=jnp.ones(()),
        ),
    )


@functools.cache
def noise():
    """Transitions without meaning: 400 of them, a tenth violating, some ended, some cut."""
    keys = jax.random.split(jax.random.key(7), 6)
    data = transitions(
        jax.random.normal(keys[0], (400, 9)),
        jax.random.uniform(keys[1], (400, 2), minval=-1.0),
        jax.random.uniform(keys[2], (400,)) < 0.1,
        jax.random.normal(keys[3], (400, 9)),
        reward=jax.random.normal(keys[4], (400,)),
        ended=jax.random.uniform(keys[5], (400,)) < 0.2,
    )
    return data._replace(truncated=jnp.arange(400) % 100 == 99)


def squashed_entropy(mean, std):
    """Of tanh of N(mean, std^2), in nats."""
    slope = scipy.integrate.quad(
        lambda u: scipy.stats.norm.pdf(u, mean, std) * np.log1p(-(np.tanh(u) ** 2)),
        mean - 8.0 * std,
        mean + 8.0 * std,
    )[0]
    return scipy.stats.norm.entropy(mean, std) + slope


def loop_data(ended=False):
    """One situation that never ends; reward 1 and cost 0.1 a step; every step a time-out."""
    action = jax.random.uniform(jax.random.key(3), (1_000, 1), minval=-1.0)
    obs = jnp.ones((1_000, 3))
    data = transitions(obs, action, 0.1, obs, reward=jnp.ones(1_000), ended=ended)
    return data._replace(truncated=jnp.ones(1_000, bool))


def per_episode(cost):
    """The limit of an episode that allows a discounted cost of `cost` from any step, at 0.99."""
    return cost / discounted_limit(1.0, 0.99, EPISODE_LENGTH)
