"""Whole episodes of many lanes: the roll-out engine.

Every lane integrates with its own clock and step size. `RODAS4P` crosses nine intervals in ten
with a single internal step, but a lane that ignites needs up to a hundred, and under a plain
`vmap` all lanes would pay for it. So an interval has two loops: the first advances all lanes
until only a few stragglers (1/16 of the lanes) are left; these are gathered into a small batch,
finished there, and scattered back. The controller is evaluated exactly once per interval for
all lanes, which is what a neural policy needs. Measured against an engine in which each lane
also carries its own interval index (`benchmarks/throughput.py`), this is twice as fast.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from polycstr_jax import reactor
from polycstr_jax.env import Applied, EnvParams, EnvState, PolyCSTR, plant

STRAGGLER_SHARE = 16  # lanes / 16 may be left over for the small batch
MIN_LANES_TO_COMPACT = 64

Controller = Callable[[Array, Any], tuple[Array, Any]]


class Trajectory(NamedTuple):
    """Episodes of N lanes over T intervals, time first."""

    obs: Float[Array, "T N 9"]  # what the controller saw
    action: Float[Array, "T N 2"]  # what it asked for
    reward: Float[Array, "T N"]
    cost: Float[Array, "T N"]
    constraints: Float[Array, "T N 2"]  # signed margins, <= 0 safe
    next_obs: Float[Array, "T N 9"]
    terminated: Bool[Array, "T N"]  # the integrator failed
    truncated: Bool[Array, "T N"]  # the horizon was reached
    tracking_cost: Float[Array, "T N"]  # |e_P| + |e_T|
    peak_temperature: Float[Array, "T N"]  # K, within the interval
    state: Float[Array, "T N 5"]  # true reactor state at the interval's end, public units
    control: Float[Array, "T N 2"]  # kg/h, K in force during the interval
    alive: Bool[Array, "T N"]  # False after a termination: the state stands still from there
    clipped_action: Bool[Array, "T N"]
    invalid_action: Bool[Array, "T N"]
    solver_steps: Int[Array, "T N"]


def rollout(
    env: PolyCSTR,
    params: EnvParams,
    controller: Controller,
    controller_state: Any,
    initial_state: EnvState,
    keys: Array,
    num_steps: int | None = None,
    straggler_share: int | None = STRAGGLER_SHARE,
) -> Trajectory:
    """Roll a controller out on N lanes, without resets.

    Arguments:

    - `controller`: per lane, `(obs (9,), controller_state) -> (action (2,), controller_state)`;
      any jittable function. Leaves of `controller_state` have a leading axis N.
    - `initial_state`: `EnvState` with a leading axis N; `keys`: (N,) PRNG keys.
    - `params`: parameters common to all lanes (`vmap` over this function to stack scenarios).
    - `num_steps`: intervals T; `params.max_steps_in_episode` if None, which must be concrete.
    - `straggler_share`: the last lanes / `straggler_share` of an interval are finished in a small
      batch (static); None for a plain vmapped loop, in which all wait for the slowest.

    The keys of `env.step_env` for interval k of a lane are `fold_in(key, k)`: stepping the
    environment with these gives the same episode. Pure; wrap it in `jax.jit`.

    Raises `ValueError` for leading axes that differ.
    """
    num_lanes = check_lanes(controller_state, initial_state, keys)
    if num_steps is None:
        num_steps = int(params.max_steps_in_episode)

    def begin(state, action, draws):
        return env.begin_interval(state, action, draws, params)

    def end(state, applied, result):
        return env.end_interval(state, applied, result, params)

    def observe(state, draws):
        return env.observation(state, draws, params)

    def draw_all(index):
        # As in `step_env`. The branch on `params` inside `draw` stays a branch: it has no lanes.
        def draw(key):
            key_draws, _ = jax.random.split(jax.random.fold_in(key, index))
            return env.draw(key_draws, params)

        return jax.vmap(draw)(keys)

    def interval(carry, index):
        state, controller_state, obs, alive = carry
        draws = draw_all(index)
        action, controller_state = jax.vmap(controller)(obs, controller_state)
        applied = jax.vmap(begin)(state, action, draws)
        result = advance(env, state, applied, alive, params, straggler_share)
        next_state, reward, terminated, info = jax.vmap(end)(state, applied, result)
        next_obs = jax.vmap(observe)(next_state, draws)
        row = Trajectory(
            obs=obs,
            action=action,
            reward=reward,
            cost=info["cost"],
            constraints=info["constraints"],
            next_obs=next_obs,
            terminated=terminated,
            truncated=jax.vmap(lambda s: env.is_truncated(s, params))(next_state),
            tracking_cost=info["tracking_cost"],
            peak_temperature=result.peak,
            state=result.state,
            control=applied.control,
            alive=alive,
            clipped_action=info["clipped_action"],
            invalid_action=info["invalid_action"],
            solver_steps=result.num_steps,
        )
        return (next_state, controller_state, next_obs, alive & ~terminated), row

    # The first observation: no interval precedes it, so its noise has a key of its own.
    obs = jax.vmap(observe)(initial_state, draw_all(num_steps))
    carry = (initial_state, controller_state, obs, jnp.ones((num_lanes,), bool))
    return jax.lax.scan(interval, carry, jnp.arange(num_steps))[1]


def advance(
    env: PolyCSTR,
    state: EnvState,
    applied: Applied,
    alive: Bool[Array, " N"],
    params: EnvParams,
    straggler_share: int | None = STRAGGLER_SHARE,
) -> reactor.IntervalResult:
    """Integrate one interval of all lanes, stragglers apart; leaves have a leading axis N.

    Lanes that are not alive keep their state and count as failed.
    """
    num_lanes = alive.shape[0]

    def step(progress, applied):
        plant_params = plant(applied.plant_factors, applied.disturbance, params)
        return reactor.internal_step(progress, applied.inputs, plant_params, env.rtol)

    def unfinished(progress):
        return reactor.unfinished(progress, params.reactor)

    def run(progress, applied, leave):
        return jax.lax.while_loop(
            lambda p: jnp.sum(unfinished(p)) > leave,
            lambda p: jax.vmap(step)(p, applied),
            progress,
        )

    progress = jax.vmap(reactor.start_interval)(reactor.to_internal(state.reactor), state.step_size)
    if straggler_share is None or num_lanes < MIN_LANES_TO_COMPACT:
        progress = run(progress, applied, 0)
    else:
        few = max(1, num_lanes // straggler_share)
        progress = run(progress, applied, few)

        def finish(progress):
            left = jnp.nonzero(unfinished(progress), size=few, fill_value=0)[0]
            # Padding repeats lane 0 and is dropped when scattering back.
            real = jnp.arange(few) < jnp.sum(unfinished(progress))
            small = jax.tree.map(lambda x: x[left], (progress, applied))
            small_progress = run(*small, 0)
            target = jnp.where(real, left, num_lanes)
            return jax.tree.map(
                lambda x, new: x.at[target].set(new, mode="drop"), progress, small_progress
            )

        progress = jax.lax.cond(
            jnp.any(unfinished(progress)), finish, lambda progress: progress, progress
        )
    return reactor.interval_result(progress)


def check_lanes(controller_state, initial_state, keys) -> int:
    """The common leading axis; `ValueError` naming the argument that has another."""
    num_lanes = jnp.shape(keys)[0] if jnp.ndim(keys) else None
    if not num_lanes:
        raise ValueError(f"keys has shape {jnp.shape(keys)}; allowed: (N,) PRNG keys, N >= 1.")
    for name, tree in (("controller_state", controller_state), ("initial_state", initial_state)):
        for leaf in jax.tree.leaves(tree):
            if jnp.ndim(leaf) == 0 or jnp.shape(leaf)[0] != num_lanes:
                raise ValueError(
                    f"{name} has a leaf of shape {jnp.shape(leaf)}; allowed: a leading axis of "
                    f"{num_lanes}, the number of keys."
                )
    return num_lanes
