"""Speed and accuracy of the simulator, each against a baseline measured in the same run.

    python -m benchmarks.throughput [--out results/throughput.json]

Closed-loop PI start-up, 200 intervals a lane, float64, states, controls and peaks recorded:

- SciPy's BDF at the tolerances of the published simulator (rtol 1e-6, atol 1e-8) and LSODA at
  the same, on as many processes as cores;
- diffrax's Kvaerno3 under vmap, a lane's interval a `diffeqsolve`;
- the roll-out engine, on one device and with the lanes spread over as many devices as cores;
- the engine's stragglers handled in other ways: a plain vmapped loop, and fully asynchronous
  lanes, each with its own interval index;
- a neural policy (2 x 256, float32) in the loop against the policy alone.

Error: the 99th percentile of |dT| and |dP| over the 12 golden closed loops (exact solutions of
the published equations, tests/data). A method is compared at the loosest of its tolerances at
which its errors are no larger than BDF's, both of them. Work-precision: the same errors against
internal steps for four Rosenbrock methods.
"""

import concurrent.futures
import dataclasses
import functools
import itertools
import json
import multiprocessing
import os
import resource
import time
from pathlib import Path

import jax

NUM_CORES = os.cpu_count() or 1
jax.config.update("jax_num_cpu_devices", NUM_CORES)  # before the first computation

import diffrax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import rich  # noqa: E402
import tyro  # noqa: E402
from rich.table import Table  # noqa: E402
from scipy.integrate import solve_ivp  # noqa: E402

import polycstr_jax  # noqa: E402
from benchmarks.run import hardware  # noqa: E402
from polycstr_jax import controllers, reactor, rosenbrock  # noqa: E402
from polycstr_jax.data import write_atomically  # noqa: E402
from polycstr_jax.env import initial_state, plant  # noqa: E402
from polycstr_jax.rollout import rollout  # noqa: E402

NUM_INTERVALS = 200
GOLDEN = Path(__file__).parent.parent / "tests/data/published_simulator.npz"
PUBLISHED_RTOL, PUBLISHED_ATOL = 1e-6, 1e-8
ENGINE_RTOLS = (1e-3, 1e-4, 1e-5, 1e-6, 1e-7)
KVAERNO_RTOLS = (1e-4, 1e-5, 1e-6)
TABLEAUS = (rosenbrock.ROS3P, rosenbrock.RODAS4, rosenbrock.RODAS4P, rosenbrock.RODAS5P)


@dataclasses.dataclass
class Args:
    """Measure throughput and accuracy; about 5 minutes on 2 cores."""

    lanes: int = 2_048
    scipy_episodes: int = 6  # an episode of BDF takes about 0.2 s
    repeats: int = 5  # the best is reported
    out: Path = Path("results/throughput.json")


# --- Baselines: SciPy ---


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


def scipy_episode(method, start, kp, ki):
    """One published closed loop; states (201, 5)."""
    state, previous_feed, integral = np.array(start), 1.0, np.zeros(2)
    states = [state]
    for _ in range(NUM_INTERVALS):
        error = np.array([100.0 - state[3], 350.0 - state[4]])
        wanted = np.array([1.0, 345.0]) + kp * error + ki * integral
        control = np.clip(wanted, [0.0, 300.0], [2.5, 350.0])
        integral = np.where(control == wanted, integral + error * 1800.0, integral)
        solution = solve_ivp(
            scipy_rhs,
            (0.0, 1800.0),
            state,
            method=method,
            rtol=PUBLISHED_RTOL,
            atol=PUBLISHED_ATOL,
            args=(*control, previous_feed),
        )
        state, previous_feed = solution.y[:, -1], control[0]
        states.append(state)
    return np.stack(states)


def measure_scipy(method, golden, episodes, pool) -> dict:
    """Intervals/s on all cores, and errors on the golden closed loops."""
    jobs = list(zip([method] * 12, golden["states"][:, 0], golden["kp"], golden["ki"], strict=True))
    states = np.stack(pool.starmap(scipy_episode, jobs, chunksize=1))
    # Timed on calm episodes, so that every process has the same work.
    timed = [jobs[1 + n % 11] for n in range(episodes * NUM_CORES)]
    started = time.perf_counter()
    pool.starmap(scipy_episode, timed, chunksize=1)
    seconds = time.perf_counter() - started
    speed = len(timed) * NUM_INTERVALS / seconds
    return {"intervals_per_s": speed, "processes": NUM_CORES, **errors(states[:, 1:], golden)}


def errors(states, golden) -> dict:
    """99th percentiles of |dT| [K] and |dP| [kg/m3] over the golden closed loops (12, 200, 5)."""
    difference = np.abs(np.asarray(states) - golden["states"][:, 1:])
    return {
        "error_T": float(np.percentile(difference[..., 4], 99)),
        "error_P": float(np.percentile(difference[..., 3], 99)),
    }


# --- The engine and its alternatives ---


def problem(lanes, seed=0):
    """Random-gain PI start-ups: environment states and controller states."""
    env, params = polycstr_jax.make("startup")
    rng = np.random.default_rng(seed)
    kp = rng.uniform(controllers.KP_LOW, controllers.KP_HIGH, (lanes, 2))
    ki = rng.uniform(controllers.KI_LOW, controllers.KI_HIGH, (lanes, 2))
    keys = jax.random.split(jax.random.key(seed), lanes)
    states = jax.vmap(lambda key: env.reset(key, params)[1])(keys)
    return params, states, controllers.pi_state(kp, ki, params.initial_control), keys


def recorded(env, params, states, memory, keys):
    """States, controls and peaks of a roll-out; the rest is not computed."""
    pi = controllers.make_pi(params)
    trajectory = rollout(env, params, pi, memory, states, keys, NUM_INTERVALS)
    return trajectory.state, trajectory.control, trajectory.peak_temperature


def asynchronous(rtol, params, states, memory, keys):
    """The alternative engine: one loop, in which every lane also has its own interval index."""
    lanes = keys.shape[0]
    pi = jax.vmap(controllers.make_pi(params))
    env = polycstr_jax.PolyCSTR(rtol=rtol)
    draws = jnp.zeros((7,))

    def begin(state, memory):
        obs = jax.vmap(lambda s: env.observation(s, draws, params))(state)
        action, memory = pi(obs, memory)
        return jax.vmap(lambda s, a: env.begin_interval(s, a, draws, params))(state, action), memory

    def start(state):
        return jax.vmap(reactor.start_interval)(reactor.to_internal(state.reactor), state.step_size)

    def where(mask, new, old):
        return jax.tree.map(
            lambda n, o: jnp.where(mask.reshape(-1, *(1,) * (n.ndim - 1)), n, o), new, old
        )

    def step(progress, applied):
        plant_params = plant(applied.plant_factors, applied.disturbance, params)
        return reactor.internal_step(progress, applied.inputs, plant_params, rtol)

    def body(carry):
        progress, applied, state, memory, index, record = carry
        progress = jax.vmap(step)(progress, applied)
        done = ~jax.vmap(reactor.unfinished, (0, None))(progress, params.reactor)
        done = done & (index < NUM_INTERVALS)
        end = reactor.from_internal(progress.y)
        row = jnp.concatenate([end, applied.control, progress.peak[:, None]], axis=1)
        target = jnp.where(done, index, NUM_INTERVALS)
        record = record.at[target, jnp.arange(lanes)].set(row, mode="drop", unique_indices=True)
        index = index + done
        ended = state.replace(reactor=end, control=applied.control, step_size=progress.step_size)
        state = where(done, ended, state)
        next_applied, next_memory = begin(state, memory)
        go_on = done & (index < NUM_INTERVALS)
        progress = where(go_on, start(state), progress)
        return (
            progress,
            where(go_on, next_applied, applied),
            state,
            where(go_on, next_memory, memory),
            index,
            record,
        )

    applied, memory = begin(states, memory)
    index = jnp.zeros((lanes,), jnp.int32)
    record = jnp.zeros((NUM_INTERVALS, lanes, 8))
    carry = (start(states), applied, states, memory, index, record)
    return jax.lax.while_loop(lambda c: jnp.any(c[4] < NUM_INTERVALS), body, carry)[-1]


def kvaerno(rtol, params, states, memory, keys):
    """diffrax's Kvaerno3 under vmap, `diffeqsolve` an interval, end states recorded."""
    pi = controllers.make_pi(params)
    env = polycstr_jax.PolyCSTR()
    draws = jnp.zeros((7,))
    controller = diffrax.PIDController(rtol=rtol, atol=rtol)
    term = diffrax.ODETerm(lambda t, y, args: jnp.stack(reactor._rhs(t, tuple(y), args)))

    def interval(state, memory):
        action, memory = pi(env.observation(state, draws, params), memory)
        applied = env.begin_interval(state, action, draws, params)
        solution = diffrax.diffeqsolve(
            term,
            diffrax.Kvaerno3(),
            0.0,
            params.reactor.interval,
            60.0,
            jnp.stack(reactor.to_internal(state.reactor)),
            args=(applied.inputs, params.reactor),
            stepsize_controller=controller,
            max_steps=None,
            throw=False,
        )
        end = reactor.from_internal(tuple(solution.ys[-1]))
        return state.replace(reactor=end, control=applied.control), memory, applied.control

    def scan(carry, _):
        state, memory, control = jax.vmap(interval)(*carry)
        return (state, memory), (state.reactor, control)

    return jax.lax.scan(scan, (states, memory), None, NUM_INTERVALS)[1]


def timed(function, arguments, repeats, num_devices=NUM_CORES) -> dict:
    """Compile and best run time [s] of a function of lanes, spread evenly over devices.

    Lanes are independent, so each device runs its share alone, dispatched from its own thread.
    """
    devices = jax.devices()[:num_devices]
    lanes = arguments[-1].shape[0] // num_devices

    def share(n):
        return jax.tree.map(lambda x: x[n * lanes : (n + 1) * lanes], arguments)

    shares = [jax.device_put(share(n), device) for n, device in enumerate(devices)]
    started = time.perf_counter()
    compiled = [jax.jit(function).lower(*shares[0]).compile()]
    compile_time = time.perf_counter() - started
    compiled += [jax.jit(function).lower(*lanes).compile() for lanes in shares[1:]]

    def run(n):
        jax.block_until_ready(compiled[n](*shares[n]))

    with concurrent.futures.ThreadPoolExecutor(num_devices) as pool:
        runs = []
        for _ in range(repeats + 1):
            started = time.perf_counter()
            list(pool.map(run, range(num_devices)))
            runs.append(time.perf_counter() - started)
    return {"compile_s": compile_time, "run_s": min(runs[1:])}


def golden_arguments(golden, params):
    """The golden closed loops as arguments of the engine."""
    states = jax.vmap(lambda s: initial_state(s, params.initial_control))(golden["states"][:, 0])
    memory = controllers.pi_state(golden["kp"], golden["ki"], params.initial_control)
    return states, memory, jax.random.split(jax.random.key(0), 12)


def unlimited(params):
    """The published loop has no limit on increments."""
    return params.replace(max_increment=np.array([100.0, 1000.0]))


def measure_engine(golden, args) -> tuple[dict, dict]:
    """The engine at several tolerances, and stragglers handled otherwise at its default."""
    params, *arguments = problem(args.lanes)
    free, rows = unlimited(params), {}
    for rtol in ENGINE_RTOLS:
        env = polycstr_jax.PolyCSTR(rtol=rtol)
        run = functools.partial(recorded, env, params)
        golden_run = jax.jit(functools.partial(recorded, env, free))
        states = golden_run(*golden_arguments(golden, free))[0]
        row = timed(run, arguments, args.repeats)
        row["one_device_run_s"] = timed(run, arguments, args.repeats, 1)["run_s"]
        row["intervals_per_s"] = args.lanes * NUM_INTERVALS / row["run_s"]
        rows[f"{rtol:g}"] = row | errors(np.moveaxis(states, 0, 1), golden)
    alternatives = {}
    for rtol in (1e-3, reactor.DEFAULT_RTOL):
        run = functools.partial(asynchronous, rtol, params)
        row = timed(run, arguments, args.repeats)
        alternatives[f"asynchronous, rtol {rtol:g}"] = row
        # A plain vmapped loop: every lane waits for the slowest of its interval.
        import polycstr_jax.rollout as engine

        before, engine.MIN_LANES_TO_COMPACT = engine.MIN_LANES_TO_COMPACT, 10**9
        run = functools.partial(recorded, polycstr_jax.PolyCSTR(rtol=rtol), params)
        row = timed(run, arguments, args.repeats)
        engine.MIN_LANES_TO_COMPACT = before
        alternatives[f"plain vmapped loop, rtol {rtol:g}"] = row
    for row in alternatives.values():
        row["intervals_per_s"] = args.lanes * NUM_INTERVALS / row["run_s"]
    return rows, alternatives


def measure_kvaerno(golden, args) -> dict:
    """Vmapped Kvaerno3 at several tolerances, on as many devices as cores."""
    params, *arguments = problem(args.lanes)
    free, rows = unlimited(params), {}
    for rtol in KVAERNO_RTOLS:
        states = jax.jit(functools.partial(kvaerno, rtol, free))(*golden_arguments(golden, free))[0]
        run = functools.partial(kvaerno, rtol, params)
        row = timed(run, arguments, 1)
        row["intervals_per_s"] = args.lanes * NUM_INTERVALS / row["run_s"]
        rows[f"{rtol:g}"] = row | errors(np.moveaxis(states, 0, 1), golden)
    return rows


def measure_memory(args) -> dict:
    """Memory of the compiled engine against the number of lanes, MB."""
    sizes = {}
    for lanes in (args.lanes, 2 * args.lanes, 4 * args.lanes):
        params, *arguments = problem(lanes)
        run = functools.partial(recorded, polycstr_jax.PolyCSTR(), params)
        compiled = jax.jit(run).lower(*arguments).compile().memory_analysis()
        sizes[str(lanes)] = (compiled.temp_size_in_bytes + compiled.output_size_in_bytes) / 2**20
    return sizes


def measure_policy(args) -> dict:
    """A 2 x 256 policy in the loop against 200 calls of the policy alone; float32."""
    with jax.enable_x64(False):
        params, states, _, keys = problem(args.lanes)
        env = polycstr_jax.PolyCSTR()
        rng = np.random.default_rng(0)
        widths = (9, 256, 256, 2)
        weights = [
            jnp.asarray(rng.normal(0.0, n**-0.5, (n, m)), jnp.float32)
            for n, m in itertools.pairwise(widths)
        ]
        scale = jnp.asarray([450.0, 5.0, 1.0, 80.0, 350.0, 20.0, 5.0, 1.0, 345.0])

        def policy(obs, memory):
            x = obs / scale - 1.0
            for w in weights[:-1]:
                x = jax.nn.relu(x @ w)
            return 0.05 * jnp.tanh(x @ weights[-1]), memory

        def loop(states, memory, keys):
            return rollout(env, params, policy, memory, states, keys, NUM_INTERVALS).reward

        def alone(obs):
            def call(obs, _):
                action, _ = jax.vmap(lambda o: policy(o, 0))(obs)
                return obs + 1e-6 * action.sum(), None

            return jax.lax.scan(call, obs, None, NUM_INTERVALS)[0]

        obs = jax.vmap(lambda s: env.observation(s, jnp.zeros(7), params))(states)
        in_loop = timed(loop, (states, jnp.zeros(args.lanes), keys), args.repeats, 1)
        only = timed(alone, (obs,), args.repeats, 1)
    return {
        "in_loop_s": in_loop["run_s"],
        "alone_s": only["run_s"],
        "ratio": in_loop["run_s"] / only["run_s"],
    }


def work_precision(golden) -> dict:
    """Errors on the golden closed loops and mean internal steps an interval, by method and rtol."""
    params = unlimited(polycstr_jax.make("startup")[1])
    states, memory, _ = golden_arguments(golden, params)
    pi = controllers.make_pi(params)
    env = polycstr_jax.PolyCSTR()
    draws = jnp.zeros((7,))

    @functools.partial(jax.jit, static_argnums=(0, 1))
    def run(tableau, rtol, states, memory):
        def interval(state, memory):
            action, memory = pi(env.observation(state, draws, params), memory)
            applied = env.begin_interval(state, action, draws, params)
            result = reactor.integrate_interval(
                state.reactor, state.step_size, applied.inputs, params.reactor, rtol, tableau
            )
            state = state.replace(
                reactor=result.state, control=applied.control, step_size=result.step_size
            )
            return state, memory, result

        def scan(carry, _):
            state, memory, result = jax.vmap(interval)(*carry)
            return (state, memory), (result.state, result.num_steps)

        return jax.lax.scan(scan, (states, memory), None, NUM_INTERVALS)[1]

    rows = {}
    for tableau in TABLEAUS:
        for rtol in ENGINE_RTOLS:
            end, steps = run(tableau, rtol, states, memory)
            rows[f"{tableau.name} {rtol:g}"] = {
                "steps": float(steps.mean()),
                "most_steps": int(steps.max()),
                "stages": len(tableau.c),
                **errors(np.moveaxis(end, 0, 1), golden),
            }
    return rows


def loosest(rows: dict, reference: dict) -> tuple[str, dict]:
    """The fastest row whose errors are both no larger than the reference's."""
    allowed = {
        rtol: row
        for rtol, row in rows.items()
        if row["error_T"] <= reference["error_T"] and row["error_P"] <= reference["error_P"]
    }
    if not allowed:
        raise RuntimeError("no tolerance is as accurate as the reference")
    return max(allowed.items(), key=lambda item: item[1]["intervals_per_s"])


def print_results(found: dict) -> None:
    """Tables on the terminal."""
    bdf = found["scipy"]["BDF"]
    table = Table(title=f"Closed-loop PI start-up, {found['lanes']} lanes, float64")
    for column in ("solver", "intervals/s", "x BDF", "err T K", "err P kg/m3", "compile s"):
        table.add_column(column, justify="left" if column == "solver" else "right")
    rows = {f"SciPy {name}": row for name, row in found["scipy"].items()}
    rows |= {f"Kvaerno3 {rtol}": row for rtol, row in found["kvaerno3"].items()}
    rows |= {f"engine {rtol}": row for rtol, row in found["engine"].items()}
    rows |= found["alternatives"]
    for name, row in rows.items():
        table.add_row(
            name,
            f"{row['intervals_per_s']:,.0f}",
            f"{row['intervals_per_s'] / bdf['intervals_per_s']:,.0f}",
            f"{row['error_T']:.1e}" if "error_T" in row else "",
            f"{row['error_P']:.1e}" if "error_P" in row else "",
            f"{row['compile_s']:.1f}" if "compile_s" in row else "",
        )
    rich.print(table)
    table = Table(title="Work-precision on the golden closed loops")
    for column in ("method, rtol", "steps", "stages x steps", "err T K", "err P kg/m3"):
        table.add_column(column, justify="left" if column.startswith("method") else "right")
    for name, row in found["work_precision"].items():
        table.add_row(
            name,
            f"{row['steps']:.2f}",
            f"{row['steps'] * row['stages']:.1f}",
            f"{row['error_T']:.1e}",
            f"{row['error_P']:.1e}",
        )
    rich.print(table)
    for name in ("ratios", "policy", "memory_MB"):
        rich.print(name, found[name])


def main(args: Args) -> None:
    golden = dict(np.load(GOLDEN))
    # SciPy first, alone on the machine; spawned before JAX starts its threads.
    with multiprocessing.get_context("spawn").Pool(NUM_CORES) as pool:
        scipy_rows = {
            method: measure_scipy(method, golden, args.scipy_episodes, pool)
            for method in ("BDF", "LSODA")
        }
    jax.config.update("jax_enable_x64", True)
    engine, alternatives = measure_engine(golden, args)
    found = {
        "command": "python -m benchmarks.throughput",
        "hardware": hardware(),
        "jax": jax.__version__,
        "date": time.strftime("%Y-%m-%d"),
        "lanes": args.lanes,
        "scipy": scipy_rows,
        "engine": engine,
        "alternatives": alternatives,
        "kvaerno3": measure_kvaerno(golden, args),
        "policy": measure_policy(args),
        "memory_MB": measure_memory(args),
        "work_precision": work_precision(golden),
    }
    ratios = {}
    for name, reference in scipy_rows.items():
        rtol, row = loosest(engine, reference)
        ratios[f"engine at rtol {rtol} to {name}"] = (
            row["intervals_per_s"] / reference["intervals_per_s"]
        )
    slow_rtol, slow = loosest(found["kvaerno3"], scipy_rows["BDF"])
    rtol, row = loosest(engine, slow)
    ratios[f"engine at rtol {rtol} to Kvaerno3 at rtol {slow_rtol}"] = (
        row["intervals_per_s"] / slow["intervals_per_s"]
    )
    found["ratios"] = ratios
    found["peak_memory_MB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print_results(found)
    text = json.dumps(found, indent=2) + "\n"
    write_atomically(args.out, lambda file: file.write(text.encode()))
    rich.print(f"written: {args.out}")


if __name__ == "__main__":
    main(tyro.cli(Args))
