"""PPO in one file, as users of purejaxrl write it: a pure `train(rng)`, for `jit(vmap(train))`.

With `five_values` it is such code as it stands: every `done` is a termination. Without, it takes
gymnax's six values, and an episode that was cut off is worth what `final_observation` promises.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax.training.train_state import TrainState


class Config(NamedTuple):
    num_envs: int = 16
    num_steps: int = 15
    num_updates: int = 30
    num_epochs: int = 4
    num_minibatches: int = 4
    rate: float = 3e-3
    gamma: float = 0.99
    gae_lambda: float = 0.95
    clip: float = 0.2
    reward_scale: float = 1e-3  # of the rewards that the networks see
    obs_scale: tuple[float, ...] = (1e-2, 1.0, 1.0, 1e-2, 1.0, 1e-2, 0.1, 1.0, 0.1)
    obs_shift: tuple[float, ...] = (300.0, 5.0, 1.0, 80.0, 350.0, 20.0, 0.0, 1.0, 342.0)


class ActorCritic(nn.Module):
    config: Config

    @nn.compact
    def __call__(self, obs):
        """Mean (..., 2) and log std (2,) of the action, and the value (...)."""
        x = jnp.tanh(
            (obs - jnp.asarray(self.config.obs_shift)) * jnp.asarray(self.config.obs_scale)
        )
        actor, critic = (nn.tanh(nn.Dense(32)(x)) for _ in range(2))
        mean = nn.Dense(2, kernel_init=nn.initializers.normal(0.01))(actor)
        log_std = self.param("log_std", nn.initializers.constant(-0.5), (2,))
        return mean, log_std, nn.Dense(1)(critic)[..., 0]


class Transition(NamedTuple):
    obs: Any
    action: Any
    log_prob: Any
    value: Any
    next_value: Any  # of the observation after the interval
    reward: Any
    terminated: Any  # no value is added
    done: Any  # the sum of advantages ends
    info: Any


def gaussian_log_prob(mean, log_std, action):
    deviation = (action - mean) * jnp.exp(-log_std)
    return (-0.5 * deviation**2 - log_std - 0.5 * jnp.log(2.0 * jnp.pi)).sum(-1)


def advantages_of(config: Config, batch: Transition):
    """Generalised advantages (num_steps, num_envs)."""

    def backward(after, step):
        now = step.reward * config.reward_scale - step.value
        now += config.gamma * (1.0 - step.terminated) * step.next_value
        advantage = now + config.gamma * config.gae_lambda * (1.0 - step.done) * after
        return advantage, advantage

    return jax.lax.scan(backward, jnp.zeros_like(batch.value[0]), batch, reverse=True)[1]


def loss_of(params, apply, config: Config, batch: Transition, advantage, target):
    mean, log_std, value = apply(params, batch.obs)
    ratio = jnp.exp(gaussian_log_prob(mean, log_std, batch.action) - batch.log_prob)
    advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
    clipped = jnp.clip(ratio, 1.0 - config.clip, 1.0 + config.clip)
    policy = -jnp.minimum(ratio * advantage, clipped * advantage).mean()
    return policy + 0.5 * ((value - target) ** 2).mean()


def make_train(config: Config, env, env_params, five_values: bool):
    """`train(rng)` returns the `TrainState`, and of every update transitions and advantages."""
    network = ActorCritic(config)
    reset, step = (
        jax.vmap(f, (0, *axes)) for f, axes in ((env.reset, [None]), (env.step, [0, 0, None]))
    )
    num_samples = config.num_envs * config.num_steps

    def interval(runner, _):
        state, env_state, obs, rng = runner
        rng, draw, now = jax.random.split(rng, 3)
        mean, log_std, value = network.apply(state.params, obs)
        action = mean + jnp.exp(log_std) * jax.random.normal(draw, mean.shape)
        log_prob = gaussian_log_prob(mean, log_std, action)
        keys = jax.random.split(now, config.num_envs)
        if five_values:
            next_obs, env_state, reward, done, info = step(keys, env_state, action, env_params)
            terminated, last_obs = done, next_obs
        else:
            next_obs, env_state, reward, terminated, truncated, info = step(
                keys, env_state, action, env_params
            )
            done, last_obs = terminated | truncated, info["final_observation"]
        next_value = network.apply(state.params, last_obs)[2]
        transition = Transition(
            obs, action, log_prob, value, next_value, reward, terminated, done, info
        )
        return (state, env_state, next_obs, rng), transition

    def update(runner, _):
        (state, env_state, obs, rng), batch = jax.lax.scan(interval, runner, None, config.num_steps)
        advantage = advantages_of(config, batch)
        samples = batch._replace(info=None), advantage, advantage + batch.value
        samples = jax.tree.map(lambda x: x.reshape((num_samples, *x.shape[2:])), samples)

        def minibatch(state, rows):
            chosen = jax.tree.map(lambda x: x[rows], samples)
            gradient = jax.grad(loss_of)(state.params, network.apply, config, *chosen)
            return state.apply_gradients(grads=gradient), None

        rng, shuffle = jax.random.split(rng)
        rows = jax.vmap(lambda key: jax.random.permutation(key, num_samples))(
            jax.random.split(shuffle, config.num_epochs)
        )
        rows = rows.reshape((config.num_epochs * config.num_minibatches, -1))
        state, _ = jax.lax.scan(minibatch, state, rows)
        return (state, env_state, obs, rng), (batch, advantage)

    def train(rng):
        rng, first, start = jax.random.split(rng, 3)
        obs, env_state = reset(jax.random.split(start, config.num_envs), env_params)
        optimiser = optax.chain(optax.clip_by_global_norm(0.5), optax.adam(config.rate))
        params = network.init(first, obs)
        state = TrainState.create(apply_fn=network.apply, params=params, tx=optimiser)
        runner = state, env_state, obs, rng
        (state, *_), history = jax.lax.scan(update, runner, None, config.num_updates)
        return state, history

    return train
