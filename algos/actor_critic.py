"""What the off-policy actor-critics share: a squashed Gaussian, twin critics, a VAE of the data's
actions, one step of Adam on one part. So that a policy and its critics can be handed from
one algorithm to another, all of them have these networks."""

from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from algos.common import MLP, ActionUnit, from_unit

Reduction = Literal["min", "mean", "max"]
LOG_STD_RANGE = (-20.0, 2.0)
CODE_LOG_STD_RANGE = (-4.0, 15.0)
CODE_RANGE = (-0.5, 0.5)  # of codes drawn from the prior
MIN_SHARE = 0.75  # of the least head in a target; the rest is the greatest


# --- Networks ---


class SquashedActor(nn.Module):
    """A Gaussian before tanh: mean and log standard deviation (B, A) of observations (B, S).

    ReLU after every layer, the last hidden one included, and two linear heads.
    """

    hidden: tuple[int, ...]
    num_actions: int

    @nn.compact
    def __call__(self, obs):
        for width in self.hidden:
            obs = nn.relu(nn.Dense(width)(obs))
        mean, log_std = nn.Dense(self.num_actions)(obs), nn.Dense(self.num_actions)(obs)
        return mean, jnp.clip(log_std, *LOG_STD_RANGE)


class VAE(nn.Module):
    """Of actions (B, A) in [-1, 1] given observations (B, S), with a code of 2 A entries."""

    hidden: tuple[int, ...]
    num_actions: int

    def setup(self):
        self.encoder = MLP(self.hidden, 4 * self.num_actions)
        self.decoder = MLP(self.hidden, self.num_actions)

    def encode(self, obs, action):
        """Mean and log standard deviation (B, 2 A) of the code."""
        out = self.encoder(jnp.concatenate([obs, action], axis=-1))
        mean, log_std = jnp.split(out, 2, axis=-1)
        return mean, jnp.clip(log_std, *CODE_LOG_STD_RANGE)

    def decode(self, obs, code):
        """Actions (B, A) before tanh."""
        return self.decoder(jnp.concatenate([obs, code], axis=-1))

    def __call__(self, obs, action, noise):
        """Reconstruction (B, A), and mean and log standard deviation (B, 2 A) of the code."""
        mean, log_std = self.encode(obs, action)
        code = mean + jnp.exp(log_std) * noise
        return jnp.tanh(self.decode(obs, code)), mean, log_std


def heads(network: MLP, obs, action, rng):
    """Parameters of two critics, leading axis 2, for inputs as obs (B, S) and action (B, A)."""
    inputs = jnp.concatenate([obs, action], axis=-1)
    return jax.vmap(lambda key: network.init(key, inputs))(jax.random.split(rng))


def twin_outputs(network: MLP, params, obs, action):
    """Both heads (2, B, M) of a critic with M outputs; its parameters have a leading axis of 2."""
    inputs = jnp.concatenate([obs, action], axis=-1)
    return jax.vmap(lambda p: network.apply(p, inputs))(params)


def twin_values(network: MLP, params, obs, action):
    """Both heads (2, B) of a critic with one output."""
    return twin_outputs(network, params, obs, action)[..., 0]


# --- The mathematics ---


def reduce_heads(how: Reduction, values):
    """The least, the mean or the greatest over heads: (2, ...) -> (...)."""
    return {"min": jnp.min, "mean": jnp.mean, "max": jnp.max}[how](values, axis=0)


def soft_minimum(values):
    """3/4 of the least head and 1/4 of the greatest: (2, ...) -> (...)."""
    return MIN_SHARE * values.min(axis=0) + (1.0 - MIN_SHARE) * values.max(axis=0)


class Multiplier(NamedTuple):
    """Of the cost, moved at every gradient step; () each."""

    value: jax.Array
    integral: jax.Array
    error: jax.Array  # of the update before


def multiply(gains, most: float, state: Multiplier, error) -> Multiplier:
    """One step of a PID controller with gains (K_p, K_i, K_d), and a multiplier of at most `most`.

    I <- max(0, I + K_i e),   lambda = K_p max(0, e) + I + K_d max(0, e - e_before)
    """
    proportional, integral, derivative = gains
    total = jnp.clip(state.integral + integral * error, 0.0, most)
    rise = jnp.maximum(0.0, error - state.error)
    value = proportional * jnp.maximum(0.0, error) + total + derivative * rise
    return Multiplier(jnp.clip(value, 0.0, most), total, error)


def squashed_sample(mean, log_std, rng):
    """tanh of a Gaussian's samples (B, A), and the logarithm of their density (B,).

    log(1 - tanh(u)^2) as 2 (log 2 - u - softplus(-2 u)): no logarithm of 0 where tanh is 1.
    """
    noise = jax.random.normal(rng, mean.shape, mean.dtype)
    u = mean + jnp.exp(log_std) * noise
    normal = -0.5 * noise**2 - log_std - 0.5 * jnp.log(2.0 * jnp.pi)
    slope = 2.0 * (jnp.log(2.0) - u - jax.nn.softplus(-2.0 * u))
    return jnp.tanh(u), jnp.sum(normal - slope, axis=-1)


def kl_to_prior(mean, log_std):
    """KL of N(mean, std^2) from N(0, 1), mean over the code's entries: (..., Z) -> (...)."""
    return -0.5 * jnp.mean(1.0 + 2.0 * log_std - mean**2 - jnp.exp(2.0 * log_std), axis=-1)


def vae_loss(network: VAE, params, obs, action, rng, kl_weight: float):
    """Mean squared error of the reconstruction plus the weighted divergence of the code from its
    prior; and that divergence, near 0 where the code has collapsed and says nothing."""
    noise = jax.random.normal(rng, (action.shape[0], 2 * action.shape[1]))
    found, mean, log_std = network.apply(params, obs, action, noise)
    divergence = jnp.mean(kl_to_prior(mean, log_std))
    return jnp.mean((found - action) ** 2) + kl_weight * divergence, divergence


# --- Training and acting ---


def descend(optimise, part: str, loss, params, opt_state) -> tuple[Any, Any, jax.Array, Any]:
    """One step on one part of a NamedTuple of parameters, of whose form `optimise` and
    `opt_state` are, too; `loss(the part's parameters) -> loss, more`."""
    own = getattr(params, part)
    (value, more), gradient = jax.value_and_grad(loss, has_aux=True)(own)
    change, moments = getattr(optimise, part).update(gradient, getattr(opt_state, part))
    moved = optax.apply_updates(own, change)
    return params._replace(**{part: moved}), opt_state._replace(**{part: moments}), value, more


def mean_action(unit: ActionUnit, actor: SquashedActor, params, normaliser, obs):
    """The action (A,) of the mean, for one raw observation (S,)."""
    mean, _ = actor.apply(params, normaliser.obs(obs)[None])
    return from_unit(unit, jnp.tanh(mean), normaliser.action_std)[0]
