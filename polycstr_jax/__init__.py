"""polycstr-jax: safe offline and offline-to-online RL on a polymerisation reactor, in JAX."""

from functools import partial

import gymnasium
import gymnax

from polycstr_jax.env import SCENARIOS, EnvParams, EnvState, PolyCSTR, make
from polycstr_jax.reactor import ReactorParams

__version__ = "0.1.0"
__all__ = ["SCENARIOS", "EnvParams", "EnvState", "PolyCSTR", "ReactorParams", "__version__", "make"]


def _register() -> None:
    """Make the ids known to gymnasium and gymnax; harmless when repeated."""
    for scenario, env_id in SCENARIOS.items():
        if env_id not in gymnasium.registry:
            # No time limit here: the environment truncates by itself.
            gymnasium.register(
                env_id,
                entry_point="polycstr_jax.gymnasium_env:PolyCSTRGymnasium",
                kwargs={"id_or_scenario": env_id},
            )
        if env_id not in gymnax.registered_envs:
            gymnax.register(env_id, partial(PolyCSTR, scenario))


_register()
