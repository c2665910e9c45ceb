"""Cross-check: BC and IQL of d3rlpy on our data, evaluated in our environment, beside our own.

    make peers            (or python -m benchmarks.peers, once .venv-peers is there)

For each scenario: the `pi` data as the networks of track `published` see them go to d3rlpy in
its own virtual environment (`peers_d3rlpy.py`), with the same networks, hyper-parameters and
number of updates; its policies come back as weights, are loaded into our networks, checked
against the actions that d3rlpy itself answered, and rolled out from the 64 nominal starts like
ours. d3rlpy's policy has a tanh head and actions in [-1, 1]: `published` is the track on which
both are the same algorithm. Then updates/s, both libraries in turns. Everything runs on the CPU.
Writes `peers.json` and `peers.md`.

Two checks say where a difference comes from (`--only checks` makes them anew and keeps the rest):
updates of both libraries from the same weights on the same transitions, and our algorithm from
first weights drawn as PyTorch draws them.
"""

import dataclasses
import functools
import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any, Literal

import jax

if __name__ == "__main__":  # before polycstr_jax starts the backend
    jax.config.update("jax_platforms", "cpu")

import jax.numpy as jnp
import numpy as np
import pandas as pd
import rich
import tyro
from scipy.stats import mannwhitneyu

from algos import bc, iql
from algos.common import Algorithm, Track, action_units, track_obs, train_seeds
from benchmarks.plan import REPOSITORY, SCENARIOS
from benchmarks.run import software
from benchmarks.sections import on_starts
from benchmarks.tables import markdown_table
from polycstr_jax import data, evaluate, stats
from polycstr_jax.data import TrainingData, check_writable, write_atomically

TRACK: Track = "published"
METHODS = {"bc": bc, "iql": iql}
PEER_SCRIPT = Path(__file__).with_name("peers_d3rlpy.py")
PEER_PACKAGES = ("d3rlpy", "torch", "numpy")
NUM_PROBES = 64  # observations on which both libraries' forward passes are compared
PROBE_TOLERANCE = 1e-5  # of the network's output in [-1, 1]
NUM_STEPS = 100  # updates that both libraries make from the same weights
PEER_LOG_STD = -1.5  # d3rlpy's before training: the middle of its range
FIRST_WEIGHTS = "ours, PyTorch's first weights"
SPEED_TURNS = 5  # of both libraries
SPEED_UPDATES = {"d3rlpy": 200, "ours": 2_000}  # timed in a turn
SPEED_SEEDS = (1, 8)  # of ours, trained together


@dataclasses.dataclass
class Args:
    """Train d3rlpy's BC and IQL and ours on the same data, and compare them."""

    scenarios: tuple[Literal["startup", "grade_down", "grade_up"], ...] = SCENARIOS
    num_seeds: int = 8  # of each; fewer than 8 give no intervals
    num_updates: int | None = None  # of both methods; what our configurations say if None
    only: Literal["checks"] | None = None  # the rest is kept as it is in out
    out: Path = Path("results/peers")  # folder
    peer_python: Path = Path(".venv-peers/bin/python")  # made by `make peers`


def check(args: Args) -> None:
    """`SystemExit` naming the argument that makes no sense."""
    if not args.scenarios:
        raise SystemExit(f"scenarios = none; allowed: {', '.join(SCENARIOS)}.")
    if args.num_seeds < 1:
        raise SystemExit(f"num-seeds = {args.num_seeds}; allowed: 1 or more.")
    if args.num_updates is not None and args.num_updates < 1:
        raise SystemExit(f"num-updates = {args.num_updates}; allowed: 1 or more.")
    if not args.peer_python.exists():
        raise SystemExit(
            f"peer-python = {args.peer_python} does not exist; `make peers` makes it, or name a "
            "Python that has d3rlpy."
        )
    if args.only and not (args.out / "peers.json").exists():
        raise SystemExit(f"only = {args.only}: {args.out} holds no peers.json to add it to.")
    try:
        check_writable(args.out)
    except OSError as error:
        raise SystemExit(f"out = {args.out}: {error}") from error


# --- To the peer and back ---


def peer_versions(
    peer_python: Path, packages: tuple[str, ...] = PEER_PACKAGES, target: str = "peers"
) -> dict[str, str]:
    """Versions in a peer's environment, which `make target` makes; `SystemExit` if it lacks a
    package."""
    code = (
        "import json; from importlib.metadata import version; "
        f"print(json.dumps({{name: version(name) for name in {packages!r}}}))"
    )
    command = [peer_python.absolute(), "-I", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(
            f"peer-python = {peer_python} lacks one of {', '.join(packages)}; `make {target}` "
            f"installs them.\n{done.stderr[-500:]}"
        )
    return json.loads(done.stdout)


@functools.cache
def load_set(scenario: str) -> tuple[TrainingData, np.ndarray]:
    """A scenario's `pi` set as every algorithm sees it, and probes (64, 9), raw observations."""
    raw = data.generate(scenario, "pi")
    return data.training_data(raw, data.normaliser(raw)), raw.obs[probe_rows(raw.obs.shape[0])]


def probe_rows(num_transitions: int) -> np.ndarray:
    """Rows of the data on which forward passes are compared, spread evenly."""
    return np.linspace(0, num_transitions - 1, min(NUM_PROBES, num_transitions)).astype(int)


def export(training: TrainingData) -> dict[str, np.ndarray]:
    """The data as the networks of the track see them, N transitions, under d3rlpy's names."""
    shift, scale = action_units(TRACK, training.normaliser)
    observations = np.asarray(track_obs(TRACK, training.obs))
    return {
        "observations": observations,  # (N, 6) standardised, clipped
        "next_observations": np.asarray(track_obs(TRACK, training.next_obs)),  # (N, 6)
        "actions": np.asarray((training.action - shift[None]) / scale[None]),  # (N, 2) in [-1, 1]
        "rewards": np.asarray(training.reward)[:, None],  # (N, 1) clipped, in units of their std
        "terminals": np.asarray(training.terminated),  # (N,) bool
        "timeouts": np.asarray(training.truncated & ~training.terminated),  # (N,) bool
        "probe": observations[probe_rows(observations.shape[0])],  # (64, 6)
    }


def run_peer(
    peer_python: Path, task: str, method: str, config, training: TrainingData, **more
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Give the peer a task; its report and its arrays (none if it trained nothing)."""
    job = dataclasses.asdict(config) | {"task": task, "method": method} | more
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "job.json").write_text(json.dumps(job))
        np.savez(folder / "data.npz", **export(training))
        command = [peer_python.absolute(), "-I", PEER_SCRIPT, folder]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{PEER_SCRIPT.name} failed on {method}:\n{done.stderr}")
        report = json.loads((folder / "report.json").read_text())
        if not (folder / "networks.npz").exists():
            return report, {}
        with np.load(folder / "networks.npz") as file:
            return report, {name: file[name] for name in file.files}


def to_params(arrays: dict[str, np.ndarray], name: str) -> dict[str, Any]:
    """Parameters of our `MLP` from layers `<name>_weight_<i>` (S, out, in) and biases."""
    count = sum(key.startswith(f"{name}_weight_") for key in arrays)
    return {
        "params": {
            f"Dense_{i}": {
                "kernel": jnp.asarray(np.swapaxes(arrays[f"{name}_weight_{i}"], -1, -2)),
                "bias": jnp.asarray(arrays[f"{name}_bias_{i}"]),
            }
            for i in range(count)
        }
    }


def load_states(method: str, algorithm: Algorithm, training: TrainingData, probes, arrays):
    """The peer's seeds as states of our algorithm.

    Raises `ValueError` where the networks differ in shape, or where with the peer's weights our
    policy's answers differ by more than 1e-5 from the peer's own.
    """
    num_seeds = arrays["policy_bias_0"].shape[0]
    keys = jax.vmap(jax.random.key)(np.arange(num_seeds))
    states = jax.jit(jax.vmap(algorithm.init, (0, None)))(keys, training)
    params = to_params(arrays, "policy")
    if method == "iql":
        critics = (to_params(arrays, name) for name in ("critic0", "critic1"))
        params = states.params._replace(
            policy=params,
            log_std=jnp.full_like(states.params.log_std, PEER_LOG_STD),
            value=to_params(arrays, "value"),
            critic=jax.tree.map(lambda *x: jnp.stack(x, axis=1), *critics),
        )
        states = states._replace(target_critic=params.critic)
    expected, found = (jax.tree.map(jnp.shape, x) for x in (states.params, params))
    if expected != found:
        raise ValueError(f"{method}: the peer's layers have shapes {found}; allowed: {expected}.")
    states = states._replace(params=params)

    def answers(state):
        return jax.vmap(lambda obs: algorithm.policy(state)(obs, jax.random.key(0)))(probes)

    shift, scale = action_units(TRACK, training.normaliser)
    ours = (jax.jit(lambda: jax.lax.map(answers, states))() - shift[None, None]) / scale[None, None]
    difference = np.abs(np.asarray(ours) - arrays["probe"]).max()
    if not difference <= PROBE_TOLERANCE:
        raise ValueError(
            f"with the peer's weights our policy differs by {difference:.1e} from the peer's own "
            f"answers; allowed: {PROBE_TOLERANCE:.0e}."
        )
    return states


# --- What is compared ---


def compare_steps(peer_python: Path, method: str, config, training, probes) -> dict[str, float]:
    """The same weights, updated by both libraries on the same transitions, one at a time.

    For each network the largest difference between weights afterwards, as a share of the largest
    change of a weight. Our sampling has no choice: its data is that one transition.
    """
    config = dataclasses.replace(config, num_updates=NUM_STEPS)
    algorithm = METHODS[method].make_train(config)
    rows = np.random.default_rng(0).integers(training.obs.shape[0], size=NUM_STEPS).tolist()
    _, arrays = run_peer(peer_python, "steps", method, config, training, rows=rows)
    both = load_states(method, algorithm, training, probes, arrays)
    before, theirs = (jax.tree.map(lambda x, i=i: x[i], both.params) for i in (0, 1))
    state = jax.tree.map(lambda x: x[0], both)
    update = jax.jit(lambda state, one: algorithm.run(state, one, jax.random.key(0), 1)[0])
    for row in rows:
        state = update(state, training.transitions(lambda x, row=row: x[row : row + 1]))

    def largest(x, y):
        x, y = (jax.tree.leaves(z) for z in (x, y))
        return max(float(jnp.abs(a - b).max()) for a, b in zip(x, y, strict=True))

    def networks(params):
        if method == "bc":
            return {"policy": params}
        return {"policy": params.policy, "V": params.value, "Q": params.critic}

    first, peer, ours = (networks(x) for x in (before, theirs, state.params))
    return {
        name: largest(ours[name], peer[name]) / largest(peer[name], first[name]) for name in peer
    }


def from_pytorchs_weights(method: str, algorithm: Algorithm) -> Algorithm:
    """The algorithm, but weights and biases are first U(-1, 1) / sqrt(inputs), as PyTorch's."""

    def init(rng, training):
        rng, draw = jax.random.split(rng)
        state = algorithm.init(rng, training)
        leaves, structure = jax.tree.flatten_with_path(state.params)
        sizes = {path[:-1]: x.shape[-2] for path, x in leaves if "kernel" in str(path[-1])}
        keys = jax.random.split(draw, len(leaves))
        drawn = [
            jax.random.uniform(key, x.shape, x.dtype, -1.0, 1.0) / np.sqrt(sizes[path[:-1]])
            if path[:-1] in sizes
            else jnp.full_like(x, PEER_LOG_STD)
            for key, (path, x) in zip(keys, leaves, strict=True)
        ]
        state = state._replace(params=jax.tree.unflatten(structure, drawn))
        return state._replace(target_critic=state.params.critic) if method == "iql" else state

    return algorithm._replace(init=init)


def measure(algorithm: Algorithm, states, scenario: str) -> dict[str, Any]:
    """S seeds on the 64 nominal starts: means over the starts, one a seed, and their intervals."""
    metrics = on_starts(algorithm, states, scenario, evaluate.starts(scenario, "nominal"))
    metrics = jax.tree.map(lambda x: np.asarray(x, np.float64), metrics)
    score = metrics.score.mean(axis=1)
    return {
        "seeds": score.tolist(),
        "mean_score": stats.seed_bootstrap(score, np.mean)._asdict(),
        "iqm_score": stats.seed_bootstrap(score)._asdict(),
        "median_score": float(np.median(metrics.score)),  # over seeds and starts
        "worst_seed": float(score.min()),
        "violated": float(metrics.violated.mean()),
        "runaway": float(metrics.runaway.mean()),
    }


def train_and_measure(algorithm: Algorithm, num_seeds: int, scenario: str) -> dict[str, Any]:
    """`measure` of our seeds 0, 1, ..., trained by our loop."""
    rngs = jax.vmap(jax.random.key)(np.arange(num_seeds))
    training, _ = load_set(scenario)
    states, _, _ = train_seeds(algorithm, training, rngs, algorithm.config.num_updates)
    return measure(algorithm, states, scenario)


def agreement(peer: dict[str, Any], ours: dict[str, Any]) -> dict[str, Any]:
    """Does each mean lie in the other's interval; p of the rank test; None for too few seeds."""

    def inside(x, other):
        return other["low"] <= x["value"] <= other["high"]

    if len(peer["seeds"]) < stats.MIN_SEEDS:
        return {"agree": None, "p": None}
    means = peer["mean_score"], ours["mean_score"]
    return {
        "agree": bool(inside(*means) and inside(*reversed(means))),
        "p": float(mannwhitneyu(peer["seeds"], ours["seeds"]).pvalue),
    }


def compare_scores(args: Args, scenario: str, method: str, config) -> dict[str, Any]:
    """Train both libraries' seeds on one scenario, evaluate them, compare."""
    algorithm = METHODS[method].make_train(config)
    training, probes = load_set(scenario)
    seeds = list(range(args.num_seeds))
    rich.print(f"{scenario} {method}: {args.num_seeds} seeds of each")
    _, arrays = run_peer(args.peer_python, "train", method, config, training, seeds=seeds)
    states = load_states(method, algorithm, training, probes, arrays)
    peer = measure(algorithm, states, scenario)
    ours = train_and_measure(algorithm, args.num_seeds, scenario)
    names = {"scenario": scenario, "method": method}
    return names | {"d3rlpy": peer, "ours": ours} | agreement(peer, ours)


def make_checks(args: Args, cell: dict[str, Any], config) -> dict[str, Any]:
    """The two checks of a cell."""
    scenario, method = cell["scenario"], cell["method"]
    training, probes = load_set(scenario)
    algorithm = from_pytorchs_weights(method, METHODS[method].make_train(config))
    rich.print(f"{scenario} {method}: checks")
    found = train_and_measure(algorithm, args.num_seeds, scenario)
    steps = compare_steps(args.peer_python, method, config, training, probes)
    return {"steps": steps, FIRST_WEIGHTS: found | agreement(cell["d3rlpy"], found)}


def compare_speed(args: Args, method: str, config) -> list[dict[str, Any]]:
    """Updates/s of both libraries in turns: the fastest turn, and ratios turn by turn.

    d3rlpy's better number of threads counts, for its `fit` and for its update alone; the sum over
    seeds that are trained together counts of ours, without compilation.
    """
    algorithm = METHODS[method].make_train(config)
    training, _ = load_set("startup")
    peer_updates, num_updates = (
        min(SPEED_UPDATES[name], config.num_updates) for name in ("d3rlpy", "ours")
    )
    turns: dict[str, list[float]] = {}
    rich.print(f"{method}: speed")
    for _ in range(SPEED_TURNS):
        more = {"speed_updates": peer_updates}
        report, _ = run_peer(args.peer_python, "speed", method, config, training, **more)
        for kind in ("fit", "update"):
            turns.setdefault(f"d3rlpy, {kind}", []).append(max(x[kind] for x in report["speed"]))
        for num_seeds in SPEED_SEEDS:
            rngs = jax.vmap(jax.random.key)(np.arange(num_seeds))
            _, _, seconds = train_seeds(algorithm, training, rngs, num_updates)
            label = f"ours, {num_seeds} seed{'s' if num_seeds > 1 else ''}"
            turns.setdefault(label, []).append(num_seeds * num_updates / seconds["run"])
    return [
        {
            "method": method,
            "by": name,
            "updates/s": max(values),
            **{
                f"x {kind}": np.divide(values, turns[f"d3rlpy, {kind}"]).tolist()
                for kind in ("fit", "update")
            },
        }
        for name, values in turns.items()
    ]


# --- Results ---


def markdown(found: dict[str, Any]) -> str:
    """`peers.md` from the contents of `peers.json`."""

    def interval(x):
        bounds = "" if x["low"] is None else f" [{x['low']:,.1f}, {x['high']:,.1f}]"
        return f"{x['value']:,.1f}{bounds}"

    made, config = found["provenance"], found["config"]
    checks, nothing = found["checks_provenance"], {"agree": None, "p": None}
    rows = [
        {
            "scenario": cell["scenario"],
            "method": cell["method"],
            "by": name,
            "mean score": interval(cell[name]["mean_score"]),
            "IQM": interval(cell[name]["iqm_score"]),
            "median episode": f"{cell[name]['median_score']:,.1f}",
            "worst seed": f"{cell[name]['worst_seed']:,.1f}",
            "P(violation)": f"{cell[name]['violated']:.3f}",
            "P(runaway)": f"{cell[name]['runaway']:.3f}",
            "agrees with d3rlpy": {True: "yes", False: "no", None: "-"}[agrees[name]["agree"]],
            "p": "-" if agrees[name]["p"] is None else f"{agrees[name]['p']:.3f}",
        }
        for cell in found["cells"]
        for agrees in [{"d3rlpy": nothing, "ours": cell, FIRST_WEIGHTS: cell[FIRST_WEIGHTS]}]
        for name in agrees
    ]
    steps = [
        {"scenario": cell["scenario"], "method": cell["method"]}
        | {name: f"{cell['steps'][name]:.0e}" if name in cell["steps"] else "-" for name in "VQ"}
        | {"policy": f"{cell['steps']['policy']:.0e}"}
        for cell in found["cells"]
    ]
    speed = [
        {name: ratios(x) if isinstance(x, list) else x for name, x in row.items()}
        for row in found["speed"]
    ]
    parts = [
        "# d3rlpy's BC and IQL beside ours",
        f"`{made['command']}`, {made['date']}, commit {made['commit']}; {made['hardware']}; jax "
        f"{made['versions']['jax']}, d3rlpy {made['peer_versions']['d3rlpy']}, torch "
        f"{made['peer_versions']['torch']}. Data `pi`, track `published`, {config['num_seeds']} "
        "seeds of each, 64 nominal starts, limit 356 K, 200 intervals.",
        "*Brackets*: 95 % bootstrap interval over seeds. *agrees*: each mean lies in the other's "
        "interval. *p*: Mann-Whitney test of the seeds' scores against d3rlpy's.",
    ]
    if config["num_updates"]:
        parts.append(f"**{config['num_updates']} updates: the numbers mean nothing.**")
    parts += [
        markdown_table(pd.DataFrame(rows), dict.fromkeys(rows[0], "{}")),
        f"## {NUM_STEPS} updates from the same weights",
        "Both libraries, the same transitions, one at a time: the largest difference of a weight "
        f"afterwards as a share of the largest change. These and {FIRST_WEIGHTS}: "
        f"`{made['command']} --only checks`, {checks['date']}, commit {checks['commit']}.",
        markdown_table(pd.DataFrame(steps), dict.fromkeys(steps[0], "{}")),
        "## Updates a second",
        f"{SPEED_TURNS} turns, d3rlpy first: the fastest of each, and the median ratio to d3rlpy "
        "in the same turn (least to largest). 2 x 256, batch 256. *fit* is d3rlpy's training "
        "loop, *update* its update alone on a batch drawn before, each with PyTorch's own number "
        "of threads or with one, whichever was faster; ours is the training loop.",
        markdown_table(
            pd.DataFrame(speed), dict.fromkeys(speed[0], "{}") | {"updates/s": "{:,.0f}"}
        ),
    ]
    return "\n\n".join(parts) + "\n"


def ratios(values: list[float]) -> str:
    return f"{np.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def command_of(args: Args) -> str:
    """The command that repeats the numbers; where files lie does not belong to it."""
    words = ["python -m benchmarks.peers"]
    if tuple(args.scenarios) != SCENARIOS:
        words.append(f"--scenarios {' '.join(args.scenarios)}")
    if args.num_seeds != Args.num_seeds:
        words.append(f"--num-seeds {args.num_seeds}")
    if args.num_updates:
        words.append(f"--num-updates {args.num_updates}")
    return " ".join(words)


def main(args: Args) -> None:
    check(args)
    versions = {"command": command_of(args), "peer_versions": peer_versions(args.peer_python)}
    jax.config.update("jax_compilation_cache_dir", str(REPOSITORY / ".cache" / "jax"))
    configs = {}
    for method, file in METHODS.items():
        config = dataclasses.replace(file.PRESETS["default"], track=TRACK)
        num_updates = args.num_updates or config.num_updates
        configs[method] = dataclasses.replace(config, num_updates=num_updates)
    if args.only:
        found = json.loads((args.out / "peers.json").read_text())
    else:
        found = {
            "provenance": software() | versions,
            "config": {"num_seeds": args.num_seeds, "num_updates": args.num_updates}
            | {method: dataclasses.asdict(config) for method, config in configs.items()},
            "speed": [row for x in configs.items() for row in compare_speed(args, *x)],
            "cells": [compare_scores(args, s, *x) for s in args.scenarios for x in configs.items()],
        }
    found["checks_provenance"] = software()
    for cell in found["cells"]:
        cell |= make_checks(args, cell, configs[cell["method"]])
    found = jax.tree.map(lambda x: None if isinstance(x, float) and np.isnan(x) else x, found)
    text = json.dumps(found, indent=2, sort_keys=True, allow_nan=False) + "\n"
    write_atomically(args.out / "peers.json", lambda file: file.write(text.encode()))
    write_atomically(args.out / "peers.md", lambda file: file.write(markdown(found).encode()))
    rich.print(f"results: {args.out / 'peers.md'}")


if __name__ == "__main__":
    main(tyro.cli(Args))
