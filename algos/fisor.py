"""FISOR: feasibility-guided safe offline RL with a diffusion policy (arXiv 2401.10700).

How bad it will get, at best: Hamilton-Jacobi reachability over the data's actions. h is the
constraint of the transition (> 0: violated); the expectile is reversed, so V_h is a soft minimum:

    L_Vh = E[ |tau - 1(d > 0)| d^2 ],           d = max_i Qbar_h,i(s, a) - V_h(s)
    L_Qh = E[ (Q_h - (1 - gamma) h - gamma max(h, V_h(s')))^2 ]        V_h <= 0: feasible

Reward values (V_r, Q_r) by IQL, with min_i and the expectile the usual way round. The actor
denoises actions, a_t = sqrt(abar_t) a + sqrt(1 - abar_t) eps, by weighted regression:

    L_pi = E[ w sum |eps_hat(a_t, s, t) - eps|^2 ],
    w    = min(exp(alpha_r (Q_r - V_r)), 100) 1(Q_h <= 0)   where V_h <= 0
           min(exp(alpha_c (V_h - Q_h)), 150)               where V_h > 0

No loss sees another learner's gradient, and there is no multiplier and no cost limit. When
acting: of N samples of the averaged actor, the one with the least Q_h.

Preset `paper` is the released set-up: 256 x 3 residual blocks, batch 2 x 1,024 and 256, 1,000,000
iterations, h = +25 or -1, rewards scaled to the spread of the data's returns, time-outs terminal,
actions in their box. `first-commit` keeps a weight of at least 1 on unsafe actions in infeasible
states, as the first public version did. The other presets are ablations of `default`;
`no-hj-0` is nearly degenerate: a cost value is hardly ever at most 0.

Deviations from the paper in `default`, measured in docs/algorithms/fisor.md: smaller networks
without dropout and fewer updates, with larger, decaying learning rates and faster averages; one
actor step an iteration, on the critics' rows; h is the margin in kelvin, clipped to [-10, 25]; of
4 samples the one with the greatest Q_r among those with Q_h <= 0, and the least Q_h where there
is none, for the safest of 16 is safe and little else; rewards in units of their standard deviation;
time-outs bootstrap; actions enter as asinh(a / std), rescaled to [-1, 1], because most are a few
hundredths and a boost is 1. In all presets observations are standardised, rewards are clipped
below at -20,000 first, and actions of exactly 1 are not shrunk.

Run: python algos/fisor.py --scenario startup --dataset mixed --num-seeds 8
"""

import warnings
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from algos.common import (
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

Constraint = Literal["indicator", "margin"]
Safety = Literal["reachability", "cost_value"]
Actor = Literal["diffusion", "gaussian"]
Objective = Literal["feasibility", "bc"]
RewardUnit = Literal["std", "returns"]
Selection = Literal["safest", "reward", "reward_if_safe"]

VIOLATED, SAFE = 25.0, -1.0  # h as an indicator
MARGIN_RANGE = (-10.0, 25.0)  # K, h as a margin
BETA_MIN, BETA_MAX = 0.1, 10.0  # of the variance-preserving noise schedule
FOURIER_FEATURES, FOURIER_STD, TIME_WIDTH = 32, 0.2, 128
EXPANSION = 4  # of a residual block
LOG_STD_RANGE = (-5.0, 2.0)
glorot = nn.initializers.xavier_uniform()


@dataclass(frozen=True)
class Config:
    """Hyper-parameters; (paper) where the default is the paper's."""

    num_updates: int = 6_000
    batch_size: int = 256  # rows drawn, divided among the actor's steps
    num_actor_steps: int = 1
    critic_rows: int | None = None  # the first rows of the batch; None: all
    learning_rate: float = 1e-3  # of everything
    cosine_decay: bool = True  # of values and critics, to 0 over num_updates
    actor_decay_steps: int | None = None  # to 0; None: over all steps of the actor
    hidden: tuple[int, ...] = (128, 128)  # of values and critics
    discount: float = 0.99  # (paper)
    expectile: float = 0.9  # of the rewards' values (paper)
    safety_expectile: float = 0.9  # reversed (paper)
    target_rate: float = 0.005  # (paper)
    ema_rate: float = 0.005  # of the actor
    constraint: Constraint = "margin"  # h: peak - limit in K; indicator: +25 or -1 (paper)
    safety: Safety = "reachability"  # (paper); cost_value: discounted cost against cost_limit
    cost_limit: float = 2.0  # violating intervals an episode; of safety `cost_value` only
    timeouts: Timeouts = "bootstrap"
    reward_unit: RewardUnit = "std"
    objective: Objective = "feasibility"  # (paper)
    infeasible_branch: bool = True  # (paper); False: the feasible states' weight everywhere
    reward_temperature: float = 3.0  # alpha_r (paper)
    cost_temperature: float = 5.0  # alpha_c (paper)
    max_reward_weight: float = 100.0  # (paper)
    max_cost_weight: float = 150.0  # (paper)
    unsafe_weight_min: float = 0.0  # of actions in infeasible states (paper)
    actor: Actor = "diffusion"  # (paper)
    action_unit: ActionUnit = "asinh"
    num_diffusion_steps: int = 5  # T (paper)
    width: int = 64  # of the denoiser
    num_blocks: int = 2
    dropout: float = 0.0
    num_samples: int = 4  # N
    selection: Selection = "reward_if_safe"  # greatest Q_r with Q_h <= 0; safest: least Q_h (paper)


PAPER = Config(
    num_updates=1_000_000,
    batch_size=2_048,
    num_actor_steps=2,
    critic_rows=256,
    learning_rate=3e-4,
    cosine_decay=False,
    actor_decay_steps=3_000_000,
    hidden=(256, 256),
    constraint="indicator",
    timeouts="terminal",
    reward_unit="returns",
    action_unit="box",
    ema_rate=0.001,
    width=256,
    num_blocks=3,
    dropout=0.1,
    num_samples=16,
    selection="safest",
)
DEFAULT = Config()
PRESETS = {
    "default": DEFAULT,
    "paper": PAPER,
    "first-commit": replace(PAPER, unsafe_weight_min=1.0),
    # Ablations of the default.
    **{
        name: replace(DEFAULT, **changes)
        for name, changes in {
            "no-hj-0": {"safety": "cost_value", "cost_limit": 0.0},
            "no-hj-2": {"safety": "cost_value", "cost_limit": 2.0},
            "no-hj-5": {"safety": "cost_value", "cost_limit": 5.0},
            "no-diffusion": {"actor": "gaussian"},
            "no-infeasible": {"infeasible_branch": False},
            "unsafe-min-1": {"unsafe_weight_min": 1.0},
            "bc-weights": {"objective": "bc"},
            "tau-0.5": {"safety_expectile": 0.5},
            "tau-0.7": {"safety_expectile": 0.7},
            "indicator": {"constraint": "indicator"},
            "terminal": {"timeouts": "terminal"},
            "box": {"action_unit": "box"},
            "safest": {"selection": "safest", "num_samples": 16},
            "n-1": {"num_samples": 1},
            "n-16": {"num_samples": 16},
            "n-64": {"num_samples": 64},
        }.items()
    },
}
ACTING = ("num_samples", "selection")  # settings that training does not depend on


class Pair(NamedTuple):
    """Of rewards and of safety."""

    reward: Any
    safety: Any


class Params(NamedTuple):
    """Everything that is optimised."""

    actor: Any
    value: Pair
    critic: Pair  # each of both heads, leading axis 2


class State(NamedTuple):
    """What training carries."""

    params: Params
    actor_average: Any  # the one that acts
    target_critic: Pair
    opt_state: Any  # of actor, values, critics
    reward_scale: jax.Array  # () on top of the data's unit
    normaliser: Normaliser
    step: jax.Array


# --- The mathematics ---


def expectile_loss(difference, expectile: float):
    """|tau - 1(d < 0)| d^2, mean over the batch; `1 - tau` makes it the reversed one."""
    weight = jnp.where(difference < 0.0, 1.0 - expectile, expectile)
    return jnp.mean(weight * difference**2)


def reachability_backup(h, next_value, ended, discount: float):
    """(1 - gamma) h + gamma max(h, V_h(s')); h alone where the episode has ended."""
    ongoing = (1.0 - discount) * h + discount * jnp.maximum(h, next_value)
    return jnp.where(ended, h, ongoing)


def policy_weights(config: Config, q, v, q_safety, v_safety):
    """Weights (B,) of the regression, from rewards' and safety values (B,) each.

    The exponents are clipped before the exponential: nothing overflows, and no inf * 0.
    """
    if config.objective == "bc":
        return jnp.ones_like(q)
    exponent = config.reward_temperature * (q - v)
    feasible = jnp.exp(jnp.minimum(exponent, jnp.log(config.max_reward_weight)))
    feasible = jnp.where(q_safety <= 0.0, feasible, 0.0)
    if not config.infeasible_branch:
        return feasible
    exponent = config.cost_temperature * (v_safety - q_safety)
    infeasible = jnp.exp(jnp.minimum(exponent, jnp.log(config.max_cost_weight)))
    infeasible = jnp.maximum(infeasible, config.unsafe_weight_min)
    return jnp.where(v_safety > 0.0, infeasible, feasible)


def noise_schedule(num_steps: int):
    """beta_t (T,) of the variance-preserving schedule, and abar_t (T,), the product of 1 - beta."""
    i = np.arange(1, num_steps + 1)
    slope = 0.5 * (BETA_MAX - BETA_MIN) * (2 * i - 1) / num_steps**2
    beta = 1.0 - np.exp(-BETA_MIN / num_steps - slope)
    return beta, np.cumprod(1.0 - beta)


def denoise(predict_noise, x, rng, num_steps: int):
    """The reverse process from noise x (N, A): samples in [-1, 1]; clipped at every step.

    `predict_noise(x (N, A), t) -> (N, A)`; steps t = T-1, ..., 0.
    """
    beta, product = noise_schedule(num_steps)
    keys = jax.random.split(rng, num_steps)
    for t in reversed(range(num_steps)):
        shift = beta[t] / np.sqrt(1.0 - product[t]) * predict_noise(x, t)
        x = (x - shift) / np.sqrt(1.0 - beta[t])
        if t > 0:
            x = x + np.sqrt(beta[t]) * jax.random.normal(keys[t], x.shape, x.dtype)
        x = jnp.clip(x, -1.0, 1.0)
    return x


def constraint_signal(config: Config, data):
    """h (N,), > 0 where the transition violates; of safety `cost_value` the cost itself."""
    if config.safety == "cost_value":
        return data.cost
    if config.constraint == "margin":
        return jnp.clip(data.constraint, *MARGIN_RANGE)
    return jnp.where(data.cost > 0.0, VIOLATED, SAFE)


def return_scale(data):
    """H / (R_max - R_min) over the data's whole episodes, each of the first one's length H."""
    ends = data.truncated | data.terminated
    episode = jnp.cumsum(ends) - ends
    returns = jax.ops.segment_sum(data.reward, episode, data.reward.shape[0])
    whole = jnp.arange(returns.shape[0]) < jnp.sum(ends)
    spread = jnp.max(returns, where=whole, initial=-jnp.inf)
    spread = spread - jnp.min(returns, where=whole, initial=jnp.inf)
    return (jnp.argmax(ends) + 1) / spread


# --- Networks ---


class Value(nn.Module):
    """ReLU layers and one output."""

    hidden: tuple[int, ...]

    @nn.compact
    def __call__(self, x):
        for width in self.hidden:
            x = nn.relu(nn.Dense(width, kernel_init=glorot)(x))
        return nn.Dense(1, kernel_init=glorot)(x)[..., 0]


class Denoiser(nn.Module):
    """eps_hat(a_t, s, t): learned Fourier features of t, residual blocks with layer norm."""

    num_steps: int
    width: int
    num_blocks: int
    dropout: float

    @nn.compact
    def __call__(self, noisy, obs, t, training: bool = False):
        """Of noisy actions (B, A), observations (B, S) and integer steps t (B,), or one for all.

        The features are computed for the few steps there are, not for every row.
        """
        std = nn.initializers.normal(FOURIER_STD)
        frequency = self.param("frequency", std, (FOURIER_FEATURES, 1))
        phase = 2.0 * jnp.pi * jnp.arange(float(self.num_steps))[:, None] @ frequency.T
        time = jnp.concatenate([jnp.cos(phase), jnp.sin(phase)], axis=-1)
        time = nn.Dense(TIME_WIDTH, kernel_init=glorot)(time)
        time = nn.Dense(TIME_WIDTH, kernel_init=glorot)(mish(time))
        time = jnp.broadcast_to(
            jax.nn.one_hot(t, self.num_steps) @ time, (noisy.shape[0], TIME_WIDTH)
        )
        x = jnp.concatenate([noisy, obs, time], axis=-1)
        x = nn.Dense(self.width, kernel_init=glorot)(x)
        for _ in range(self.num_blocks):
            y = nn.Dropout(self.dropout, deterministic=not training)(x)
            y = nn.Dense(EXPANSION * self.width)(nn.LayerNorm()(y))
            x = x + nn.Dense(self.width)(mish(y))
        return nn.Dense(noisy.shape[-1], kernel_init=glorot)(mish(x))


class Gaussian(nn.Module):
    """The ablation's actor: mean (B, A) and log standard deviation (A,)."""

    hidden: tuple[int, ...]
    num_actions: int

    @nn.compact
    def __call__(self, obs):
        mean = obs
        for width in self.hidden:
            mean = nn.relu(nn.Dense(width, kernel_init=glorot)(mean))
        log_std = self.param("log_std", nn.initializers.zeros, (self.num_actions,))
        mean = nn.Dense(self.num_actions, kernel_init=glorot)(mean)
        return mean, jnp.clip(log_std, *LOG_STD_RANGE)


def mish(x):
    """x tanh(softplus(x)), with one exponential."""
    e = jnp.exp(jnp.minimum(x, 20.0))
    n = e * (e + 2.0)
    return x * n / (n + 2.0)


def actor_network(config: Config, num_actions: int) -> nn.Module:
    """The denoiser, or the ablation's Gaussian."""
    if config.actor == "gaussian":
        return Gaussian(config.hidden, num_actions)
    steps = config.num_diffusion_steps
    return Denoiser(steps, config.width, config.num_blocks, config.dropout)


def twin(config: Config, params, obs, action):
    """Both heads of a critic (2, B); actions in the networks' unit."""
    inputs = jnp.concatenate([obs, action], axis=-1)
    return jax.vmap(lambda p: Value(config.hidden).apply(p, inputs))(params)


def feasibility(config: Config, state: State, obs):
    """V_h (N,) of standardised observations (N, S): at most 0 is called feasible.

    Of safety `cost_value`: the cost value above its threshold.
    """
    value = Value(config.hidden).apply(state.params.value.safety, obs)
    return value - safety_threshold(config)


def action_values(config: Config, state: State, obs, action):
    """Of the target critics (B,): Q_r, the worse head, and Q_h, the worse one, as `feasibility`."""
    q = twin(config, state.target_critic.reward, obs, action).min(axis=0)
    q_safety = twin(config, state.target_critic.safety, obs, action).max(axis=0)
    return q, q_safety - safety_threshold(config)


def sample(config: Config, state: State, obs, rng):
    """Actions (N, A) of the averaged actor, in the networks' unit, for observations (N, S)."""
    num_actions = state.normaliser.action_mean.shape[-1]
    actor = actor_network(config, num_actions)
    noise_key, steps_key = jax.random.split(rng)
    noise = jax.random.normal(noise_key, (obs.shape[0], num_actions))
    if config.actor == "gaussian":
        mean, log_std = actor.apply(state.actor_average, obs)
        return jnp.clip(mean + jnp.exp(log_std)[None] * noise, -1.0, 1.0)

    def predict_noise(x, t):
        return actor.apply(state.actor_average, x, obs, t)

    return denoise(predict_noise, noise, steps_key, config.num_diffusion_steps)


def rank(config: Config, q, q_safety):
    """What is greatest for the candidate that is taken (N,)."""
    if config.selection == "safest":
        return -q_safety
    if config.selection == "reward":
        return q
    safe = q_safety <= 0.0
    return jnp.where(safe.any(), jnp.where(safe, q, -jnp.inf), -q_safety)


def candidates(config: Config, state: State, obs, rng):
    """Of one raw observation (S,): N actions (N, A), in the networks' unit, and their Q_r and
    Q_h (N,)."""
    seen = jnp.tile(state.normaliser.obs(obs)[None], (config.num_samples, 1))
    found = sample(config, state, seen, rng)
    return found, *action_values(config, state, seen, found)


def safety_threshold(config: Config) -> float:
    """What separates feasible from infeasible values."""
    if config.safety == "reachability":
        return 0.0
    return discounted_limit(config.cost_limit, config.discount, EPISODE_LENGTH)


def actor_schedule(config: Config):
    """The learning rate by steps of the actor: cosine, to 0 over `actor_decay_steps`."""
    steps = config.actor_decay_steps or config.num_updates * config.num_actor_steps
    return optax.cosine_decay_schedule(config.learning_rate, steps)


# --- Checks ---


def check_config(config: Config) -> None:
    """`ValueError` naming the setting, its value and what is allowed."""
    check_counts(config)
    check_choices(config)
    counts = ("num_actor_steps", "num_diffusion_steps", "num_samples", "num_blocks", "width")
    check_range(config, counts, "1 or more", lambda x: x >= 1)
    optional = ("critic_rows", "actor_decay_steps")
    check_range(config, optional, "None, or 1 or more", lambda x: x is None or x >= 1)
    check_range(
        config, ("expectile", "safety_expectile"), "above 0, below 1", lambda x: 0.0 < x < 1.0
    )
    check_range(config, ("target_rate", "ema_rate"), "above 0, at most 1", lambda x: 0.0 < x <= 1.0)
    check_range(config, ("discount", "dropout"), "0 or more, below 1", lambda x: 0.0 <= x < 1.0)
    positive = ("learning_rate", "max_reward_weight", "max_cost_weight")
    check_range(config, positive, "above 0", lambda x: x > 0.0)
    temperatures = ("reward_temperature", "cost_temperature")
    check_range(
        config, (*temperatures, "unsafe_weight_min", "cost_limit"), "0 or more", lambda x: x >= 0.0
    )
    steps, size = config.num_actor_steps, config.batch_size
    check_range(
        config,
        ("batch_size",),
        f"a multiple of num_actor_steps = {steps}",
        lambda x: x % steps == 0,
    )
    check_range(
        config, ("critic_rows",), f"at most batch_size = {size}", lambda x: x is None or x <= size
    )


def check_data(config: Config, data) -> None:
    """`ValueError` for a constraint or returns that say nothing; a warning where nothing violates.

    A transition violates where its cost and its h are above 0.
    """
    cost, constraint = np.asarray(data.cost), np.asarray(data.constraint)
    for name, column in (("constraint", constraint), ("cost", cost)):
        if not np.isfinite(column).all():
            raise ValueError(
                f"{name} of the data is not finite in {np.sum(~np.isfinite(column))} of "
                f"{column.size} transitions; allowed: finite numbers, above 0 where violated."
            )
    h, violates = np.asarray(constraint_signal(config, data)), cost > 0.0
    if (disagree := (h > 0.0) != violates).any():
        raise ValueError(
            f"h of the data, between {h.min():g} and {h.max():g}, and its cost disagree in "
            f"{disagree.sum()} of {h.size} transitions; allowed: h above 0 exactly where cost is."
        )
    if violates.all():
        raise ValueError(
            f"all {h.size} transitions of the data violate the constraint; allowed: data with "
            "some that do not, for there is nothing safe to imitate."
        )
    if not violates.any():
        warnings.warn(
            f"0 of {h.size} transitions of the data violate the constraint: no state will be "
            "called infeasible, and this is IQL with another actor.",
            stacklevel=2,
        )
    if config.reward_unit == "returns" and not 0.0 < float(return_scale(data)) < np.inf:
        raise ValueError(
            "reward_unit = 'returns' needs two whole episodes with different returns; these data "
            "have none. Use reward_unit = 'std'."
        )


# --- The algorithm ---


def make_train(config: Config, env=None, env_params=None) -> Algorithm:
    """FISOR's pure functions; the environment is not needed. `ValueError` for bad settings.

    Observations and actions may have any size: it is taken from the data.
    """
    check_config(config)
    scalar = Value(config.hidden)
    _, products = noise_schedule(config.num_diffusion_steps)
    values_rate = config.learning_rate
    if config.cosine_decay:
        values_rate = optax.cosine_decay_schedule(values_rate, config.num_updates)
    optimise_actor = optax.adam(actor_schedule(config))
    optimise = optax.adam(values_rate)

    def init(rng, data):
        keys = jax.random.split(rng, 5)
        obs, action = data.obs[:1], data.action[:1]
        inputs = jnp.concatenate([obs, action], axis=-1)
        network = actor_network(config, action.shape[-1])
        given = (obs,) if config.actor == "gaussian" else (action, obs, 0)
        actor = network.init(keys[0], *given)

        def heads(key):
            return jax.vmap(lambda k: scalar.init(k, inputs))(jax.random.split(key))

        value = Pair(scalar.init(keys[1], obs), scalar.init(keys[2], obs))
        critic = Pair(heads(keys[3]), heads(keys[4]))
        params = Params(actor, value, critic)
        opt_state = (
            optimise_actor.init(actor),
            optimise.init(params.value),
            optimise.init(params.critic),
        )
        scale = return_scale(data) if config.reward_unit == "returns" else jnp.ones(())
        normaliser, step = data.normaliser, jnp.zeros((), jnp.int32)
        return State(params, actor, critic, opt_state, scale, normaliser, step)

    def actor_loss(params, obs, action, weight, rng):
        network = actor_network(config, action.shape[-1])
        if config.actor == "gaussian":
            mean, log_std = network.apply(params, obs)
            error = (action - mean) * jnp.exp(-log_std)[None]
            return jnp.mean(weight * jnp.sum(0.5 * error**2 + log_std[None], axis=-1))
        key_step, key_noise, key_dropout = jax.random.split(rng, 3)
        t = jax.random.randint(key_step, weight.shape, 0, config.num_diffusion_steps)
        noise = jax.random.normal(key_noise, action.shape)
        product = jnp.asarray(products, jnp.float32)[t][:, None]
        noisy = jnp.sqrt(product) * action + jnp.sqrt(1.0 - product) * noise
        rngs = {"dropout": key_dropout}
        predicted = network.apply(params, noisy, obs, t, True, rngs=rngs)
        return jnp.mean(weight * jnp.sum((predicted - noise) ** 2, axis=-1))

    def update(state, batch, rng):
        unit = to_unit(config.action_unit, batch.action, state.normaliser.action_std)
        params, average = state.params, state.actor_average
        opt_actor, opt_value, opt_critic = state.opt_state

        # --- Actor, on its share of the rows, with the critics of the update before ---
        q, q_safety = action_values(config, state, batch.obs, unit)
        v = scalar.apply(params.value.reward, batch.obs)
        v_safety = feasibility(config, state, batch.obs)
        weight = policy_weights(config, q, v, q_safety, v_safety)
        actor, rows = params.actor, config.batch_size // config.num_actor_steps
        losses = []
        for n, key in enumerate(jax.random.split(rng, config.num_actor_steps)):
            part = slice(n * rows, (n + 1) * rows)
            given = (batch.obs[part], unit[part], weight[part], key)
            loss, gradient = jax.value_and_grad(actor_loss)(actor, *given)
            change, opt_actor = optimise_actor.update(gradient, opt_actor)
            actor = optax.apply_updates(actor, change)
            average = optax.incremental_update(actor, average, config.ema_rate)
            losses.append(loss)

        # --- V_r and V_h: expectiles of the target critics, of V_h reversed ---
        few = batch.transitions(lambda x: x[: config.critic_rows])
        action = unit[: config.critic_rows]
        h = constraint_signal(config, few)
        target_q = twin(config, state.target_critic.reward, few.obs, action).min(axis=0)
        target_h = twin(config, state.target_critic.safety, few.obs, action).max(axis=0)

        def value_loss(value):
            up = target_q - scalar.apply(value.reward, few.obs)
            down = target_h - scalar.apply(value.safety, few.obs)
            safety_loss = expectile_loss(down, 1.0 - config.safety_expectile)
            return expectile_loss(up, config.expectile) + safety_loss

        loss_value, gradient = jax.value_and_grad(value_loss)(params.value)
        change, opt_value = optimise.update(gradient, opt_value)
        value = optax.apply_updates(params.value, change)

        # --- Q_r and Q_h: backups through the values just moved ---
        ended = few.terminated
        if config.timeouts == "terminal":
            ended = ended | few.truncated
        discounted = config.discount * (1.0 - ended)
        reward = state.reward_scale * few.reward
        backup = reward + discounted * scalar.apply(value.reward, few.next_obs)
        next_safety = scalar.apply(value.safety, few.next_obs)
        if config.safety == "reachability":
            backup_safety = reachability_backup(h, next_safety, ended, config.discount)
        else:
            backup_safety = h + discounted * next_safety

        def critic_loss(critic):
            error = twin(config, critic.reward, few.obs, action) - backup[None]
            error_safety = twin(config, critic.safety, few.obs, action) - backup_safety[None]
            return jnp.mean(error**2) + jnp.mean(error_safety**2)

        loss_critic, gradient = jax.value_and_grad(critic_loss)(params.critic)
        change, opt_critic = optimise.update(gradient, opt_critic)
        critic = optax.apply_updates(params.critic, change)
        target = optax.incremental_update(critic, state.target_critic, config.target_rate)

        infeasible = v_safety > 0.0
        metrics = {
            "actor_loss": jnp.mean(jnp.stack(losses)),
            "value_loss": loss_value,
            "critic_loss": loss_critic,
            "infeasible": jnp.mean(infeasible),
            "infeasible_actions": jnp.mean(~infeasible & (q_safety > 0.0)),
            "weight_feasible": jnp.sum(weight * ~infeasible) / jnp.maximum(jnp.sum(~infeasible), 1),
            "weight_infeasible": jnp.sum(weight * infeasible) / jnp.maximum(jnp.sum(infeasible), 1),
            "v_safety_min": v_safety.min(),
            "v_safety_max": v_safety.max(),
        }
        opt_state = (opt_actor, opt_value, opt_critic)
        return state._replace(
            params=Params(actor, value, critic),
            actor_average=average,
            target_critic=target,
            opt_state=opt_state,
            step=state.step + 1,
        ), metrics

    def policy(state):
        def act(obs, rng):
            found, q, q_safety = candidates(config, state, obs, rng)
            best = jnp.argmax(rank(config, q, q_safety))
            return from_unit(config.action_unit, found[best][None], state.normaliser.action_std)[0]

        return act

    def run(state, data, rng, num_updates):
        return scan_updates(update, state, data, rng, num_updates, config.batch_size)

    def train(rng, data):
        init_key, run_key = jax.random.split(rng)
        return run(init(init_key, data), data, run_key, config.num_updates)

    return Algorithm(
        init, run, policy, train, config, check_data=lambda data: check_data(config, data)
    )


if __name__ == "__main__":
    command_line("fisor", PRESETS, make_train)
