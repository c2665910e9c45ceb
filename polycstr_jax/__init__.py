"""polycstr-jax: safe offline and offline-to-online RL on a polymerisation reactor, in JAX."""

from polycstr_jax.env import SCENARIOS, EnvParams, EnvState, PolyCSTR, make
from polycstr_jax.reactor import ReactorParams

__version__ = "0.1.0"
__all__ = ["SCENARIOS", "EnvParams", "EnvState", "PolyCSTR", "ReactorParams", "__version__", "make"]
