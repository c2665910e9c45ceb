"""Command line of the package: `python -m polycstr_jax {info,dataset,simulate} --help`.

Exit codes: 0 done; 2 an argument that makes no sense; 1 anything else that failed, said in one
line on stderr.
"""

import dataclasses
import importlib.metadata
import io
import json
import math
import os
import platform
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from rich import box
from rich.console import Console
from rich.table import Table

import polycstr_jax
from polycstr_jax import controllers, data, evaluate, interop, oracle, reactor
from polycstr_jax.env import OBS_NAMES, SCENARIOS, scenario_params
from polycstr_jax.pipes import end_with_the_reader
from polycstr_jax.rollout import Trajectory

PACKAGES = ("jax", "jaxlib", "numpy", "gymnax", "gymnasium", "diffrax", "minari", "h5py")
SUFFIXES = {"npz": (".npz",), "hdf5": (".hdf5", ".h5")}
OUT_SUFFIXES = (".csv", ".npz", ".hdf5", ".h5")
PLOT_SUFFIXES = (".png", ".pdf", ".svg")
SUMMARY = ("episode_return", "score", "gap_closed", "violation_steps")  # means over the episodes
SCENARIO_LABELS = {  # of what `describe_scenario` returns
    "id": "id",
    "polymer_setpoint_kg_m3": "P set, kg/m3",
    "temperature_setpoint_K": "T set, K",
    "temperature_limit_K": "limit, K",
    "runaway_temperature_K": "runaway, K",
    "intervals": "intervals",
    "interval_s": "interval, s",
    "initiator_feed_kg_h": "feed, kg/h",
    "coolant_temperature_K": "coolant, K",
    "largest_feed_increment_kg_h": "feed step",
    "largest_coolant_increment_K": "coolant step",
    "feed_at_start_kg_h": "first feed",
    "coolant_at_start_K": "first coolant",
}

Scenario = Literal["startup", "grade_down", "grade_up"]
Switch = tyro.conf.FlagCreatePairsOff[bool]


@dataclasses.dataclass
class Info:
    """Versions, devices, scenarios and data sets: what is here, and what it is made from.

    Simulates nothing. For the scenarios: set-points, temperature limit, horizon, bounds of the
    controls. For the data sets: size, Minari id, sha256 of what is drawn at random (the same
    everywhere) and, where this platform is a known one, of the arrays.
    """

    json: Switch = False
    """Print JSON, and nothing else, on stdout."""


@dataclasses.dataclass
class MakeDataset:
    """Make a data set: as .npz, as HDF5 for DSRL's and OSRL's loaders, or for Minari.

    Takes seconds, most of them compilation; nothing is downloaded. `hdf5` and `minari` need
    pip install "polycstr-jax[interop]", in a clone pip install -e ".[interop]". Example:

        python -m polycstr_jax dataset --scenario startup --dataset mixed --format hdf5
    """

    scenario: Scenario = "startup"
    """Which control task."""
    dataset: Literal["pi", "mixed"] = "pi"
    """pi: 100 episodes of PI control. mixed: 500, some disturbed on purpose, for safe RL."""
    format: Literal["npz", "hdf5", "minari"] = "npz"
    """npz: `polycstr_jax.data.load` reads it. hdf5: DSRL's keys. minari: `minari.load_dataset`."""
    out: Path | None = None
    """File to write, SCENARIO-DATASET.npz or .hdf5 by default, with number and seed in the name if
    they are not those of the data set; with --format minari the folder of Minari's data sets, by
    default that of MINARI_DATASETS_PATH or ~/.minari/datasets."""
    num_episodes: int | None = None
    """Fewer or more episodes than the data set has."""
    seed: int = data.DATA_SEED
    """Of gains, starts and noise; 0 is the data set itself."""
    overwrite: Switch = False
    """Replace what is there already."""
    json: Switch = False
    """Print JSON, and nothing else, on stdout."""


@dataclasses.dataclass
class Simulate:
    """Roll a controller out from the fixed starts of the benchmark and print its metrics.

    Example, a PI controller from the 8 first starts under a limit of 358 K, drawn:

        python -m polycstr_jax simulate --controller pi --limit 358 --plot pi.png

    score: 0 and 100 are the 10th and 99th percentile of random-gain PI control. gap: 0 is the
    open-loop step, 100 the optimum that keeps the limit of 356 K, from the same start. above limit:
    intervals (of 200) whose peak temperature exceeds it. runaway: a peak above 380 K. IAE:
    integral of |P_set - P| and |T_set - T|. settled: within 2 kg/m3 and 0.5 K for good.
    """

    scenario: Scenario = "startup"
    """Which control task."""
    controller: Literal[
        "pi", "pi_all", "step", "oracle", "unconstrained", "zero", "safest", "random"
    ] = "pi"
    """pi: PI control tuned for the scenario; pi_all: for all three together. step: at once to the
    steady inputs of the set-points. oracle, unconstrained: the optimal plans with and without the
    limit of 356 K. zero: holds the controls. safest: lowers both as fast as allowed. random:
    uniform actions."""
    starts: Literal["nominal", "wide", "hot", "tune"] = "nominal"
    """Which of the sets of 64 starts; from hot ones half of the episodes cannot be saved."""
    num_starts: int = 8
    """How many of them, from the first on; 1 to 64."""
    limit: float | None = None
    """Temperature limit in K instead of 356; costs and violations are counted against it."""
    seed: int = 0
    """Of the random controller."""
    out: Path | None = None
    """Write the episodes: .csv, a row an interval; .npz or .hdf5, as a data set."""
    plot: Path | None = None
    """Draw peak temperature, polymer and controls: .png, .pdf or .svg."""
    overwrite: Switch = False
    """Replace what is there already."""
    json: Switch = False
    """Print JSON, and nothing else, on stdout."""


class BadArgument(Exception):
    """An argument that makes no sense; exit code 2."""


# --- info ---


def info(args: Info) -> dict[str, Any]:
    """What `info` prints, as data."""
    return {
        "version": polycstr_jax.__version__,
        "python": platform.python_version(),
        "packages": {name: version(name) for name in PACKAGES},
        "backend": jax.default_backend(),
        "devices": [str(device) for device in jax.devices()],
        "x64": bool(jax.config.jax_enable_x64),
        "platform": data.platform_key(),
        "scenarios": {scenario: describe_scenario(scenario) for scenario in SCENARIOS},
        "datasets": describe_datasets(),
    }


def version(package: str) -> str | None:
    """The installed version of a package; None if it is not there."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def describe_scenario(scenario: str) -> dict[str, Any]:
    """Set-points, limits, horizon and bounds of a scenario, with units in the names."""
    params = scenario_params(scenario)
    low, high = reactor.control_bounds(params.reactor, np)
    return {
        "id": SCENARIOS[scenario],
        "polymer_setpoint_kg_m3": float(params.polymer_setpoint),
        "temperature_setpoint_K": float(params.temperature_setpoint),
        "temperature_limit_K": float(params.temperature_limit),
        "runaway_temperature_K": float(params.runaway_temperature),
        "intervals": int(params.max_steps_in_episode),
        "interval_s": float(params.reactor.interval),
        "initiator_feed_kg_h": [float(low[0]), float(high[0])],
        "coolant_temperature_K": [float(low[1]), float(high[1])],
        "largest_feed_increment_kg_h": float(params.max_increment[0]),
        "largest_coolant_increment_K": float(params.max_increment[1]),
        "feed_at_start_kg_h": float(params.initial_control[0]),
        "coolant_at_start_K": float(params.initial_control[1]),
    }


def describe_datasets() -> dict[str, Any]:
    """Sizes and checksums of the data sets, by `scenario/dataset`."""
    committed = data.committed_checksums()
    arrays = committed["arrays"].get(data.platform_key(), {})
    return {
        f"{scenario}/{dataset}": {
            "minari_id": dataset_id,
            "episodes": data.NUM_EPISODES[dataset],
            "transitions": data.NUM_EPISODES[dataset] * data.EPISODE_LENGTH,
            "sha256_inputs": committed["inputs"][f"{scenario}/{dataset}"],
            "sha256_arrays": arrays.get(f"{scenario}/{dataset}"),
        }
        for dataset_id, (scenario, dataset) in interop.minari_ids().items()
    }


def show_info(found: dict[str, Any], console: Console) -> None:
    packages = ", ".join(f"{k} {v or 'not installed'}" for k, v in found["packages"].items())
    console.print(f"polycstr-jax {found['version']}, Python {found['python']}; {packages}")
    bits = 64 if found["x64"] else 32
    console.print(f"backend {found['backend']}: {', '.join(found['devices'])}; float{bits}")
    scenarios = found["scenarios"]
    rows = [
        {"": label, **{scenario: row[name] for scenario, row in scenarios.items()}}
        for name, label in SCENARIO_LABELS.items()
    ]
    console.print(table({name: name for name in rows[0]}, rows))
    columns = {
        "minari_id": "data set, its Minari id",
        "episodes": "episodes",
        "sha256_inputs": "sha256 drawn",
        "sha256_arrays": "of arrays here",
    }
    rows = [
        {k: v[:12] if k.startswith("sha") and v else v for k, v in row.items()}
        for row in found["datasets"].values()
    ]
    console.print(table(columns, rows))


# --- dataset ---


def dataset(args: MakeDataset) -> dict[str, Any]:
    """Generate and write; what was written, as data."""
    if args.num_episodes is not None and args.num_episodes < 1:
        raise BadArgument(f"--num-episodes {args.num_episodes}; allowed: 1 or more.")
    if args.seed < 0:
        raise BadArgument(f"--seed {args.seed}; allowed: 0 or more.")
    what = {"scenario": args.scenario, "dataset": args.dataset, "seed": args.seed}
    if args.format == "minari":
        if args.out is not None:
            os.environ["MINARI_DATASETS_PATH"] = str(args.out.absolute())
        made = interop.to_minari(
            args.scenario,
            args.dataset,
            args.num_episodes,
            args.seed,
            overwrite=args.overwrite,
        )
        ours = made.storage.metadata[interop.METADATA_KEY]
        where = {"path": str(Path(made.spec.data_path).parent), "minari_id": made.id}
        size = {"episodes": int(made.total_episodes), "transitions": int(made.total_steps)}
        return {**what, **where, **size, "sha256": ours["sha256"]}
    suffixes, wanted = SUFFIXES[args.format], data.NUM_EPISODES[args.dataset]
    wanted = wanted if args.num_episodes is None else args.num_episodes
    part = interop.part_suffix(args.dataset, wanted, args.seed)
    path = args.out or Path(f"{args.scenario}-{args.dataset}{part}{suffixes[0]}")
    check_suffix("--out", path, suffixes)
    if args.format == "hdf5":
        interop.require()
    check_free(path, args.overwrite)
    made = data.generate(args.scenario, args.dataset, wanted, args.seed)
    provenance = {"scenario": args.scenario, "recipe": args.dataset}
    write_dataset(path, made, {**provenance, "num_episodes": wanted, "seed": args.seed})
    size = {"episodes": int(made.episode[-1]) + 1, "transitions": int(made.reward.shape[0])}
    return {**what, "path": str(path), **size, "sha256": data.sha256(made)}


def write_dataset(path: Path, made: data.Dataset, provenance: dict[str, Any]) -> None:
    """As .npz, .hdf5 or .h5."""
    save = data.save if path.suffix == ".npz" else interop.to_hdf5
    save(path, made, **provenance)


def show_dataset(found: dict[str, Any], console: Console) -> None:
    name = f" as {found['minari_id']}" if "minari_id" in found else ""
    console.print(
        f"{found['path']}{name}: {found['episodes']} episodes, {found['transitions']} "
        f"transitions, sha256 {found['sha256']}",
        soft_wrap=True,
    )


# --- simulate ---


def simulate(args: Simulate) -> dict[str, Any]:
    """Simulate and write what is asked for; metrics, as data."""
    params = check_simulate(args)
    chosen = evaluate.starts(args.scenario, args.starts)
    chosen = evaluate.Starts(*(column[: args.num_starts] for column in chosen))
    with jax.default_device(data.host_device()):
        controller, memory = make_controller(args, params, chosen)
        metrics, trajectory = jax.device_get(
            evaluate.evaluate(
                polycstr_jax.PolyCSTR(),
                params,
                controller,
                memory,
                evaluate.start_states(chosen),
                evaluate.score_limits(args.scenario),
                jax.random.key(0),
                keep,
            )
        )
    columns = metrics._asdict() | {"doomed": chosen.doomed}
    if args.limit is None:  # the optima are those of the limit of 356 K
        known = evaluate.references(args.scenario, args.starts)
        known = evaluate.References(*(column[: args.num_starts] for column in known))
        columns["gap_closed"] = evaluate.gap_closed(metrics.episode_return, known)
    episodes = [
        {"episode": i} | {name: column[i].item() for name, column in columns.items()}
        for i in range(args.num_starts)
    ]
    files = {}
    if args.out is not None:
        write_episodes(args, trajectory, params)
        files["out"] = str(args.out)
    if args.plot is not None:
        draw(args, trajectory, params)
        files["plot"] = str(args.plot)
    return {
        "scenario": args.scenario,
        "controller": args.controller,
        "starts": args.starts,
        "temperature_limit_K": float(params.temperature_limit),
        "summary": summarise(columns),
        "episodes": episodes,
        "files": files,
    }


def check_simulate(args: Simulate):
    """The parameters; `BadArgument` naming the argument that makes no sense."""
    if not 1 <= args.num_starts <= evaluate.NUM_STARTS:
        raise BadArgument(f"--num-starts {args.num_starts}; allowed: 1 to {evaluate.NUM_STARTS}.")
    overrides = {} if args.limit is None else {"temperature_limit": args.limit}
    try:
        params = polycstr_jax.make(args.scenario, **overrides)[1]
    except ValueError as error:
        raise BadArgument(f"--limit {args.limit}: {error}") from error
    if overrides and args.controller in ("oracle", "unconstrained"):
        raise BadArgument(
            f"--limit {args.limit} with --controller {args.controller}, whose plans are for the "
            "limit of 356 K; leave --limit out or choose another controller."
        )
    for name, path, suffixes in (
        ("--out", args.out, OUT_SUFFIXES),
        ("--plot", args.plot, PLOT_SUFFIXES),
    ):
        if path is not None:
            check_suffix(name, path, suffixes)
            check_free(path, args.overwrite)
    if args.out is not None and args.out.suffix in SUFFIXES["hdf5"]:
        interop.require()
    return params


def make_controller(args: Simulate, params, chosen: evaluate.Starts):
    """A controller, and its memory for each start."""
    lanes, name = args.num_starts, args.controller
    if name in ("pi", "pi_all"):
        tuned = controllers.tuned_pi("all" if name == "pi_all" else args.scenario)
        return controllers.make_pi(params), jax.tree.map(lambda x: jnp.tile(x, (lanes, 1)), tuned)
    if name in ("step", "oracle", "unconstrained"):
        if name == "step":
            plans = np.stack([oracle.step_to_setpoint(c, params) for c in chosen.control])
        else:
            plans = evaluate.optimal_actions(args.scenario, args.starts, name)[:lanes]
        memory = (jnp.asarray(plans, jnp.result_type(float)), jnp.zeros((lanes,), jnp.int32))
        return controllers.follow_plan, memory
    if name == "random":
        return controllers.uniform_random, jax.random.split(jax.random.key(args.seed), lanes)
    return getattr(controllers, name), jnp.zeros((lanes,))


def keep(trajectory: Trajectory, params) -> Trajectory:
    """A judge of `evaluate.evaluate` that returns the episodes themselves."""
    return trajectory


def summarise(columns: dict[str, Any]) -> dict[str, Any]:
    """Over the episodes: means of `SUMMARY`, shares that violate and run away, the worst peak."""
    means = {
        f"mean_{name}": float(np.mean(columns[name], dtype=np.float64))
        for name in SUMMARY
        if name in columns
    }
    return means | {
        "episodes": len(columns["score"]),
        "share_violated": float(np.mean(columns["violated"])),
        "share_runaway": float(np.mean(columns["runaway"])),
        "highest_peak_temperature_K": float(np.max(columns["peak_temperature"])),
    }


def write_episodes(args: Simulate, trajectory: Trajectory, params) -> None:
    """As .csv, a row an interval, or as a data set. Rows after a failed integration are dropped."""
    alive = np.swapaxes(trajectory.alive, 0, 1).reshape(-1)
    made = data.Dataset(*(column[alive] for column in data.to_dataset(trajectory)))
    limit = float(params.temperature_limit)
    if args.out.suffix != ".csv":
        provenance = {
            "scenario": args.scenario,
            "controller": args.controller,
            "starts": args.starts,
            "temperature_limit": limit,
        }
        write_dataset(args.out, made, provenance)
        return
    import pandas as pd

    interval = np.tile(np.arange(data.EPISODE_LENGTH), args.num_starts)[alive]
    frame = pd.DataFrame(
        {
            "episode": made.episode,
            "interval": interval,
            "end_h": (interval + 1) * params.reactor.interval / 3600.0,
            **{name: made.obs[:, i] for i, name in enumerate(OBS_NAMES)},
            "feed_action": made.action[:, 0],
            "coolant_action": made.action[:, 1],
            **{f"next_{name}": made.next_obs[:, i] for i, name in enumerate(OBS_NAMES)},
            "peak_temperature": made.constraint + np.float32(limit),
            **{name: getattr(made, name) for name in ("reward", "cost", "tracking_cost")},
        }
    )
    content = frame.to_csv(index=False).encode()
    data.write_atomically(args.out, lambda file: file.write(content))


def draw(args: Simulate, trajectory: Trajectory, params) -> None:
    """Peak temperature, polymer and controls over time, a line an episode."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    hours = np.arange(1, data.EPISODE_LENGTH + 1) * params.reactor.interval / 3600.0
    limit, set_p = float(params.temperature_limit), float(params.polymer_setpoint)
    panels = {
        "peak temperature, K": (trajectory.peak_temperature, {"limit": limit}),
        "polymer, kg/m3": (trajectory.state[..., 3], {"set-point": set_p}),
        "initiator feed, kg/h": (trajectory.control[..., 0], {}),
        "coolant, K": (trajectory.control[..., 1], {}),
    }
    figure, axes = plt.subplots(4, 1, figsize=(7, 8), sharex=True, layout="constrained")
    for axis, (label, (series, levels)) in zip(axes, panels.items(), strict=True):
        axis.plot(hours, series, color="#1f5fa8", linewidth=0.9, alpha=0.7)
        for name, level in levels.items():
            axis.axhline(level, color="#b3261e", linestyle="--", linewidth=0.9)
            axis.annotate(name, (hours[-1], level), ha="right", va="top", color="#b3261e")
        axis.set_ylabel(label)
    axes[-1].set_xlabel("time, h")
    axes[0].set_title(f"{args.scenario}, {args.controller}: {args.num_starts} {args.starts} starts")
    content = io.BytesIO()
    figure.savefig(content, format=args.plot.suffix[1:], dpi=150)
    plt.close(figure)
    data.write_atomically(args.plot, lambda file: file.write(content.getbuffer()))


def show_simulation(found: dict[str, Any], console: Console) -> None:
    columns = {
        "episode": "#",
        "episode_return": "return",
        "score": "score",
        "gap_closed": "gap",
        "violation_steps": "above\nlimit",
        "runaway": "runaway",
        "peak_temperature": "peak\nK",
        "iae_polymer": "IAE P\nkg/m3 h",
        "iae_temperature": "IAE T\nK h",
        "settling_time": "settled\nh",
    }
    if "gap_closed" not in found["episodes"][0]:
        del columns["gap_closed"]
    console.print(table(columns, found["episodes"]))
    summary = found["summary"]
    gap = f", gap {shown(summary['mean_gap_closed'])}" if "mean_gap_closed" in summary else ""
    console.print(
        f"{found['scenario']}, {found['controller']}, {summary['episodes']} {found['starts']} "
        f"starts, limit {found['temperature_limit_K']:g} K: mean score "
        f"{shown(summary['mean_score'])}{gap}, intervals above the limit "
        f"{shown(summary['mean_violation_steps'])}; P(violation) "
        f"{summary['share_violated']:.3f}, P(runaway) {summary['share_runaway']:.3f}, highest peak "
        f"{summary['highest_peak_temperature_K']:.2f} K",
        soft_wrap=True,
    )
    for path in found["files"].values():
        console.print(f"wrote {path}", soft_wrap=True)


# --- What all need ---


def check_suffix(name: str, path: Path, suffixes: tuple[str, ...]) -> None:
    """`BadArgument` unless a file's name ends in one of these."""
    if path.suffix not in suffixes:
        raise BadArgument(f"{name} {path}; allowed: a name that ends in {' or '.join(suffixes)}.")


def check_free(path: Path, overwrite: bool) -> None:
    """`OSError` if the file cannot be written, `FileExistsError` if one is there to be kept."""
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} exists; --overwrite replaces it.")
    data.check_writable(path.parent)


def table(columns: dict[str, str], rows: list[dict[str, Any]]) -> Table:
    """Rows as a table; `columns` are keys and headings."""
    made = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for heading in columns.values():
        made.add_column(heading, overflow="fold")
    for row in rows:
        made.add_row(*(shown(row[key]) for key in columns))
    return made


def shown(value: Any) -> str:
    """A value as a table shows it."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return " to ".join(f"{x:g}" for x in value)
    if not isinstance(value, float):
        return str(value)
    return f"{value:.0f}" if abs(value) >= 1e3 else f"{value:.2f}".removesuffix(".00")


def plain(tree: Any) -> Any:
    """What JSON can hold: NaN and infinities are null."""
    if isinstance(tree, dict):
        return {key: plain(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [plain(value) for value in tree]
    return None if isinstance(tree, float) and not math.isfinite(tree) else tree


COMMANDS = {
    Info: (info, show_info),
    MakeDataset: (dataset, show_dataset),
    Simulate: (simulate, show_simulation),
}


def main(arguments: list[str] | None = None) -> int:
    """Run a command; its exit code."""
    args = tyro.cli(
        Annotated[Info, tyro.conf.subcommand("info")]
        | Annotated[MakeDataset, tyro.conf.subcommand("dataset")]
        | Annotated[Simulate, tyro.conf.subcommand("simulate")],
        args=arguments,
        prog="python -m polycstr_jax",
        description="Safe control of a polymerisation reactor that can run away: what there is, "
        "its data sets in several formats, and controllers simulated.",
    )
    run, show = COMMANDS[type(args)]
    try:
        # On a terminal only: elsewhere rich shows no status.
        with Console(stderr=True).status("compiling and simulating ..."):
            found = run(args)
        if args.json:
            print(json.dumps(plain(found), indent=1, allow_nan=False))
        else:
            show(found, Console())
    except BadArgument as error:
        return complain(error, 2)
    except (ValueError, OSError, ImportError, RuntimeError, MemoryError) as error:
        return complain(error, 1)
    except KeyboardInterrupt:
        return complain("interrupted", 130)
    return 0


def complain(error: Any, code: int) -> int:
    """Say what is wrong on one line of stderr; the exit code."""
    print("error:", " ".join(str(error).split()) or type(error).__name__, file=sys.stderr)
    return code


if __name__ == "__main__":
    end_with_the_reader()
    sys.exit(main())
