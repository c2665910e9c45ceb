"""Speed of training and of the correction layer, each against a reference of the same run.

    python -m benchmarks.training_speed [--out FOLDER] [--seeds 1 8 64] [--smoke]

Writes training_speed.json and the tables of it, training_speed.md.

Training: updates/s of vmapped seeds, as FLOP/s over the measured peak of a matrix product of the
same machine. FLOPs are those of the dense layers alone, counted from their sizes; beside them
stands what XLA counts for the compiled program. Measurements of all seed counts of an algorithm
take turns, and before and after each the peak is measured anew: other work on the machine slows
both. Of PICNN only its cost model is trained, on an untrained policy.

Batching: 8 seeds on a CPU, vmapped all at once or `width` at a time under `lax.map`. Another
width than all is worth its while if it is more than 15 % faster and gives the same policies.

Correction: decisions for 512 observations at once, repeated in one compiled loop as in a roll-out.
A step costs a tenth of what ten gradient steps add to the policy's forward pass.
"""

import dataclasses
import importlib.metadata
import itertools
import json
import math
import platform
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import rich
import tyro

from algos import bc, iql, picnn
from algos.common import Algorithm, jitted_over_seeds, load_training_data
from benchmarks.run import REPOSITORY, hardware
from polycstr_jax.data import TrainingData, check_writable, write_atomically
from polycstr_jax.env import ACTION_SIZE, OBS_SIZE

ALGORITHMS = {"bc": bc, "iql": iql, "picnn": picnn}
SEEDS, SEEDS_ACCELERATOR = (1, 8, 64), (1_024,)
NUM_BATCHED = 8  # seeds that are batched in one way or another
WORTHWHILE = 1.15  # times as fast as vmap
TOLERANCE = 1e-3  # of actions in [-1, 1] after EQUAL_UPDATES updates; as the algorithms' tests
EQUAL_UPDATES = 100
NUM_DECISIONS = 512  # observations at once


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How much is measured."""

    seconds: float = 2.5  # of one measurement of training
    decision_seconds: float = 0.5  # of one measurement of decisions
    matmul_seconds: float = 0.1  # of each size of the peak
    matmuls: tuple[int, ...] = (256, 512, 1_024, 2_048)
    matmuls_accelerator: tuple[int, ...] = (4_096, 8_192)  # also; smaller ones do not fill it
    probe_updates: int = 5  # at least so many in one measurement
    equal_updates: int = EQUAL_UPDATES
    widths: tuple[int, ...] = (1, 2, 4)
    gradient_steps: tuple[int, ...] = (1, 3, 5, 10)  # the last gives the cost of one
    newton_steps: tuple[int, ...] = (1, 3)
    settings: tuple[tuple[str, Any], ...] = ()  # of every algorithm, in place of the defaults


SMOKE = Sizes(
    seconds=0.0,
    decision_seconds=0.01,
    matmul_seconds=0.001,
    matmuls=(64, 128),
    matmuls_accelerator=(),
    equal_updates=5,
    widths=(1,),
    gradient_steps=(2,),
    newton_steps=(1,),
    settings=(("hidden", (16,)), ("batch_size", 32), ("num_updates", 20)),
)


@dataclasses.dataclass(frozen=True)
class Args:
    """Measure the speed of training and of the correction layer; about 6 minutes on 2 cores."""

    out: Path = Path("results/training_speed")  # folder
    seeds: tuple[int, ...] = ()  # vmapped; if empty 1 8 64, and 1024 where there is an accelerator
    repeats: int = 3  # of each measurement, taking turns; best and median are reported
    smoke: bool = False  # tiny sizes, to see that it works


def resolve(args: Args) -> Args:
    """Defaults filled in; `ValueError` for sizes that make no sense."""
    for name, values in (("seeds", args.seeds), ("repeats", (args.repeats,))):
        if any(value < 1 for value in values):
            raise ValueError(f"{name} = {' '.join(map(str, values))}; allowed: 1 or more.")
    if args.smoke:
        return dataclasses.replace(args, seeds=args.seeds or (NUM_BATCHED,), repeats=1)
    accelerator = () if jax.default_backend() == "cpu" else SEEDS_ACCELERATOR
    return dataclasses.replace(args, seeds=args.seeds or (*SEEDS, *accelerator))


# --- FLOPs of dense layers: 2 a weight and an input; biases and activations are left out ---


class Product(NamedTuple):
    """A matrix product of a layer: an input of `size` times weights (size, width)."""

    size: int
    width: int
    of: str  # what the input is: "data", a state path "u", an "action", or hidden units "z"

    @property
    def flops(self) -> int:
        return 2 * self.size * self.width


def mlp_products(size: int, hidden: tuple[int, ...], out: int) -> list[Product]:
    """Of `common.MLP`."""
    widths = (size, *hidden, out)
    return [
        Product(a, b, "z" if layer else "data")
        for layer, (a, b) in enumerate(itertools.pairwise(widths))
    ]


def picnn_products(config: picnn.Config) -> list[Product]:
    """Of `picnn.PICNN` on the default track."""
    found, size, state = [], OBS_SIZE, "data"
    for layer, width in enumerate((*config.hidden, 1)):
        found += [Product(size, width, state), Product(ACTION_SIZE, width, "action")]
        if layer > 0:
            found.append(Product(config.hidden[layer - 1], width, "z"))
        if layer < len(config.hidden) and config.state_path == "mlp":
            found.append(Product(size, width, state))
            size, state = width, "u"
    return found


def cost_products(config: picnn.Config) -> list[Product]:
    """Of one member of the cost model."""
    if config.model == "picnn":
        return picnn_products(config)
    return mlp_products(OBS_SIZE + ACTION_SIZE, config.hidden, 1)


def forward_flops(products: list[Product]) -> int:
    """Of one input."""
    return sum(product.flops for product in products)


def training_flops(products: list[Product]) -> int:
    """Of one input, forward and backward: the output, the gradient with respect to the weights,
    and with respect to the input unless it comes from the data."""
    behind = [product for product in products if product.of in ("u", "z")]
    return 2 * forward_flops(products) + forward_flops(behind)


def update_flops(name: str, config) -> int:
    """Of one update of one seed."""
    if name == "picnn":
        return config.batch_size * config.num_models * training_flops(cost_products(config))
    policy = mlp_products(OBS_SIZE, config.hidden, ACTION_SIZE)
    if name == "bc":
        return config.batch_size * training_flops(policy)
    value = mlp_products(OBS_SIZE, config.hidden, 1)
    critic = mlp_products(OBS_SIZE + ACTION_SIZE, config.hidden, 1)
    per_transition = (
        2 * forward_flops(critic)  # both target critics of (s, a)
        + forward_flops(value)  # V(s')
        + training_flops(value)
        + 2 * training_flops(critic)
        + training_flops(policy)
    )
    return config.batch_size * per_transition


def correction_flops(config: picnn.Config) -> int:
    """Of one gradient step of one action: forward and backward from the action to the cost, no
    weights. The state path is the same for all steps, and done once."""
    moved = [product for product in cost_products(config) if product.of not in ("data", "u")]
    if config.model == "nn":
        moved = cost_products(config)  # its first layer takes observation and action together
    return 2 * config.num_models * forward_flops(moved)


def xla_flops(compiled) -> float | None:
    """What XLA counts, elementwise operations included, the body of a loop once."""
    return (compiled.cost_analysis() or {}).get("flops")


# --- Timing ---


def timed(call: Callable) -> float:
    """Seconds of a call that waits for its result."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


class Peak:
    """FLOP/s of a float32 matrix product at the precision that training uses, the default."""

    def __init__(self, sizes: Sizes):
        accelerator = () if jax.default_backend() == "cpu" else sizes.matmuls_accelerator
        self.seconds, self.samples, self.programs = sizes.matmul_seconds, [], {}
        for size in (*sizes.matmuls, *accelerator):
            a = jax.random.normal(jax.random.key(size), (size, size), jnp.float32)
            self.programs[size] = jax.jit(jnp.matmul).lower(a, a).compile(), a
        self.by_size = dict.fromkeys(self.programs, 0.0)
        self.sample()  # the warm-up, which may be the best one too

    def sample(self) -> float:
        """The best size now."""
        found = {}
        for size, (program, a) in self.programs.items():
            count, started = 0, time.perf_counter()
            while (spent := time.perf_counter() - started) < self.seconds or count == 0:
                jax.block_until_ready(program(a, a))
                count += 1
            found[size] = 2.0 * size**3 * count / spent
        self.by_size = {size: max(found[size], best) for size, best in self.by_size.items()}
        self.samples.append(max(found.values()))
        return self.samples[-1]

    @property
    def best(self) -> float:
        return max(self.samples)


def take_turns(calls: dict, repeats: int, reference: Callable[[], float] | None = None):
    """Every call once a round. Returns {name: [of each round]} three times: seconds, CPU seconds
    of this process, and the mean of `reference()` just before and just after."""
    seconds, cpu_seconds, around = ({name: [] for name in calls} for _ in range(3))
    for _ in range(repeats):
        before = reference() if reference else 0.0
        for name, call in calls.items():
            cpu_started = time.process_time()
            seconds[name].append(timed(call))
            cpu_seconds[name].append(time.process_time() - cpu_started)
            after = reference() if reference else 0.0
            around[name].append((before + after) / 2.0)
            before = after
    return seconds, cpu_seconds, around


# --- Training ---


class Training:
    """`run` of all seeds, compiled for a number of updates; a call goes on where the last ended."""

    def __init__(self, run, state, data: TrainingData, keys, num_updates: int):
        self.run, self.state, self.arguments = run, state, (data, keys)
        self.compile(num_updates)

    def compile(self, num_updates: int):
        self.num_updates = num_updates
        self.compiled = self.run.lower(self.state, *self.arguments, num_updates).compile()

    def __call__(self):
        self.state, _ = self.compiled(self.state, *self.arguments)
        jax.block_until_ready(self.state)

    def lengthen(self, seconds: float):
        """Compile for as many updates more as take so long, and warm up."""
        self()
        longer = round(self.num_updates * seconds / timed(self))
        if longer > self.num_updates:
            self.compile(longer)
            self()


def make_algorithms(sizes: Sizes) -> dict[str, Algorithm]:
    """At their defaults; PICNN around BC."""
    settings = dict(sizes.settings)
    configs = {
        name: dataclasses.replace(module.PRESETS["default"], **settings)
        for name, module in ALGORITHMS.items()
    }
    made = {name: ALGORITHMS[name].make_train(configs[name]) for name in ("bc", "iql")}
    return made | {"picnn": picnn.make_train(configs["picnn"], base=made["bc"])}


def seed_keys(num_seeds: int):
    return jax.vmap(jax.random.key)(np.arange(num_seeds))


def untrained(algorithm: Algorithm, data: TrainingData, num_seeds: int):
    """States of all seeds; a layer's base is untrained, too."""
    init, _ = jitted_over_seeds(algorithm)
    if algorithm.base is None:
        return init(seed_keys(num_seeds), data)
    return init(seed_keys(num_seeds), data, untrained(algorithm.base, data, num_seeds))


def measure_training(algorithms, data, args: Args, sizes: Sizes, peak: Peak) -> list[dict]:
    """A row for each algorithm and number of seeds; the share of the best peak comes later."""
    rows = []
    for name, algorithm in algorithms.items():
        programs = {}
        for num_seeds in args.seeds:
            state, keys = untrained(algorithm, data, num_seeds), seed_keys(num_seeds)
            run = jitted_over_seeds(algorithm)[1]
            programs[num_seeds] = Training(run, state, data, keys, sizes.probe_updates)
            programs[num_seeds].lengthen(sizes.seconds)
        seconds, _, peaks = take_turns(programs, args.repeats, peak.sample)
        flops = update_flops(name, algorithm.config)
        for num_seeds, program in programs.items():
            total = xla_flops(program.compiled)
            speeds = [program.num_updates / s for s in seconds[num_seeds]]
            rates = [num_seeds * flops * speed for speed in speeds]
            shares = [rate / now for rate, now in zip(rates, peaks[num_seeds], strict=True)]
            rows.append(
                {
                    "algorithm": name,
                    "seeds": num_seeds,
                    "updates_measured": program.num_updates,
                    "updates_per_second": max(speeds),
                    "updates_per_second_median": median(speeds),
                    "seed_updates_per_second": num_seeds * max(speeds),
                    "seed_updates_per_second_median": num_seeds * median(speeds),
                    "flops_per_update": flops,
                    "xla_flops_per_update": total and total / num_seeds,
                    "gflops": max(rates) / 1e9,
                    "share_of_peak_median": median(shares),
                }
            )
    return rows


# --- How seeds are batched ---


def mapped(algorithm: Algorithm, width: int):
    """`run` over seeds as in `jitted_over_seeds`, `width` of them vmapped at a time."""

    def run(states, data, keys, num_updates):
        def one(seed):
            return algorithm.run(seed[0], data, seed[1], num_updates)

        return jax.lax.map(one, (states, keys), batch_size=width)

    return jax.jit(run, static_argnums=3, donate_argnums=0)


def actions_of(algorithm: Algorithm, states, data: TrainingData):
    """Actions (S, N, 2) of all seeds' policies on the first 512 observations of the data."""
    mean, std = data.normaliser.obs_mean, data.normaliser.obs_std
    obs = data.obs[:NUM_DECISIONS] * std[None] + mean[None]

    @jax.jit
    @jax.vmap
    def act(state):
        return jax.vmap(algorithm.policy(state), in_axes=(0, None))(obs, jax.random.key(0))

    return np.asarray(act(states))


def measure_batching(algorithms, data, args: Args, sizes: Sizes) -> list[dict]:
    """A row for each of BC and IQL and each way of batching 8 seeds."""
    rows = []
    for name in ("bc", "iql"):
        algorithm, keys = algorithms[name], seed_keys(NUM_BATCHED)
        runs = {NUM_BATCHED: jitted_over_seeds(algorithm)[1]}
        runs |= {width: mapped(algorithm, width) for width in sizes.widths}
        programs, actions = {}, {}
        for width, run in runs.items():
            state = untrained(algorithm, data, NUM_BATCHED)
            programs[width] = Training(run, state, data, keys, sizes.equal_updates)
            programs[width]()
            actions[width] = actions_of(algorithm, programs[width].state, data)
            programs[width].lengthen(sizes.seconds)
        seconds, _, _ = take_turns(programs, args.repeats)
        speeds = {
            width: [NUM_BATCHED * programs[width].num_updates / s for s in seconds[width]]
            for width in programs
        }
        for width, found in speeds.items():
            against = speeds[NUM_BATCHED]
            difference = np.max(np.abs(actions[width] - actions[NUM_BATCHED]))
            rows.append(
                {
                    "algorithm": name,
                    "width": width,
                    "seed_updates_per_second": max(found),
                    "seed_updates_per_second_median": median(found),
                    "times_vmap": max(found) / max(against),
                    "times_vmap_median": median(
                        ours / vmapped for ours, vmapped in zip(found, against, strict=True)
                    ),
                    "largest_action_difference": float(difference),
                }
            )
    return rows


def batching_verdict(rows: list[dict]) -> dict[str, dict]:
    """For each algorithm the width to use, and a sentence why.

    A width is better if it gives the same policies and both its best time and the median of its
    rounds are more than 15 % ahead of vmap's: one of the two alone may be noise.
    """
    found = {}
    for name in dict.fromkeys(row["algorithm"] for row in rows):
        others = [row for row in rows if row["algorithm"] == name and row["width"] < NUM_BATCHED]
        equal = [row for row in others if row["largest_action_difference"] <= TOLERANCE]

        def gain(row):
            return min(row["times_vmap"], row["times_vmap_median"])

        best = max(equal, key=gain, default=None)
        if best is None:
            width, text = NUM_BATCHED, "vmap stays: no other width gives the same policies"
        else:
            better = gain(best) > WORTHWHILE
            width = best["width"] if better else NUM_BATCHED
            text = (
                f"{f'width {width} is faster' if better else 'vmap stays'}: of the other widths, "
                f"{best['width']} is the fastest, {best['times_vmap']:.2f} times as fast as vmap "
                f"at best, {best['times_vmap_median']:.2f} times in the median round; a change "
                f"is worth it above {WORTHWHILE}"
            )
        found[name] = {"width": width, "text": text}
    return found


# --- The correction layer ---


class Decisions:
    """A policy's decisions for 512 observations, so many times in one compiled loop."""

    def __init__(self, policy, state, obs):
        def run(state, obs, times):
            act = jax.vmap(policy(state), in_axes=(0, None))

            def once(index, total):  # the sum keeps every decision alive
                return total + act(obs[index % obs.shape[0]], jax.random.key(0))

            return jax.lax.fori_loop(0, times, once, jnp.zeros((obs.shape[1], ACTION_SIZE)))

        self.arguments, self.times = (state, obs), 1
        self.compiled = jax.jit(run).lower(state, obs, 1).compile()

    def __call__(self):
        jax.block_until_ready(self.compiled(*self.arguments, self.times))

    def lengthen(self, seconds: float):
        """Repeat as often as takes so long."""
        for _ in range(3):  # the first call is a warm-up; a very short one says little
            self.times = max(1, math.ceil(self.times * min(seconds / timed(self), 100.0)))


def layer_cases(sizes: Sizes) -> list[tuple[str, str, int]]:
    """(model, correction, steps) of every case; Newton and exact need a convex cost."""
    gradient = [
        (model, "gradient", steps) for model in ("picnn", "nn") for steps in sizes.gradient_steps
    ]
    newton = [("picnn", "newton", steps) for steps in sizes.newton_steps]
    return [*gradient, *newton, ("picnn", "exact", 1)]


def trained_layers(base: Algorithm, config: picnn.Config, data: TrainingData) -> dict:
    """A trained state for each cost model, around one trained policy."""
    base_key, init_key, run_key = jax.random.split(jax.random.key(0), 3)
    base_state, _ = jax.jit(base.train)(base_key, data)
    states = {}
    for model in ("picnn", "nn"):
        layer = picnn.make_train(dataclasses.replace(config, model=model), base=base)
        state = jax.jit(layer.init)(init_key, data, base_state)
        train = jax.jit(layer.run, static_argnums=3)
        states[model], _ = train(state, data, run_key, config.num_updates)
    return states


def measure_correction(algorithms, data, args: Args, sizes: Sizes) -> tuple[list, list]:
    """A row for each correction, and for each model the cost of one gradient step."""
    base, config = algorithms["bc"], algorithms["picnn"].config
    states = trained_layers(base, config, data)
    index = np.random.default_rng(0).integers(data.obs.shape[0], size=(8, NUM_DECISIONS))
    mean, std = data.normaliser.obs_mean, data.normaliser.obs_std
    obs = data.obs[index] * std[None, None] + mean[None, None]
    alone = ("policy", "none", 0)
    programs = {alone: Decisions(base.policy, states["picnn"].base, obs)}
    for model, correction, steps in layer_cases(sizes):
        settings = {"model": model, "correction": correction, "num_steps": steps}
        layer = picnn.make_train(dataclasses.replace(config, **settings), base=base)
        case = (model, correction, steps)
        programs[case] = Decisions(layer.policy, states[model], obs)
    for program in programs.values():
        program.lengthen(sizes.decision_seconds)
    seconds, cpu_seconds, _ = take_turns(programs, args.repeats)

    def microseconds(seconds):
        """An observation."""
        return {
            case: [1e6 * s / programs[case].times / NUM_DECISIONS for s in found]
            for case, found in seconds.items()
        }

    wall, cpu = microseconds(seconds), microseconds(cpu_seconds)
    rows = [
        {
            "model": case[0],
            "correction": case[1],
            "num_steps": None if case[1] == "exact" else case[2],
            "microseconds": min(found),
            "microseconds_median": median(found),
            "cpu_microseconds": min(cpu[case]),
            "times_policy": min(found) / min(wall[alone]),
        }
        for case, found in wall.items()
    ]
    flops = {case: xla_flops(program.compiled) for case, program in programs.items()}
    policy_flops = forward_flops(mlp_products(OBS_SIZE, base.config.hidden, ACTION_SIZE))
    most, steps = max(sizes.gradient_steps), []

    def share(ours, policy):
        """Of one step."""
        return (ours / policy - 1.0) / most

    for model in ("picnn", "nn"):
        case = (model, "gradient", most)
        step_flops = correction_flops(dataclasses.replace(config, model=model))
        shares = map(share, wall[case], wall[alone])
        steps.append(
            {
                "model": model,
                "microseconds": (min(wall[case]) - min(wall[alone])) / most,
                "share_of_policy": share(min(wall[case]), min(wall[alone])),
                "share_of_policy_median": median(shares),
                "cpu_share_of_policy": share(min(cpu[case]), min(cpu[alone])),
                "flops": step_flops,
                "policy_flops": policy_flops,
                "share_of_flops": step_flops / policy_flops,
                "xla_share_of_flops": flops[case] and share(flops[case], flops[alone]),
            }
        )
    return rows, steps


# --- Everything, and the tables ---

MEANING = {
    "matmul_peak": "GFLOP/s of float32 matrix products n x n, the best of all samples",
    "updates_per_second": "one update of all seeds at once; the best of the repeats",
    "seed_updates_per_second": "times the number of seeds",
    "*_median": "the median of the repeats; of a ratio, of the ratios within each round",
    "flops_per_update": "of the dense layers of one update of one seed",
    "xla_flops_per_update": "what XLA counts, elementwise operations included",
    "share_of_peak": "seeds x updates/s x flops_per_update / matmul_peak, best over best",
    "share_of_peak_median": "over the peak just before and after each measurement",
    "largest_action_difference": f"to vmap, after {EQUAL_UPDATES} updates (5 if smoke)",
    "cpu_*": "by CPU time of all threads of the process, which other work disturbs less",
    "times_policy": "time of a decision over the policy's alone",
    "correction_step": "(K gradient steps - none) / K, K the most measured; the share is over none",
}


def versions() -> dict[str, str]:
    packages = ("jax", "jaxlib", "flax", "optax", "numpy")
    found = {name: importlib.metadata.version(name) for name in packages}
    return {"python": platform.python_version()} | found


def command(args: Args) -> str:
    """What to type to measure this again, without the output's path."""
    words = ["python -m benchmarks.training_speed"]
    if args.seeds:
        words += ["--seeds", *map(str, args.seeds)]
    if args.repeats != Args.repeats:
        words += ["--repeats", str(args.repeats)]
    return " ".join([*words, "--smoke"] if args.smoke else words)


def measure_all(args: Args, typed: str) -> dict[str, Any]:
    """Everything, as it is written to the JSON; `typed` is the command."""
    started, sizes = time.perf_counter(), SMOKE if args.smoke else Sizes()

    def announce(what):
        rich.print(f"{time.perf_counter() - started:4.0f} s  {what}")

    announce("data")
    data = load_training_data("startup", "pi")
    algorithms, peak, backend = make_algorithms(sizes), Peak(sizes), jax.default_backend()
    announce(f"training, {' '.join(map(str, args.seeds))} seeds")
    training = measure_training(algorithms, data, args, sizes, peak)
    batching = []
    if backend == "cpu":
        announce(f"batching of {NUM_BATCHED} seeds")
        batching = measure_batching(algorithms, data, args, sizes)
    announce("correction layer")
    correction, steps = measure_correction(algorithms, data, args, sizes)
    for row in training:
        row["share_of_peak"] = row["gflops"] * 1e9 / peak.best
    announce("done")
    return {
        "meaning": MEANING,
        "versions": versions(),
        "device": hardware(),
        "backend": backend,
        "date": datetime.now(UTC).date().isoformat(),
        "command": typed,
        "smoke": args.smoke,
        "repeats": args.repeats,
        "seconds": time.perf_counter() - started,
        "matmul_precision": str(jax.config.jax_default_matmul_precision or "default"),
        "matmul_peak": peak.best / 1e9,
        "matmul_peak_median": median(peak.samples) / 1e9,
        "matmul_by_size": {str(size): best / 1e9 for size, best in peak.by_size.items()},
        "training": training,
        "batching": batching,
        "batching_verdict": batching_verdict(batching),
        "correction": correction,
        "correction_step": steps,
    }


def table(columns: dict[str, tuple[str, str]], rows: list[dict]) -> str:
    """Markdown; columns: heading -> (key of the row, format)."""
    lines = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    for row in rows:
        cells = [(row[key], form) for key, form in columns.values()]
        shown = ("-" if value is None else format(value, form) for value, form in cells)
        lines.append(f"| {' | '.join(shown)} |")
    return "\n".join(lines)


def markdown(found: dict[str, Any]) -> str:
    """The tables of what was measured."""
    by_size = ", ".join(f"{n}: {gflops:,.0f}" for n, gflops in found["matmul_by_size"].items())
    by_version = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    for_a_gpu = ""
    if found["backend"] != "cpu":
        for_a_gpu = " On a GPU, JAX's default precision of float32 products may be TF32."
    parts = [
        "# Speed of training",
        f"`{found['command']}` on {found['device']}, {by_version}, {found['date']}; best of "
        f"{found['repeats']}. Written with training_speed.json, which says what each number is.",
        f"Peak of a float32 matrix product n x n, precision {found['matmul_precision']}: "
        f"{found['matmul_peak']:,.0f} GFLOP/s (median sample "
        f"{found['matmul_peak_median']:,.0f}; {by_size}).{for_a_gpu}",
        "## Updates",
        table(
            {
                "algorithm": ("algorithm", "s"),
                "seeds": ("seeds", ",d"),
                "updates/s": ("updates_per_second", ",.1f"),
                "seeds x updates/s": ("seed_updates_per_second", ",.0f"),
                "median": ("seed_updates_per_second_median", ",.0f"),
                "MFLOP an update": ("mflops", ",.1f"),
                "XLA's count": ("xla_mflops", ",.1f"),
                "GFLOP/s": ("gflops", ",.0f"),
                "of the peak": ("share_of_peak", ".0%"),
                "median of the peak nearby": ("share_of_peak_median", ".0%"),
            },
            [
                row
                | {
                    "mflops": row["flops_per_update"] / 1e6,
                    "xla_mflops": row["xla_flops_per_update"] and row["xla_flops_per_update"] / 1e6,
                }
                for row in found["training"]
            ],
        ),
        "One update of all seeds at once. PICNN: its cost model alone, whose softplus is not "
        "counted in FLOP but takes time.",
    ]
    if found["batching"]:
        after = (SMOKE if found["smoke"] else Sizes()).equal_updates
        parts += [
            f"## Batching of {NUM_BATCHED} seeds on the CPU",
            table(
                {
                    "algorithm": ("algorithm", "s"),
                    "vmapped at a time": ("width", "d"),
                    "seeds x updates/s": ("seed_updates_per_second", ",.0f"),
                    "median": ("seed_updates_per_second_median", ",.0f"),
                    "times vmap": ("times_vmap", ".2f"),
                    "median round": ("times_vmap_median", ".2f"),
                    "largest difference of actions": ("largest_action_difference", ".1e"),
                },
                found["batching"],
            ),
            f"{NUM_BATCHED} at a time is vmap alone, fewer are under `lax.map`. Actions in "
            f"[-1, 1] after {after} updates, against vmap's. "
            + " ".join(f"{name}: {x['text']}." for name, x in found["batching_verdict"].items()),
        ]
    steps = [
        f"One gradient step ({row['model']}) costs {row['share_of_policy']:.2f} of the policy's "
        f"forward pass (median {row['share_of_policy_median']:.2f}; in CPU time "
        f"{row['cpu_share_of_policy']:.2f}; in FLOP of the dense layers {row['share_of_flops']:.2f}"
        + (f", by XLA's count {row['xla_share_of_flops']:.2f}" if row["xla_share_of_flops"] else "")
        + ")."
        for row in found["correction_step"]
    ]
    parts += [
        "## Correction layer",
        table(
            {
                "cost model": ("model", "s"),
                "correction": ("correction", "s"),
                "steps": ("num_steps", "d"),
                "us an observation": ("microseconds", ".2f"),
                "median": ("microseconds_median", ".2f"),
                "us of CPU time": ("cpu_microseconds", ".2f"),
                "times the policy": ("times_policy", ".2f"),
            },
            found["correction"],
        ),
        f"Decisions for {NUM_DECISIONS} observations at once, the policy's forward pass included; "
        "the first row is the policy alone. `exact` iterates until it is at the minimum, and all "
        "wait for the slowest. " + " ".join(steps),
    ]
    return "\n\n".join(parts) + "\n"


def main(args: Args) -> None:
    try:
        resolved = resolve(args)
        check_writable(args.out)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    jax.config.update("jax_compilation_cache_dir", str(REPOSITORY / ".cache" / "jax"))
    found = measure_all(resolved, command(args))
    text, tables = json.dumps(found, indent=2) + "\n", markdown(found)
    write_atomically(args.out / "training_speed.md", lambda file: file.write(tables.encode()))
    write_atomically(args.out / "training_speed.json", lambda file: file.write(text.encode()))
    print(tables)
    rich.print(f"written: {args.out}/training_speed.json and .md")


if __name__ == "__main__":
    main(tyro.cli(Args))
