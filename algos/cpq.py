"""CPQ: constraints-penalised Q-learning (Xu et al., 2022); the offline phase of arXiv 2412.04426.

    y    = r + gamma (1 - terminated) [1(q_c <= L)] min_i Qbar_i(s', a'),  a' ~ pi
    y_c  = c + gamma (1 - terminated) q_c,                 q_c = mean_j Qbar_c,j(s', a')
    L_Q  = E[ sum_i (Q_i - y)^2 ]
    L_Qc = E[ sum_j (Q_c,j - y_c)^2 ] - exp(l) (E_ood[ mean_j Q_c,j(s, a) ] - b L)
    l    <- l + eta exp(l) (b L - E_ood[ mean_j Q_c,j(s, a) ])
    L_pi = -E[ 1(mean_j Q_c,j(s, a) <= L) min_i Q_i(s, a) ],                a ~ pi

L is the cost limit of an episode, discounted and spread evenly over it. Actions of the policy that
a conditional VAE of the data finds improbable, with a divergence of their code from the prior
above a quantile, are out of distribution (ood), and have to cost b L, b = 1.1, more than the limit:
that is what keeps the policy, which is given no other reason, near the data.

The public implementation computes the penalty without gradient, with the target critic, for
actions before tanh, and divides the sum over the improbable actions by the number of all: only
its multiplier ever moves. `released_penalty` does the same, for comparison.

Four faults of the method itself are mended in `default`. The paper's indicator in y supposes
rewards of 0 or more, of which a future of 0 is the worst; where they are 0 or less, as here, it is
the best, and what looks too costly is sought: here there is none, a next action is worth what it is
worth, and only the actor asks for the cost (`masked_targets`). An actor whose actions are all
called too costly has no gradient and stays where it is, as one does that leaps past the limit: here
such actions descend their cost (`way_back`), both terms in units of their mean size. The quantile
is taken over the policy's own actions, so that a quarter of these is out of distribution however
near the data they are: here over the data's (`ood_reference`). The multiplier stays above 0, so
that the cost of improbable actions rises without end where no data hold it: they are pushed only
while they are below b L (`penalise_satisfied`). At a limit of 0 the penalty asks for nothing, and a
cost value at most 0 is the sign of an error of regression: `limit0` is nearly degenerate.

Deviations from the paper: these four; two cost critics and their mean (`cost_target`);
time-outs bootstrap, those of rewards unless `timeouts` says otherwise; observations are
standardised, rewards in units of their standard deviation, actions enter as asinh(a / std),
rescaled to [-1, 1]; the VAE's divergence has a weight of 0.02, for at the public implementation's
0.5 a code of actions whose spread is below 0.35 collapses; smaller networks and batches, and cosine
decay. Presets `limit0`, `limit2`, `limit5` are `default` at that cost limit; the default's is 2
violating intervals an episode. `masked` has the paper's indicator, and what was tuned with it.

Run: python algos/cpq.py --scenario startup --dataset mixed --num-seeds 8
"""

from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from algos.actor_critic import (
    VAE,
    Reduction,
    SquashedActor,
    descend,
    heads,
    kl_to_prior,
    mean_action,
    reduce_heads,
    squashed_sample,
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
    scan_updates,
    to_unit,
)
from polycstr_jax.data import EPISODE_LENGTH, Normaliser

Reference = Literal["data", "policy"]
LOG_DUAL_RANGE = (-5.0, 5.0)


@dataclass(frozen=True)
class Config:
    """Hyper-parameters; (OSRL) where the default is that of the public implementation."""

    num_updates: int = 6_000
    batch_size: int = 256
    hidden: tuple[int, ...] = (128, 128)  # of actor and critics
    vae_hidden: tuple[int, ...] = (128, 128)
    actor_rate: float = 3e-4
    critic_rate: float = 1e-3  # (OSRL)
    vae_rate: float = 1e-3  # (OSRL)
    dual_rate: float = 1e-4  # (OSRL)
    cosine_decay: bool = True  # of actor and critics, to 0 over num_updates
    discount: float = 0.99  # (OSRL)
    target_rate: float = 0.005  # (OSRL)
    cost_limit: float = 2.0  # violating intervals an episode
    cost_target: Reduction = "mean"  # of the two cost critics
    timeouts: Timeouts = "bootstrap"
    action_unit: ActionUnit = "asinh"
    masked_targets: bool = False  # a too costly next action is worth 0; True (paper)
    way_back: bool = True  # too costly actions descend their cost; False (paper): stay
    penalise_satisfied: bool = False  # go on raising the cost above b L; True (paper)
    num_ood_samples: int = 2  # actions of the policy a state; 10 (OSRL)
    ood_reference: Reference = "data"  # whose quantile; "policy" (paper)
    ood_quantile: float = 0.95  # 0.75 of the policy's (OSRL)
    ood_scale: float = 1.1  # b; 1.5 (OSRL)
    kl_weight: float = 0.02  # of the VAE; at 0.5 (OSRL) its code says nothing
    released_penalty: bool = False


DEFAULT = Config()
PAPER = Config(  # the public implementation's sizes
    num_updates=100_000,
    batch_size=512,
    hidden=(256, 256),
    vae_hidden=(400, 400),
    actor_rate=1e-4,
    cosine_decay=False,
    cost_target="max",
    action_unit="box",
    masked_targets=True,
    way_back=False,
    ood_reference="policy",
    num_ood_samples=10,
    ood_quantile=0.75,
    ood_scale=1.5,
    kl_weight=0.5,
    penalise_satisfied=True,
)
PRESETS = {
    "default": DEFAULT,
    "paper": PAPER,
    "released": replace(PAPER, released_penalty=True, cost_target="min", timeouts="terminal"),
    "released-penalty": replace(DEFAULT, released_penalty=True),
    "masked": replace(DEFAULT, masked_targets=True, cost_target="max", ood_scale=1.5),
    **{f"limit{n}": replace(DEFAULT, cost_limit=float(n)) for n in (0, 2, 5)},
}


class Params(NamedTuple):
    """Everything that is optimised by Adam."""

    actor: Any
    critic: Any  # two heads, leading axis 2
    cost_critic: Any  # two heads
    vae: Any


class State(NamedTuple):
    """What training carries."""

    params: Params
    target_critic: Any
    target_cost_critic: Any
    opt_state: Params  # of each part
    log_dual: jax.Array  # ()
    normaliser: Normaliser
    step: jax.Array


# --- The mathematics ---


def mean_where(chosen, x, released: bool = False):
    """Mean of `x` (K,) where `chosen` (K,), 0 if nowhere; released: their sum over K."""
    count = x.size if released else jnp.maximum(jnp.sum(chosen), 1)
    return jnp.sum(jnp.where(chosen, x, 0.0)) / count


def size(x):
    """Mean magnitude of x (B,), () without gradient: the unit in which a loss takes x."""
    return jax.lax.stop_gradient(jnp.mean(jnp.abs(x))) + 1e-6


# --- The algorithm ---


def check_config(config: Config) -> None:
    """`ValueError` naming the setting, its value and what is allowed."""
    check_counts(config)
    check_choices(config)
    check_range(config, ("num_ood_samples",), "1 or more", lambda x: x >= 1)
    rates = ("actor_rate", "critic_rate", "vae_rate")
    check_range(config, rates, "above 0", lambda x: x > 0.0)
    positive = ("dual_rate", "cost_limit", "ood_scale", "kl_weight")
    check_range(config, positive, "0 or more", lambda x: x >= 0.0)
    check_range(config, ("target_rate",), "above 0, at most 1", lambda x: 0.0 < x <= 1.0)
    shares = ("discount", "ood_quantile")
    check_range(config, shares, "0 or more, below 1", lambda x: 0.0 <= x < 1.0)


def make_train(config: Config, env=None, env_params=None) -> Algorithm:
    """CPQ's pure functions; the environment is not needed. `ValueError` for bad settings."""
    check_config(config)
    scalar = MLP(config.hidden, 1)
    limit = discounted_limit(config.cost_limit, config.discount, EPISODE_LENGTH)

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
        return SquashedActor(config.hidden, num_actions), VAE(config.vae_hidden, num_actions)

    def values(params, obs, action):
        return twin_values(scalar, params, obs, action)

    def init(rng, data):
        keys = jax.random.split(rng, 4)
        obs, action = data.obs[:1], data.action[:1]
        actor, vae = networks(action.shape[-1])
        params = Params(
            actor=actor.init(keys[0], obs),
            critic=heads(scalar, obs, action, keys[1]),
            cost_critic=heads(scalar, obs, action, keys[2]),
            vae=vae.init(keys[3], obs, action, jnp.zeros((1, 2 * action.shape[-1]))),
        )
        opt_state = Params(*(o.init(p) for o, p in zip(optimise, params, strict=True)))
        zero = jnp.zeros(())
        target = (params.critic, params.cost_critic)
        return State(params, *target, opt_state, zero, data.normaliser, jnp.zeros((), jnp.int32))

    def update(state, batch, rng):
        keys = jax.random.split(rng, 4)
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

        params, opt_state, loss_vae, code = descend(optimise, "vae", reconstruct, params, opt_state)

        # --- Q: of the policy; masked, the future counts where its action is within the limit ---
        mean, log_std = actor.apply(params.actor, next_obs)
        next_action, _ = squashed_sample(mean, log_std, keys[1])
        next_cost = values(state.target_cost_critic, next_obs, next_action)
        next_cost = reduce_heads(config.cost_target, next_cost)
        next_value = values(state.target_critic, next_obs, next_action).min(axis=0)
        if config.masked_targets:
            next_value = next_value * (next_cost <= limit)
        backup = batch.reward + config.discount * (1.0 - ended) * next_value

        def critic_loss(part):
            error = values(part, obs, action) - backup[None]
            return jnp.mean(jnp.sum(error**2, axis=0)), ()

        params, opt_state, loss_critic, _ = descend(
            optimise, "critic", critic_loss, params, opt_state
        )

        # --- Q_c: the data's costs, and improbable actions above the limit ---
        backup_cost = batch.cost + config.discount * (1.0 - batch.terminated) * next_cost
        mean, log_std = actor.apply(params.actor, obs)
        shape = (config.num_ood_samples, *mean.shape)
        drawn = mean[None] + jnp.exp(log_std)[None] * jax.random.normal(keys[2], shape)
        if not config.released_penalty:
            drawn = jnp.tanh(drawn)
        drawn = drawn.reshape(-1, mean.shape[-1])
        seen = jnp.tile(obs, (config.num_ood_samples, 1))
        divergence = kl_to_prior(*vae.apply(params.vae, seen, drawn, method=VAE.encode))
        usual = divergence
        if config.ood_reference == "data":
            usual = kl_to_prior(*vae.apply(params.vae, obs, action, method=VAE.encode))
        improbable = divergence > jnp.quantile(usual, config.ood_quantile)
        floor = config.ood_scale * limit

        def cost_loss(part):
            error = values(part, obs, action) - backup_cost[None]
            fit = jnp.mean(jnp.sum(error**2, axis=0))
            if config.released_penalty:
                cost = values(state.target_cost_critic, seen, drawn).min(axis=0)
                gap = pushed = mean_where(improbable, cost, released=True) - floor
            else:
                above = values(part, seen, drawn).mean(axis=0) - floor
                gap = mean_where(improbable, above)
                pushed = (
                    gap if config.penalise_satisfied else -mean_where(improbable, nn.relu(-above))
                )
            return fit - jnp.exp(state.log_dual) * pushed, gap

        params, opt_state, loss_cost, gap = descend(
            optimise, "cost_critic", cost_loss, params, opt_state
        )
        log_dual = state.log_dual - config.dual_rate * jnp.exp(state.log_dual) * gap
        log_dual = jnp.clip(log_dual, *LOG_DUAL_RANGE)

        # --- Actor: the value, where its action is within the limit ---
        def actor_loss(part):
            mean, log_std = actor.apply(part, obs)
            taken, _ = squashed_sample(mean, log_std, keys[3])
            cost = reduce_heads(config.cost_target, values(params.cost_critic, obs, taken))
            allowed = jax.lax.stop_gradient(cost <= limit)
            value = values(params.critic, obs, taken).min(axis=0)
            worth = allowed * value
            if config.way_back:
                worth = jnp.where(allowed, value / size(value), -cost / size(cost))
            return -jnp.mean(worth), jnp.mean(allowed)

        params, opt_state, loss_actor, allowed = descend(
            optimise, "actor", actor_loss, params, opt_state
        )

        # --- Move the targets ---
        rate = config.target_rate
        target = optax.incremental_update(params.critic, state.target_critic, rate)
        target_cost = optax.incremental_update(params.cost_critic, state.target_cost_critic, rate)
        metrics = {
            "vae_loss": loss_vae,
            "divergence": code,
            "critic_loss": loss_critic,
            "cost_critic_loss": loss_cost,
            "actor_loss": loss_actor,
            "dual": jnp.exp(state.log_dual),
            "ood_gap": gap,
            "improbable": jnp.mean(improbable),
            "allowed": allowed,
        }
        step = state.step + 1
        return State(
            params, target, target_cost, opt_state, log_dual, state.normaliser, step
        ), metrics

    def policy(state):
        actor, _ = networks(state.normaliser.action_mean.shape[-1])

        def act(obs, rng):
            return mean_action(config.action_unit, actor, state.params.actor, state.normaliser, obs)

        return act

    def run(state, data, rng, num_updates):
        return scan_updates(update, state, data, rng, num_updates, config.batch_size)

    def train(rng, data):
        init_key, run_key = jax.random.split(rng)
        return run(init(init_key, data), data, run_key, config.num_updates)

    return Algorithm(init, run, policy, train, config)


if __name__ == "__main__":
    command_line("cpq", PRESETS, make_train)
