"""Controllers as pure functions `(obs, controller_state) -> (action, controller_state)`.

The PI controllers are those of the published simulator (arXiv 2507.22640): absolute positional
form, output = bias + Kp e + Ki integral(e), with the polymer error moving the feed and the
temperature error the coolant. The integral stands still where the output is limited.
"""

import json
from importlib import resources
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from polycstr_jax.env import ACTION_SIZE, EnvParams
from polycstr_jax.reactor import control_bounds

# Ranges of the published random gains, per second for Ki.
KP_LOW, KP_HIGH = (2e-4, 8e-3), (5e-3, 0.2)  # kg/h per kg/m3, K per K
KI_LOW, KI_HIGH = (6e-8, 2e-6), (1.5e-6, 5e-5)
SAFEST = (-1.0, -1.0)  # the action that lowers feed and coolant as fast as allowed


class PIState(NamedTuple):
    """Gains and memory of one PI controller."""

    kp: Float[Array, "2"]  # kg/h per kg/m3, K/K
    ki: Float[Array, "2"]  # the same per second
    bias: Float[Array, "2"]  # kg/h, K
    integral: Float[Array, "2"]  # kg s/m3, K s


def pi_state(kp, ki, bias) -> PIState:
    """A PI controller at rest; `kp`, `ki`, `bias` are (..., 2)."""
    dtype = jnp.result_type(float)
    kp, ki, bias = (jnp.asarray(x, dtype) for x in (kp, ki, bias))
    return PIState(kp, ki, jnp.broadcast_to(bias, kp.shape), jnp.zeros_like(kp))


def make_pi(params: EnvParams):
    """The PI controller for these parameters' bounds, increments and interval.

    The returned function takes the error from `obs` (so set-points and measurement noise are
    already in it) plus an optional third argument, an offset (2,) on the set-points.
    """

    def pi(obs, state: PIState, setpoint_offset=0.0):
        dtype = obs.dtype
        error = obs[5:7] + setpoint_offset
        in_force = obs[7:9]
        low, high = control_bounds(params.reactor)
        max_increment = jnp.asarray(params.max_increment, dtype)
        wanted = state.bias + state.kp * error + state.ki * state.integral
        output = jnp.clip(wanted, low.astype(dtype), high.astype(dtype))
        output = jnp.clip(output, in_force - max_increment, in_force + max_increment)
        free = output == wanted
        integral = jnp.where(free, state.integral + error * params.reactor.interval, state.integral)
        action = jnp.clip((output - in_force) / max_increment, -1.0, 1.0)
        return action.astype(dtype), state._replace(integral=integral.astype(dtype))

    return pi


def tuned_pi(name: str) -> PIState:
    """The PI controller tuned for a scenario, or, by the name "all", for all three together.

    Gains and bias with the best mean score without a violation on 256 starts of their own
    (`benchmarks.references pi`). Raises `ValueError` for another name.
    """
    text = resources.files("polycstr_jax").joinpath("tuned_pi.json").read_text()
    found = json.loads(text)["controllers"]
    if name not in found:
        raise ValueError(f"name = {name!r}; allowed: {', '.join(found)}.")
    return pi_state(*(found[name][part] for part in ("kp", "ki", "bias")))


def follow_plan(obs, memory):
    """Take the actions of a plan; the controller's state is (plan (T, 2), index ())."""
    plan, index = memory
    return plan[index].astype(obs.dtype), (plan, index + 1)


def zero(obs, state: Any):
    """Hold the controls."""
    return jnp.zeros((ACTION_SIZE,), obs.dtype), state


def safest(obs, state: Any):
    """Lower feed and coolant temperature as fast as allowed."""
    return jnp.asarray(SAFEST, obs.dtype), state


def uniform_random(obs, key):
    """Independent uniform actions; the controller's state is its PRNG key."""
    key, key_now = jax.random.split(key)
    return jax.random.uniform(key_now, (ACTION_SIZE,), obs.dtype, -1.0, 1.0), key
