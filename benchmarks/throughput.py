"""Speed and accuracy of the simulator, each against a baseline measured in the same run.

    python -m benchmarks.throughput [--json FILE] [--smoke]
    python -m benchmarks.throughput --answers-only          # oracle and viability; the rest is kept

Writes FILE (results/throughput/throughput.json) and a work-precision figure beside it (.png).

Work: closed-loop PI start-ups with random gains, 200 intervals of 1800 s each, some of which
ignite. Every solver gets the same gains, starts and increment limits, SciPy a sample of them.
States and controls are recorded, and by ours the peak temperatures within the intervals too
(SciPy and Kvaerno record no peaks, which is in their favour). All may use all cores: SciPy by one
process a core, JAX by lanes spread over as many CPU devices as cores. Solvers: `solvers.py`.

Error: the 99th percentile of |dT| and of |dP| over the 12 golden closed loops (exact solutions of
the published equations, without increment limits; tests/data). A ratio compares the fastest
tolerance of ours whose errors are *both* no larger than those of the other solver.

Closed loop: a 2 x 256 policy in the loop, and `env.step` under `vmap` with random actions, against
200 calls of the policy alone, all in float32 on one device.

Answers: seconds of the oracle for an episode of 200 intervals, one start and 64 at once, float64,
one device, compilation apart; states/s of viability (24 intervals, rtol 1e-4, float32, all
devices), on states that random agents reach below 380 K, against the engine under the same policy.
"""

import concurrent.futures
import dataclasses
import functools
import importlib.metadata
import json
import math
import multiprocessing
import os
import platform
import resource
import sys
import time
from pathlib import Path

import jax

# ruff: noqa: E402 (the number of CPU devices has to be set before diffrax starts the backend)


def num_cores() -> int:
    """CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", num_cores())

import diffrax
import jax.numpy as jnp
import numpy as np
import rich
import tyro

from benchmarks import solvers
from benchmarks.solvers import ENGINE, NUM_INTERVALS, Setting
from benchmarks.throughput_tables import print_tables, work_precision_figure
from polycstr_jax import (
    SCENARIOS,
    controllers,
    evaluate,
    oracle,
    reactor,
    rosenbrock,
    viability,
)
from polycstr_jax.data import check_writable, write_atomically
from polycstr_jax.env import EnvParams, PolyCSTR, scenario_params
from polycstr_jax.rollout import rollout

ROOT = Path(__file__).parent.parent
GOLDEN = ROOT / "tests/data/published_simulator.npz"
NUM_GOLDEN = 12
UNLIMITED = np.array([100.0, 1000.0])  # the golden closed loops have no increment limits
RUNAWAY = 380.0  # K
SCIPY_PASSES, LOOP_REPEATS = 2, 3
TABLEAUS = (rosenbrock.ROS3P, rosenbrock.RODAS4, rosenbrock.RODAS4P, rosenbrock.RODAS5P)


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How much is measured."""

    engine: tuple[float, ...] = (1e-3, 1e-4, 1e-5, 1e-6, 1e-7)  # tolerances, float64
    engine32: tuple[float, ...] = (1e-3, 1e-4, 1e-5)  # float32
    kvaerno3: tuple[float, ...] = (1e-3, 1e-4, 1e-5)
    kvaerno5: tuple[float, ...] = (1e-2, 1e-3)
    kvaerno3_32: tuple[float, ...] = (1e-3,)
    stragglers: tuple[float, ...] = (1e-5,)
    tableaus: tuple[rosenbrock.Tableau, ...] = TABLEAUS
    oracle_scenarios: tuple[str, ...] = tuple(SCENARIOS)
    oracle_starts: tuple[int, ...] = (1, 64)  # at once
    states: int = 131_072  # whose viability is found


SMOKE = Sizes(
    *((1e-3, 1e-5, 1e-7), (1e-4,), (1e-3,), (), (), (1e-5,), TABLEAUS[:2]),
    *(("grade_down",), (1,), 1_024),
)


@dataclasses.dataclass(frozen=True)
class Args:
    """Measure throughput and accuracy; at most 8 minutes on 2 cores.

    Exit codes: 0, written; 1 or 2, not, and stderr says why.
    """

    json: Path | None = None
    """Where to write; default results/throughput/throughput.json, with --smoke .cache/smoke.json"""
    compared_lanes: int = 2_048
    """Lanes of every comparison (12 or more)"""
    lanes: tuple[int, ...] = (256, 2_048, 8_192)
    """Lane counts of the engine (12 or more); on a GPU up to 1048576"""
    scipy_episodes: int = 48
    """Sample of the lanes that SciPy is timed on"""
    repeats: int = 2
    """Runs of each JAX solver, after a first one on other data; the best is reported"""
    answers_only: bool = False
    """Measure oracle and viability alone, and keep the rest of the file"""
    smoke: bool = False
    """Tiny sizes, to see that it works: 64 and 128 lanes, few tolerances, cached compilation"""


def resolve(args: Args) -> Args:
    """Defaults filled in; `ValueError` for sizes that make no sense."""
    if args.smoke:
        args = dataclasses.replace(
            args, compared_lanes=64, lanes=(64, 128), scipy_episodes=2, repeats=1
        )
    if min(args.compared_lanes, *args.lanes) < NUM_GOLDEN:
        raise ValueError(
            f"lanes = {args.lanes}, compared_lanes = {args.compared_lanes}; allowed: {NUM_GOLDEN} "
            "or more each (errors come from 12 golden closed loops)."
        )
    if args.scipy_episodes < 1 or args.repeats < 1:
        raise ValueError(
            f"scipy_episodes = {args.scipy_episodes}, repeats = {args.repeats}; allowed: 1 or more."
        )
    default = ".cache/smoke.json" if args.smoke else "results/throughput/throughput.json"
    return dataclasses.replace(args, json=args.json or Path(default))


# --- Time a JAX program, its lanes spread over devices ---


class Spread:
    """A program `(setting, lanes)` compiled for each device's share of the lanes.

    Lanes are independent, so each device runs its share alone, dispatched from its own thread.
    """

    def __init__(self, program, setting, lanes, devices):
        self.devices = devices
        shares = self.place(setting, lanes)
        started = time.perf_counter()
        self.compiled = [jax.jit(program).lower(*shares[0]).compile()]
        self.compile_seconds = time.perf_counter() - started
        self.compiled += [jax.jit(program).lower(*share).compile() for share in shares[1:]]

    def place(self, setting, lanes):
        """(setting, share of the lanes) on each device."""
        size = len(jax.tree.leaves(lanes)[0]) // len(self.devices)
        setting = jax.tree.map(lambda x: jnp.asarray(x, float), setting)
        return [
            jax.device_put(
                (setting, jax.tree.map(lambda x, n=n: x[n * size : (n + 1) * size], lanes)), device
            )
            for n, device in enumerate(self.devices)
        ]

    def run(self, shares):
        """Outputs of each device."""

        def run_one(n):
            return jax.block_until_ready(self.compiled[n](*shares[n]))

        if len(self.devices) == 1:
            return [run_one(0)]
        with concurrent.futures.ThreadPoolExecutor(len(self.devices)) as pool:
            return list(pool.map(run_one, range(len(self.devices))))

    def best(self, shares, repeats):
        """Shortest run [s], and the last outputs."""
        seconds = []
        for _ in range(repeats):
            outputs = None  # frees the previous ones
            started = time.perf_counter()
            outputs = self.run(shares)
            seconds.append(time.perf_counter() - started)
        return min(seconds), outputs

    def memory_mb(self) -> float | None:
        """Arguments, temporaries and outputs of the compiled programs, MB."""
        found = [compiled.memory_analysis() for compiled in self.compiled]
        if any(memory is None for memory in found):
            return None
        return sum(
            memory.argument_size_in_bytes + memory.temp_size_in_bytes + memory.output_size_in_bytes
            for memory in found
        ) / (1024 * 1024)


def whole_lanes(num_lanes: int, num_devices: int) -> int:
    """`num_lanes` rounded up to a multiple of the number of devices."""
    return math.ceil(num_lanes / num_devices) * num_devices


def precision(bits: int):
    """Context in which JAX computes in this precision."""
    return jax.enable_x64(bits == 64)


# --- Errors on the golden closed loops ---


@functools.cache
def golden() -> dict:
    with np.load(GOLDEN) as arrays:
        return dict(arrays)


def golden_problem(num_lanes: int) -> solvers.Problem:
    """The 12 golden closed loops, repeated to `num_lanes`."""
    index = np.arange(num_lanes) % NUM_GOLDEN
    found = golden()
    return solvers.Problem(found["states"][index, 0], found["kp"][index], found["ki"][index])


def errors(states) -> dict:
    """99th percentiles of |dT| [K] and |dP| [kg/m3]; states (12, 200, 5)."""
    difference = np.abs(np.asarray(states, np.float64) - golden()["states"][:, 1:])
    return {
        "error_T": float(np.percentile(difference[..., 4], 99)),
        "error_P": float(np.percentile(difference[..., 3], 99)),
    }


def golden_run(spread: Spread, rtol, num_lanes: int):
    """Outputs (T, 12, ...) of a compiled program on the golden closed loops."""
    lanes = solvers.to_lanes(golden_problem(num_lanes), EnvParams())
    outputs = spread.run(spread.place(Setting(UNLIMITED, rtol), lanes))
    heads = [[np.asarray(x[:, :NUM_GOLDEN]) for x in share] for share in outputs]
    return [np.concatenate(parts, axis=1)[:, :NUM_GOLDEN] for parts in zip(*heads, strict=True)]


# --- SciPy ---


def process_id(_):
    time.sleep(0.05)
    return os.getpid()


def warm_up(pool, num_processes):
    """Wait until every process of the pool has imported everything and answered."""
    answered = set()
    while len(answered) < num_processes:
        answered |= set(pool.map(process_id, range(num_processes), chunksize=1))


def measure_scipy(method: str, args: Args, pool, num_processes: int) -> dict:
    """Intervals/s on all cores for a sample of the lanes, and errors on the golden loops."""
    loops = [(method, UNLIMITED, *loop) for loop in zip(*golden_problem(NUM_GOLDEN), strict=True)]
    exact = np.stack(pool.starmap(solvers.scipy_episode, loops, chunksize=1))
    params = EnvParams()
    problem = solvers.random_problem(args.compared_lanes, params)
    sample = [x[: args.scipy_episodes] for x in problem]
    jobs = [(method, params.max_increment, *loop) for loop in zip(*sample, strict=True)]
    seconds = []
    for _ in range(SCIPY_PASSES):
        started = time.perf_counter()
        states = np.stack(pool.starmap(solvers.scipy_episode, jobs, chunksize=1))
        seconds.append(time.perf_counter() - started)
    return {
        "solver": f"SciPy {method}",
        "rtol": solvers.PUBLISHED_RTOL,
        "bits": 64,
        "lanes": len(jobs),
        "devices": num_processes,
        "intervals_per_second": len(jobs) * NUM_INTERVALS / min(seconds),
        "run_seconds": min(seconds),
        "ignited_share": float(np.mean(states[..., 4].max(axis=1) > RUNAWAY)),
        **errors(exact),
    }


# --- JAX solvers ---


@functools.cache
def random_spread(program, bits: int, num_lanes: int, num_devices: int):
    """The program compiled for random start-ups, and these as its arguments."""
    params = EnvParams()
    with precision(bits):
        lanes = solvers.to_lanes(solvers.random_problem(num_lanes, params), params)
        setting = Setting(params.max_increment, 1e-3)
        return Spread(program, setting, lanes, jax.devices()[:num_devices]), lanes


def failed_lanes(states, control, *recorded):
    """Lanes (N,) in which a Kvaerno interval failed, or which are not finite."""
    not_finite = ~jnp.all(jnp.isfinite(states), axis=(0, 2))
    failed = [x for x in recorded if x.dtype == bool]
    return np.asarray(not_finite | jnp.any(failed[0], axis=0) if failed else not_finite)


def measure(solver: str, program, rtol, bits, num_lanes, repeats, golden_lanes=None) -> dict:
    """One row: speed of a JAX program on random start-ups, and errors on the golden loops.

    The golden loops run on `golden_lanes` lanes; if None on `num_lanes`, by the very program that
    is timed, as its warm-up.
    """
    num_devices = len(jax.devices())
    num_lanes = whole_lanes(num_lanes, num_devices)
    with precision(bits):
        spread, lanes = random_spread(program, bits, num_lanes, num_devices)
        if golden_lanes is None:
            exact = golden_run(spread, rtol, num_lanes)[0]
        else:
            small, _ = random_spread(program, bits, golden_lanes, 1)
            exact = golden_run(small, rtol, golden_lanes)[0]
        shares = spread.place(Setting(EnvParams().max_increment, rtol), lanes)
        seconds, outputs = spread.best(shares, repeats)
        hottest = np.concatenate([np.max(out[0][..., 4], axis=0) for out in outputs])
        unfinished = np.concatenate([failed_lanes(*out) for out in outputs])
    return {
        "solver": solver,
        "rtol": rtol,
        "bits": bits,
        "lanes": num_lanes,
        "devices": num_devices,
        "intervals_per_second": num_lanes * NUM_INTERVALS / seconds,
        "run_seconds": seconds,
        "compile_seconds": spread.compile_seconds,
        "memory_mb": spread.memory_mb(),
        "ignited_share": float(np.mean(hottest > RUNAWAY)),
        "failed_share": float(np.mean(unfinished)),
        **errors(np.moveaxis(exact, 0, 1)),
    }


@functools.cache
def measure_engine(rtol: float, bits: int, num_lanes: int, repeats: int) -> dict:
    with precision(bits):
        program = solvers.make_engine(rtol)
    return measure(ENGINE, program, rtol, bits, num_lanes, repeats)


def measure_stragglers(rtols, args: Args) -> list[dict]:
    """The engine with its small batch of stragglers, and what else could be done with them."""
    rows = []
    for rtol in rtols:
        rows.append(measure_engine(rtol, 64, args.compared_lanes, args.repeats))
        with precision(64):
            others = {
                "engine, plain vmapped loop": solvers.make_engine(rtol, straggler_share=None),
                "asynchronous engine": solvers.make_asynchronous(rtol),
            }
        for name, program in others.items():
            rows.append(measure(name, program, rtol, 64, args.compared_lanes, args.repeats))
    return rows


def measure_tableaus(sizes: Sizes) -> list[dict]:
    """Errors and internal steps an interval of Rosenbrock methods on the golden closed loops."""
    rows = []
    for tableau in sizes.tableaus:
        with precision(64):
            program = solvers.make_tableau_run(tableau)
            spread, _ = random_spread(program, 64, NUM_GOLDEN, 1)
            for rtol in sizes.engine:
                states, steps = golden_run(spread, rtol, NUM_GOLDEN)
                rows.append(
                    {
                        "solver": tableau.name,
                        "rtol": rtol,
                        "order": tableau.order,
                        "stages": len(tableau.c),
                        "steps": float(steps.mean()),
                        "stage_count": float(steps.mean()) * len(tableau.c),
                        "most_steps": int(steps.max()),
                        **errors(np.moveaxis(states, 0, 1)),
                    }
                )
    return rows


# --- Policies in the loop, and env.step; float32, one device ---


def measure_loops(num_lanes: int) -> list[dict]:
    """Rows of run times and their ratio to the policy alone; the best of 3 runs each."""
    with precision(32):
        policy = solvers.make_policy()
        offset = np.random.default_rng(0).uniform(-0.08, 0.08, (num_lanes, 2))
        offset = jnp.asarray(offset, jnp.float32)
        keys = jax.random.split(jax.random.key(1), num_lanes)
        in_loop, steps = solvers.controller_in_loop, solvers.random_steps
        cases = {
            "policy alone, 200 calls": solvers.policy_alone(num_lanes),
            "policy in the loop, calm": in_loop("grade_down", policy, 0.0 * offset),
            "policy in the loop, igniting": in_loop("startup", policy, offset),
            "env.step, random actions, calm": steps("grade_down", 0.02, num_lanes),
            "env.step, random actions, igniting": steps("startup", 1.0, num_lanes),
            "engine, random actions, igniting": in_loop(
                "startup", controllers.uniform_random, keys
            ),
        }
        rows = []
        for name, (program, lanes) in cases.items():
            spread = Spread(program, Setting(0.0, 0.0), lanes, jax.devices()[:1])
            shares = spread.place(Setting(0.0, 0.0), lanes)
            spread.run(shares)
            seconds, outputs = spread.best(shares, LOOP_REPEATS)
            row = {"case": name, "lanes": num_lanes, "bits": 32, "run_seconds": seconds}
            row |= {"compile_seconds": spread.compile_seconds, "memory_mb": spread.memory_mb()}
            row["ratio_to_policy_alone"] = seconds / (rows[0] if rows else row)["run_seconds"]
            if rows:
                peaks = np.max(outputs[0][0], axis=0)
                row["intervals_per_second"] = num_lanes * NUM_INTERVALS / seconds
                row["ignited_share"] = float(np.mean(peaks > RUNAWAY))
                if "calm" in name and row["ignited_share"] > 0.0:
                    raise RuntimeError(f"{name}: a lane exceeds {RUNAWAY} K, so it is not calm.")
            rows.append(row)
    return rows


# --- Oracle and viability ---


def measure_oracle(sizes: Sizes, repeats: int) -> list[dict]:
    """Seconds an episode, the fastest of `repeats` after one that compiles."""
    rows = []
    for scenario in sizes.oracle_scenarios:
        starts, params = evaluate.starts(scenario, "nominal"), scenario_params(scenario)
        for number in sizes.oracle_starts:
            given = (starts.state[:number], starts.control[:number], params)
            seconds = []
            for _ in range(1 + repeats):
                started = time.perf_counter()
                plan = oracle.solve(*given)
                seconds.append((time.perf_counter() - started) / number)
            row = {
                "what": f"oracle, {scenario}",
                "at_once": number,
                "seconds_each": min(seconds[1:]),
            }
            rows.append(row | {"iterations": float(plan.num_iterations.mean())})
    return rows


def live_states(num_states: int):
    """States (N, 5) and controls (N, 2) of random agents from hot start-ups, below 380 K."""
    starts = evaluate.starts("startup", "hot")
    lanes = len(starts.state)
    keys = jax.random.split(jax.random.key(0), lanes)
    initial, random = evaluate.start_states(starts), controllers.uniform_random
    roll = jax.jit(lambda: rollout(PolyCSTR(), EnvParams(), random, keys, initial, keys, 100))
    found = jax.device_get(roll())
    live = found.peak_temperature < RUNAWAY
    order = np.random.default_rng(0).permutation(int(live.sum()))
    chosen = np.resize(order, num_states)
    return found.state[live][chosen], found.control[live][chosen]


def engine_peaks(_, lanes):
    """Peaks (N,) under the safest policy, 4,096 states at a time, by the roll-out engine."""
    return [viability.peaks_under_safest(*lanes)]


def vmapped_peaks(_, lanes):
    """The same by a plain vmap of the function of one state."""
    return [jax.lax.map(lambda x: viability.peak_under_safest(*x), lanes, batch_size=4_096)]


def measure_viability(num_states: int, repeats: int) -> list[dict]:
    """States/s, and the ratio to a plain vmap's."""
    devices = jax.devices()
    rows = []
    with precision(32):
        lanes = live_states(whole_lanes(num_states, len(devices)))
        for name, program in (("viability", engine_peaks), ("plain vmap", vmapped_peaks)):
            spread = Spread(program, Setting(0.0, 0.0), lanes, devices)
            shares = spread.place(Setting(0.0, 0.0), lanes)
            spread.run(shares)
            seconds, _ = spread.best(shares, repeats)
            number = len(lanes[0])
            rows.append({"what": name, "at_once": number, "states_per_second": number / seconds})
    rows[0]["ratio"] = rows[0]["states_per_second"] / rows[1]["states_per_second"]
    return rows


def measure_answers(args: Args) -> dict:
    """The rows of oracle and viability, and how they were made."""
    from benchmarks.run import software

    sizes = SMOKE if args.smoke else Sizes()
    rows = measure_oracle(sizes, args.repeats) + measure_viability(sizes.states, args.repeats)
    return {"made": software(), "rows": rows}


# --- Compare ---


def fastest_as_accurate(rows: list[dict], reference: dict) -> dict | None:
    """The fastest row of the reference's precision with both errors no larger than its errors;
    None if there is none (an error that is not a number is never as accurate)."""
    allowed = [
        row
        for row in rows
        if row["bits"] == reference["bits"]
        and row["error_T"] <= reference["error_T"]
        and row["error_P"] <= reference["error_P"]
    ]
    return max(allowed, key=lambda row: row["intervals_per_second"], default=None)


def comparisons(rows: list[dict]) -> list[dict]:
    """The engine against every other row, at equal or better accuracy."""
    engine, found = [row for row in rows if row["solver"] == ENGINE], []
    for reference in rows:
        if reference["solver"] == ENGINE:
            continue
        ours = fastest_as_accurate(engine, reference)
        ratio = ours and ours["intervals_per_second"] / reference["intervals_per_second"]
        found.append(
            {
                "solver": reference["solver"],
                "rtol": reference["rtol"],
                "bits": reference["bits"],
                "engine_rtol": ours and ours["rtol"],
                "ratio": ratio,
            }
        )
    return found


def smallest_ratio(found: list[dict], solver: str) -> float | None:
    """Over the tolerances of a solver in float64: the one that does best against the engine."""
    ratios = [
        row["ratio"]
        for row in found
        if row["solver"] == solver and row["bits"] == 64 and row["ratio"] is not None
    ]
    return min(ratios, default=None)


def memory_now() -> dict:
    """Peak memory, MB: of this process and, where JAX knows it, of the device."""
    unit = 1 if platform.system() == "Darwin" else 1024
    rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / (1024 * 1024)
    device = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    return {"process": rss, "device": device and device / (1024 * 1024)}


def versions() -> dict:
    packages = ("jax", "jaxlib", "diffrax", "numpy", "scipy")
    return {"python": platform.python_version()} | {
        name: importlib.metadata.version(name) for name in packages
    }


def command(args: Args) -> str:
    """What to type to measure this again, without the output's path."""
    words = ["python -m benchmarks.throughput"]
    for field in dataclasses.fields(Args):
        value, name = getattr(args, field.name), f"--{field.name.replace('_', '-')}"
        if field.name == "json" or value == field.default:
            continue
        if field.name == "smoke":
            return f"{words[0]} --smoke"
        words += [name, *map(str, value if isinstance(value, tuple) else [value])]
    return " ".join(words)


def without_nan(value):
    """Standard JSON has no NaN: None instead."""
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


# --- Main ---


def measure_all(args: Args) -> dict:
    """Everything, as it is written to the JSON."""
    from benchmarks.run import hardware

    started, sizes = time.perf_counter(), SMOKE if args.smoke else Sizes()

    def announce(what):
        rich.print(f"[dim]{time.perf_counter() - started:4.0f} s  {what}[/dim]", flush=True)

    announce("SciPy")  # first, alone on the machine; spawned before JAX starts its threads
    cores = num_cores()
    with multiprocessing.get_context("spawn").Pool(cores) as pool:
        warm_up(pool, cores)
        rows = [measure_scipy(method, args, pool, cores) for method in ("BDF", "LSODA")]
    announce("engine")
    for bits, rtols in ((64, sizes.engine), (32, sizes.engine32)):
        rows += [measure_engine(rtol, bits, args.compared_lanes, args.repeats) for rtol in rtols]
    announce("stragglers and lane counts")
    stragglers = measure_stragglers(sizes.stragglers, args)
    lane_counts = [
        measure_engine(reactor.DEFAULT_RTOL, bits, num_lanes, args.repeats)
        for bits in (64, 32)
        for num_lanes in args.lanes
    ]
    announce("oracle and viability")
    answers = measure_answers(args)
    announce("policies in the loop and env.step")
    closed_loop = measure_loops(args.compared_lanes)
    announce("Rosenbrock methods")
    rosenbrock_rows = measure_tableaus(sizes)
    memory = memory_now()
    for method, rtols, bits in (
        (diffrax.Kvaerno3(), sizes.kvaerno3, 64),
        (diffrax.Kvaerno3(), sizes.kvaerno3_32, 32),
        (diffrax.Kvaerno5(), sizes.kvaerno5, 64),
    ):
        with precision(bits):
            program = solvers.make_kvaerno(method)
        name = type(method).__name__
        for rtol in rtols:
            announce(f"{name}, rtol {rtol:g}, float{bits}")
            lanes, repeats = args.compared_lanes, args.repeats
            rows.append(measure(name, program, rtol, bits, lanes, repeats, NUM_GOLDEN))
    announce("done")
    ratios = comparisons(rows)
    default = measure_engine(reactor.DEFAULT_RTOL, 64, args.compared_lanes, args.repeats)
    return {
        "env_intervals_per_second": default["intervals_per_second"],
        "ratio_vs_scipy_bdf": smallest_ratio(ratios, "SciPy BDF"),
        "ratio_vs_lsoda": smallest_ratio(ratios, "SciPy LSODA"),
        "ratio_vs_kvaerno3": smallest_ratio(ratios, "Kvaerno3"),
        "ratio_vs_kvaerno5": smallest_ratio(ratios, "Kvaerno5"),
        "compile_seconds": default["compile_seconds"],
        "peak_memory_mb": memory["process"],
        "peak_device_memory_mb": memory["device"],
        "program_memory_mb": default["memory_mb"],
        "meaning": MEANING,
        "versions": versions(),
        "device": hardware(),
        "date": time.strftime("%Y-%m-%d"),
        "command": command(args),
        "smoke": args.smoke,
        "lanes": default["lanes"],
        "seconds": time.perf_counter() - started,
        "work_precision": rows,
        "ratios": ratios,
        "lane_counts": lane_counts,
        "stragglers": stragglers,
        "rosenbrock": rosenbrock_rows,
        "closed_loop": closed_loop,
        "answers": answers,
    }


MEANING = {
    "env_intervals_per_second": "engine, closed-loop PI start-up, default rtol, float64",
    "ratio_vs_*": "engine over the other solver, float64, both errors equal or better; the "
    "smallest over the other's tolerances",
    "compile_seconds": "of that program, for one device; no compilation cache unless smoke",
    "peak_memory_mb": "resident set of the whole benchmark process before Kvaerno, compiler "
    "included",
    "program_memory_mb": "arguments, temporaries and outputs of that program, all devices",
    "error_T, error_P": "99th percentile over the golden closed loops, K and kg/m3",
    "ignited_share": "share of lanes above 380 K",
    "failed_share": "share of lanes in which the solver gave up, Kvaerno at steps below 1e-3 s",
}


def configure_cache(args: Args) -> None:
    """A compilation cache only where no compile time is reported."""
    jax.config.update("jax_enable_compilation_cache", args.smoke)
    if args.smoke:
        jax.config.update("jax_compilation_cache_dir", str(ROOT / ".cache/jax"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def main(args: Args) -> None:
    try:
        args = resolve(args)
        check_writable(args.json.parent)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    configure_cache(args)
    if args.answers_only:
        if not args.json.exists():
            sys.exit(f"error: json = {args.json} is not there; run without --answers-only first.")
        found = json.loads(args.json.read_text()) | {"answers": without_nan(measure_answers(args))}
    else:
        found = without_nan(measure_all(args))
    picture, text = work_precision_figure(found), json.dumps(found, indent=2) + "\n"
    write_atomically(args.json.with_suffix(".png"), lambda file: file.write(picture))
    write_atomically(args.json, lambda file: file.write(text.encode()))
    print_tables(found)
    rich.print(f"written: {args.json} and .png")


if __name__ == "__main__":
    main(tyro.cli(Args))
