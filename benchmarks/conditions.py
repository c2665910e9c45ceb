"""The conditions under which methods are evaluated: sets of starts, and changed plants.

The leaderboard's conditions are the start sets on the nominal plant. Those of the robustness
suite change one thing at a time, from the nominal starts; no method is trained or tuned for them.
"""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from polycstr_jax import evaluate
from polycstr_jax.env import EnvParams, scenario_params

ROBUSTNESS = Path(__file__).parent / "robustness.npz"
NOISE = (20.0, 0.4, 0.06, 4.0, 1.0)  # std of A, I, R x 1e6, P, T for 1 K; 4 % of steady A, I, R, P
FAMILIES = {  # what is changed -> levels, and their unit
    "noise": ((0.1, 0.3, 1.0), "K std of the temperature measured, 0.4 % of all else for 0.1 K"),
    "fouling": ((5, 10, 20), "% of the heat-transfer coefficient lost"),
    "kinetics": ((-10, 10, 20), "% of the propagation rate"),
    "feed": ((1, 2, 4), "K std of the feed temperature, and kg/h std of the monomer feed"),
    "delay": ((1, 2, 4), "intervals from an action to its effect"),
}


class Condition(NamedTuple):
    """Starts, and what differs from the scenario's parameters; all of it can be written as JSON."""

    name: str
    starts: str
    factors: dict[str, float] = {}  # noqa: RUF012 (of constants of the reactor; never changed)
    hooks: dict[str, Any] = {}  # noqa: RUF012 (fields of `EnvParams`; never changed)

    @property
    def changes_plant(self) -> bool:
        """Whether other returns are possible than on the nominal plant."""
        return bool(self.factors) or set(self.hooks) - {"measurement_noise"} != set()


def of_starts(*kinds: str) -> tuple[Condition, ...]:
    """Start sets on the nominal plant."""
    return tuple(Condition(kind, kind) for kind in kinds)


def _level(family: str, level: float) -> Condition:
    name = f"{family} {level:g}"
    if family == "noise":
        noise = [round(level * x, 6) for x in NOISE]
        return Condition(name, "nominal", hooks={"measurement_noise": noise})
    if family == "fouling":
        return Condition(name, "nominal", {"heat_transfer": 1.0 - level / 100.0})
    if family == "kinetics":
        return Condition(name, "nominal", {"propagation_rate": 1.0 + level / 100.0})
    if family == "feed":
        return Condition(name, "nominal", hooks={"disturbance_std": [float(level)] * 2})
    return Condition(name, "nominal", hooks={"action_delay": level})


LEADERBOARD = of_starts("nominal", "wide", "hot")
FISOR = (*of_starts("nominal", "hot"), _level("noise", 0.3))  # a stochastic constraint
SUITE = (
    *of_starts("nominal", "wide"),
    *(_level(family, level) for family, (levels, _) in FAMILIES.items() for level in levels),
)


def params(scenario: str, condition: Condition) -> EnvParams:
    """The parameters of the true plant under a condition."""
    arrays = {k: np.asarray(v) if isinstance(v, list) else v for k, v in condition.hooks.items()}
    nominal = scenario_params(scenario, **arrays)
    constants = {k: getattr(nominal.reactor, k) * x for k, x in condition.factors.items()}
    return nominal.replace(reactor=nominal.reactor.replace(**constants))


def references(scenario: str, condition: Condition) -> evaluate.References:
    """What is possible under a condition, on its true plant; see `evaluate.references`.

    0 of the gap closed is the open-loop step to the true plant's steady inputs, 100 the oracle
    that knows the true plant, the disturbances to come included. On changed plants the
    unconstrained optimum is not known.
    """
    if not condition.changes_plant:
        return evaluate.references(scenario, condition.starts)
    with np.load(ROBUSTNESS) as content:
        found = {
            name: content[f"{scenario} {condition.name} {name}"]
            for name in ("step", "oracle", "oracle_known")
        }
    unknown = np.zeros(found["step"].shape, bool)
    free = np.full(unknown.shape, np.nan)
    return evaluate.References(**found, unconstrained=free, unconstrained_known=unknown)


def optimal_actions(scenario: str, condition: Condition, which: str) -> np.ndarray:
    """The plans (E, 200, 2) behind `references`; `which`: "oracle" or "unconstrained"."""
    if not condition.changes_plant:
        return evaluate.optimal_actions(scenario, condition.starts, which)
    with np.load(ROBUSTNESS) as content:
        return content[f"{scenario} {condition.name} {which}_action"]
