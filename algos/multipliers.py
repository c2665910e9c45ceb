"""Controllers of a Lagrange multiplier: dual ascent, PID, and the adaptive PID of arXiv 2412.04426.

One call for each measured cost c of an episode, undiscounted, against its limit k (`update`):

    fixed   lambda stays
    dual    lambda <- max(0, lambda + rate (c - k))
    adam    the same step by Adam
    pid     e = c - k;  I <- max(0, I + K_i e);  e_bar, c_bar <- their moving averages
            D = max(0, c_bar - c_bar 10 calls ago)
            lambda = max(0, K_p e_bar + I + K_d D)
    apid    pid, with gains that are multiplied at every call, within a tenth and ten times their
            first values, by

        released     1 + 0.05 (m - k) / m  (K_p, K_i)    1 + 0.05 s / m  (K_d)
                     m, s: mean + 0.1 and deviation of the last 10 c_bar; after lambda
        paper        the same of the last 10 costs themselves, before lambda; s the variance, or
                     the deviation (`spread`)
        symmetric    exp(0.05 tanh(|m - k| / k))         exp(0.05 tanh(s / k))
                     of the last 10 costs, before lambda, after all gains have gone 5 % of the way
                     back to their first values; I at most `max_integral`

The released K_i is ten times its first value above the limit and a tenth of it below, so that
lambda rises a hundred times as fast as it falls; it grows by at most 5 % a call and falls by any
factor; and K_d never falls. That is what `symmetric` mends. Of a limit of 0 its k is 1.

All of it is elementwise: costs, limits and multipliers of several constraints are (M,). Lambda
has the unit of a reward value over a cost value: `scale` at the start multiplies gains, rates, the
first lambda and the bound on I, so that a controller scaled by 7 gives 7 times the multiplier.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from algos.common import check_choices, check_range

Rule = Literal["fixed", "dual", "adam", "pid", "apid"]
Adaptation = Literal["paper", "released", "symmetric"]
Spread = Literal["variance", "deviation"]
ADAM = (0.9, 0.999, 1e-8)
OFFSET = 0.1  # of the mean cost that the released rule divides by


@dataclass(frozen=True)
class Controller:
    """Which rule, and its constants."""

    rule: Rule = "pid"
    initial: float = 0.0  # lambda
    rate: float = 1e-3  # of dual and adam
    proportional: float = 1e-2
    integral: float = 1e-2
    derivative: float = 1e-2
    smoothing: float = 0.9  # of e_bar and c_bar (released)
    delay: int = 10  # calls (released)
    adaptation: Adaptation = "paper"
    adaptation_rate: float = 0.05  # (released)
    gain_range: float = 10.0  # (released)
    spread: Spread = "variance"  # of `paper`
    max_integral: float = 100.0  # of `symmetric`
    decay: float = 0.05  # of the gains, of `symmetric`


RELEASED = Controller(
    rule="apid", adaptation="released", proportional=5e-6, integral=5e-6, derivative=5e-6
)


class Gains(NamedTuple):
    """K_p, K_i, K_d, (M,) each."""

    proportional: jax.Array
    integral: jax.Array
    derivative: jax.Array


class State(NamedTuple):
    """What a controller carries; (M,) each but where noted."""

    multiplier: jax.Array
    parts: Gains  # lambda's proportional, integral and derivative part, before max(0, .)
    first: Gains  # gains at the start
    gains: Gains
    error: jax.Array  # e_bar
    cost: jax.Array  # c_bar
    smoothed: jax.Array  # (delay, M) the last c_bar, newest last
    costs: jax.Array  # (delay, M) the last costs
    scale: jax.Array
    count: jax.Array  # () calls so far
    moments: tuple[jax.Array, jax.Array]  # of Adam


def check(config: Controller) -> None:
    """`ValueError` naming the setting, its value and what is allowed."""
    check_choices(config)
    gains = ("proportional", "integral", "derivative", "rate", "initial", "adaptation_rate")
    check_range(config, (*gains, "max_integral"), "0 or more", lambda x: x >= 0.0)
    check_range(config, ("smoothing", "decay"), "0 or more, below 1", lambda x: 0.0 <= x < 1.0)
    check_range(config, ("delay", "gain_range"), "1 or more", lambda x: x >= 1)


def init(config: Controller, num: int = 1, scale=1.0) -> State:
    """Before the first call, of `num` multipliers; `scale` () or (M,) is the unit of lambda."""
    check(config)
    zero = jnp.zeros((num,))
    gains = (config.proportional, config.integral, config.derivative)
    scale = jnp.broadcast_to(jnp.asarray(scale, zero.dtype), (num,))
    first = Gains(*(k * scale for k in gains))
    multiplier = config.initial * scale
    history = jnp.zeros((config.delay, num))
    parts = Gains(zero, multiplier, zero)  # the integral starts at the first lambda
    count = jnp.zeros((), jnp.int32)
    moments = (zero, zero)
    averages = (zero, zero, history, history)
    return State(multiplier, parts, first, first, *averages, scale, count, moments)


def update(config: Controller, state: State, cost, limit) -> State:
    """One call with costs (M,) against limits (M,)."""
    cost, limit = jnp.atleast_1d(cost), jnp.atleast_1d(limit)
    if config.rule == "fixed":
        return state._replace(count=state.count + 1)
    if config.rule in ("dual", "adam"):
        return ascend(config, state, cost - limit)
    costs = jnp.concatenate([state.costs[1:], cost[None]])
    state = state._replace(costs=costs)
    if config.rule == "apid" and config.adaptation != "released":
        state = state._replace(gains=adapted(config, state, limit))
    error = config.smoothing * state.error + (1.0 - config.smoothing) * (cost - limit)
    smooth = config.smoothing * state.cost + (1.0 - config.smoothing) * cost
    total = state.parts.integral + state.gains.integral * (cost - limit)
    bounded = config.rule == "apid" and config.adaptation == "symmetric"
    highest = config.max_integral * state.scale if bounded else jnp.inf
    parts = Gains(
        proportional=state.gains.proportional * error,
        integral=jnp.clip(total, 0.0, highest),
        # The oldest of at most `delay`; before the first call there is a 0.
        derivative=state.gains.derivative * jnp.maximum(0.0, smooth - state.smoothed[0]),
    )
    state = state._replace(
        multiplier=jnp.maximum(0.0, sum(parts)),
        parts=parts,
        error=error,
        cost=smooth,
        smoothed=jnp.concatenate([state.smoothed[1:], smooth[None]]),
        count=state.count + 1,
    )
    if config.rule == "apid" and config.adaptation == "released":
        state = state._replace(gains=adapted(config, state, limit))
    return state


def ascend(config: Controller, state: State, error) -> State:
    """Dual ascent along the error (M,), plain or by Adam, whose steps are in units of lambda."""
    count, rate = state.count + 1, config.rate * state.scale
    if config.rule == "dual":
        step, moments = rate * error, state.moments
    else:
        first, second, small = ADAM
        mean = first * state.moments[0] + (1.0 - first) * error
        square = second * state.moments[1] + (1.0 - second) * error**2
        moments = (mean, square)
        power = count.astype(error.dtype)
        mean, square = mean / (1.0 - first**power), square / (1.0 - second**power)
        step = rate * mean / (jnp.sqrt(square) + small)
    multiplier = jnp.maximum(0.0, state.multiplier + step)
    return state._replace(multiplier=multiplier, moments=moments, count=count)


def adapted(config: Controller, state: State, limit) -> Gains:
    """The gains after one step of adaptation."""
    rate, released = config.adaptation_rate, config.adaptation == "released"
    # The released history begins with one 0, and counts it until it is full.
    mean, deviation = statistics(state.smoothed if released else state.costs, state.count + 1)
    if config.adaptation == "symmetric":
        unit = jnp.where(limit > 0.0, limit, 1.0)
        up = jnp.exp(rate * jnp.tanh(jnp.abs(mean - limit) / unit))
        wide = jnp.exp(rate * jnp.tanh(deviation / unit))
    else:
        mean = mean + OFFSET
        spread = deviation if released or config.spread == "deviation" else deviation**2
        up, wide = 1.0 + rate * (mean - limit) / mean, 1.0 + rate * spread / mean
    decay = config.decay if config.adaptation == "symmetric" else 0.0

    def one(gain, first, factor):
        moved = (gain + decay * (first - gain)) * factor
        return jnp.clip(moved, first / config.gain_range, first * config.gain_range)

    return Gains(*jax.tree.map(one, tuple(state.gains), tuple(state.first), (up, up, wide)))


def statistics(history, count):
    """Mean and deviation (M,) over the newest `count` () of the history (K, M)."""
    size = history.shape[0]
    known = (jnp.arange(size) >= size - count)[:, None]
    mean = jnp.mean(history, axis=0, where=known)
    return mean, jnp.sqrt(jnp.mean((history - mean[None]) ** 2, axis=0, where=known))


def reset(state: State) -> State:
    """With K_d as at the start and no past costs, for a plant that has changed; lambda and the
    moving averages stay."""
    return state._replace(
        gains=state.gains._replace(derivative=state.first.derivative),
        costs=jnp.zeros_like(state.costs),
        smoothed=jnp.tile(state.cost[None], (state.smoothed.shape[0], 1)),
        count=jnp.zeros_like(state.count),
        moments=jax.tree.map(jnp.zeros_like, state.moments),
    )
