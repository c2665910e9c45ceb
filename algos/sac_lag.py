"""SAC-Lag: soft actor-critic (Haarnoja et al., 2018) with cost multipliers, trained online; the
fine-tuning phase of arXiv 2412.04426, and its baseline from scratch.

One update plays whole episodes with the stochastic policy, stores them in a ring, moves the
multipliers once, by the episodes' mean cost C, which is not discounted, against its limit
(`algos/multipliers.py`), and takes gradient steps on what is stored. A gradient step:

    y    = r + gamma (1 - terminated) (min_i Qbar_i(s', a') - alpha log pi(a' | s')),   a' ~ pi
    y_c  = c + gamma (1 - terminated) max_i Qbar_c,i(s', a')
    L_Q  = E[ sum_i (Q_i - y)^2 ],      L_Qc = E[ sum_i (Q_c,i - y_c)^2 ]
    L_pi = E[ alpha log pi(a | s) - min_i Q_i(s, a) + lambda max_i Q_c,i(s, a) ] / (1 + lambda)
    alpha falls while -E[ log pi ] is above its target

With the constraint on the polymer's overshoot there are two costs, critics and multipliers
(`cost_limits` of two numbers); lambda Q_c and 1 + lambda are then sums over them.

Deviations from the paper: its release has a "log pi" with the wrong sign in its Gaussian part, a
mean over a batch; an actor that sees the averaged critics; a temperature that stays; no division by
1 + lambda; time-outs that end an episode; and a multiplier that moves 20 times on the same C.
`released` does so, a flag each, but keeps our networks and two cost critics. `default` takes one
gradient step of 128 transitions for each step of the environment; the release takes 0.02 of 64.
Observations are standardised with the scales of the `pi` data, rewards in units of their standard
deviation, actions enter as asinh(a / std), rescaled to [-1, 1]: nothing else of the data is used.
A failure of the integrator violates everything to the episode's end, at the least reward.

Run: python algos/sac_lag.py --scenario startup --num-seeds 8
"""

from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from algos import multipliers
from algos.actor_critic import (
    Reduction,
    SquashedActor,
    descend,
    heads,
    mean_action,
    reduce_heads,
    squashed_sample,
    twin_outputs,
    twin_values,
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
    from_unit,
    to_unit,
)
from algos.multipliers import Controller
from polycstr_jax.data import EPISODE_LENGTH, REWARD_FLOOR, Normaliser
from polycstr_jax.rollout import rollout

Entropy = Literal["sample", "released"]
# From scratch, whose first episodes run away: greater gains remember these for all of the training.
GAINS = dict.fromkeys(("proportional", "integral", "derivative"), 0.0003)
PID = Controller(**GAINS)
APID = Controller(rule="apid", adaptation="symmetric", **GAINS)
DUAL = Controller(rule="dual", rate=0.001)


@dataclass(frozen=True)
class Config:
    """Hyper-parameters; an update is a roll-out with the gradient steps that follow it."""

    num_updates: int = 100
    num_episodes: int = 1  # of an update
    gradient_steps: int = 200  # of an update: one for each interval
    batch_size: int = 128
    capacity: int = 100_000  # transitions kept
    hidden: tuple[int, ...] = (64, 64)  # of actor and critics
    actor_rate: float = 3e-4
    critic_rate: float = 1e-3
    temperature_rate: float = 3e-4
    initial_temperature: float = 0.1
    target_entropy: float | None = -2.0  # nats; None: the temperature stays (released)
    entropy: Entropy = "sample"
    discount: float = 0.99
    target_rate: float = 0.005
    actor_critics: Literal["live", "target"] = "live"  # target (released)
    rescale: bool = True  # the actor's loss by 1 / (1 + lambda); False (released)
    cost_target: Reduction = "max"  # of the two cost critics
    target_noise: float = 0.0  # deviation of the noise on targets' actions (SO2)
    timeouts: Timeouts = "bootstrap"
    action_unit: ActionUnit = "asinh"
    cost_limits: tuple[float, ...] = (2.0,)  # violating intervals an episode; a second: overshoot
    controller: Controller = PID
    multiplier_scale: float = 8.0  # the unit of lambda: a reward value over a cost value
    multiplier_updates: int = 1  # of an update; 20 (released)


DEFAULT = Config()
RELEASED = replace(
    DEFAULT,
    num_episodes=5,
    gradient_steps=20,
    batch_size=64,
    hidden=(256, 256),
    actor_rate=5e-5,
    critic_rate=5e-3,
    initial_temperature=1e-3,
    target_entropy=None,
    entropy="released",
    actor_critics="target",
    rescale=False,
    timeouts="terminal",
    controller=multipliers.RELEASED,
    multiplier_updates=20,
)
PRESETS = {
    "default": DEFAULT,
    "released": RELEASED,
    "apid": replace(DEFAULT, controller=APID),
    "dual": replace(DEFAULT, controller=DUAL),
    "more-steps": replace(DEFAULT, gradient_steps=250),  # as many as Marvel with its alignment
    **{f"limit{n}": replace(DEFAULT, cost_limits=(float(n),)) for n in (0, 2, 5)},
}


class Params(NamedTuple):
    """Everything that is optimised by Adam."""

    actor: Any
    critic: Any  # two heads, leading axis 2
    cost_critic: Any  # two heads, an output a constraint
    log_temperature: jax.Array  # ()


class Transitions(NamedTuple):
    """What the learner sees of N intervals; M constraints."""

    obs: jax.Array  # (N, S) standardised
    action: jax.Array  # (N, A) as networks see them
    reward: jax.Array  # (N,)
    cost: jax.Array  # (N, M)
    next_obs: jax.Array  # (N, S)
    terminated: jax.Array  # (N,) bool
    truncated: jax.Array  # (N,) bool


class Replay(NamedTuple):
    """A ring of transitions."""

    kept: Transitions  # N is the capacity
    position: jax.Array  # () where the next one goes
    size: jax.Array  # () how many there are


class State(NamedTuple):
    """What training carries."""

    params: Params
    target_critic: Any
    target_cost_critic: Any
    opt_state: Params  # of each part
    multiplier: multipliers.State
    replay: Replay
    normaliser: Normaliser
    step: jax.Array


# --- The mathematics ---


def log_likelihood(kind: Entropy, mean, log_std, rng):
    """Actions (B, A), and log pi (B,) of each.

    As released: the mean over the batch, with the entropy of the Gaussian in place of minus it.
    """
    action, log_density = squashed_sample(mean, log_std, rng)
    if kind == "released":
        entropy = jnp.sum(0.5 * jnp.log(2.0 * jnp.pi * jnp.e) + log_std, axis=-1)
        slope = jnp.sum(jnp.log(1.0 - action**2 + 1e-6), axis=-1)
        log_density = jnp.broadcast_to(jnp.mean(entropy - slope), log_density.shape)
    return action, log_density


def actor_loss_of(likelihood, value, cost, multiplier, temperature, rescale: bool):
    """L_pi () of log pi (B,), Q (B,), Q_c (B, M) and lambda (M,)."""
    worth = value - jnp.sum(multiplier[None] * cost, axis=-1)
    loss = jnp.mean(temperature * likelihood - worth)
    return loss / (1.0 + jnp.sum(multiplier)) if rescale else loss


def empty_replay(capacity: int, example: Transitions) -> Replay:
    """A ring for transitions such as `example` (1, ...)."""
    kept = jax.tree.map(lambda x: jnp.zeros((capacity, *x.shape[1:]), x.dtype), example)
    return Replay(kept, jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32))


def store(replay: Replay, new: Transitions) -> Replay:
    """With N new transitions in place of the oldest. `ValueError` if they are too many."""
    capacity, num = replay.kept.reward.shape[0], new.reward.shape[0]
    if num > capacity:
        raise ValueError(f"new has {num} transitions; allowed: the capacity, {capacity}, or fewer.")
    index = (replay.position + jnp.arange(num)) % capacity
    kept = jax.tree.map(lambda ring, x: ring.at[index].set(x), replay.kept, new)
    size = jnp.minimum(replay.size + num, capacity)
    return Replay(kept, (replay.position + num) % capacity, size)


def draw(replay: Replay, rng, batch_size: int) -> Transitions:
    """Transitions drawn uniformly with replacement.

    `ValueError` if nothing is stored, where that is known: outside of jit.
    """
    if not isinstance(replay.size, jax.core.Tracer) and int(replay.size) == 0:
        raise ValueError("replay is empty; allowed: one transition or more. Call store before.")
    index = jax.random.randint(rng, (batch_size,), 0, replay.size)
    return jax.tree.map(lambda ring: ring[index], replay.kept)


# --- Playing episodes ---


def play(env, env_params, controller, memory, rng, num_episodes: int):
    """A roll-out (T, N, ...) of whole episodes from starts drawn anew; `memory` and `controller`
    as in `polycstr_jax.rollout`, leading axis N."""
    start_keys, lane_keys = jax.random.split(rng, (2, num_episodes))
    initial = jax.vmap(lambda key: env.reset_env(key, env_params)[1])(start_keys)
    num_steps = int(env_params.max_steps_in_episode)
    return rollout(env, env_params, controller, memory, initial, lane_keys, num_steps)


def transitions_of(trajectory, normaliser: Normaliser, unit: ActionUnit, num_costs: int):
    """What is learned from a roll-out (T, N, ...): T N transitions.

    A failure of the integrator violates everything, at the least reward; the failed interval
    stands in for those that are lost.
    """
    dead = ~trajectory.alive
    end = jnp.where(dead.any(axis=0), jnp.argmax(dead, axis=0) - 1, dead.shape[0] - 1)
    index = jnp.minimum(jnp.arange(dead.shape[0])[:, None], end[None])

    def rows(x):
        found = jnp.take_along_axis(x, index.reshape(*index.shape, *(1,) * (x.ndim - 2)), axis=0)
        return found.reshape(-1, *x.shape[2:])

    failed = rows(trajectory.terminated)
    violated = (rows(trajectory.constraints)[:, :num_costs] > 0.0) | failed[:, None]
    return Transitions(
        obs=normaliser.obs(rows(trajectory.obs)),
        action=to_unit(unit, jnp.clip(rows(trajectory.action), -1.0, 1.0), normaliser.action_std),
        reward=normaliser.reward(jnp.where(failed, REWARD_FLOOR, rows(trajectory.reward))),
        cost=violated.astype(jnp.float32),
        next_obs=normaliser.obs(rows(trajectory.next_obs)),
        terminated=failed,
        truncated=rows(trajectory.truncated),
    )


def episode_sums(trajectory, num_costs: int):
    """Return (N,) and costs (N, M) of episodes; lost intervals violate everything."""
    alive = trajectory.alive & ~trajectory.terminated
    violated = (trajectory.constraints[..., :num_costs] > 0.0) | ~alive[..., None]
    reward = jnp.where(alive, trajectory.reward, REWARD_FLOOR)
    return jnp.sum(reward, axis=0), jnp.sum(violated.astype(jnp.float32), axis=0)


# --- The algorithm ---


def check_config(config: Config, env_params) -> None:
    """`ValueError` naming the setting, its value and what is allowed."""
    check_counts(config)
    check_choices(config)
    multipliers.check(config.controller)
    counts = ("num_episodes", "gradient_steps", "multiplier_updates")
    check_range(config, counts, "1 or more", lambda x: x >= 1)
    rates = ("actor_rate", "critic_rate", "initial_temperature", "multiplier_scale")
    check_range(config, rates, "above 0", lambda x: x > 0.0)
    not_negative = ("temperature_rate", "target_noise")
    check_range(config, not_negative, "0 or more", lambda x: x >= 0.0)
    check_range(config, ("target_rate",), "above 0, at most 1", lambda x: 0.0 < x <= 1.0)
    check_range(config, ("discount",), "0 or more, below 1", lambda x: 0.0 <= x < 1.0)
    limits = "one number, or two, of 0 or more"
    check_range(config, ("cost_limits",), limits, lambda x: len(x) in (1, 2) and min(x) >= 0.0)
    if config.entropy == "released" and config.target_entropy is not None:
        raise ValueError(
            f"target_entropy = {config.target_entropy}; allowed: None with entropy = 'released', "
            "which is no log pi."
        )
    if env_params is None:
        raise ValueError("env_params = None; allowed: an environment's, for it trains online.")
    horizon = int(env_params.max_steps_in_episode)
    if horizon > EPISODE_LENGTH or horizon < 1:
        raise ValueError(
            f"env_params.max_steps_in_episode = {horizon}; allowed: 1 to {EPISODE_LENGTH}, the "
            "horizon that cost limits are for."
        )
    needed = config.num_episodes * horizon
    check_range(config, ("capacity",), f"an update's {needed} or more", lambda x: x >= needed)
    if len(config.cost_limits) == 2 and not bool(env_params.overshoot_constraint):
        raise ValueError(
            f"cost_limits = {config.cost_limits}; allowed: one number, or an environment with "
            "overshoot_constraint = True."
        )


def make_train(config: Config, env=None, env_params=None) -> Algorithm:
    """SAC-Lag's pure functions, for training in `env`. `ValueError` for bad settings.

    `init` uses the normaliser of the data and nothing else of them, `run` nothing at all.
    """
    check_config(config, env_params)
    init, control, improve = parts(config)
    update = make_update(config, env, env_params, control, improve)

    def policy(state):
        return mean_policy(config, state)

    def run(state, data, rng, num_updates):
        return scan_online(update, state, rng, num_updates)

    def train(rng, data):
        init_key, run_key = jax.random.split(rng)
        return run(init(init_key, data), data, run_key, config.num_updates)

    return Algorithm(init, run, policy, train, config)


def make_update(config: Config, env, env_params, control, improve, behave=None):
    """`update(state, rng)`: episodes of the stochastic policy, and what is learned from them.

    `behave(config, state, rng) -> controller, memory`: who acts instead, as `stochastic`.
    """
    behave = stochastic if behave is None else behave

    def update(state, rng):
        play_key, act_key, learn_key = jax.random.split(rng, 3)
        controller, memory = behave(config, state, act_key)
        trajectory = play(env, env_params, controller, memory, play_key, config.num_episodes)
        state, played = control(learn_from(config, state, trajectory), trajectory)
        state, learned = improve(state, learn_key)
        return state._replace(step=state.step + 1), played | learned

    return update


def scan_online(update, state, rng, num_updates: int):
    """`num_updates` times `update(state, rng)`; metrics are averaged. Chunks equal the whole."""

    def one(state, _):
        return update(state, jax.random.fold_in(rng, state.step))

    state, metrics = jax.lax.scan(one, state, None, num_updates)
    return state, jax.tree.map(lambda x: x.mean(axis=0), metrics)


def mean_policy(config: Config, state: State):
    """`act(obs (S,) raw, rng) -> (A,)`: the action of the mean."""
    actor = SquashedActor(config.hidden, state.normaliser.action_mean.shape[-1])

    def act(obs, rng):
        return mean_action(config.action_unit, actor, state.params.actor, state.normaliser, obs)

    return act


def stochastic(config: Config, state: State, rng):
    """A controller that draws from the policy, and its memory: a key for each episode."""
    actor = SquashedActor(config.hidden, state.normaliser.action_mean.shape[-1])

    def controller(obs, key):
        key, now = jax.random.split(key)
        mean, log_std = actor.apply(state.params.actor, state.normaliser.obs(obs)[None])
        action, _ = squashed_sample(mean, log_std, now)
        return from_unit(config.action_unit, action, state.normaliser.action_std)[0], key

    return controller, jax.random.split(rng, config.num_episodes)


def learn_from(config: Config, state: State, trajectory) -> State:
    """With the transitions of a roll-out stored."""
    num_costs = len(config.cost_limits)
    new = transitions_of(trajectory, state.normaliser, config.action_unit, num_costs)
    return state._replace(replay=store(state.replay, new))


def parts(config: Config):
    """`init(rng, data)`; `control(state, trajectory)`, the multipliers' step; and
    `improve(state, rng)`, an update's gradient steps. The last two return state and metrics."""
    num_costs = len(config.cost_limits)
    scalar, costs = MLP(config.hidden, 1), MLP(config.hidden, num_costs)
    limits = jnp.asarray(config.cost_limits)
    optimise = Params(
        actor=optax.adam(config.actor_rate),
        critic=optax.adam(config.critic_rate),
        cost_critic=optax.adam(config.critic_rate),
        log_temperature=optax.adam(config.temperature_rate),
    )

    def init(rng, data):
        keys = jax.random.split(rng, 3)
        obs, action = data.obs[:1], data.action[:1]
        params = Params(
            actor=SquashedActor(config.hidden, action.shape[-1]).init(keys[0], obs),
            critic=heads(scalar, obs, action, keys[1]),
            cost_critic=heads(costs, obs, action, keys[2]),
            log_temperature=jnp.log(jnp.asarray(config.initial_temperature)),
        )
        flag = jnp.zeros((1,), bool)
        example = Transitions(
            obs, action, data.reward[:1], jnp.zeros((1, num_costs)), obs, flag, flag
        )
        return State(
            params=params,
            target_critic=params.critic,
            target_cost_critic=params.cost_critic,
            opt_state=Params(*(o.init(p) for o, p in zip(optimise, params, strict=True))),
            multiplier=multipliers.init(config.controller, num_costs, config.multiplier_scale),
            replay=empty_replay(config.capacity, example),
            normaliser=data.normaliser,
            step=jnp.zeros((), jnp.int32),
        )

    def control(state, trajectory):
        returns, sums = episode_sums(trajectory, num_costs)
        mean = sums.mean(axis=0)

        def move(_, multiplier):
            return multipliers.update(config.controller, multiplier, mean, limits)

        multiplier = jax.lax.fori_loop(0, config.multiplier_updates, move, state.multiplier)
        return state._replace(multiplier=multiplier), {
            "episode_return": returns.mean(),
            "episode_cost": mean[0],
            "above_limit": jnp.mean(sums[:, 0] > limits[0]),
            "violated": jnp.mean(sums[:, 0] > 0.0),
            "peak_temperature": trajectory.peak_temperature.max(axis=0).mean(),
            "multiplier": multiplier.multiplier[0],
            "proportional": multiplier.parts.proportional[0],
            "integral": multiplier.parts.integral[0],
            "derivative": multiplier.parts.derivative[0],
        }

    def gradient_step(state, rng):
        keys = jax.random.split(rng, 4)
        batch = draw(state.replay, keys[0], config.batch_size)
        actor = SquashedActor(config.hidden, batch.action.shape[-1])
        obs, action, next_obs = batch.obs, batch.action, batch.next_obs
        params, opt_state = state.params, state.opt_state
        multiplier, temperature = state.multiplier.multiplier, jnp.exp(params.log_temperature)
        ended = batch.terminated
        if config.timeouts == "terminal":
            ended = ended | batch.truncated

        # --- Critics ---
        mean, log_std = actor.apply(params.actor, next_obs)
        following, log_density = log_likelihood(config.entropy, mean, log_std, keys[1])
        if config.target_noise > 0.0:
            noise = config.target_noise * jax.random.normal(keys[3], following.shape)
            most = 2.0 * config.target_noise
            following = jnp.clip(following + jnp.clip(noise, -most, most), -1.0, 1.0)
        value = twin_values(scalar, state.target_critic, next_obs, following).min(axis=0)
        soft = value - temperature * log_density
        backup = batch.reward + config.discount * (1.0 - ended) * soft
        cost = twin_outputs(costs, state.target_cost_critic, next_obs, following)
        cost = reduce_heads(config.cost_target, cost)
        backup_cost = batch.cost + config.discount * (1.0 - ended)[:, None] * cost

        def critic_loss(part):
            error = twin_values(scalar, part, obs, action) - backup[None]
            return jnp.mean(jnp.sum(error**2, axis=0)), ()

        def cost_loss(part):
            error = twin_outputs(costs, part, obs, action) - backup_cost[None]
            return jnp.mean(jnp.sum(error**2, axis=(0, 2))), ()

        params, opt_state, loss_critic, _ = descend(
            optimise, "critic", critic_loss, params, opt_state
        )
        params, opt_state, loss_cost, _ = descend(
            optimise, "cost_critic", cost_loss, params, opt_state
        )

        # --- Actor ---
        judges = (params.critic, params.cost_critic)
        if config.actor_critics == "target":
            judges = (state.target_critic, state.target_cost_critic)

        def actor_loss(part):
            mean, log_std = actor.apply(part, obs)
            taken, log_density = log_likelihood(config.entropy, mean, log_std, keys[2])
            value = twin_values(scalar, judges[0], obs, taken).min(axis=0)
            cost = twin_outputs(costs, judges[1], obs, taken)
            cost = reduce_heads(config.cost_target, cost)
            more = (jnp.mean(log_density), jnp.mean(value), jnp.mean(cost, axis=0))
            given = (multiplier, temperature, config.rescale)
            return actor_loss_of(log_density, value, cost, *given), more

        params, opt_state, loss_actor, (likelihood, value, cost) = descend(
            optimise, "actor", actor_loss, params, opt_state
        )

        # --- Temperature ---
        if config.target_entropy is not None:

            def temperature_loss(part):
                return -part * (likelihood + config.target_entropy), ()

            params, opt_state, _, _ = descend(
                optimise, "log_temperature", temperature_loss, params, opt_state
            )

        # --- Move the targets ---
        rate = config.target_rate
        state = state._replace(
            params=params,
            target_critic=optax.incremental_update(params.critic, state.target_critic, rate),
            target_cost_critic=optax.incremental_update(
                params.cost_critic, state.target_cost_critic, rate
            ),
            opt_state=opt_state,
        )
        return state, {
            "critic_loss": loss_critic,
            "cost_critic_loss": loss_cost,
            "actor_loss": loss_actor,
            "entropy": -likelihood,
            "temperature": temperature,
            "value": value,
            "cost_value": cost[0],
        }

    def improve(state, rng):
        keys = jax.random.split(rng, config.gradient_steps)
        state, metrics = jax.lax.scan(gradient_step, state, keys)
        return state, jax.tree.map(lambda x: x.mean(axis=0), metrics)

    return init, control, improve


if __name__ == "__main__":
    command_line("sac_lag", PRESETS, make_train)
