"""What `benchmarks/throughput.py` compares the roll-out engine with, on the same closed loops.

- `scipy_episode`: the published set-up, `scipy.integrate.solve_ivp` interval by interval.
- `kvaerno`: diffrax's implicit Runge-Kutta methods under `vmap`, a `diffeqsolve` an interval.
- `engine`: `polycstr_jax.rollout`, with its batch of stragglers or as a plain vmapped loop.
- `asynchronous`: one loop of internal steps in which each lane also has its own interval index.
- a policy alone, controllers in the engine's loop, and gymnax's `env.step`.

The JAX programs are functions `(setting, lanes)`: a `Setting` common to all lanes, and a `Lanes`
with a leading axis. SciPy and Kvaerno record no peak temperatures, which is in their favour.
"""

import functools
import itertools
from typing import Any, NamedTuple

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from scipy.integrate import solve_ivp

import polycstr_jax
from polycstr_jax import controllers, reactor
from polycstr_jax.env import NUM_DRAWS, EnvParams, EnvState, initial_state, plant
from polycstr_jax.rollout import STRAGGLER_SHARE, rollout

ENGINE = "engine"
NUM_INTERVALS = 200
PUBLISHED_RTOL, PUBLISHED_ATOL = 1e-6, 1e-8
KVAERNO_DTMIN = 1e-3  # s


class Problem(NamedTuple):
    """Closed loops under PI start-up, in NumPy float64: the same for every solver."""

    start: np.ndarray  # (N, 5) public units
    kp: np.ndarray  # (N, 2) kg/h per kg/m3, K per K
    ki: np.ndarray  # (N, 2) the same per second


class Setting(NamedTuple):
    """What all lanes have in common."""

    max_increment: Any  # (2,) kg/h, K per interval
    rtol: Any  # used by Kvaerno only: the engine's tolerance is a property of the environment


class Lanes(NamedTuple):
    """Arguments with a leading axis of lanes."""

    state: EnvState
    memory: Any  # of the controller
    key: Array


def random_problem(num_lanes: int, params: EnvParams) -> Problem:
    """Starts and gains as in the published data; some of these loops ignite."""
    rng = np.random.default_rng(0)
    start = params.start_mean + params.start_width * rng.uniform(-1.0, 1.0, (num_lanes, 5))
    return Problem(
        start,
        rng.uniform(controllers.KP_LOW, controllers.KP_HIGH, (num_lanes, 2)),
        rng.uniform(controllers.KI_LOW, controllers.KI_HIGH, (num_lanes, 2)),
    )


def to_lanes(problem: Problem, params: EnvParams) -> Lanes:
    """The problem as arguments of the JAX programs, in the precision in force."""
    state = jax.vmap(lambda start: initial_state(start, params.initial_control))(problem.start)
    memory = controllers.pi_state(problem.kp, problem.ki, params.initial_control)
    return Lanes(state, memory, jax.random.split(jax.random.key(0), len(problem.start)))


# --- SciPy ---


def scipy_rhs(t, y, feed, coolant, previous_feed):
    """The published right-hand side, in plain NumPy scalars."""
    a, i, r, p, temperature = y
    x = -1.0 / (8.314 * temperature)
    k_d, k_p, k_t = 1e9 * np.exp(125e3 * x), 4e4 * np.exp(25e3 * x), 1e6 * np.exp(15e3 * x)
    r_d, r_p, r_t = k_d * i / 0.165, k_p * r * a / 0.1, k_t * r * r
    q = (previous_feed + 180.0) / 1000.0 / 3600.0
    return [
        100.0 / 3600.0 - q * a - r_p * 0.1,
        feed / 3600.0 - q * i - r_d * 0.165,
        2.0 * r_d - 2.0 * r_t,
        r_p * 0.1 - q * p,
        (1e5 * r_p - 500.0 * (temperature - coolant) + q * 2e6 * (350.0 - temperature)) / 2e6,
    ]


def scipy_episode(method, max_increment, start, kp, ki):
    """One PI start-up at the published tolerances; states (200, 5) at the intervals' ends."""
    state, in_force, integral = np.array(start), np.array([1.0, 345.0]), np.zeros(2)
    states = []
    for _ in range(NUM_INTERVALS):
        error = np.array([100.0 - state[3], 350.0 - state[4]])
        wanted = np.array([1.0, 345.0]) + kp * error + ki * integral
        control = np.clip(wanted, [0.0, 300.0], [2.5, 350.0])
        control = np.clip(control, in_force - max_increment, in_force + max_increment)
        integral = np.where(control == wanted, integral + error * 1800.0, integral)
        solution = solve_ivp(
            scipy_rhs,
            (0.0, 1800.0),
            state,
            method=method,
            rtol=PUBLISHED_RTOL,
            atol=PUBLISHED_ATOL,
            args=(*control, in_force[0]),
        )
        state, in_force = solution.y[:, -1], control
        states.append(state)
    return np.stack(states)


# --- JAX programs: (setting, lanes) -> (states (T, N, 5), controls (T, N, 2), ...) ---


def make_engine(rtol: float, straggler_share: int | None = STRAGGLER_SHARE):
    """The roll-out engine; states, controls and peaks, the rest is not computed."""
    env, params = polycstr_jax.make("startup", rtol=rtol)

    def engine(setting: Setting, lanes: Lanes):
        limited = params.replace(max_increment=setting.max_increment)
        trajectory = rollout(
            env,
            limited,
            controllers.make_pi(limited),
            lanes.memory,
            lanes.state,
            lanes.key,
            NUM_INTERVALS,
            straggler_share,
        )
        return trajectory.state, trajectory.control, trajectory.peak_temperature

    return engine


def make_kvaerno(solver: diffrax.AbstractSolver):
    """A diffrax solver under vmap; states, controls, and whether it failed. Every interval starts
    with a step of 60 s (600 s instead changed the run time by less than 10 %: the stragglers decide
    it). Below `KVAERNO_DTMIN` it fails: in float32 an igniting lane would be tried for ever."""
    env, params = polycstr_jax.make("startup")
    draws = jnp.zeros((NUM_DRAWS,))
    term = diffrax.ODETerm(lambda t, y, args: jnp.stack(reactor._rhs(t, tuple(y), args)))

    def kvaerno(setting: Setting, lanes: Lanes):
        limited = params.replace(max_increment=setting.max_increment)
        pi = controllers.make_pi(limited)
        controller = diffrax.PIDController(
            rtol=setting.rtol, atol=setting.rtol, dtmin=KVAERNO_DTMIN, force_dtmin=False
        )

        def interval(state, memory):
            action, memory = pi(env.observation(state, draws, limited), memory)
            applied = env.begin_interval(state, action, draws, limited)
            solution = diffrax.diffeqsolve(
                term,
                solver,
                0.0,
                limited.reactor.interval,
                reactor.FIRST_STEP,
                jnp.stack(reactor.to_internal(state.reactor)),
                args=(applied.inputs, limited.reactor),
                stepsize_controller=controller,
                max_steps=None,
                throw=False,
            )
            end = reactor.from_internal(tuple(solution.ys[-1]))
            failed = solution.result != diffrax.RESULTS.successful
            return state.replace(reactor=end, control=applied.control), memory, failed

        def scan(carry, _):
            state, memory, failed = jax.vmap(interval)(*carry)
            return (state, memory), (state.reactor, state.control, failed)

        return jax.lax.scan(scan, (lanes.state, lanes.memory), None, NUM_INTERVALS)[1]

    return kvaerno


def make_asynchronous(rtol: float):
    """The engine in which every lane also has its own interval index; states, controls, peaks."""
    env, params = polycstr_jax.make("startup", rtol=rtol)
    draws = jnp.zeros((NUM_DRAWS,))

    def asynchronous(setting: Setting, lanes: Lanes):
        limited = params.replace(max_increment=setting.max_increment)
        num_lanes = lanes.key.shape[0]
        pi = jax.vmap(controllers.make_pi(limited))

        def begin(state, memory):
            obs = jax.vmap(lambda s: env.observation(s, draws, limited))(state)
            action, memory = pi(obs, memory)
            applied = jax.vmap(lambda s, a: env.begin_interval(s, a, draws, limited))(state, action)
            return applied, memory

        def start(state):
            y = reactor.to_internal(state.reactor)
            return jax.vmap(reactor.start_interval)(y, state.step_size)

        def step(progress, applied):
            constants = plant(applied.plant_factors, applied.disturbance, limited)
            return reactor.internal_step(progress, applied.inputs, constants, rtol)

        def body(carry):
            progress, applied, state, memory, index, record = carry
            progress = jax.vmap(step)(progress, applied)
            done = ~jax.vmap(reactor.unfinished, (0, None))(progress, limited.reactor)
            done = done & (index < NUM_INTERVALS)
            end = reactor.from_internal(progress.y)
            row = jnp.concatenate([end, applied.control, progress.peak[:, None]], axis=1)
            target = jnp.where(done, index, NUM_INTERVALS)
            lane = jnp.arange(num_lanes)
            record = record.at[target, lane].set(row, mode="drop", unique_indices=True)
            index = index + done
            ended = state.replace(
                reactor=end, control=applied.control, step_size=progress.step_size
            )
            state = _select(done, ended, state)
            next_applied, next_memory = begin(state, memory)
            go_on = done & (index < NUM_INTERVALS)
            return (
                _select(go_on, start(state), progress),
                _select(go_on, next_applied, applied),
                state,
                _select(go_on, next_memory, memory),
                index,
                record,
            )

        applied, memory = begin(lanes.state, lanes.memory)
        index = jnp.zeros((num_lanes,), jnp.int32)
        record = jnp.zeros((NUM_INTERVALS, num_lanes, 8))
        carry = (start(lanes.state), applied, lanes.state, memory, index, record)
        record = jax.lax.while_loop(lambda c: jnp.any(c[4] < NUM_INTERVALS), body, carry)[-1]
        return record[..., :5], record[..., 5:7], record[..., 7]

    return asynchronous


def _select(mask, new, old):
    """`jnp.where` over the leaves of two pytrees, by a mask over the leading axis."""
    return jax.tree.map(
        lambda n, o: jnp.where(mask.reshape(-1, *(1,) * (n.ndim - 1)), n, o), new, old
    )


def make_tableau_run(tableau):
    """Interval by interval with another Rosenbrock method; states and internal steps (T, N)."""
    env, params = polycstr_jax.make("startup")
    draws = jnp.zeros((NUM_DRAWS,))

    def run(setting: Setting, lanes: Lanes):
        limited = params.replace(max_increment=setting.max_increment)
        pi = controllers.make_pi(limited)

        def interval(state, memory):
            action, memory = pi(env.observation(state, draws, limited), memory)
            applied = env.begin_interval(state, action, draws, limited)
            result = reactor.integrate_interval(
                state.reactor,
                state.step_size,
                applied.inputs,
                limited.reactor,
                setting.rtol,
                tableau,
            )
            state = state.replace(
                reactor=result.state, control=applied.control, step_size=result.step_size
            )
            return state, memory, result.num_steps

        def scan(carry, _):
            state, memory, steps = jax.vmap(interval)(*carry)
            return (state, memory), (state.reactor, steps)

        return jax.lax.scan(scan, (lanes.state, lanes.memory), None, NUM_INTERVALS)[1]

    return run


# --- Policies in the loop, and env.step: the program and its lanes ---


def make_policy():
    """A 2 x 256 network with random weights; its controller state is an offset on the action."""
    rng = np.random.default_rng(0)
    weights = [
        jnp.asarray(rng.normal(0.0, n**-0.5, (n, m)), jnp.float32)
        for n, m in itertools.pairwise((9, 256, 256, 2))
    ]
    scale = jnp.asarray([450.0, 5.0, 1.0, 80.0, 350.0, 20.0, 5.0, 1.0, 345.0])

    def policy(obs, offset):
        x = obs / scale - 1.0
        for w in weights[:-1]:
            x = jax.nn.relu(x @ w)
        return 0.05 * jnp.tanh(x @ weights[-1]) + offset, offset

    return policy


def starts(scenario: str, num_lanes: int):
    env, params = polycstr_jax.make(scenario)
    keys = jax.random.split(jax.random.key(0), num_lanes)
    obs, states = jax.vmap(env.reset, (0, None))(keys, params)
    return env, params, keys, obs, states


def policy_alone(num_lanes: int):
    """200 calls of the policy, each for all lanes."""
    policy, obs = make_policy(), starts("startup", num_lanes)[3]

    def program(setting, lanes):
        def call(obs, _):
            action, _ = jax.vmap(policy)(obs, lanes[1])
            return obs + 1e-6 * action.sum(axis=1, keepdims=True), None  # depends on every call

        return jax.lax.scan(call, lanes[0], None, NUM_INTERVALS)[0]

    return program, (obs, jnp.zeros((num_lanes, 2)))


def controller_in_loop(scenario: str, controller, memory):
    """The roll-out engine with a controller; what an evaluation needs is recorded."""
    env, params, keys, _, states = starts(scenario, len(memory))

    def program(setting, lanes):
        states, memory, keys = lanes
        found = rollout(env, params, controller, memory, states, keys, NUM_INTERVALS)
        return found.peak_temperature, found.reward, found.cost, found.state, found.control

    return program, (states, memory, keys)


def random_steps(scenario: str, amplitude: float, num_lanes: int):
    """`env.step` of gymnax, resets included, under vmap and scan with uniform random actions."""
    env, params, keys, _, states = starts(scenario, num_lanes)

    def program(setting, lanes):
        def step(carry, _):
            states, keys = carry
            keys, action_keys, step_keys = jnp.moveaxis(
                jax.vmap(lambda key: jax.random.split(key, 3))(keys), 1, 0
            )
            draw = functools.partial(jax.random.uniform, minval=-amplitude, maxval=amplitude)
            action = jax.vmap(lambda key: draw(key, (2,)))(action_keys)
            obs, states, reward, _, _, info = jax.vmap(env.step, (0, 0, 0, None))(
                step_keys, states, action, params
            )
            return (states, keys), (info["peak_temperature"], reward, info["cost"], obs)

        return jax.lax.scan(step, lanes, None, NUM_INTERVALS)[1]

    return program, (states, keys)
