"""COptiDICE: offline constrained optimisation over stationary distributions (Lee et al., 2022); an
offline baseline of arXiv 2401.10700.

    e    = r - lambda c + gamma (1 - terminated) nu(s') - nu(s)
    w    = max(0, (f')^-1(e / alpha))
    L_nu = (1 - gamma) E[ nu(s0) ] + E[ w e - alpha f(w) ]
    l    = (1 - gamma) chi(s0) + w (c + gamma (1 - terminated) chi(s') - chi(s))
    U    = tau log E[ exp(l / tau) ] + tau epsilon,       minimised over chi and tau >= 0
    L_lambda = lambda (L - E[ p w c ]),                   p = exp(l / tau) / E[ exp(l / tau) ]
    L_pi = -E[ w log pi(a | s) ]

w(s, a) is how much more often than the data the sought policy visits (s, a), weighted by gamma^t
and normalised; alpha weighs its f-divergence from the data: f(w) = w log w - w + 1 below 1 and
(w - 1)^2 / 2 above (`softchi`), or the latter everywhere (`chi2`). The expectation of w c is then
(1 - gamma) times the discounted cost of an episode. It is judged by the worst distribution p of the
data within a KL divergence of epsilon (`radius`) under which w still is a stationary distribution:
chi holds it to that, and U is that worst case. L is the cost limit of an episode, discounted and
spread evenly over it, times 1 - gamma. s0 is drawn from the observations that begin the episodes of
the data, independently of (s, a, s'); the data have to be episode after episode.

Deviations from the paper: no penalty on the slopes of nu and chi, which the authors' code has;
observations are standardised, rewards in units of their standard deviation times `reward_scale`,
actions enter as asinh(a / std), rescaled to [-1, 1], and as at most 0.999; the spread of the policy
has a floor; smaller networks and batches, and cosine decay. `paper` has the sizes and rates of
OSRL's implementation. `released` is nearer to it: that leaves out the factor 1 - gamma of L, so
that at gamma = 0.99 the limit is 100 times as wide and hardly ever binds (`released_limit`), takes
time-outs as the end, of costs too, and blurs what the policy imitates (`blur`). Presets `limit0`,
`limit2`, `limit5` are `default` at that cost limit; the default's is 2 violating intervals an
episode.

Run: python algos/coptidice.py --scenario startup --dataset mixed --num-seeds 8
"""

from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from algos.actor_critic import SquashedActor, descend, mean_action
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

Divergence = Literal["softchi", "chi2"]
MOST_ACTION = 0.999  # the density of a squashed Gaussian has no value at 1
MIN_LOG_STD = -5.0  # where the data repeat themselves the likelihood has no maximum


@dataclass(frozen=True)
class Config:
    """Hyper-parameters; (OSRL) where the default is that of the public implementation."""

    num_updates: int = 10_000
    batch_size: int = 256
    hidden: tuple[int, ...] = (128, 128)  # of policy, nu and chi
    actor_rate: float = 3e-4
    nu_rate: float = 1e-3  # of nu and chi; 1e-4 (OSRL)
    dual_rate: float = 1e-2  # of lambda and tau, before softplus; 1e-4 (OSRL)
    cosine_decay: bool = True  # of policy, nu and chi, to 0 over num_updates
    discount: float = 0.99  # (OSRL)
    divergence: Divergence = "softchi"  # (OSRL)
    alpha: float = 0.1  # 0.5 (OSRL)
    radius: float = 0.01  # epsilon, in nats; 0: the expectation of w c itself (OSRL)
    reward_scale: float = 0.1  # (OSRL)
    cost_limit: float = 2.0  # violating intervals an episode
    timeouts: Timeouts = "bootstrap"
    action_unit: ActionUnit = "asinh"
    blur: float = 0.0  # noise on what is imitated, in standard deviations; 0.1 (OSRL)
    released_limit: bool = False  # L without the factor 1 - gamma


DEFAULT = Config()
PAPER = Config(  # the public implementation's sizes
    num_updates=100_000,
    batch_size=512,
    hidden=(256, 256),
    actor_rate=1e-4,
    nu_rate=1e-4,
    dual_rate=1e-4,
    alpha=0.5,
    cosine_decay=False,
    action_unit="box",
)
PRESETS = {
    "default": DEFAULT,
    "paper": PAPER,
    "released": replace(PAPER, timeouts="terminal", blur=0.1, released_limit=True),
    **{f"limit{n}": replace(DEFAULT, cost_limit=float(n)) for n in (0, 2, 5)},
}


class Params(NamedTuple):
    """Everything that is optimised by Adam."""

    actor: Any
    nu: Any
    chi: Any
    tau: jax.Array  # () before softplus
    multiplier: jax.Array  # () lambda before softplus


class State(NamedTuple):
    """What training carries."""

    params: Params
    opt_state: Params  # of each part
    normaliser: Normaliser
    step: jax.Array


# --- The mathematics ---


def divergence(kind: Divergence, w):
    """f(w) for w >= 0, 0 at 1."""
    square = 0.5 * (w - 1.0) ** 2
    if kind == "chi2":
        return square
    return jnp.where(w < 1.0, jax.scipy.special.xlogy(w, w) - w + 1.0, square)


def correction(kind: Divergence, y):
    """The w >= 0 at which w y - f(w) is greatest."""
    if kind == "chi2":
        return jnp.maximum(y + 1.0, 0.0)
    return jnp.where(y < 0.0, jnp.exp(jnp.minimum(y, 0.0)), y + 1.0)


def conjugate(kind: Divergence, y):
    """The greatest w y - f(w) over w >= 0; its slope is `correction`."""
    square = 0.5 * y**2 + y
    if kind == "chi2":
        return jnp.where(y < -1.0, -0.5, square)
    return jnp.where(y < 0.0, jnp.expm1(jnp.minimum(y, 0.0)), square)


def flow(gain, value, next_value, go_on):
    """gain + go_on v(s') - v(s), (B,) each; go_on is 0 where the episode ended, else gamma."""
    return gain + go_on * next_value - value


def worst_case(ell, tau, radius: float):
    """tau log E[exp(l / tau)] + tau epsilon: above every mean of l (B,) within the divergence."""
    return tau * (jax.nn.logsumexp(ell / tau) - jnp.log(ell.shape[0]) + radius)


def worst_weights(ell, tau):
    """The density (B,) with respect to the batch, mean 1, of that worst case."""
    return ell.shape[0] * jax.nn.softmax(ell / tau)


def log_density(mean, log_std, action):
    """Of squashed Gaussians (B, A) at actions (B, A) in (-1, 1): (B,)."""
    u = jnp.arctanh(action)
    normal = -0.5 * ((u - mean) / jnp.exp(log_std)) ** 2 - log_std - 0.5 * jnp.log(2.0 * jnp.pi)
    return jnp.sum(normal - jnp.log1p(-(action**2)), axis=-1)


def starts(data):
    """Indices (N,) of transitions, first those that begin an episode, and the number of these.

    The first transition, and each that comes after an end.
    """
    ended = data.terminated | data.truncated
    begins = jnp.concatenate([jnp.ones((1,), bool), ended[:-1]])
    return jnp.argsort(~begins), jnp.sum(begins)


# --- The algorithm ---


def check_config(config: Config) -> None:
    """`ValueError` naming the setting, its value and what is allowed."""
    check_counts(config)
    check_choices(config)
    above = ("actor_rate", "nu_rate", "alpha", "reward_scale")
    check_range(config, above, "above 0", lambda x: x > 0.0)
    positive = ("dual_rate", "radius", "cost_limit", "blur")
    check_range(config, positive, "0 or more", lambda x: x >= 0.0)
    check_range(config, ("discount",), "0 or more, below 1", lambda x: 0.0 <= x < 1.0)


def make_train(config: Config, env=None, env_params=None) -> Algorithm:
    """COptiDICE's pure functions; the environment is not needed. `ValueError` for bad settings."""
    check_config(config)
    scalar = MLP(config.hidden, 1)
    limit = discounted_limit(config.cost_limit, config.discount, EPISODE_LENGTH)
    if not config.released_limit:
        limit = (1.0 - config.discount) * limit

    def optimiser(rate: float):
        decay = optax.cosine_decay_schedule(rate, config.num_updates)
        return optax.adam(decay if config.cosine_decay else rate)

    optimise = Params(
        actor=optimiser(config.actor_rate),
        nu=optimiser(config.nu_rate),
        chi=optimiser(config.nu_rate),
        tau=optax.adam(config.dual_rate),
        multiplier=optax.adam(config.dual_rate),
    )

    def network(num_actions: int):
        return SquashedActor(config.hidden, num_actions)

    def init(rng, data):
        keys = jax.random.split(rng, 3)
        obs = data.obs[:1]
        params = Params(
            actor=network(data.action.shape[-1]).init(keys[0], obs),
            nu=scalar.init(keys[1], obs),
            chi=scalar.init(keys[2], obs),
            tau=jnp.ones(()),
            multiplier=jnp.ones(()),
        )
        opt_state = Params(*(o.init(p) for o, p in zip(optimise, params, strict=True)))
        return State(params, opt_state, data.normaliser, jnp.zeros((), jnp.int32))

    def update(state, batch, first, rng):
        """`first` (B, S): observations that begin an episode."""
        params, opt_state = state.params, state.opt_state
        ended = batch.terminated
        if config.timeouts == "terminal":
            ended = ended | batch.truncated
        go_on = config.discount * (1.0 - ended)
        share = 1.0 - config.discount
        # A part of another's loss has no gradient there.
        before = jax.lax.stop_gradient(params)
        multiplier, tau = jax.nn.softplus(before.multiplier), jax.nn.softplus(before.tau)

        def at(part, obs):
            return scalar.apply(part, obs)[:, 0]

        # --- nu: the stationary distribution that is sought ---
        gain = config.reward_scale * batch.reward - multiplier * batch.cost

        def advantage(part):
            return flow(gain, at(part, batch.obs), at(part, batch.next_obs), go_on) / config.alpha

        def nu_loss(part):
            best = config.alpha * conjugate(config.divergence, advantage(part))
            return share * jnp.mean(at(part, first)) + jnp.mean(best), ()

        w = correction(config.divergence, advantage(before.nu))
        params, opt_state, loss_nu, _ = descend(optimise, "nu", nu_loss, params, opt_state)

        # --- chi and tau: its cost under the worst data that are near ---
        def lower(part):
            value = flow(batch.cost, at(part, batch.obs), at(part, batch.next_obs), go_on)
            return share * at(part, first) + w * value

        p, bound = jnp.ones_like(w), jnp.mean(w * batch.cost)
        if config.radius > 0.0:
            ell = lower(before.chi)
            p = worst_weights(ell, tau)
            params, opt_state, bound, _ = descend(
                optimise,
                "chi",
                lambda part: (worst_case(lower(part), tau, config.radius), ()),
                params,
                opt_state,
            )
            params, opt_state, _, _ = descend(
                optimise,
                "tau",
                lambda part: (worst_case(ell, jax.nn.softplus(part), config.radius), ()),
                params,
                opt_state,
            )

        # --- lambda follows that cost ---
        cost = jnp.mean(p * w * batch.cost)
        params, opt_state, _, _ = descend(
            optimise,
            "multiplier",
            lambda part: (jax.nn.softplus(part) * (limit - cost), ()),
            params,
            opt_state,
        )

        # --- Policy: the data's actions, weighted ---
        obs, action = batch.obs, batch.action
        if config.blur > 0.0:
            keys = jax.random.split(rng)
            std = state.normaliser.action_std
            obs = obs + config.blur * jax.random.normal(keys[0], obs.shape)
            action = action + config.blur * std[None] * jax.random.normal(keys[1], action.shape)
            action = jnp.clip(action, -1.0, 1.0)
        action = to_unit(config.action_unit, action, state.normaliser.action_std)
        action = jnp.clip(action, -MOST_ACTION, MOST_ACTION)
        actor = network(action.shape[-1])

        def actor_loss(part):
            mean, log_std = actor.apply(part, obs)
            density = log_density(mean, jnp.maximum(log_std, MIN_LOG_STD), action)
            return -jnp.mean(w * density), ()

        params, opt_state, loss_actor, _ = descend(optimise, "actor", actor_loss, params, opt_state)
        metrics = {
            "nu_loss": loss_nu,
            "actor_loss": loss_actor,
            "mass": jnp.mean(w),  # 1 where w is a distribution and no episode ends
            "effective": jnp.mean(w) ** 2 / (jnp.mean(w**2) + 1e-12),  # share of the batch
            "divergence": jnp.mean(divergence(config.divergence, w)),
            "cost": jnp.mean(w * batch.cost),
            "worst_cost": cost,
            "cost_bound": bound,
            "information": jnp.mean(jax.scipy.special.xlogy(p, p)),
            "tau": tau,
            "multiplier": multiplier,
        }
        return State(params, opt_state, state.normaliser, state.step + 1), metrics

    def policy(state):
        actor = network(state.normaliser.action_mean.shape[-1])

        def act(obs, rng):
            return mean_action(config.action_unit, actor, state.params.actor, state.normaliser, obs)

        return act

    def run(state, data, rng, num_updates):
        order, num_starts = starts(data)

        def from_starts(state, batch, rng):
            key_first, key_update = jax.random.split(rng)
            drawn = jax.random.randint(key_first, (config.batch_size,), 0, num_starts)
            return update(state, batch, data.obs[order[drawn]], key_update)

        return scan_updates(from_starts, state, data, rng, num_updates, config.batch_size)

    def train(rng, data):
        init_key, run_key = jax.random.split(rng)
        return run(init(init_key, data), data, run_key, config.num_updates)

    return Algorithm(init, run, policy, train, config)


if __name__ == "__main__":
    command_line("coptidice", PRESETS, make_train)
