"""Speed of training and of the correction layer, each against a reference of the same run.

    python -m benchmarks.training_speed [--out FOLDER] [--seeds 1 8 64] [--smoke]
    python -m benchmarks.training_speed --parts training --algorithms iql --out FOLDER

Writes training_speed.json and the tables of it, training_speed.md. What is measured against what,
and what is counted as FLOP: docs/training_speed.md. All programs of a comparison take turns, so
that other work on the machine slows all of them.
"""

import dataclasses
import functools
import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import rich
import tyro

from algos import bc, iql, picnn
from algos.common import MLP, Algorithm, jitted_over_seeds, load_training_data
from benchmarks.plan import REPOSITORY, precision
from benchmarks.run import software
from benchmarks.tables import markdown_table
from polycstr_jax.data import TrainingData, check_writable, write_atomically
from polycstr_jax.env import ACTION_SIZE, OBS_SIZE

SEEDS, SEEDS_ACCELERATOR = (1, 8, 64), (1_024,)
UPDATES, UPDATES_ACCELERATOR = 5, 100  # of each seed in one program, at least
MATMULS, MATMULS_ACCELERATOR = (256, 512, 1_024, 2_048), (2_048, 4_096, 8_192)
NUM_BATCHED, WIDTHS = 8, (1, 2, 4)  # seeds batched in one way or another; vmapped at a time
WORTHWHILE = 1.15  # times as fast as vmap
TOLERANCE = 1e-3  # of actions in [-1, 1]; as the algorithms' tests
NUM_DECISIONS, NUM_LOOPS = 512, 16  # observations at once, and how often in one program
CORRECTIONS = (  # cost model, correction, K; Newton and exact need a convex cost
    ("picnn", "gradient", 0),  # the policy alone
    *((model, "gradient", k) for model in ("picnn", "nn") for k in (1, 3, 5, 10)),
    *(("picnn", "newton", k) for k in (1, 3)),
    ("picnn", "exact", None),
)


class Sizes(NamedTuple):
    """How much is measured."""

    seconds: float = 2.5  # at least, of training; a 5th of decisions, a 25th of a matrix product
    updates: int = 320  # of all seeds in one program; of each at least UPDATES
    batching_updates: int = 100  # of each seed in one program, after which policies are compared
    settings: tuple[tuple[str, Any], ...] = ()  # of every algorithm, in place of the defaults


SMOKE = Sizes(0.0, 40, 5, (("hidden", (16,)), ("batch_size", 32), ("num_updates", 20)))


@dataclasses.dataclass(frozen=True)
class Args:
    """Measure the speed of training and of the correction layer; minutes on 2 cores."""

    out: Path = Path("results/training_speed")  # folder
    seeds: tuple[int, ...] = ()  # vmapped; if empty 1 8 64, and 1024 where there is an accelerator
    algorithms: tuple[Literal["bc", "iql", "picnn"], ...] = ("bc", "iql", "picnn")  # trained
    parts: tuple[Literal["training", "batching", "correction"], ...] = (
        *("training", "batching", "correction"),  # batching on a CPU only
    )
    repeats: int = 3  # of each measurement, taking turns; the best is reported
    smoke: bool = False  # tiny sizes, to see that it works


def resolve(args: Args) -> Args:
    """Defaults filled in; `SystemExit` naming the argument that makes no sense."""
    if any(num < 1 for num in args.seeds):
        raise SystemExit(f"seeds = {' '.join(map(str, args.seeds))}; allowed: 1 or more each.")
    if args.repeats < 1:
        raise SystemExit(f"repeats = {args.repeats}; allowed: 1 or more.")
    try:
        check_writable(args.out)
    except OSError as error:
        raise SystemExit(f"out = {args.out}: {error}") from error
    seeds = SEEDS if jax.default_backend() == "cpu" else (*SEEDS, *SEEDS_ACCELERATOR)
    return dataclasses.replace(args, seeds=args.seeds or ((8,) if args.smoke else seeds))


# --- FLOPs of dense layers: 2 a weight and an input; biases and activations are left out ---


def kernels(network: nn.Module, *sizes: int) -> dict[str, tuple[int, int]]:
    """{name: (inputs, outputs)} of the dense layers of a network with inputs of these sizes."""
    params = jax.eval_shape(network.init, jax.random.key(0), *map(jnp.zeros, sizes))
    leaves = jax.tree.leaves_with_path(params)
    return {jax.tree_util.keystr(path): leaf.shape for path, leaf in leaves if leaf.ndim == 2}


def forward_flops(layers) -> int:
    """Of one input."""
    return sum(2 * size * width for size, width in layers.values())


def training_flops(layers) -> int:
    """Of one input, forward and backward: the output, the gradient with respect to the weights,
    and with respect to the input unless it comes from the data; hidden layers are wider."""
    behind = {name: x for name, x in layers.items() if x[0] > OBS_SIZE + ACTION_SIZE}
    return 2 * forward_flops(layers) + forward_flops(behind)


def update_flops(name: str, config) -> int:
    """Of one update of one seed."""
    if name == "picnn":
        cost = kernels(picnn.make_network(config), OBS_SIZE, ACTION_SIZE)
        return config.batch_size * config.num_models * training_flops(cost)
    flops = training_flops(kernels(MLP(config.hidden, ACTION_SIZE), OBS_SIZE))
    if name == "iql":
        scalar = MLP(config.hidden, 1)
        value, critic = kernels(scalar, OBS_SIZE), kernels(scalar, OBS_SIZE + ACTION_SIZE)
        flops += 2 * forward_flops(critic) + forward_flops(value)  # target critics and V(s')
        flops += 2 * training_flops(critic) + training_flops(value)
    return config.batch_size * flops


def correction_flops(config: picnn.Config) -> int:
    """Of one gradient step of one action: forward and backward from the action to the cost, no
    weights. The state path is the same for all steps, and done once."""
    layers = kernels(picnn.make_network(config), OBS_SIZE, ACTION_SIZE)
    if config.model == "picnn":
        layers = {n: x for n, x in layers.items() if "raw" in n or x[0] == ACTION_SIZE}
    return 2 * config.num_models * forward_flops(layers)


# --- Timing ---


def rate(call: Callable, seconds: float) -> float:
    """Calls/s, each waited for, over at least so many seconds."""
    count, started = 0, time.perf_counter()
    while (spent := time.perf_counter() - started) < seconds or count == 0:
        jax.block_until_ready(call())
        count += 1
    return count / spent


def take_turns(calls: dict, repeats: int, seconds: float, reference: Callable = lambda: 0.0):
    """Every call once a round: {name: [calls/s of each round]}, and {name: [(before, after)]}
    of `reference()`."""
    rates, around = ({name: [] for name in calls} for _ in range(2))
    for _ in range(repeats):
        before = reference()
        for name, call in calls.items():
            rates[name].append(rate(call, seconds))
            after = reference()
            around[name].append((before, after))
            before = after
    return rates, around


def matmul_peak(seconds: float) -> Callable[[], float]:
    """A function that measures FLOP/s of a float32 matrix product n x n, of the best n, at the
    precision that training uses."""
    matmul = jax.jit(jnp.matmul)
    sizes = MATMULS if jax.default_backend() == "cpu" else MATMULS_ACCELERATOR
    matrices = [jax.random.normal(jax.random.key(n), (n, n), jnp.float32) for n in sizes]

    def sample():
        return max(2.0 * len(a) ** 3 * rate(lambda a=a: matmul(a, a), seconds) for a in matrices)

    sample()  # compiles
    return sample


# --- Training ---


def make_algorithms(sizes: Sizes) -> dict[str, Algorithm]:
    """At their defaults; PICNN around BC."""
    bc_config, iql_config, picnn_config = (
        dataclasses.replace(module.PRESETS["default"], **dict(sizes.settings))
        for module in (bc, iql, picnn)
    )
    made = {"bc": bc.make_train(bc_config), "iql": iql.make_train(iql_config)}
    return made | {"picnn": picnn.make_train(picnn_config, base=made["bc"])}


def untrained(algorithm: Algorithm, data: TrainingData, keys):
    """States of all seeds; a layer's base is untrained, too."""
    base = () if algorithm.base is None else (untrained(algorithm.base, data, keys),)
    return jitted_over_seeds(algorithm)[0](keys, data, *base)


def training(algorithm: Algorithm, run, data: TrainingData, num_seeds: int, num_updates: int):
    """A call of `run` that goes on where the last ended, and returns the states, which the next
    call consumes."""
    keys = jax.vmap(jax.random.key)(np.arange(num_seeds))
    state = untrained(algorithm, data, keys)

    def call():
        nonlocal state
        state, _ = run(state, data, keys, num_updates)
        return state

    return call


def measure_training(algorithms, data, args: Args, sizes: Sizes) -> tuple[list[dict], list[float]]:
    """A row for each algorithm and number of seeds, and all samples of the peak."""
    least = UPDATES if jax.default_backend() == "cpu" else UPDATES_ACCELERATOR
    calls, updates = {}, {num: max(least, sizes.updates // num) for num in args.seeds}
    for name, algorithm in algorithms.items():
        if name not in args.algorithms:
            continue
        run = jitted_over_seeds(algorithm)[1]
        for num in args.seeds:
            calls[name, num] = training(algorithm, run, data, num, updates[num])
            rate(calls[name, num], 0.0)  # compiles
    rates, peaks = take_turns(calls, args.repeats, sizes.seconds, matmul_peak(sizes.seconds / 25))
    samples, rows = np.ravel(list(peaks.values())).tolist(), []
    for (name, num), found in rates.items():
        flops = update_flops(name, algorithms[name].config)
        speeds = [num * updates[num] * calls_per_second for calls_per_second in found]
        nearby = np.asarray(peaks[name, num]).mean(axis=1)
        rows.append(
            {
                "algorithm": name,
                "seeds": num,
                "updates/s": max(speeds) / num,
                "seeds x updates/s": max(speeds),
                "MFLOP an update": flops / 1e6,
                "GFLOP/s": flops * max(speeds) / 1e9,
                "of the peak": flops * max(speeds) / max(samples),
                "of the peak nearby, median": float(np.median(flops * np.asarray(speeds) / nearby)),
            }
        )
    return rows, samples


# --- How seeds are batched ---


def mapped(algorithm: Algorithm, width: int):
    """`run` over seeds as in `jitted_over_seeds`, `width` of them vmapped at a time."""

    @functools.partial(jax.jit, static_argnums=3, donate_argnums=0)
    def run(states, data, keys, num_updates):
        def one(seed):
            return algorithm.run(seed[0], data, seed[1], num_updates)

        return jax.lax.map(one, (states, keys), batch_size=width)

    return run


def decisions(policy):
    """(state, raw observations (L, N, 9)) -> actions (L, N, 2), N at a time."""

    @jax.jit
    def run(state, obs):
        act = jax.vmap(policy(state), in_axes=(0, None))
        return jax.lax.map(lambda batch: act(batch, jax.random.key(0)), obs)

    return run


def raw_observations(data: TrainingData, num_loops: int):
    """Random ones of the data, (L, 512, 9)."""
    index = np.random.default_rng(0).integers(data.obs.shape[0], size=(num_loops, NUM_DECISIONS))
    std, mean = data.normaliser.obs_std, data.normaliser.obs_mean
    return data.obs[index] * std[None, None] + mean[None, None]


def measure_batching(algorithms, data, args: Args, sizes: Sizes) -> list[dict]:
    """A row for each of BC and IQL and each way of batching 8 seeds."""
    rows, obs = [], raw_observations(data, 1)
    for name in ("bc", "iql"):
        algorithm, calls, actions = algorithms[name], {}, {}
        runs = {NUM_BATCHED: jitted_over_seeds(algorithm)[1]}
        runs |= {width: mapped(algorithm, width) for width in WIDTHS}
        act = jax.vmap(decisions(algorithm.policy), in_axes=(0, None))
        for width, run in runs.items():
            calls[width] = training(algorithm, run, data, NUM_BATCHED, sizes.batching_updates)
            actions[width] = np.asarray(act(calls[width](), obs))
        rates, _ = take_turns(calls, args.repeats, sizes.seconds)
        for width, found in rates.items():
            difference = np.abs(actions[width] - actions[NUM_BATCHED]).max()
            rows.append(
                {
                    "algorithm": name,
                    "vmapped at a time": width,
                    "seeds x updates/s": NUM_BATCHED * sizes.batching_updates * max(found),
                    "times vmap": max(found) / max(rates[NUM_BATCHED]),
                    "largest difference of actions": float(difference),
                }
            )
    return rows


def batching_verdict(rows: list[dict]) -> str:
    """A sentence for each algorithm: the fastest way to vmap's policies, and whether it pays."""
    sentences = []
    for name in dict.fromkeys(row["algorithm"] for row in rows):
        ours = [row for row in rows if row["algorithm"] == name]
        equal = [row for row in ours if row["largest difference of actions"] <= TOLERANCE]
        best = max(equal, key=lambda row: row["times vmap"])
        sentences.append(
            f"{name}: {best['vmapped at a time']} at a time is the fastest way to the same "
            f"policies, {best['times vmap']:.2f} times vmap; "
            f"{'worth it' if best['times vmap'] > WORTHWHILE else 'vmap stays'}."
        )
    return " ".join(sentences)


# --- The correction layer ---


def trained_layers(base: Algorithm, config: picnn.Config, data: TrainingData) -> dict:
    """A trained state for each cost model, around one trained policy."""
    key, states = jax.random.key(0), {}
    base_state, _ = jax.jit(base.train)(key, data)
    for model in ("picnn", "nn"):
        layer = picnn.make_train(dataclasses.replace(config, model=model), base=base)
        state, run = layer.init(key, data, base_state), jax.jit(layer.run, static_argnums=3)
        states[model], _ = run(state, data, key, config.num_updates)
    return states


def measure_correction(algorithms, data, args: Args, sizes: Sizes) -> list[dict]:
    """A row for each correction; K = 0 is the policy alone."""
    base, config = algorithms["bc"], algorithms["picnn"].config
    states, obs = trained_layers(base, config, data), raw_observations(data, NUM_LOOPS)
    policy_flops = forward_flops(kernels(MLP(base.config.hidden, ACTION_SIZE), OBS_SIZE))
    calls, flops, rows = {}, {}, []
    for model, correction, k in CORRECTIONS:
        changes = {"model": model, "correction": correction, "num_steps": 1 if k is None else k}
        layer = picnn.make_train(dataclasses.replace(config, **changes), base=base)
        call = functools.partial(decisions(layer.policy), states[model], obs)
        rate(call, 0.0)  # compiles
        calls[model, correction, k] = call
        flops[model] = correction_flops(layer.config)
    rates, _ = take_turns(calls, args.repeats, sizes.seconds / 5)
    for (model, correction, k), found in rates.items():
        times = max(rates[CORRECTIONS[0]]) / max(found)
        rows.append(
            {
                "cost model": model,
                "correction": correction,
                "K": k,
                "us an observation": 1e6 / (NUM_LOOPS * NUM_DECISIONS * max(found)),
                "times the policy": times,
                "a step, of the policy": (times - 1.0) / k if k else None,
                "the same in FLOP": (
                    flops[model] / policy_flops if k and correction == "gradient" else None
                ),
            }
        )
    return rows


# --- Everything, and the tables ---

FORMATS = {  # of other columns than text, and numbers with two decimals
    "updates/s": "{:,.1f}",
    "seeds x updates/s": "{:,.0f}",
    "MFLOP an update": "{:,.1f}",
    "GFLOP/s": "{:,.0f}",
    "of the peak": "{:.0%}",
    "of the peak nearby, median": "{:.0%}",
    "largest difference of actions": "{:.1e}",
    "K": "{:.0f}",
}


def table(rows: list[dict], formats: dict[str, str] = FORMATS) -> str:
    kinds = pd.DataFrame(rows).dtypes.items()
    default = {name: "{:.2f}" if kind == "float64" else "{}" for name, kind in kinds}
    return markdown_table(pd.DataFrame(rows), {x: formats.get(x, default[x]) for x in default})


def measure_all(args: Args) -> dict[str, Any]:
    """Everything, as it is written to the JSON."""
    sizes = SMOKE if args.smoke else Sizes()
    data, algorithms = load_training_data("startup", "pi"), make_algorithms(sizes)
    found = {
        **software(),
        "precision": precision(),
        "args": {"seeds": args.seeds, "repeats": args.repeats, "smoke": args.smoke},
    }
    if "training" in args.parts:
        rich.print(f"training, {' '.join(map(str, args.seeds))} seeds")
        found["training"], peaks = measure_training(algorithms, data, args, sizes)
        found["matmul GFLOP/s"] = {"best": max(peaks) / 1e9, "median": median(peaks) / 1e9}
    if "batching" in args.parts and jax.default_backend() == "cpu":
        rich.print(f"batching of {NUM_BATCHED} seeds")
        found["batching"] = measure_batching(algorithms, data, args, sizes)
        found["batching updates"] = sizes.batching_updates
        found["batching verdict"] = batching_verdict(found["batching"])
    if "correction" in args.parts:
        rich.print("correction layer")
        found["correction"] = measure_correction(algorithms, data, args, sizes)
    return found


def markdown(found: dict[str, Any]) -> str:
    """The tables of what was measured."""
    versions = found["versions"]
    parts = [
        "# Speed of training" + (" (SMOKE TEST)" if found["args"]["smoke"] else ""),
        f"Commit {found['commit']}; jax {versions['jax']}; {found['hardware']}; {found['date']}; "
        f"best of {found['args']['repeats']}; numbers in {found.get('precision', 'float32')}.",
    ]
    if "training" in found:
        peak = found["matmul GFLOP/s"]
        parts += [
            f"Peak of a matrix product in that precision: {peak['best']:,.0f} GFLOP/s, median "
            f"{peak['median']:,.0f}.",
            "## Updates",
            table(found["training"]),
            "An update of all seeds at once. PICNN: its cost model alone, whose softplus is not "
            "counted in FLOP but takes time.",
        ]
    if found.get("batching"):
        parts += [
            f"## Batching of {NUM_BATCHED} seeds on the CPU",
            table(found["batching"]),
            f"{NUM_BATCHED} at a time is vmap alone, fewer are under `lax.map`. Actions in "
            f"[-1, 1] after {found['batching updates']} updates, against vmap's; another width "
            f"is worth it above {WORTHWHILE} times vmap. {found['batching verdict']}",
        ]
    if "correction" in found:
        parts += [
            "## Correction layer",
            table(found["correction"]),
            f"Decisions for {NUM_DECISIONS} observations at once, the policy's forward pass "
            "included; K = 0 is the policy alone. `exact` iterates until it is at the minimum, and "
            "all wait for the slowest. A step costs a K-th of what K steps add.",
        ]
    return "\n\n".join(parts) + "\n"


def write(folder: Path, name: str, found: dict[str, Any], tables: str) -> None:
    """`name`.json and `name`.md, which is shown, too."""
    for suffix, text in (("md", tables), ("json", json.dumps(found, indent=2) + "\n")):
        path = folder / f"{name}.{suffix}"
        write_atomically(path, lambda file, text=text: file.write(text.encode()))
    print(tables)
    rich.print(f"written: {folder}/{name}.json and .md")


def main(args: Args) -> None:
    args = resolve(args)
    jax.config.update("jax_compilation_cache_dir", str(REPOSITORY / ".cache" / "jax"))
    found = measure_all(args)
    write(args.out, "training_speed", found, markdown(found))


if __name__ == "__main__":
    main(tyro.cli(Args))
