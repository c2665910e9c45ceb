"""The control problem as a `gymnasium.Env`: one reactor, NumPy in and out.

`gymnasium.make("PolyCSTR-Startup-v0", temperature_limit=358.0)` after `import polycstr_jax`.
Unlike gymnax's own bridge it never resets by itself: the step that ends an episode returns that
episode's last observation. For many reactors at once use the JAX environment with `jax.vmap`.
"""

from functools import partial
from typing import Any

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces

from polycstr_jax import env as core
from polycstr_jax import reactor


class PolyCSTRGymnasium(gymnasium.Env):
    """A polymerisation reactor for Gymnasium.

    Arguments:

    - `id_or_scenario`: 'startup', 'grade_down', 'grade_up' or an id such as
      'PolyCSTR-Startup-v0'.
    - `render_mode`: None; there is nothing to render.
    - `overrides`: as for `polycstr_jax.make`: fields of `EnvParams`, and `rtol`.

    Spaces: observation (9,) float32 (see `polycstr_jax.env`); action (2,) float32 in [-1, 1],
    increments of initiator feed and coolant temperature. Reward and cost are the same as the JAX
    environment's. All instances with the same rtol share one compilation.

    Attributes to read: `env` and `params`, what `polycstr_jax.make` returned; `state`, the
    `EnvState` now, None before the first reset; `episode_seed`, from which `episode_keys` makes
    the keys with which the JAX environment repeats this episode.

    Raises `TypeError` for a `render_mode` other than None, and whatever `make` raises.
    """

    metadata = {"render_modes": []}  # noqa: RUF012 (Gymnasium's interface)

    def __init__(
        self, id_or_scenario: str = "startup", render_mode: str | None = None, **overrides
    ):
        if render_mode is not None:
            # Not a ValueError: Stable-Baselines3 asks for 'rgb_array' unless told otherwise, and
            # does without after a TypeError only.
            raise TypeError(f"render_mode = {render_mode!r}; allowed: None, nothing is rendered.")
        self.render_mode = None
        self.metadata = dict(self.metadata)  # vector environments write their mode into it
        self.env, self.params = core.make(id_or_scenario, **overrides)
        # Scenarios differ in `params` only, so one compiled program serves all of them.
        self._program = core.PolyCSTR(rtol=self.env.rtol)
        box = self.env.observation_space(self.params)
        self.observation_space = spaces.Box(np.asarray(box.low), np.asarray(box.high))
        self.action_space = spaces.Box(-1.0, 1.0, (core.ACTION_SIZE,))
        self.state = None
        self.episode_seed = None
        self._must_reset = "step() was called before reset(); call reset() first."

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        """Start an episode. Returns obs (9,) float32 and an empty dict.

        `seed` starts the random numbers anew, as always in Gymnasium. `options` may have
        `state` (5,): A, I [kg/m3], R [mol/m3], P [kg/m3], T [K], and `control` (2,): the feed
        [kg/h] and coolant temperature [K] in force; what is left out comes from the scenario.

        Raises `ValueError` for another option, a wrong shape, a value that is not finite, a
        concentration that is negative or beyond the observation space, a temperature not between
        250 and 1000 K, or a control out of bounds.
        """
        options = self._check_options(options)
        super().reset(seed=seed)
        self.episode_seed = self.np_random.integers(2**32, dtype=np.uint32)
        obs, self.state = _reset(self._program, self.episode_seed, self.params)
        if options:
            obs, self.state = _restart(
                self._program,
                self.episode_seed,
                self.state,
                options.get("state", self.state.reactor),
                options.get("control", self.state.control),
                self.params,
            )
        self._must_reset = None
        return np.asarray(obs), {}

    def step(self, action):
        """Apply `action` (2,) for one interval of 1800 s.

        Returns obs (9,) float32, reward, terminated (the integrator failed), truncated (the
        horizon is reached) and info: `cost`, `constraints` (2,), `peak_temperature` [K],
        `runaway`, `tracking_cost`, `invalid_action`, `clipped_action`, `solver_failed`,
        `solver_steps`, as Python numbers and a NumPy array. Finite values outside [-1, 1] are
        clipped and flagged.

        Raises `ValueError` for an action of another shape or with a value that is not finite,
        and `gymnasium.error.ResetNeeded` before the first reset and after an episode's end.
        """
        if self._must_reset:
            raise gymnasium.error.ResetNeeded(self._must_reset)
        action = _check_floats("action", action, (core.ACTION_SIZE,), "between -1 and 1")
        # The environment clips and flags; this only keeps 1e39 from being infinite in float32.
        action = np.clip(action, -2.0, 2.0)
        self.state, outputs = _step(
            self._program, self.episode_seed, self.state, action, self.params
        )
        obs, reward, terminated, truncated, info = jax.device_get(outputs)
        if terminated or truncated:
            how = "terminated" if terminated else "truncated"
            self._must_reset = f"The episode has ended ({how}); call reset() before step()."
        info = {name: value if np.ndim(value) else value.item() for name, value in info.items()}
        return obs, reward.item(), terminated.item(), truncated.item(), info

    def _check_options(self, options):
        options = dict(options or {})
        for name in options:
            if name not in ("state", "control"):
                raise ValueError(f"options has {name!r}; allowed: 'state' and 'control'.")
        low, high = reactor.PHYSICAL_TEMPERATURE
        if "state" in options:
            most = core.STATE_HIGH[:4]
            allowed = f"concentrations from 0 to {most}, a temperature between {low} and {high} K"
            shape = (reactor.NUM_STATES,)
            state = _check_floats("options['state']", options["state"], shape, allowed)
            if np.any(state[:4] < 0.0) or np.any(state[:4] > most) or not low < state[4] < high:
                raise ValueError(f"options['state'] = {state}; allowed: {allowed}.")
            options["state"] = state
        if "control" in options:
            low, high = reactor.control_bounds(self.params.reactor, np)
            allowed = f"from {low} to {high} (kg/h, K)"
            control = _check_floats("options['control']", options["control"], (2,), allowed)
            if np.any(control < low) or np.any(control > high):
                raise ValueError(f"options['control'] = {control}; allowed: {allowed}.")
            options["control"] = control
        return options


def episode_keys(seed) -> tuple[jax.Array, jax.Array]:
    """Keys of the episode with this `episode_seed`: for `env.reset_env`, and for its steps.

    Interval k has the key `fold_in(second key, k)`, as in `polycstr_jax.rollout.rollout`.
    """
    key_reset, key_steps = jax.random.split(jax.random.key(seed))
    return key_reset, key_steps


# Module level, with the environment static: instances of equal rtol share a compilation.


@partial(jax.jit, static_argnames=("env",))
def _reset(env, seed, params):
    obs, state = env.reset_env(episode_keys(seed)[0], params)
    return obs.astype(jnp.float32), state


@partial(jax.jit, static_argnames=("env",))
def _restart(env, seed, state, reactor_state, control, params):
    """`state` with another reactor state and controls; observed with the noise of `_reset`."""
    state = core.initial_state(reactor_state, control, plant_factors=state.plant_factors)
    _, key_obs = jax.random.split(episode_keys(seed)[0])
    return env.observe(key_obs, state, None, params).astype(jnp.float32), state


@partial(jax.jit, static_argnames=("env",))
def _step(env, seed, state, action, params):
    key = jax.random.fold_in(episode_keys(seed)[1], state.time)
    obs, state, reward, terminated, info = env.step_env(key, state, action, params)
    truncated = env.is_truncated(state, params)
    return state, (obs.astype(jnp.float32), reward, terminated, truncated, info)


def _check_floats(name: str, value, shape: tuple[int, ...], allowed: str) -> np.ndarray:
    """`value` as float64; `ValueError` for a wrong shape, no numbers, or not finite ones."""
    try:
        array = np.asarray(value)
        numeric = array.dtype.kind in "biuf"
    except (TypeError, ValueError):
        numeric = False
    if not numeric:
        raise ValueError(f"{name} = {value!r}; allowed: {shape[0]} numbers {allowed}.")
    if array.shape != shape:
        raise ValueError(f"{name} has shape {array.shape}; allowed: {shape}, {allowed}.")
    array = array.astype(np.float64)
    if not np.all(np.isfinite(array)):
        raise ValueError(f"{name} = {array}; allowed: finite values, {allowed}.")
    return array
