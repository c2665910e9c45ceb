"""Cross-check: BC and IQL of d3rlpy on our data, evaluated in our environment, beside our own.

    make peers            (or python -m benchmarks.peers, once .venv-peers is there)

For each scenario: the `pi` data as the networks of track `published` see them go to d3rlpy in
its own virtual environment (`peers_d3rlpy.py`), with the same networks, hyper-parameters and
number of updates; its policies come back as weights, are loaded into our networks, checked
against the actions that d3rlpy itself answered, and rolled out from the 64 nominal starts like
ours. d3rlpy's policy has a tanh head and actions in [-1, 1]: `published` is the track on which
both are the same algorithm. Everything runs on the CPU. Writes `peers.json` and `peers.md`.

Speed, updates/s of both libraries one after the other, wants a machine that does nothing else:
`--only speed` measures it anew and keeps the scores of `peers.json`.
"""

import dataclasses
import json
import os
import platform
import subprocess
import tempfile
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import jax

if __name__ == "__main__":  # before polycstr_jax starts the backend
    jax.config.update("jax_platforms", "cpu")

import jax.numpy as jnp
import numpy as np
import rich
import tyro
from scipy import stats as scipy_stats

from algos import bc, iql
from algos.common import MLP, Algorithm, Track, action_units, track_obs, train_seeds
from benchmarks.run import ENV, EVALUATION_KEY, REPOSITORY, SCENARIOS, hardware
from polycstr_jax import data, evaluate, stats
from polycstr_jax.data import Dataset, TrainingData, check_writable, write_atomically
from polycstr_jax.env import scenario_params
from polycstr_jax.stats import Interval

TRACK: Track = "published"
METHODS = {"bc": bc, "iql": iql}
PEER_SCRIPT = Path(__file__).with_name("peers_d3rlpy.py")
PEER_PACKAGES = ("d3rlpy", "torch", "numpy")
NUM_PROBES = 64  # observations on which both libraries' forward passes are compared
PROBE_TOLERANCE = 1e-5  # of the network's output in [-1, 1]
NUM_STEPS = 100  # updates that both libraries make from the same weights
PEER_LOG_STD = -1.5  # d3rlpy's before training: the middle of its range
SPEED_UPDATES = {"d3rlpy": 100, "ours": 2_000}  # timed at a time
SPEED_REPEATS = 3
SPEED_SEEDS = 8  # trained together


@dataclasses.dataclass
class Args:
    """Train d3rlpy's BC and IQL and ours on the same data, and compare them."""

    scenarios: tuple[str, ...] = SCENARIOS
    num_seeds: int = 8  # of each; fewer than 8 give no intervals
    num_updates: int | None = None  # of both methods; what our configurations say if None
    only: Literal["scores", "speed"] | None = None  # the other part is kept as it is in out
    out: Path = Path("results/peers")  # folder
    peer_python: Path = Path(".venv-peers/bin/python")  # made by `make peers`


def check(args: Args) -> None:
    """`SystemExit` naming the argument that makes no sense."""
    allowed = ", ".join(SCENARIOS)
    unknown = [name for name in args.scenarios if name not in SCENARIOS]
    if unknown or not args.scenarios:
        raise SystemExit(f"scenarios = {', '.join(unknown) or 'none'}; allowed: {allowed}.")
    if args.num_seeds < 1:
        raise SystemExit(f"num-seeds = {args.num_seeds}; allowed: 1 or more.")
    if args.num_updates is not None and args.num_updates < 1:
        raise SystemExit(f"num-updates = {args.num_updates}; allowed: 1 or more.")
    if not args.peer_python.exists():
        raise SystemExit(
            f"peer-python = {args.peer_python} does not exist; `make peers` makes it, or name a "
            "Python that has d3rlpy."
        )
    try:
        check_writable(args.out)
    except OSError as error:
        raise SystemExit(f"out = {args.out}: {error}") from error


# --- To the peer and back ---


def peer_versions(peer_python: Path) -> dict[str, str]:
    """Versions in the peers' environment; `SystemExit` if it lacks a package."""
    code = (
        "import json, platform; from importlib.metadata import version; "
        f"found = {{name: version(name) for name in {PEER_PACKAGES!r}}}; "
        "print(json.dumps(found | {'python': platform.python_version()}))"
    )
    command = [peer_python.absolute(), "-I", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(
            f"peer-python = {peer_python} lacks one of {', '.join(PEER_PACKAGES)}; `make peers` "
            f"installs them.\n{done.stderr[-500:]}"
        )
    return json.loads(done.stdout)


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


def make_job(task: str, method: str, config: Any, num_seeds: int) -> dict[str, Any]:
    """What the peer is to do, under the names of our configuration."""
    job = dataclasses.asdict(config) | {"task": task, "method": method}
    return job | {
        "seeds": list(range(num_seeds)),
        "speed_updates": min(SPEED_UPDATES["d3rlpy"], config.num_updates),
    }


def run_peer(
    peer_python: Path, job: dict[str, Any], columns: dict[str, np.ndarray]
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Start the peer on a job; its report and its arrays (none if it trained nothing)."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "job.json").write_text(json.dumps(job))
        np.savez(folder / "data.npz", **columns)
        command = [peer_python.absolute(), "-I", PEER_SCRIPT, folder]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{PEER_SCRIPT.name} failed on {job['method']}:\n{done.stderr}")
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


def load_states(method: str, algorithm: Algorithm, training: TrainingData, arrays):
    """The peer's seeds as states of our algorithm; `ValueError` where the networks differ."""
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
    return states._replace(params=params)


def compare_steps(args: Args, method: str, config, training: TrainingData) -> dict[str, float]:
    """The same weights, updated by both libraries on the same transitions, one at a time.

    For each network the largest difference between the weights afterwards, as a share of the
    largest change of a weight. Our own sampling has no choice: the data is one transition.
    """
    config = dataclasses.replace(config, num_updates=NUM_STEPS)
    algorithm = METHODS[method].make_train(config)
    rows = np.random.default_rng(0).integers(training.obs.shape[0], size=NUM_STEPS).tolist()
    job = make_job("steps", method, config, 1) | {"rows": rows}
    _, arrays = run_peer(args.peer_python, job, export(training))
    both = load_states(method, algorithm, training, arrays)
    before, theirs = (jax.tree.map(lambda x, i=i: x[i], both.params) for i in (0, 1))
    state = jax.tree.map(lambda x: x[0], both)
    update = jax.jit(lambda state, one: algorithm.run(state, one, jax.random.key(0), 1)[0])
    for row in rows:
        state = update(state, training.transitions(lambda x, row=row: x[row : row + 1]))

    def largest(x, y):
        return max(
            float(jnp.abs(a - b).max()) for a, b in zip(*map(jax.tree.leaves, (x, y)), strict=True)
        )

    if method == "bc":
        return {"policy": largest(state.params, theirs) / largest(theirs, before)}
    return {
        name: largest(getattr(state.params, name), getattr(theirs, name))
        / largest(getattr(theirs, name), getattr(before, name))
        for name in ("value", "critic", "policy")
    }


def network_outputs(algorithm: Algorithm, states, obs) -> np.ndarray:
    """What the policies of S seeds answer to raw observations (N, 9), in the track's units."""
    act_on = jax.jit(
        lambda obs: jax.lax.map(
            lambda state: jax.vmap(algorithm.policy(state), (0, None))(obs, jax.random.key(0)),
            states,
        )
    )
    normaliser = jax.tree.map(lambda x: x[0], states.normaliser)
    shift, scale = action_units(TRACK, normaliser)
    return np.asarray((act_on(jnp.asarray(obs)) - shift[None, None]) / scale[None, None])


def check_forward_pass(algorithm: Algorithm, states, obs, answers) -> float:
    """Largest difference between our forward pass and the peer's `answers` (S, probes, 2).

    Raises `ValueError` if it exceeds 1e-5: then it is not the peer's policy that is evaluated.
    """
    difference = float(np.abs(network_outputs(algorithm, states, obs) - answers).max())
    if not difference <= PROBE_TOLERANCE:
        raise ValueError(
            f"with the peer's weights our policy differs by {difference:.1e} from the peer's own "
            f"answers; allowed: {PROBE_TOLERANCE:.0e}."
        )
    return difference


# --- What is compared ---


def measure(method, algorithm, states, scenario, raw: Dataset, training) -> dict[str, Any]:
    """Evaluate S seeds on the 64 nominal starts; means over the starts, one a seed."""
    metrics = evaluate.evaluate_policies(
        ENV,
        scenario_params(scenario),
        algorithm.policy,
        states,
        evaluate.start_states(evaluate.starts(scenario, "nominal")),
        evaluate.score_limits(scenario),
        jax.random.key(EVALUATION_KEY),
    )
    metrics = jax.tree.map(lambda x: np.asarray(x, np.float64), metrics)
    wanted = export(training)["actions"]
    error = np.sum((network_outputs(algorithm, states, raw.obs) - wanted[None]) ** 2, axis=-1)
    found = {
        "score": metrics.score.mean(axis=1),
        "violated": metrics.violated.mean(axis=1),
        "runaway": metrics.runaway.mean(axis=1),
        "imitation_error": error.mean(axis=1, dtype=np.float64),
    }
    if method == "iql":
        network, obs = MLP(algorithm.config.hidden, 1), track_obs(TRACK, training.obs)
        values = jax.jit(jax.vmap(network.apply, (0, None)))(states.params.value, obs)
        found["value"] = np.asarray(values, np.float64).mean(axis=(1, 2))
    per_seed = {name: values.tolist() for name, values in found.items()}
    return summarise(per_seed, float(np.median(metrics.score)))


def summarise(per_seed: dict[str, list[float]], median_score: float) -> dict[str, Any]:
    """Point estimates and intervals of one library's seeds."""
    return {
        "mean_score": stats.seed_bootstrap(per_seed["score"], np.mean)._asdict(),
        "iqm_score": stats.seed_bootstrap(per_seed["score"])._asdict(),
        "worst_seed": min(per_seed["score"]),
        "median_score": median_score,  # over seeds and starts
        **{name: float(np.mean(per_seed[name])) for name in per_seed if name != "score"},
        "seeds": per_seed,
    }


def inside(value: float, interval: Interval) -> bool | None:
    """Whether a mean lies in an interval; None where there is no interval."""
    if np.isnan(interval.low) or np.isnan(interval.high):
        return None
    return bool(interval.low <= value <= interval.high)


def compare(peer: dict[str, Any], ours: dict[str, Any]) -> dict[str, Any]:
    """Is each mean in the other's interval, and how often would chance do worse?"""
    of_peer, of_ours = (Interval(**x["mean_score"]) for x in (peer, ours))
    both = [inside(of_peer.value, of_ours), inside(of_ours.value, of_peer)]
    return {
        "peer_in_ours": both[0],
        "ours_in_peer": both[1],
        "agree": None if None in both else all(both),
        "difference": of_peer.value - of_ours.value,
        "p_value": permutation_p(peer["seeds"]["score"], ours["seeds"]["score"]),
    }


def permutation_p(first, second) -> float | None:
    """Two-sided p of the difference of means if the label were chance; None for one seed."""
    if min(len(first), len(second)) < 2:
        return None
    result = scipy_stats.permutation_test(
        (np.asarray(first, float), np.asarray(second, float)),
        lambda x, y, axis: np.mean(x, axis=axis) - np.mean(y, axis=axis),
        permutation_type="independent",
        vectorized=True,
        n_resamples=20_000,  # all 12,870 of them for 8 seeds a side
        rng=np.random.default_rng(0),
    )
    return float(result.pvalue)


def speed_of_ours(algorithm: Algorithm, training: TrainingData, num_updates: int, num_seeds: int):
    """Updates a second, summed over seeds that are trained together; and the compilation."""
    best, compilation = np.inf, 0.0
    for repeat in range(SPEED_REPEATS):
        rngs = jax.vmap(jax.random.key)(np.arange(num_seeds))
        _, _, seconds = train_seeds(algorithm, training, rngs, num_updates)
        best = min(best, seconds["run"])
        compilation = compilation if repeat else seconds["compile"]
    return {"updates_per_second": num_seeds * num_updates / best, "compile_seconds": compilation}


def compare_speed(args: Args, method: str, config, training: TrainingData) -> dict[str, Any]:
    """Updates a second of both libraries, one after the other, best of several repeats."""
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    job = make_job("speed", method, config, 1)
    report, _ = run_peer(args.peer_python, job, export(training))
    algorithm = METHODS[method].make_train(config)
    num_updates = min(SPEED_UPDATES["ours"], config.num_updates)
    one, many = (speed_of_ours(algorithm, training, num_updates, n) for n in (1, SPEED_SEEDS))
    return speed_ratios(report["speed"], one, many) | {"load_before": load}


def speed_ratios(peer: list[dict], one: dict, many: dict) -> dict[str, Any]:
    """Ratios against the peer's better number of threads."""
    best = {kind: max(row[kind] for row in peer) for kind in ("fit", "update")}
    return {
        "d3rlpy": peer,
        "ours_one_seed": one,
        "ours_many_seeds": many | {"num_seeds": SPEED_SEEDS},
        "ratios": {
            f"{name}_to_{kind}": x["updates_per_second"] / best[kind]
            for kind in best
            for name, x in (("one_seed", one), ("many_seeds", many))
        },
    }


# --- Results ---


def shown(value, form: str = ",.1f") -> str:
    return "-" if value is None else f"{value:{form}}"


def shown_interval(interval: dict[str, Any]) -> str:
    text = f"{interval['value']:,.1f}"
    if interval["low"] is None:
        return text
    return f"{text} [{interval['low']:,.1f}, {interval['high']:,.1f}]"


def made(part: dict[str, Any]) -> str:
    """The line that says how a part was made."""
    x = part["provenance"]
    return (
        f"`{x['command']}`, {x['date']}, commit {x['commit']}; {x['hardware']}; jax "
        f"{x['versions']['jax']}, d3rlpy {x['peer_versions']['d3rlpy']}, torch "
        f"{x['peer_versions']['torch']}."
    )


def markdown(found: dict[str, Any]) -> str:
    """`peers.md` from the contents of `peers.json`."""
    lines = ["# d3rlpy's BC and IQL beside ours"]
    if "scores" in found:
        lines += score_tables(found["scores"])
    if "speed" in found:
        lines += speed_table(found["speed"])
    return "\n".join(lines) + "\n"


def score_tables(scores: dict[str, Any]) -> list[str]:
    """What the policies do, and whether both libraries' do the same."""
    config = scores["config"]
    lines = [
        "",
        f"{made(scores)} Data `pi`, track `published`, {config['num_seeds']} seeds, 64 nominal "
        "starts, limit 356 K over 200 intervals, undiscounted. Score 0 and 100: 10th and 99th "
        "percentile of random-gain PI control; not bounded below, a runaway is worth thousands. "
        "Brackets: 95 % bootstrap interval over seeds. *Error*: squared error of the last iterate "
        "on all its training actions, summed over both, range scaled to [-1, 1]. *V*: IQL's mean "
        "value of the data.",
    ]
    if config["num_updates_given"]:
        lines += ["", f"**{config['num_updates_given']} updates: the numbers mean nothing.**"]
    lines += [
        "",
        "| scenario | method | by | mean score | score IQM | median episode | worst seed "
        "| P(violation) | P(runaway) | error | V |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for cell in scores["cells"]:
        for name in ("d3rlpy", "ours"):
            x = cell[name]
            lines.append(
                f"| {cell['scenario']} | {cell['method']} | {name} "
                f"| {shown_interval(x['mean_score'])} | {shown_interval(x['iqm_score'])} "
                f"| {shown(x['median_score'])} | {shown(x['worst_seed'])} "
                f"| {shown(x['violated'], '.3f')} | {shown(x['runaway'], '.3f')} "
                f"| {shown(x['imitation_error'], '.2e')} | {shown(x.get('value'), '.2f')} |"
            )
    lines += [
        "",
        "Are the means within each other's intervals? *p*: permutation test of the difference of "
        "means.",
        "",
        "| scenario | method | d3rlpy's in ours | ours in d3rlpy's | both | difference | p |",
        "|---|---|---|---|---|---|---|",
    ]
    words = {True: "yes", False: "no", None: "-"}
    for cell in scores["cells"]:
        x = cell["comparison"]
        lines.append(
            f"| {cell['scenario']} | {cell['method']} | {words[x['peer_in_ours']]} "
            f"| {words[x['ours_in_peer']]} | {words[x['agree']]} | {shown(x['difference'])} "
            f"| {shown(x['p_value'], '.2f')} |"
        )
    lines += [
        "",
        f"{NUM_STEPS} updates of both libraries from the same weights, each on one transition, the "
        "same for both: the largest difference between weights afterwards, as a share of the "
        "largest change of a weight.",
        "",
        "| scenario | method | policy | V | Q |",
        "|---|---|---|---|---|",
    ]
    for cell in scores["cells"]:
        x = [shown(cell["steps"].get(name), ".1e") for name in ("policy", "value", "critic")]
        lines.append(f"| {cell['scenario']} | {cell['method']} | {' | '.join(x)} |")
    return lines


def speed_table(speed: dict[str, Any]) -> list[str]:
    """Updates a second."""
    methods = speed["methods"]
    loads = ", ".join(shown(x["load_before"], ".1f") for x in methods.values())
    lines = [
        "",
        "## Updates a second",
        "",
        f"{made(speed)} 2 x 256, batch 256, CPU, one library after the other, best of several "
        "repeats; ours without compilation. *fit* is d3rlpy's training loop, *update* its update "
        "alone on a batch drawn before; ours is the training loop, batches drawn. Ratios: to the "
        "peer's better number of threads. Load average of the machine before each method: "
        f"{loads}.",
        "",
        "| method | by | updates/s | x d3rlpy's fit | x d3rlpy's update |",
        "|---|---|---|---|---|",
    ]
    for method, x in methods.items():
        for row in x["d3rlpy"]:
            threads = f"{row['threads']} thread{'s' if row['threads'] > 1 else ''}"
            lines += [f"| {method} | d3rlpy, fit, {threads} | {row['fit']:,.0f} | | |"]
            lines += [f"| {method} | d3rlpy, update, {threads} | {row['update']:,.0f} | | |"]
        for name, title in (
            ("one_seed", "ours, one seed"),
            ("many_seeds", f"ours, {x['ours_many_seeds']['num_seeds']} seeds at once, together"),
        ):
            lines.append(
                f"| {method} | {title} | {x[f'ours_{name}']['updates_per_second']:,.0f} "
                f"| {x['ratios'][f'{name}_to_fit']:.1f} | {x['ratios'][f'{name}_to_update']:.1f} |"
            )
    return lines


def without_nan(tree):
    """NaN as None, for JSON."""
    return jax.tree.map(lambda x: None if isinstance(x, float) and np.isnan(x) else x, tree)


def command_of(args: Args) -> str:
    """The command that repeats a part's numbers; where files lie does not belong to it."""
    words = ["python -m benchmarks.peers"]
    if tuple(args.scenarios) != SCENARIOS:
        words.append(f"--scenarios {' '.join(args.scenarios)}")
    if args.num_seeds != Args.num_seeds:
        words.append(f"--num-seeds {args.num_seeds}")
    if args.num_updates:
        words.append(f"--num-updates {args.num_updates}")
    return " ".join(words)


def provenance(command: str, peer_versions: dict[str, str]) -> dict[str, Any]:
    """How the results were made."""
    git = ["git", "describe", "--always", "--dirty"]
    try:
        done = subprocess.run(git, cwd=REPOSITORY, capture_output=True, text=True, check=False)
        commit = done.stdout.strip()
    except OSError:  # no git
        commit = ""
    packages = ("jax", "jaxlib", "flax", "optax", "numpy", "scipy")
    return {
        "command": command,
        "commit": commit or "unknown",
        "versions": {name: version(name) for name in packages}
        | {"python": platform.python_version()},
        "peer_versions": peer_versions,
        "hardware": hardware(),
        "date": datetime.now(UTC).date().isoformat(),
    }


def configurations(args: Args) -> dict[str, Any]:
    """Our configurations on the track, by method."""
    found = {}
    for method, file in METHODS.items():
        config = file.PRESETS["default"]
        num_updates = args.num_updates or config.num_updates
        found[method] = dataclasses.replace(config, track=TRACK, num_updates=num_updates)
    return found


def load_set(scenario: str) -> tuple[Dataset, TrainingData]:
    """A scenario's `pi` set, raw and as every algorithm sees it."""
    raw = data.generate(scenario, "pi")
    return raw, data.training_data(raw, data.normaliser(raw))


def compare_scores(args: Args, scenario: str, method: str, config, raw, training) -> dict[str, Any]:
    """Train both libraries' seeds on one scenario, evaluate them, compare."""
    algorithm = METHODS[method].make_train(config)
    rich.print(f"{scenario} {method}: d3rlpy, {args.num_seeds} seeds")
    job = make_job("train", method, config, args.num_seeds)
    report, arrays = run_peer(args.peer_python, job, export(training))
    states = load_states(method, algorithm, training, arrays)
    probes = raw.obs[probe_rows(raw.obs.shape[0])]
    difference = check_forward_pass(algorithm, states, probes, arrays["probe"])
    peer = measure(method, algorithm, states, scenario, raw, training)

    rich.print(f"{scenario} {method}: ours, {args.num_seeds} seeds")
    rngs = jax.vmap(jax.random.key)(np.arange(args.num_seeds))
    states, _, seconds = train_seeds(algorithm, training, rngs, config.num_updates)
    ours = measure(method, algorithm, states, scenario, raw, training)
    return {
        "scenario": scenario,
        "method": method,
        "d3rlpy": peer | {"training": report, "forward_difference": difference},
        "ours": ours | {"training": seconds},
        "comparison": compare(peer, ours),
        "steps": compare_steps(args, method, config, training),
    }


def main(args: Args) -> None:
    check(args)
    made_by = provenance(command_of(args), peer_versions(args.peer_python))
    jax.config.update("jax_compilation_cache_dir", str(REPOSITORY / ".cache" / "jax"))
    path, configs = args.out / "peers.json", configurations(args)
    found = json.loads(path.read_text()) if args.only and path.exists() else {}
    if args.only != "scores":
        methods, (_, training) = {}, load_set(args.scenarios[0])
        for method, config in configs.items():
            rich.print(f"{method}: speed")
            methods[method] = compare_speed(args, method, config, training)
        found["speed"] = {"provenance": made_by, "methods": methods}
    if args.only != "speed":
        cells = []
        for scenario in args.scenarios:
            raw, training = load_set(scenario)
            for method, config in configs.items():
                cells.append(compare_scores(args, scenario, method, config, raw, training))
        config = {
            "num_seeds": args.num_seeds,
            "num_updates_given": args.num_updates,
            "methods": {method: dataclasses.asdict(x) for method, x in configs.items()},
        }
        found["scores"] = {"provenance": made_by, "config": config, "cells": cells}
    found = without_nan(found)
    text = json.dumps(found, indent=2, sort_keys=True, allow_nan=False) + "\n"
    write_atomically(path, lambda file: file.write(text.encode()))
    write_atomically(args.out / "peers.md", lambda file: file.write(markdown(found).encode()))
    rich.print(f"results: {args.out / 'peers.md'}")


if __name__ == "__main__":
    main(tyro.cli(Args))
