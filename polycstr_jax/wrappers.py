"""Wrappers for gymnax >= 1.0 environments: episode statistics, and the old five-value step.

Training code in the style of purejaxrl and rejax wants both:
`env = LegacyStepAPI(LogWrapper(env))`.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array


class Wrapper:
    """Holds an environment and passes on whatever it does not define itself."""

    def __init__(self, env):
        self._env = env

    def __getattr__(self, name: str):
        # `copy` and `pickle` ask for special methods before `_env` exists: looking them up in the
        # environment would recurse for ever, or copy the environment instead of the wrapper.
        if name == "_env" or (name.startswith("__") and name.endswith("__")):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(self._env, name)

    # As for the environment: equal wrappers of equal environments compile once.
    def __eq__(self, other):
        return type(other) is type(self) and other._env == self._env

    def __hash__(self):
        return hash((type(self), self._env))


class LegacyStepAPI(Wrapper):
    """The five-value step `(obs, state, reward, done, info)` that purejaxrl and rejax unpack.

    `done` = terminated or truncated; `info` keeps `terminated`, `truncated` and
    `final_observation` apart, as gymnax put them there.
    """

    @partial(jax.jit, static_argnames=("self",))
    def step(self, key, state, action, params=None):
        """One step with automatic reset; for `params=None` the environment's defaults."""
        obs, state, reward, terminated, truncated, info = self._env.step(key, state, action, params)
        return obs, state, reward, jnp.logical_or(terminated, truncated), info


@struct.dataclass
class LogState:
    """The environment's state, sums over the running episode, and those of the last finished one.

    Scalars (no batch axis); the `returned_*` are zero until an episode has finished.
    """

    env_state: Any
    episode_return: Array  # sum of rewards
    episode_cost: Array  # sum of info["cost"]: intervals above the temperature limit
    episode_length: Array  # int32, intervals
    episode_peak_temperature: Array  # K, 0 before the first interval
    episode_runaway: Array  # bool, whether any interval ran away
    returned_episode_return: Array
    returned_episode_cost: Array
    returned_episode_length: Array
    returned_episode_peak_temperature: Array
    returned_episode_runaway: Array


class LogWrapper(Wrapper):
    """Adds the statistics of the last finished episode to `info`; gymnax's six-value step.

    The environment's `info` must have `cost`, `peak_temperature` [K] and `runaway`.

    Added to `info`: `returned_episode` (bool, this step ended an episode) and, of the last
    finished episode, `returned_episode_return`, `returned_episode_cost`,
    `returned_episode_length`, `returned_episode_peak_temperature` [K],
    `returned_episode_runaway` and `returned_episode_violation` (bool, its cost is above 0). The
    plurals `returned_episode_returns` and `returned_episode_lengths` are there too: purejaxrl
    reads these.
    """

    @partial(jax.jit, static_argnames=("self",))
    def reset(self, key, params=None):
        """Returns obs and a `LogState` with all statistics zero."""
        obs, env_state = self._env.reset(key, params)
        statistics = _no_statistics()
        returned = {f"returned_{name}": value for name, value in statistics.items()}
        return obs, LogState(env_state=env_state, **statistics, **returned)

    @partial(jax.jit, static_argnames=("self",))
    def step(self, key, state, action, params=None):
        """Returns obs, `LogState`, reward, terminated, truncated, info; resets automatically."""
        obs, env_state, reward, terminated, truncated, info = self._env.step(
            key, state.env_state, action, params
        )
        done = jnp.logical_or(terminated, truncated)
        episode = {
            "episode_return": state.episode_return + reward,
            "episode_cost": state.episode_cost + info["cost"],
            "episode_length": state.episode_length + 1,
            "episode_peak_temperature": jnp.maximum(
                state.episode_peak_temperature, info["peak_temperature"]
            ),
            "episode_runaway": jnp.logical_or(state.episode_runaway, info["runaway"]),
        }
        returned = {
            f"returned_{name}": jnp.where(done, value, getattr(state, f"returned_{name}"))
            for name, value in episode.items()
        }
        running = {
            name: jnp.where(done, start, episode[name]) for name, start in _no_statistics().items()
        }
        info = {
            **info,
            **returned,
            "returned_episode": done,
            "returned_episode_violation": returned["returned_episode_cost"] > 0.0,
            "returned_episode_returns": returned["returned_episode_return"],
            "returned_episode_lengths": returned["returned_episode_length"],
        }
        state = LogState(env_state=env_state, **running, **returned)
        return obs, state, reward, terminated, truncated, info


def _no_statistics() -> dict[str, Array]:
    dtype = jnp.result_type(float)
    return {
        "episode_return": jnp.zeros((), dtype),
        "episode_cost": jnp.zeros((), dtype),
        "episode_length": jnp.zeros((), jnp.int32),
        "episode_peak_temperature": jnp.zeros((), dtype),
        "episode_runaway": jnp.zeros((), bool),
    }
