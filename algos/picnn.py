"""PICNN action correction (arXiv 2507.22640): BC+, IQL+, and any base policy with a layer on top.

A network c(s, a), convex in the action for every state, learns the tracking cost |e_P| + |e_T|
that follows an action (mean squared error; target `one_step`, `n_step` or `discounted`). When
acting, the base policy's action is moved down that cost (eq. 24), without retraining:

    a_0 = pi(s);   a_{k+1} = clip(a_k - eta P grad_a c(s, a_k)),   k < K

The network (Amos et al., 2017), with softplus for every activation:

    z_{i+1} = softplus(Wz_i z_i + Wa_i a + Wu_i u_i + b_i),   Wz = softplus(raw) >= 0
    u_0 = s;  u_{i+1} = softplus(V_i u_i + d_i)   (state path `mlp`)   or   u_{i+1} = s   (`linear`)

Besides gradient steps: damped Newton steps, and the exact minimiser over the action box, by
projected Newton (Bertsekas, 1982). An ensemble can charge its disagreement, mean + k std: convex
only while non-decreasing in every member, that is for k <= 1 / sqrt(members - 1).

Deviations from the paper, which leaves eta, optimiser, learning rate and number of updates open
and describes the target as one-step and as cost-to-go: the default target is the discounted mean
cost from here on, gamma = 0.99, the last cost held after the end of the episode; P makes a step
be taken in units of the data's actions and costs; 5,000 updates of Adam, 1e-3 with cosine decay
to 0, batch 256. Preset `paper` takes plain steps (P = 1) down the literal one-step cost.

Run: python algos/picnn.py --base iql --scenario startup --dataset pi --num-seeds 8
"""

import importlib
import math
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from algos.common import (
    LAYER_KEY,
    Algorithm,
    Track,
    action_units,
    check_choice,
    check_counts,
    command_line,
    scan_updates,
    track_obs,
)
from polycstr_jax.data import Normaliser
from polycstr_jax.env import ACTION_SIZE

Base = Literal["bc", "iql"]
Model = Literal["picnn", "nn"]
StatePath = Literal["mlp", "linear"]
Target = Literal["one_step", "n_step", "discounted"]
Correction = Literal["gradient", "newton", "exact"]


@jax.custom_jvp
def softplus(x):
    """log(1 + e^x), with a derivative of one exponential; that of `jax.nn.softplus` takes more.

    It decides what a correction costs: here an activation is dearer than its share of the matmuls.
    """
    return jnp.maximum(x, 0.0) + jnp.log1p(jnp.exp(-jnp.abs(x)))


softplus.defjvp(lambda x, dx: (softplus(x[0]), dx[0] * nn.sigmoid(x[0])))

CONVEX_ACTIVATIONS = {"softplus": softplus, "relu": nn.relu, "elu": nn.elu}  # and rising


@dataclass(frozen=True)
class Config:
    """Hyper-parameters of the cost model, then of the correction."""

    base: Base = "bc"  # the policy to wrap
    track: Track = "default"  # as the base policy's
    model: Model = "picnn"  # paper; nn: the unconstrained network of the same size
    state_path: StatePath = "mlp"  # of the picnn; paper; linear: convex in the state, too
    activation: str = "softplus"  # paper
    hidden: tuple[int, ...] = (64, 64)  # paper
    target: Target = "discounted"  # ours
    discount: float = 0.99  # of the target `discounted`; ours
    num_target_steps: int = 10  # intervals averaged by the target `n_step`; ours
    num_models: int = 1  # members of the ensemble
    uncertainty: float = 0.0  # k in mean + k std over the members
    num_updates: int = 5_000  # ours
    batch_size: int = 256  # ours
    learning_rate: float = 1e-3  # ours, with cosine decay to 0
    correction: Correction = "gradient"  # paper
    num_steps: int = 3  # K; paper: 1 to 5; 0: the base policy; `exact` goes on to the end
    eta: float = 0.3  # of gradient and Newton steps (1: a full Newton step); ours
    precondition: bool = True  # gradient steps in units of the data's spread; ours
    damping: float = 0.1  # of Newton steps; ours
    gate: float = 10.0  # correct only where |e_P| + |e_T| exceeds this; 0: always (paper)


PRESETS = {  # the others are comparisons, each with its own best K, eta and gate
    "default": Config(),
    "one-step": Config(target="one_step", num_steps=5, eta=0.1),
    "linear": Config(state_path="linear", num_steps=1),
    "nn": Config(model="nn", num_steps=1, eta=1.0),
    "paper": Config(target="one_step", precondition=False, eta=1e-5, gate=0.0),
}


class State(NamedTuple):
    """What training carries. `eta` and `gate` are here so that tuning them compiles nothing."""

    params: Any  # of the cost networks, leading axis num_models
    opt_state: Any
    base: Any  # trained state of the base policy; not touched
    target_mean: jax.Array  # () of the target over the data
    target_std: jax.Array  # ()
    eta: jax.Array  # ()
    gate: jax.Array  # ()
    normaliser: Normaliser
    step: jax.Array


# --- Networks: (obs, action) -> standardised cost ---


def nonnegative(raw):
    """The reparametrisation that makes the weights on z non-negative: softplus."""
    return softplus(raw)


def raw_weight_init(key, shape, dtype=jnp.float32):
    """Raw weights whose softplus has median 1 / fan-in, spread by a factor of about e^(+-1/2)."""
    return math.log(math.expm1(1.0 / shape[0])) + 0.5 * jax.random.normal(key, shape, dtype)


class PICNN(nn.Module):
    """Partially input-convex network: convex in the action for every state."""

    hidden: tuple[int, ...]
    state_path: StatePath
    activation: str

    @nn.compact
    def __call__(self, obs, action):
        u, z = obs, None
        for layer, width in enumerate((*self.hidden, 1)):
            out = nn.Dense(width)(u) + nn.Dense(width, use_bias=False)(action)
            if z is not None:
                raw = self.param(f"raw_{layer}", raw_weight_init, (z.shape[-1], width))
                out = out + z @ nonnegative(raw)
            if layer < len(self.hidden):
                z = CONVEX_ACTIVATIONS[self.activation](out)
                u = softplus(nn.Dense(width)(u)) if self.state_path == "mlp" else obs
        return out[..., 0]


class CostMLP(nn.Module):
    """The standard network of the same size."""

    hidden: tuple[int, ...]
    activation: str

    @nn.compact
    def __call__(self, obs, action):
        x = jnp.concatenate([obs, action], axis=-1)
        for width in self.hidden:
            x = CONVEX_ACTIVATIONS[self.activation](nn.Dense(width)(x))
        return nn.Dense(1)(x)[..., 0]


def pessimistic(costs, uncertainty: float):
    """mean + k std over the members' costs (M, ...)."""
    # The small constant keeps the gradient finite where all members agree.
    return costs.mean(axis=0) + uncertainty * jnp.sqrt(costs.var(axis=0) + 1e-12)


# --- Targets ---


def cost_targets(tracking_cost, ends, target: Target, discount: float, num_steps: int):
    """What the cost network predicts, (N,), from costs of successive transitions (N,).

    `ends` (N,) marks the last transition of each episode, whose cost is taken to be held for ever
    after. `one_step`: c_t. `n_step`: the mean of c_t ... c_{t+n-1}. `discounted`: the mean of
    c_{t+k} with weights (1 - gamma) gamma^k. All are means, in the units of the cost.
    """
    if target == "one_step":
        return tracking_cost
    ends = jnp.asarray(ends).at[-1].set(True)  # whatever the data say

    if target == "discounted":

        def backward(following, now):
            cost, end = now
            following = (1.0 - discount) * cost + discount * jnp.where(end, cost, following)
            return following, following

        start = tracking_cost[-1]
        return jax.lax.scan(backward, start, (tracking_cost, ends), reverse=True)[1]

    def shift(carry, _):
        total, ahead = carry
        ahead = jnp.where(ends, tracking_cost, jnp.roll(ahead, -1))
        return (total + ahead, ahead), None

    first = (tracking_cost, tracking_cost)
    (total, _), _ = jax.lax.scan(shift, first, None, num_steps - 1)
    return total / num_steps


# --- Corrections: of an action b (A,) in a box, down a cost function of b ---


def gradient_steps(cost, b, low, high, rate, num_steps: int):
    """b <- clip(b - rate grad cost(b)), `num_steps` times (eq. 24); rate () or (A,)."""
    for _ in range(num_steps):
        b = jnp.clip(b - rate * jax.grad(cost)(b), low, high)
    return b


def newton_direction(cost, b, low, high, damping: float, margin=0.0):
    """Gradient, and damped Newton direction over the entries that are free to move.

    An entry within `margin` of a bound towards which it is pushed is held: it goes to the bound.
    """
    gradient, hessian = jax.grad(cost)(b), jax.hessian(cost)(b)
    at_low = (b <= low + margin) & (gradient > 0.0)
    at_high = (b >= high - margin) & (gradient < 0.0)
    free = ~(at_low | at_high)
    matrix = jnp.where(free[:, None] & free[None, :], hessian, 0.0)
    matrix = matrix + jnp.diag(jnp.where(free, damping, 1.0))
    step = -jnp.linalg.solve(matrix, jnp.where(free, gradient, 0.0))
    return gradient, jnp.where(at_low, low - b, jnp.where(at_high, high - b, step))


def newton_steps(cost, b, low, high, eta, damping: float, num_steps: int):
    """b <- clip(b + eta d), d the damped Newton direction, `num_steps` times."""
    for _ in range(num_steps):
        _, direction = newton_direction(cost, b, low, high, damping)
        b = jnp.clip(b + eta * direction, low, high)
    return b


def minimise_over_box(cost, b, low, high, tolerance: float = 1e-5, max_iterations: int = 100):
    """The minimiser of a smooth convex cost over the box, by projected Newton (Bertsekas, 1982).

    The best of the points along the Newton direction and along the gradient is taken, both
    projected, in steps halved from 1 and from the width of the box: the gradient is for where the
    cost is all but linear. Stops when the projected gradient max |b - clip(b - grad)| is at most
    `tolerance`, or when none of these points is better (rounding). Returns b (A,), the projected
    gradient, by which to judge it, and the number of iterations.
    """
    newton_lengths = 0.5 ** jnp.arange(8, dtype=b.dtype)
    gradient_lengths = 0.5 ** jnp.arange(24, dtype=b.dtype)

    def residual(b):
        return jnp.max(jnp.abs(b - jnp.clip(b - jax.grad(cost)(b), low, high)))

    def unfinished(carry):
        _, left, iteration, stuck = carry
        return (left > tolerance) & (iteration < max_iterations) & ~stuck

    def iterate(carry):
        b, left, iteration, _ = carry
        margin = jnp.minimum(1e-3 * (high - low), left)
        gradient, newton = newton_direction(cost, b, low, high, 1e-6, margin)
        downhill = -gradient * (jnp.max(high - low) / jnp.max(jnp.abs(gradient)))
        steps = jnp.concatenate(
            [newton_lengths[:, None] * newton[None], gradient_lengths[:, None] * downhill[None]]
        )
        candidates = jax.vmap(lambda step: jnp.clip(b + step, low, high))(steps)
        costs = jax.vmap(cost)(candidates)
        best = jnp.argmin(costs)
        better = costs[best] < cost(b)
        moved = jnp.where(better, candidates[best], b)
        return moved, residual(moved), iteration + 1, ~better

    b = jnp.clip(b, low, high)
    start = (b, residual(b), jnp.zeros((), jnp.int32), jnp.zeros((), bool))
    b, left, iterations, _ = jax.lax.while_loop(unfinished, iterate, start)
    return b, left, iterations


# --- The layer ---


def check(config: Config, base: Algorithm) -> None:
    """`ValueError` naming the setting, its value and what is allowed."""
    for name, choices in (
        ("base", Base),
        ("track", Track),
        ("model", Model),
        ("state_path", StatePath),
        ("target", Target),
        ("correction", Correction),
    ):
        check_choice(name, getattr(config, name), choices)
    check_counts(config)
    if config.activation not in CONVEX_ACTIVATIONS:
        raise ValueError(
            f"activation = {config.activation!r} is not known to be convex and non-decreasing, "
            f"which convexity in the action needs; allowed: {', '.join(CONVEX_ACTIVATIONS)}."
        )
    base_track = getattr(base.config, "track", "default")
    if base_track != config.track:
        raise ValueError(
            f"track = {config.track!r} of the cost model, but {base_track!r} of the base policy: "
            "they see different observations and scale actions differently; allowed: the same."
        )
    if config.correction != "gradient":
        needs = f"correction = {config.correction!r} needs a"
        if config.model == "nn":
            raise ValueError(f"{needs} convex cost, but model = 'nn'; allowed: gradient.")
        if config.activation == "relu":
            raise ValueError(f"{needs} curved cost, but activation = 'relu'; allowed: gradient.")
    if config.num_steps < 0:
        raise ValueError(f"num_steps = {config.num_steps}; allowed: 0 (the base policy) or more.")
    if not 0.0 < config.eta < math.inf:
        raise ValueError(f"eta = {config.eta}; allowed: above 0 (num_steps = 0 corrects nothing).")
    if not 0.0 <= config.gate < math.inf:
        raise ValueError(f"gate = {config.gate}; allowed: 0 (no gate) or more.")
    if not 0.0 < config.damping < math.inf:
        raise ValueError(f"damping = {config.damping}; allowed: above 0.")
    if not 0.0 <= config.discount < 1.0:
        raise ValueError(f"discount = {config.discount}; allowed: 0 or more, below 1.")
    if config.num_target_steps < 1:
        raise ValueError(f"num_target_steps = {config.num_target_steps}; allowed: 1 or more.")
    if config.num_models < 1:
        raise ValueError(f"num_models = {config.num_models}; allowed: 1 or more.")
    largest = 0.0
    if config.num_models > 1:
        largest = math.inf if config.model == "nn" else 1.0 / math.sqrt(config.num_models - 1)
    if not 0.0 <= config.uncertainty <= largest + 1e-9:
        raise ValueError(
            f"uncertainty = {config.uncertainty} with num_models = {config.num_models}; allowed: "
            f"0 to 1 / sqrt(num_models - 1) = {largest:.3g} (0 for one model). Beyond, mean + "
            "k std falls when the lowest member rises, and is no longer convex."
        )


def make_base(config: Config) -> Algorithm:
    """The base policy that a configuration names, at its default settings."""
    check_choice("base", config.base, Base)
    check_choice("track", config.track, Track)
    module = importlib.import_module(f"algos.{config.base}")
    return module.make_train(replace(module.PRESETS["default"], track=config.track))


def make_network(config: Config) -> nn.Module:
    """The cost network of one member."""
    if config.model == "nn":
        return CostMLP(config.hidden, config.activation)
    return PICNN(config.hidden, config.state_path, config.activation)


def make_cost(config: Config):
    """The standardised cost c(params, obs, b): obs and b as the track has them."""
    network = make_network(config)

    def cost(params, obs, b):
        costs = jax.vmap(network.apply, in_axes=(0, None, None))(params, obs, b)
        return costs[0] if config.num_models == 1 else pessimistic(costs, config.uncertainty)

    return cost


def make_train(config: Config, env=None, env_params=None, base: Algorithm | None = None):
    """The layer's pure functions around `base`, any algorithm; `config.base`'s if None.

    Raises `ValueError` for settings that are not allowed (see `check`).
    """
    base = make_base(config) if base is None else base
    check(config, base)
    network, cost = make_network(config), make_cost(config)
    optimiser = optax.adam(optax.cosine_decay_schedule(config.learning_rate, config.num_updates))

    def targets(data):
        ends = data.terminated | data.truncated
        settings = (config.target, config.discount, config.num_target_steps)
        return cost_targets(data.tracking_cost, ends, *settings)

    def init(rng, data, base_state):
        obs, target = track_obs(config.track, data.obs[0]), targets(data)
        keys = jax.random.split(rng, config.num_models)
        params = jax.vmap(lambda key: network.init(key, obs, data.action[0]))(keys)
        return State(
            params=params,
            opt_state=optimiser.init(params),
            base=base_state,
            target_mean=target.mean(),
            target_std=jnp.maximum(target.std(), 1e-6),
            eta=jnp.asarray(config.eta, target.dtype),
            gate=jnp.asarray(config.gate, target.dtype),
            normaliser=data.normaliser,
            step=jnp.zeros((), jnp.int32),
        )

    def update(state, batch, rng):
        # --- Regress the standardised target; `run` has put it in the place of the cost ---
        shift, scale = action_units(config.track, state.normaliser)
        obs = track_obs(config.track, batch.obs)
        b = (batch.action - shift[None]) / scale[None]
        target = (batch.tracking_cost - state.target_mean) / state.target_std

        def loss(params):
            predicted = jax.vmap(network.apply, in_axes=(0, None, None))(params, obs, b)
            errors = jnp.mean((predicted - target[None]) ** 2, axis=1)
            return errors.sum(), errors.mean()

        gradient, error = jax.grad(loss, has_aux=True)(state.params)
        updates, opt_state = optimiser.update(gradient, state.opt_state)
        params = optax.apply_updates(state.params, updates)
        state = state._replace(params=params, opt_state=opt_state, step=state.step + 1)
        return state, {"cost_loss": error}

    def correct(state, obs, action):
        """Correct an action (2,), given a raw observation (9,)."""
        shift, scale = action_units(config.track, state.normaliser)
        seen = track_obs(config.track, state.normaliser.obs(obs))
        published = config.track == "published"
        low = -jnp.ones(ACTION_SIZE) if published else (-1.0 - shift) / scale
        high = jnp.ones(ACTION_SIZE) if published else (1.0 - shift) / scale

        def cost_of(b):
            return cost(state.params, seen, b)

        b = (action - shift) / scale
        if config.correction == "exact":
            b, _, _ = minimise_over_box(cost_of, b, low, high)
        elif config.correction == "newton":
            b = newton_steps(cost_of, b, low, high, state.eta, config.damping, config.num_steps)
        else:
            # One unit of the step is a standard deviation of the actions, or 1 in [-1, 1].
            if config.precondition:
                metric = (state.normaliser.action_std / scale) ** 2
            else:
                metric = state.target_std * (1.0 if published else scale**-2)
            b = gradient_steps(cost_of, b, low, high, state.eta * metric, config.num_steps)
        corrected = jnp.clip(shift + scale * b, -1.0, 1.0)
        return jnp.where(jnp.abs(obs[5]) + jnp.abs(obs[6]) > state.gate, corrected, action)

    def policy(state):
        base_act = base.policy(state.base)

        def act(obs, rng):
            action = base_act(obs, rng)
            return correct(state, obs, action) if config.num_steps > 0 else action

        return act

    def run(state, data, rng, num_updates):
        data = data._replace(tracking_cost=targets(data))
        return scan_updates(update, state, data, rng, num_updates, config.batch_size)

    def train(rng, data):
        # The base sees the same key as when it is trained alone: it is the same policy.
        base_state, _ = base.train(rng, data)
        init_key, run_key = jax.random.split(jax.random.fold_in(rng, LAYER_KEY))
        return run(init(init_key, data, base_state), data, run_key, config.num_updates)

    return Algorithm(init, run, policy, train, config, base)


if __name__ == "__main__":
    command_line("picnn", PRESETS, make_train)
