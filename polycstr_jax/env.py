"""The control problem: a gymnax environment around the reactor.

Observation (9): monomer, initiator [kg/m3], radicals x 1e6 [mol/m3], polymer [kg/m3],
temperature [K], the set-point errors P_set - P and T_set - T, and the controls now in force,
initiator feed [kg/h] and coolant temperature [K].

Action (2) in [-1, 1]: increments of feed and coolant temperature, in units of at most 0.5 kg/h
and 1.0 K per interval of 1800 s; the controls are then clipped to their bounds.

Reward: -(e_P^2 + e_T^2) of the state reached. Cost: 1 if the temperature exceeded the limit
(356 K) anywhere within the interval. An episode is 200 intervals (100 h), truncated, not
terminated; only a failure of the integrator terminates.

Scenarios are data (`EnvParams`): start, inputs in force, set-points. So are the robustness
hooks, off by default: measurement noise, parameter mismatch, disturbances, input delay.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from gymnax.environments import environment, spaces
from jaxtyping import Array, Float

from polycstr_jax import reactor
from polycstr_jax.reactor import Inputs, IntervalResult, ReactorParams

OBS_NAMES = (
    "monomer",
    "initiator",
    "radicals_x1e6",
    "polymer",
    "temperature",
    "polymer_error",
    "temperature_error",
    "initiator_feed",
    "coolant_temperature",
)
OBS_UNITS = ("kg/m3", "kg/m3", "1e-6 mol/m3", "kg/m3", "K", "kg/m3", "K", "kg/h", "K")
OBS_SIZE, ACTION_SIZE = 9, 2
MAX_ACTION_DELAY = 8  # intervals; the length of the buffer in the state
NUM_DRAWS = 7  # standard normals per interval: 5 measurements, 2 disturbances

SCENARIOS = {
    "startup": "PolyCSTR-Startup-v0",
    "grade_down": "PolyCSTR-GradeDown-v0",
    "grade_up": "PolyCSTR-GradeUp-v0",
}


@struct.dataclass
class EnvState(environment.EnvState):
    """State of one reactor under control (no batch axis)."""

    time: Any  # int32, intervals since the start
    reactor: Array  # (5,) A, I [kg/m3], R [mol/m3], P [kg/m3], T [K]
    control: Array  # (2,) feed [kg/h], coolant temperature [K] in force
    step_size: Array  # s, the integrator's proposal for its next internal step
    pending: Array  # (8, 2) latest actions, newest first, for the input delay
    plant_factors: Array  # (3,) of UA, propagation rate and monomer feed, drawn at reset
    disturbance: Array  # (2,) of feed temperature [K] and monomer feed [kg/h], now in force


def _floats(*values):
    return struct.field(default_factory=lambda: np.asarray(values, np.float64))


@struct.dataclass
class EnvParams(environment.EnvParams):
    """Everything a user may vary, vmap or stack over scenarios; defaults are `startup`."""

    max_steps_in_episode: int = 200
    reactor: ReactorParams = struct.field(default_factory=ReactorParams)
    polymer_setpoint: float = 100.0  # kg/m3
    temperature_setpoint: float = 350.0  # K
    start_mean: Any = _floats(440.0, 0.0, 0.0, 0.0, 350.0)  # reactor state, public units
    start_width: Any = _floats(110.0, 0.0, 0.0, 0.0, 5.0)  # uniform, mean +- width
    initial_control: Any = _floats(1.0, 345.0)  # kg/h, K; also the bias of the PI controllers
    max_increment: Any = _floats(0.5, 1.0)  # kg/h, K per interval
    temperature_limit: float = 356.0  # K; cost is 1 where the interval's peak exceeds it
    runaway_temperature: float = 380.0  # K
    overshoot_constraint: Any = False  # whether the second margin is active
    overshoot_margin: float = 10.0  # kg/m3 above the set-point
    measurement_noise: Any = _floats(0.0, 0.0, 0.0, 0.0, 0.0)  # std of obs 0..4, in obs units
    mismatch_width: Any = _floats(0.0, 0.0, 0.0)  # relative: UA, propagation, monomer feed
    disturbance_std: Any = _floats(0.0, 0.0)  # stationary: feed temperature K, monomer feed kg/h
    disturbance_rate: float = 0.1  # mean reversion per interval, in (0, 1]
    action_delay: int = 0  # intervals, 0 to 8


class Applied(NamedTuple):
    """What one action does to the plant during the interval; leaves of one lane."""

    inputs: Inputs
    control: Array  # (2,)
    pending: Array  # (8, 2)
    plant_factors: Array  # (3,)
    disturbance: Array  # (2,)
    invalid: Array  # bool, the action was not finite
    clipped: Array  # bool, the action was finite but outside [-1, 1]


class PolyCSTR(environment.Environment[EnvState, EnvParams]):
    """Polymerisation CSTR, gymnax >= 1.0.1; use `polycstr_jax.make` to get it with parameters.

    Static settings: the scenario that names the default parameters, and the integrator's rtol.
    """

    _supports_transition_gradients = True

    def __init__(self, scenario: str = "startup", rtol: float = reactor.DEFAULT_RTOL):
        self.scenario = scenario_name(scenario)
        self.rtol = reactor.check_rtol(rtol, jnp.result_type(float))

    # Equal settings compile once: jit treats the environment as a static argument.
    def _settings(self):
        return (self.scenario, self.rtol, self.transition_gradients_enabled)

    def __eq__(self, other):
        return type(other) is type(self) and other._settings() == self._settings()

    def __hash__(self):
        return hash((type(self), self._settings()))

    @property
    def name(self) -> str:
        return SCENARIOS[self.scenario]

    @property
    def default_params(self) -> EnvParams:
        return scenario_params(self.scenario)

    @property
    def num_actions(self) -> int:
        return ACTION_SIZE

    def action_space(self, params: EnvParams | None = None):
        return spaces.Box(-1.0, 1.0, (ACTION_SIZE,))

    def observation_space(self, params: EnvParams | None = None):
        """Bounds far outside anything reached, a runaway included; noise may add to it."""
        return spaces.Box(jnp.asarray(OBS_LOW), jnp.asarray(OBS_HIGH), (OBS_SIZE,))

    def reset_env(self, key, params):
        """Draw a start of the scenario; closed-form."""
        key_start, key_obs = jax.random.split(key)
        dtype = jnp.result_type(float)
        draws = jax.random.uniform(key_start, (8,), dtype, -1.0, 1.0)
        start = jnp.asarray(params.start_mean, dtype)
        start = start + jnp.asarray(params.start_width, dtype) * draws[:5]
        factors = 1.0 + jnp.asarray(params.mismatch_width, dtype) * draws[5:]
        state = initial_state(start, params.initial_control, plant_factors=factors)
        return self.observe(key_obs, state, None, params), state

    def step_env(self, key, state, action, params):
        """One interval. Returns obs, state, reward, terminated, info (see `end_interval`)."""
        key_draws, _ = jax.random.split(key)
        draws = self.draw(key_draws, params)
        applied = self.begin_interval(state, action, draws, params)
        result = reactor.integrate_interval(
            state.reactor,
            state.step_size,
            applied.inputs,
            plant(applied.plant_factors, applied.disturbance, params),
            self.rtol,
        )
        next_state, reward, terminated, info = self.end_interval(state, applied, result, params)
        obs = self.observation(next_state, draws, params)
        obs, next_state = self._apply_transition_gradient_policy(obs, next_state)
        return obs, next_state, reward, terminated, info

    def draw(self, key, params) -> Float[Array, "7"]:
        """The interval's standard normals; zeros, and no random bits, where all hooks are off."""
        dtype = jnp.result_type(float)
        noisy = jnp.any(jnp.asarray(params.measurement_noise) > 0.0)
        noisy = noisy | jnp.any(jnp.asarray(params.disturbance_std) > 0.0)
        return jax.lax.cond(
            noisy,
            lambda: jax.random.normal(key, (NUM_DRAWS,), dtype),
            lambda: jnp.zeros((NUM_DRAWS,), dtype),
        )

    def begin_interval(self, state: EnvState, action, draws, params: EnvParams) -> Applied:
        """From an action to the reactor's inputs: sanitise, delay, increment, clip, disturb.

        Raises `ValueError` at trace time for an action of another shape or of no real dtype.
        """
        action = jnp.asarray(action)
        real = jnp.issubdtype(action.dtype, jnp.floating) or jnp.issubdtype(
            action.dtype, jnp.integer
        )
        if action.shape != (ACTION_SIZE,) or not real:
            raise ValueError(
                f"action is {action.dtype} {action.shape}; allowed: real numbers of shape "
                f"({ACTION_SIZE},) (use jax.vmap for several reactors)."
            )
        dtype = state.control.dtype
        action = action.astype(dtype)
        invalid = ~jnp.all(jnp.isfinite(action))
        bounded = jnp.clip(action, -1.0, 1.0)
        clipped = ~invalid & jnp.any(bounded != action)
        bounded = jnp.where(invalid, jnp.zeros_like(bounded), bounded)

        queue = jnp.concatenate([bounded[None], state.pending])
        increment = jax.lax.dynamic_index_in_dim(
            queue, jnp.asarray(params.action_delay, jnp.int32), keepdims=False
        )
        plant_params = params.reactor
        low, high = reactor.control_bounds(plant_params)
        control = state.control + increment * jnp.asarray(params.max_increment, dtype)
        control = jnp.clip(control, low.astype(dtype), high.astype(dtype))

        keep = 1.0 - params.disturbance_rate
        kick = jnp.sqrt(1.0 - keep**2) * jnp.asarray(params.disturbance_std, dtype)
        return Applied(
            inputs=reactor.hold_inputs(control, state.control[0], plant_params),
            control=control,
            pending=queue[:-1],
            plant_factors=state.plant_factors,
            disturbance=(keep * state.disturbance + kick * draws[5:]).astype(dtype),
            invalid=invalid,
            clipped=clipped,
        )

    def end_interval(
        self, state: EnvState, applied: Applied, result: IntervalResult, params: EnvParams
    ):
        """Next state, reward, terminated and info, from where the reactor ended.

        `info`: `cost`, `constraints` (2,) signed margins (<= 0 safe), `peak_temperature` [K],
        `runaway`, `tracking_cost` = |e_P| + |e_T|, `invalid_action`, `clipped_action`,
        `solver_failed`, `solver_steps`.
        """
        next_state = EnvState(
            time=state.time + 1,
            reactor=result.state,
            control=applied.control,
            step_size=result.step_size,
            pending=applied.pending,
            plant_factors=applied.plant_factors,
            disturbance=applied.disturbance,
        )
        polymer_error = params.polymer_setpoint - result.state[3]
        temperature_error = params.temperature_setpoint - result.state[4]
        dtype = result.state.dtype
        overshoot = -polymer_error - params.overshoot_margin
        overshoot = jnp.where(params.overshoot_constraint, overshoot, -params.overshoot_margin)
        margins = jnp.stack([result.peak - params.temperature_limit, overshoot]).astype(dtype)
        info = {
            "cost": (margins[0] > 0.0).astype(dtype),
            "constraints": margins,
            "peak_temperature": result.peak,
            "runaway": result.peak > params.runaway_temperature,
            "tracking_cost": (jnp.abs(polymer_error) + jnp.abs(temperature_error)).astype(dtype),
            "invalid_action": applied.invalid,
            "clipped_action": applied.clipped,
            "solver_failed": result.failed,
            "solver_steps": result.num_steps,
        }
        reward = -(polymer_error**2 + temperature_error**2)
        return next_state, reward.astype(dtype), result.failed, info

    def observation(self, state: EnvState, draws, params: EnvParams) -> Float[Array, "9"]:
        """The measured observation; noise on A..T carries over to the errors."""
        noise = jnp.asarray(params.measurement_noise, state.reactor.dtype) * draws[:5]
        scale = jnp.asarray([1.0, 1.0, reactor.RADICAL_SCALE, 1.0, 1.0], state.reactor.dtype)
        measured = state.reactor * scale + noise
        errors = jnp.stack(
            [params.polymer_setpoint - measured[3], params.temperature_setpoint - measured[4]]
        )
        return jnp.concatenate([measured, errors.astype(measured.dtype), state.control])

    def observe(self, key, state, action, params):
        """Observation of a state with fresh measurement noise (gymnax hook)."""
        del action
        return self.observation(state, self.draw(key, params), params)

    def is_terminated(self, state, params):
        """There is no natural end; a failed integration terminates through `step_env`."""
        return jnp.zeros((), bool)


OBS_LOW = np.asarray([-1e3, -1e3, -1e6, -1e3, 0.0, -1e3, -1e3, -10.0, 0.0], np.float32)
OBS_HIGH = np.asarray([1e4, 1e3, 1e6, 1e4, 1e3, 1e3, 1e3, 100.0, 1e3], np.float32)
STATE_HIGH = OBS_HIGH[:5] / np.asarray([1.0, 1.0, reactor.RADICAL_SCALE, 1.0, 1.0])  # public units


def state_from_obs(obs: Float[Array, "9"]) -> tuple[Float[Array, "5"], Float[Array, "2"]]:
    """Reactor state (5,) in public units and controls in force (2,) that an observation shows.

    A negative concentration, which noise can show, is read as 0: no plant can start from it.
    """
    scale = jnp.asarray([1.0, 1.0, 1.0 / reactor.RADICAL_SCALE, 1.0], obs.dtype)
    concentrations = jnp.maximum(obs[:4] * scale, 0.0)
    return jnp.concatenate([concentrations, obs[4:5]]), obs[7:9]


def plant(plant_factors, disturbance, params: EnvParams) -> ReactorParams:
    """The physical constants in force: the nominal ones times factors, plus disturbances."""
    nominal = params.reactor
    return nominal.replace(
        heat_transfer=nominal.heat_transfer * plant_factors[0],
        propagation_rate=nominal.propagation_rate * plant_factors[1],
        monomer_feed=nominal.monomer_feed * plant_factors[2] + disturbance[1],
        feed_temperature=nominal.feed_temperature + disturbance[0],
    )


def initial_state(reactor_state, control, *, plant_factors=None) -> EnvState:
    """An `EnvState` at time 0 from a reactor state (5,) and the controls in force (2,)."""
    dtype = jnp.result_type(float)
    if plant_factors is None:
        plant_factors = jnp.ones((3,), dtype)
    return EnvState(
        time=jnp.zeros((), jnp.int32),
        reactor=jnp.asarray(reactor_state, dtype),
        control=jnp.asarray(control, dtype),
        step_size=jnp.asarray(reactor.FIRST_STEP, dtype),
        pending=jnp.zeros((MAX_ACTION_DELAY, ACTION_SIZE), dtype),
        plant_factors=jnp.asarray(plant_factors, dtype),
        disturbance=jnp.zeros((2,), dtype),
    )


def scenario_name(id_or_scenario: str) -> str:
    """The scenario of a name such as 'startup' or an id such as 'PolyCSTR-Startup-v0'."""
    for scenario, env_id in SCENARIOS.items():
        if id_or_scenario in (scenario, env_id):
            return scenario
    allowed = ", ".join([*SCENARIOS, *SCENARIOS.values()])
    raise ValueError(f"scenario = {id_or_scenario!r}; allowed: {allowed}.")


def scenario_params(scenario: str, **overrides) -> EnvParams:
    """The parameters of a scenario; a grade change starts around its old grade's steady state.

    `startup` is the published one; the grade changes 100 -> 60 and 60 -> 100 kg/m3 are ours.
    """
    scenario = scenario_name(scenario)
    if scenario == "startup":
        return EnvParams(**overrides)
    old, new = (100.0, 60.0) if scenario == "grade_down" else (60.0, 100.0)
    plant_params = overrides.get("reactor", ReactorParams())
    start, control = reactor.nominal_steady_state(old, 350.0, plant_params)
    width = np.asarray([0.05 * start[0], 0.0, 0.0, 0.05 * start[3], 2.0])
    defaults = dict(
        polymer_setpoint=new, start_mean=start, start_width=width, initial_control=control
    )
    return EnvParams(**{**defaults, **overrides})


def make(id_or_scenario: str, **overrides) -> tuple[PolyCSTR, EnvParams]:
    """The environment of a scenario, and its parameters.

    Arguments: `id_or_scenario`: 'startup', 'grade_down', 'grade_up' or an id such as
    'PolyCSTR-Startup-v0'. `overrides`: fields of `EnvParams`, and `rtol` of the integrator.

    Raises `ValueError` for an unknown name or field, a wrong shape, set-points that no
    admissible control holds, and limits, increments, noise levels or delays out of range.
    """
    rtol = overrides.pop("rtol", reactor.DEFAULT_RTOL)
    env = PolyCSTR(id_or_scenario, rtol)
    fields = EnvParams.__dataclass_fields__
    for name in overrides:
        if name not in fields:
            raise ValueError(f"{name} is no parameter; allowed: rtol, {', '.join(fields)}.")
    reference = EnvParams()
    for name, value in overrides.items():
        if isinstance(getattr(reference, name), np.ndarray):
            try:  # a list would be another pytree, and compile again
                overrides[name] = np.asarray(value, np.float64)
            except (TypeError, ValueError) as error:
                raise ValueError(f"{name} = {value!r}; allowed: an array of numbers.") from error
    params = scenario_params(env.scenario, **overrides)
    check_params(params)
    return env, params


def check_params(params: EnvParams) -> None:
    """Raise `ValueError` naming the first field of concrete `params` that makes no sense."""
    reference = EnvParams()
    if not isinstance(params.reactor, ReactorParams):
        raise ValueError(f"reactor = {params.reactor!r}; allowed: a reactor.ReactorParams.")
    for name in EnvParams.__dataclass_fields__:
        if name == "reactor":
            continue
        value, shape = np.asarray(getattr(params, name)), np.shape(getattr(reference, name))
        if value.dtype.kind not in "bif":
            raise ValueError(f"{name} = {getattr(params, name)!r}; allowed: numbers.")
        if value.shape != shape:
            raise ValueError(f"{name} has shape {value.shape}; allowed: {shape}.")
        if not np.all(np.isfinite(value)):
            raise ValueError(f"{name} = {value}; allowed: finite values.")
    may_be_zero = ("feed_min", "monomer_feed", "solvent_feed", "current_feed_in_flow")
    for name, value in vars(params.reactor).items():
        if not np.isfinite(value) or value < 0.0 or (value == 0.0 and name not in may_be_zero):
            allowed = "finite and non-negative" if name in may_be_zero else "finite and above 0"
            raise ValueError(f"reactor.{name} = {value}; allowed: {allowed}.")

    def require(name, condition, allowed):
        if not np.all(condition):
            raise ValueError(f"{name} = {getattr(params, name)}; allowed: {allowed}.")

    reactor.check_holdable(
        float(params.polymer_setpoint), float(params.temperature_setpoint), params.reactor
    )
    limit = params.temperature_limit
    require(
        "temperature_limit",
        params.temperature_setpoint < limit < 600.0,
        f"above the set-point of {params.temperature_setpoint} K and below 600 K",
    )
    require(
        "runaway_temperature",
        limit <= params.runaway_temperature < 1000.0,
        f"from the limit of {limit} K to 1000 K",
    )
    steps = params.max_steps_in_episode
    is_integer = isinstance(steps, int | np.integer) and not isinstance(steps, bool)
    require("max_steps_in_episode", is_integer and steps >= 1, "an integer, 1 or more intervals")
    require("start_width", params.start_width >= 0.0, "0 or more")
    lowest = params.start_mean - params.start_width
    highest = params.start_mean + params.start_width
    coldest, hottest = reactor.PHYSICAL_TEMPERATURE
    start_is_physical = (
        np.all(lowest[:4] >= 0.0)
        and np.all(highest <= STATE_HIGH)
        and coldest < lowest[4] <= highest[4] < hottest
    )
    require(
        "start_mean",
        start_is_physical,
        f"with start_width = {params.start_width}, concentrations from 0 to {STATE_HIGH[:4]} and "
        f"temperatures from {coldest} to {hottest} K",
    )
    require("max_increment", params.max_increment > 0.0, "above 0")
    require("measurement_noise", params.measurement_noise >= 0.0, "0 or more")
    width = params.mismatch_width
    require("mismatch_width", (width >= 0.0) & (width < 1.0), "from 0 to below 1, relative")
    require("disturbance_std", params.disturbance_std >= 0.0, "0 or more")
    require("disturbance_rate", 0.0 < params.disturbance_rate <= 1.0, "above 0, at most 1")
    delay = params.action_delay
    require(
        "action_delay",
        (0 <= delay <= MAX_ACTION_DELAY) and int(delay) == delay,
        f"0 to {MAX_ACTION_DELAY} intervals",
    )
    low, high = reactor.control_bounds(params.reactor, np)
    control = params.initial_control
    require(
        "initial_control",
        (control >= low) & (control <= high),
        f"within the control bounds {low} to {high}",
    )
