"""BCQ-Lag: batch-constrained Q-learning (Fujimoto et al., 2019) with a cost multiplier; an offline
baseline of arXiv 2401.10700.

    a(s, z) = clip(a' + phi tanh(xi(s, a')), -1, 1),           a' = decode(s, z)
    q(s', a) = 3/4 min_i Qbar_i + 1/4 max_i Qbar_i,            10 actions a(s', z) of xibar
    y    = r + gamma (1 - terminated) max_a q(s', a)
    y_c  = c + gamma (1 - terminated) max_a q_c(s', a)
    L_Q  = E[ sum_i (Q_i - y)^2 ],          L_Qc = E[ sum_i (Q_c,i - y_c)^2 ]
    L_xi = E[ -min_i Q_i(s, a) + lambda (min_i Q_c,i(s, a) - L) ],        a = a(s, z)

The actions come from a conditional VAE of the data, with codes z of the prior clipped at +-0.5; the
perturbation xi moves each by at most phi. Nothing else is ever asked of the critics. L is the cost
limit of an episode, discounted and spread evenly over it; lambda follows E[min_i Q_c,i(s, a)] - L
by a PID controller at every update, as in BEAR-Lag (`algos/actor_critic.py`).

Deviations from the paper: it acts with the code 0, so that the same observation gives the same
action, where the public implementation draws one; lambda has an upper bound (`max_multiplier`; none
in `released`, which also takes time-outs as the end for rewards); the VAE's divergence has a weight
of 0.02 (see `algos/cpq.py`); observations are standardised, rewards in units of their standard
deviation, actions enter as asinh(a / std), rescaled to [-1, 1]; smaller networks and batches, and
cosine decay; gains of the multiplier ten times as great, the best of four settings. Presets
`limit0`, `limit2`, `limit5` are `default` at that cost limit.

Run: python algos/bcql.py --scenario startup --dataset mixed --num-seeds 8
"""

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from algos.actor_critic import (
    CODE_RANGE,
    VAE,
    Multiplier,
    descend,
    heads,
    multiply,
    soft_minimum,
    twin_values,
    vae_loss,
)
from algos.common import (
    MLP,
    ActionUnit,
    Algorithm,
    Timeouts,
    check_choices,
    check_counts,
    check_range,
    command_line,
    discounted_limit,
    from_unit,
    scan_updates,
    to_unit,
)
from polycstr_jax.data import EPISODE_LENGTH, Normaliser


@dataclass(frozen=True)
class Config:
    """Hyper-parameters; (OSRL) where the default is that of the public implementation."""

    num_updates: int = 6_000
    batch_size: int = 256
    hidden: tuple[int, ...] = (128, 128)  # of perturbation and critics
    vae_hidden: tuple[int, ...] = (128, 128)
    actor_rate: float = 3e-4
    critic_rate: float = 1e-3  # (OSRL)
    vae_rate: float = 1e-3  # (OSRL)
    cosine_decay: bool = True  # of perturbation and critics, to 0 over num_updates
    discount: float = 0.99  # (OSRL)
    target_rate: float = 0.005  # (OSRL)
    cost_limit: float = 2.0  # violating intervals an episode
    timeouts: Timeouts = "bootstrap"
    action_unit: ActionUnit = "asinh"
    num_samples: int = 4  # actions a state, of targets; 10 (OSRL)
    perturbation: float = 0.05  # phi (OSRL)
    kl_weight: float = 0.02  # of the VAE; at 0.5 (OSRL) its code says nothing
    proportional: float = 1.0  # of the multiplier; 0.1 (OSRL)
    integral: float = 0.03  # 0.003 (OSRL)
    derivative: float = 0.01  # 0.001 (OSRL)
    max_multiplier: float = 10.0


DEFAULT = Config()
PAPER = Config(  # the public implementation's sizes
    num_updates=100_000,
    batch_size=512,
    hidden=(256, 256),
    vae_hidden=(400, 400),
    actor_rate=1e-3,
    cosine_decay=False,
    action_unit="box",
    num_samples=10,
    kl_weight=0.5,
    proportional=0.1,
    integral=0.003,
    derivative=0.001,
)
PRESETS = {
    "default": DEFAULT,
    "paper": PAPER,
    "released": replace(PAPER, max_multiplier=float("inf"), timeouts="terminal"),
    **{f"limit{n}": replace(DEFAULT, cost_limit=float(n)) for n in (0, 2, 5)},
}


class Params(NamedTuple):
    """Everything that is optimised by Adam."""

    actor: Any  # the perturbation
    critic: Any  # two heads, leading axis 2
    cost_critic: Any  # two heads
    vae: Any


class State(NamedTuple):
    """What training carries."""

    params: Params
    target: Params  # of perturbation and critics; the VAE has none
    opt_state: Params  # of each part
    multiplier: Multiplier
    normaliser: Normaliser
    step: jax.Array


# --- The mathematics ---


def perturbed(network: MLP, params, obs, action, phi: float):
    """Actions (B, A), each moved by at most phi and kept in [-1, 1]."""
    inputs = jnp.concatenate([obs, action], axis=-1)
    return jnp.clip(action + phi * jnp.tanh(network.apply(params, inputs)), -1.0, 1.0)


# --- The algorithm ---


def check_config(config: Config) -> None:
    """`ValueError` naming the setting, its value and what is allowed."""
    check_counts(config)
    check_choices(config)
    check_range(config, ("num_samples",), "1 or more", lambda x: x >= 1)
    above = ("actor_rate", "critic_rate", "vae_rate", "max_multiplier")
    check_range(config, above, "above 0", lambda x: x > 0.0)
    gains = ("proportional", "integral", "derivative")
    positive = ("cost_limit", "perturbation", "kl_weight", *gains)
    check_range(config, positive, "0 or more", lambda x: x >= 0.0)
    check_range(config, ("target_rate",), "above 0, at most 1", lambda x: 0.0 < x <= 1.0)
    check_range(config, ("discount",), "0 or more, below 1", lambda x: 0.0 <= x < 1.0)


def make_train(config: Config, env=None, env_params=None) -> Algorithm:
    """BCQ-Lag's pure functions; the environment is not needed. `ValueError` for bad settings."""
    check_config(config)
    scalar = MLP(config.hidden, 1)
    limit = discounted_limit(config.cost_limit, config.discount, EPISODE_LENGTH)
    gains = (config.proportional, config.integral, config.derivative)

    def optimiser(rate: float):
        decay = optax.cosine_decay_schedule(rate, config.num_updates)
        return optax.adam(decay if config.cosine_decay else rate)

    optimise = Params(
        actor=optimiser(config.actor_rate),
        critic=optimiser(config.critic_rate),
        cost_critic=optimiser(config.critic_rate),
        vae=optax.adam(config.vae_rate),
    )

    def networks(num_actions: int):
        return MLP(config.hidden, num_actions), VAE(config.vae_hidden, num_actions)

    def values(params, obs, action):
        return twin_values(scalar, params, obs, action)

    def proposed(actor, vae, obs, code):
        """Actions (B, A) of codes (B, 2 A), by the networks and parameters of each pair."""
        decoded = jnp.tanh(vae[0].apply(vae[1], obs, code, method=VAE.decode))
        return perturbed(*actor, obs, decoded, config.perturbation)

    def init(rng, data):
        keys = jax.random.split(rng, 4)
        obs, action = data.obs[:1], data.action[:1]
        actor, vae = networks(action.shape[-1])
        params = Params(
            actor=actor.init(keys[0], jnp.concatenate([obs, action], axis=-1)),
            critic=heads(scalar, obs, action, keys[1]),
            cost_critic=heads(scalar, obs, action, keys[2]),
            vae=vae.init(keys[3], obs, action, jnp.zeros((1, 2 * action.shape[-1]))),
        )
        opt_state = Params(*(o.init(p) for o, p in zip(optimise, params, strict=True)))
        none = Multiplier(*(jnp.zeros(()) for _ in Multiplier._fields))
        target, step = params._replace(vae=()), jnp.zeros((), jnp.int32)
        return State(params, target, opt_state, none, data.normaliser, step)

    def update(state, batch, rng):
        keys = jax.random.split(rng, 3)
        actor, vae = networks(batch.action.shape[-1])
        obs, next_obs = batch.obs, batch.next_obs
        action = to_unit(config.action_unit, batch.action, state.normaliser.action_std)
        params, opt_state = state.params, state.opt_state
        ended = batch.terminated
        if config.timeouts == "terminal":
            ended = ended | batch.truncated

        # --- VAE: what the data's actions look like ---
        def reconstruct(part):
            return vae_loss(vae, part, obs, action, keys[0], config.kl_weight)

        params, opt_state, loss_vae, divergence = descend(
            optimise, "vae", reconstruct, params, opt_state
        )

        # --- Q and Q_c: the greatest of some perturbed actions ---
        shape = (config.num_samples, obs.shape[0], 2 * action.shape[1])
        codes = jnp.clip(jax.random.normal(keys[1], shape), *CODE_RANGE)
        following = jax.vmap(
            lambda code: proposed((actor, state.target.actor), (vae, params.vae), next_obs, code)
        )(codes)

        def greatest(critic):
            found = jax.vmap(lambda taken: soft_minimum(values(critic, next_obs, taken)))(following)
            return found.max(axis=0)

        backup = batch.reward + config.discount * (1.0 - ended) * greatest(state.target.critic)
        goes_on = config.discount * (1.0 - batch.terminated)
        backup_cost = batch.cost + goes_on * greatest(state.target.cost_critic)

        def regression(target):
            def loss(part):
                error = values(part, obs, action) - target[None]
                return jnp.mean(jnp.sum(error**2, axis=0)), ()

            return loss

        params, opt_state, loss_critic, _ = descend(
            optimise, "critic", regression(backup), params, opt_state
        )
        params, opt_state, loss_cost, _ = descend(
            optimise, "cost_critic", regression(backup_cost), params, opt_state
        )

        # --- Perturbation: value and cost; the multiplier follows the cost ---
        code = jnp.clip(jax.random.normal(keys[2], shape[1:]), *CODE_RANGE)

        def actor_loss(part):
            taken = proposed((actor, part), (vae, params.vae), obs, code)
            value = values(params.critic, obs, taken).min(axis=0)
            cost = values(params.cost_critic, obs, taken).min(axis=0)
            error = jax.lax.stop_gradient(jnp.mean(cost)) - limit
            multiplier = multiply(gains, config.max_multiplier, state.multiplier, error)
            return jnp.mean(multiplier.value * (cost - limit) - value), multiplier

        params, opt_state, loss_actor, multiplier = descend(
            optimise, "actor", actor_loss, params, opt_state
        )

        # --- Move the targets ---
        own = params._replace(vae=())
        target = optax.incremental_update(own, state.target, config.target_rate)
        metrics = {
            "vae_loss": loss_vae,
            "divergence": divergence,
            "critic_loss": loss_critic,
            "cost_critic_loss": loss_cost,
            "actor_loss": loss_actor,
            "multiplier": multiplier.value,
            "expected_cost": multiplier.error + limit,
        }
        step = state.step + 1
        return State(params, target, opt_state, multiplier, state.normaliser, step), metrics

    def policy(state):
        num_actions = state.normaliser.action_mean.shape[-1]
        actor, vae = networks(num_actions)

        def act(obs, rng):
            seen = state.normaliser.obs(obs)[None]
            pair = (actor, state.params.actor), (vae, state.params.vae)
            action = proposed(*pair, seen, jnp.zeros((1, 2 * num_actions)))
            return from_unit(config.action_unit, action, state.normaliser.action_std)[0]

        return act

    def run(state, data, rng, num_updates):
        return scan_updates(update, state, data, rng, num_updates, config.batch_size)

    def train(rng, data):
        init_key, run_key = jax.random.split(rng)
        return run(init(init_key, data), data, run_key, config.num_updates)

    return Algorithm(init, run, policy, train, config)


if __name__ == "__main__":
    command_line("bcql", PRESETS, make_train)
