"""What can still be kept below the temperature limit, and a shield that keeps it there.

The safest policy known lowers feed and coolant temperature as fast as allowed. Where it stays
below the limit, the state is *certified* feasible: the policy is its own witness. Where it does
not, that every other policy violates too is a conjecture: a test searches for counterexamples
among random and structured sequences of actions. Both hold for the true state and the nominal
plant.

The state is what the environment's observation shows: reactor state and controls in force.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from polycstr_jax import reactor
from polycstr_jax.controllers import SAFEST, safest
from polycstr_jax.env import EnvParams, PolyCSTR, initial_state, state_from_obs
from polycstr_jax.oracle import check_horizon, check_limit
from polycstr_jax.rollout import Trajectory, rollout

SAFEST_STEPS = 24  # intervals over which the safest policy is followed
SHIELD_MARGIN = 0.01  # K below the limit
BAND = 5.0  # K around the limit, where telling feasible from doomed states is hard
NUM_BISECTIONS = 10
RTOL = 1e-4


class Shielded(NamedTuple):
    """What the shield made of an action."""

    action: Float[Array, "2"]
    blend: Float[Array, ""]  # 0: the action as it was, 1: the safest action
    margin: Float[Array, ""]  # K, of the action returned: limit - highest temperature ahead
    feasible: Bool[Array, ""]  # False: not even the safest action keeps the limit


def peak_under_safest(
    state: Float[Array, "5"],
    controls: Float[Array, "2"],
    params: EnvParams | None = None,
    *,
    num_steps: int = SAFEST_STEPS,
    rtol: float = RTOL,
) -> Float[Array, ""]:
    """Highest temperature [K], now or later, if feed and coolant are lowered as fast as allowed.

    `state` (5,) in public units and `controls` (2,) in force [kg/h, K]; vmappable, jittable.
    Followed for `num_steps` intervals; infinite where the integrator fails. Raises `ValueError`
    for `num_steps` below 1.
    """
    check_horizon(num_steps, "num_steps")
    params = EnvParams() if params is None else params
    step = make_step(params, rtol)

    def interval(carry, _):
        state, controls, step_size, peak = carry
        state, controls, step_size, top = step(state, controls, step_size, jnp.asarray(SAFEST))
        return (state, controls, step_size, jnp.maximum(peak, top)), None

    step_size = jnp.asarray(reactor.FIRST_STEP, state.dtype)
    return jax.lax.scan(interval, (state, controls, step_size, state[4]), None, num_steps)[0][3]


def peaks_under_safest(
    states: Float[Array, "N 5"],
    controls: Float[Array, "N 2"],
    params: EnvParams | None = None,
    *,
    num_steps: int = SAFEST_STEPS,
    rtol: float = RTOL,
    chunk: int = 4_096,
) -> Float[Array, " N"]:
    """`peak_under_safest` of N states by the roll-out engine, `chunk` of them at a time.

    Under a plain `vmap` every state waits for those that ignite; here these are set apart. In
    JAX's default precision. Jittable. Raises `ValueError` for `num_steps` or `chunk` below 1.
    """
    check_horizon(num_steps, "num_steps")
    check_horizon(chunk, "chunk")
    params = EnvParams() if params is None else params
    states, controls = jnp.asarray(states), jnp.asarray(controls)
    if not len(states):
        return states[:, 4]
    # The nominal plant: noise, delay and disturbances of the environment do not count.
    nominal = EnvParams(reactor=params.reactor, max_increment=params.max_increment)
    env, num = PolyCSTR(rtol=rtol), states.shape[0]
    size = min(chunk, num)
    index = jnp.arange(-(-num // size) * size) % num  # the last chunk is filled up

    def of_chunk(index):
        initial = jax.vmap(initial_state)(states[index], controls[index])
        keys = jax.random.split(jax.random.key(0), size)  # nothing is drawn
        memory = jnp.zeros((size,))
        found = rollout(env, nominal, safest, memory, initial, keys, num_steps)
        failed = found.terminated | ~found.alive
        peak = jnp.where(failed, jnp.inf, found.peak_temperature).max(axis=0)
        return jnp.maximum(peak, initial.reactor[:, 4])

    return jax.lax.map(of_chunk, index.reshape(-1, size)).reshape(-1)[:num]


def make_step(params: EnvParams, rtol: float = RTOL):
    """One interval of the nominal plant: (state, controls, step size, action) -> the same and the
    peak [K], infinite where the integrator fails."""
    low, high = reactor.control_bounds(params.reactor)

    def step(state, controls, step_size, action):
        dtype = state.dtype
        new = controls + action.astype(dtype) * jnp.asarray(params.max_increment, dtype)
        new = jnp.clip(new, low.astype(dtype), high.astype(dtype))
        inputs = reactor.hold_inputs(new, controls[0], params.reactor)
        result = reactor.integrate_interval(state, step_size, inputs, params.reactor, rtol)
        peak = jnp.where(result.failed, jnp.inf, result.peak)
        return result.state, new, result.step_size, peak

    return step


def feasible_margin(state, controls, params: EnvParams | None = None) -> Float[Array, ""]:
    """Limit - `peak_under_safest` [K]: at least 0 is certified feasible.

    Raises `ValueError` for a concrete limit that is not above the set-point and below 600 K.
    """
    params = checked(params)
    return params.temperature_limit - peak_under_safest(state, controls, params)


def checked(params: EnvParams | None) -> EnvParams:
    """The parameters, the nominal ones if None; `ValueError` for a limit that makes no sense."""
    params = EnvParams() if params is None else params
    concerned = (params.temperature_limit, params.temperature_setpoint)
    if not any(isinstance(x, jax.core.Tracer) for x in concerned):
        check_limit(float(params.temperature_limit), params)
    return params


class Agreement(NamedTuple):
    """How a learned feasibility compares with the answer key, near the boundary."""

    false_alarms: float  # share of the feasible states that are called doomed
    misses: float  # share of the doomed states that are called feasible
    num_feasible: int
    num_doomed: int


def agreement(called_feasible, margin, band: float = BAND) -> Agreement:
    """False alarms and misses of N states' verdicts (N,) where |`feasible_margin`| <= `band` [K].

    Farther away, temperature alone separates them. A share of no states is NaN. Raises
    `ValueError` for shapes that differ and a band that is not positive.
    """
    called, margin = np.asarray(called_feasible, bool), np.asarray(margin)
    if called.ndim != 1 or margin.shape != called.shape:
        raise ValueError(
            f"called_feasible and margin have shapes {called.shape} and {margin.shape}; allowed: "
            "(N,) twice."
        )
    if not band > 0.0:
        raise ValueError(f"band = {band}; allowed: above 0 K.")
    near = np.abs(margin) <= band
    feasible, doomed = near & (margin >= 0.0), near & (margin < 0.0)

    def share(wrong, among):
        return float(wrong[among].mean()) if among.any() else float("nan")

    return Agreement(
        share(~called, feasible), share(called, doomed), int(feasible.sum()), int(doomed.sum())
    )


def action_margin(state, controls, action, params: EnvParams | None = None) -> Float[Array, ""]:
    """Limit - highest temperature [K] if `action` (2,) is taken now and the safest ever after.

    Raises as `feasible_margin`.
    """
    params = checked(params)
    step_size = jnp.asarray(reactor.FIRST_STEP, state.dtype)
    bounded = jnp.clip(action, -1.0, 1.0)
    state, controls, _, peak = make_step(params)(state, controls, step_size, bounded)
    ahead = peak_under_safest(state, controls, params)
    return params.temperature_limit - jnp.maximum(peak, ahead)


def shield(
    state: Float[Array, "5"],
    controls: Float[Array, "2"],
    action: Float[Array, "2"],
    params: EnvParams | None = None,
    *,
    margin: float = SHIELD_MARGIN,
) -> Shielded:
    """The smallest blend of `action` towards the safest one that keeps the limit, by bisection.

    The action returned has been simulated: with it, and the safest policy after it, the
    temperature stays `margin` [K] below the limit. Where nothing does, the safest action comes
    back, the least violating known, with `feasible` False and its (negative) margin. Raises as
    `feasible_margin`.
    """
    params = checked(params)
    action = jnp.clip(action, -1.0, 1.0)

    def blended(blend):
        return action + blend * (jnp.asarray(SAFEST, action.dtype) - action)

    def margin_of(blend):
        return action_margin(state, controls, blended(blend), params)

    zero, one = jnp.zeros((), action.dtype), jnp.ones((), action.dtype)
    as_it_was = margin_of(zero)
    # The loops run only while a lane of the batch still needs them.
    no_blend = as_it_was >= margin
    start = jnp.where(no_blend, zero, one)
    of_safest = jax.lax.while_loop(
        lambda x: ~x[0], lambda _: (jnp.asarray(True), margin_of(one)), (no_blend, as_it_was)
    )[1]
    possible = ~no_blend & (of_safest >= margin)

    def halve(x):
        low, high, best, count = x
        middle = 0.5 * (low + high)
        found = margin_of(middle)
        good = found >= margin
        low, high = jnp.where(good, low, middle), jnp.where(good, middle, high)
        return low, high, jnp.where(good, found, best), count + 1

    _, blend, best, _ = jax.lax.while_loop(
        lambda x: possible & (x[3] < NUM_BISECTIONS), halve, (zero, start, of_safest, 0)
    )
    return Shielded(blended(blend), blend, best, best >= 0.0)


def shielded(act: Callable, params: EnvParams, margin: float = SHIELD_MARGIN) -> Callable:
    """`act(obs, ...)`, a policy or a controller, behind the shield.

    `act` returns an action, or a pair that begins with one. The shield believes the observation.
    Raises as `feasible_margin`.
    """
    checked(params)

    def behind(obs, *args):
        return _replace_action(
            act(obs, *args),
            lambda action: shield(*state_from_obs(obs), action, params, margin=margin)[0],
        )

    return behind


def alarmed(act: Callable, threshold) -> Callable:
    """`act(obs, ...)` with a thermometer alarm: the safest action above `threshold` [K]."""

    def behind(obs, *args):
        too_hot = obs[4] > threshold
        safest = jnp.asarray(SAFEST, obs.dtype)
        return _replace_action(act(obs, *args), lambda action: jnp.where(too_hot, safest, action))

    return behind


def _replace_action(answer, change):
    if isinstance(answer, tuple):
        return change(answer[0]), *answer[1:]
    return change(answer)


# --- What an agent's episodes show ---


class Doom(NamedTuple):
    """Where episodes were already lost while nothing had happened yet, (E,) each."""

    doomed_share: Any  # share of the intervals before the first violation that began doomed
    first_doomed: Any  # h, the first such interval's beginning; NaN if there is none
    lead: Any  # h from there to the end of the first violating interval; NaN if there is none


@functools.partial(jax.jit, static_argnums=2)
def doom(trajectory: Trajectory, params: EnvParams, chunk: int = 4_096) -> Doom:
    """Live-but-doomed states of E episodes (T, E, ...), by `feasible_margin` of every state.

    `params`: the nominal plant. States are judged in chunks, to bound memory.
    """
    num_steps, num_lanes = trajectory.reward.shape
    hours = params.reactor.interval / 3600.0
    # The true states that intervals begin with; only the first is taken from its observation.
    state, control = jax.vmap(state_from_obs)(trajectory.obs[0])
    states = jnp.concatenate([state[None], trajectory.state[:-1]])
    controls = jnp.concatenate([control[None], trajectory.control[:-1]])
    violates = trajectory.peak_temperature > params.temperature_limit
    live = jnp.cumsum(violates, axis=0) - violates == 0  # up to the first violating interval
    # Only these are judged; the others are replaced by the first, and forgotten.
    states = jnp.where(live[..., None], states, states[:1])
    controls = jnp.where(live[..., None], controls, controls[:1])
    flat = (states.reshape(-1, 5), controls.reshape(-1, 2))
    margin = jax.lax.map(lambda x: feasible_margin(*x, params), flat, batch_size=chunk)
    doomed = live & (margin.reshape(num_steps, num_lanes) < 0.0)
    first, end = jnp.argmax(doomed, axis=0), jnp.argmax(violates, axis=0) + 1
    any_doomed, any_violates = doomed.any(axis=0), violates.any(axis=0)
    nan = jnp.asarray(jnp.nan, margin.dtype)
    return Doom(
        doomed_share=doomed.sum(axis=0) / live.sum(axis=0),
        first_doomed=jnp.where(any_doomed, hours * first, nan),
        lead=jnp.where(any_doomed & any_violates, hours * (end - first), nan),
    )
