"""Run the benchmark and write its results; resumable.

    python -m benchmarks.run --preset quick

A cell is one method on one scenario and data set. It is written as
`<out>/<preset>/<suite>/<scenario>-<dataset>/<method>@<variant>.csv`, one row for each seed and
group of starts, with a `.json` beside it that says how it was made, and has the table's hash. A
cell whose configuration has the same hash, and which has all that is asked for, is not run again;
one of other code, versions or settings is not replaced without `--replace`. Cells appear whole or
not at all. Of a cell that was interrupted, at whatever moment, the parts that were done are kept in
`<out>/<preset>/<suite>/.parts`, and a training under way in `.cache/training`: run it again.

On request, beside them: `.npz` with every episode (`--episodes`), `.trajectories.npz` with what a
report shows (`--trajectories`), `.params/` with the trained policies (`--save-params`), which
`benchmarks.evaluate` reads. `.curves.csv` has every update of what is trained online.

Suites and presets: `benchmarks/plan.py`. All devices of a machine are used; how several machines
work together: docs/scale.md.
"""

import sys
import time

from benchmarks import scale

if __name__ == "__main__":
    scale.prepare(sys.argv[1:])

import collections
import contextlib
import dataclasses
import errno
import fcntl
import functools
import hashlib
import json
import os
import platform
import shutil
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import pandas as pd
import rich
import tyro
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from algos import checkpoints
from benchmarks import worker
from benchmarks.plan import CACHE, DECIDING_PACKAGES, METHODS, REPOSITORY, SUITES, Cell, plan_cells
from benchmarks.results import check_known, read_cell, read_description
from benchmarks.worker import CHANNELS, Outcome, run_algorithm, run_reference, to_rows
from polycstr_jax import data
from polycstr_jax.data import check_writable, write_atomically
from polycstr_jax.pipes import end_with_the_reader

NUM_DIFFERENCES = 3  # between a cell and what is asked for, that a message names
NUM_NAMED = 5  # cells that a message names
LEVELS = (0.05, 0.25, 0.5, 0.75, 0.95)  # of the bands of trajectories


@dataclasses.dataclass
class Args:
    """Run the benchmark; what is finished is skipped, what was interrupted goes on.

    A cell is one method on one scenario and data set; it is written as a .csv with a .json beside
    it. Exit codes: 0, all that was asked for is there, or said with --dry-run; 1 or 2, it is not,
    and stderr says why. Then: python -m benchmarks.tables, python -m benchmarks.report.
    """

    # smoke: CI, the numbers mean nothing; quick: 2 seeds; cpu: 8 to 16, as committed; full: 1,000.
    preset: Literal["smoke", "quick", "cpu", "full"] = "quick"
    # All methods; on changed plants; the tables of arXiv 2507.22640, 2401.10700 and 2412.04426.
    suite: Literal["leaderboard", "robustness", "picnn", "fisor", "marvel"] = "leaderboard"
    out: Path = Path("results")  # results folder
    only: tuple[str, ...] = ()  # METHOD or METHOD@VARIANT, as iql or bc+@one-step; all if empty
    scenarios: tuple[str, ...] = ()  # startup, grade_down, grade_up; all of the preset if empty
    seeds: int | None = None  # of every cell, in place of the preset's
    dry_run: bool = False  # say what there is to run, and run nothing
    json: bool = False  # print the cells and what became of them as JSON, and nothing else
    replace: bool = False  # make again, and so replace, cells of other code, versions or settings
    force: bool = False  # run all cells again, finished or not; policies trained before are kept
    repair: bool = False  # run damaged cells again
    episodes: bool = False  # also write per-episode arrays, <cell>.npz
    trajectories: bool = False  # also write bands of trajectories, <cell>.trajectories.npz
    save_params: bool = False  # also write the trained policies, <cell>.params
    devices: int | None = None  # of this process; all if not given
    # `scale.prepare` has read the following before this.
    distributed: bool = False  # with the other processes of a Slurm, Kubernetes or MPI job
    coordinator: str | None = None  # HOST:PORT of the first process, where no cluster says it
    num_processes: int | None = None  # of the run, with --coordinator
    process_id: int | None = None  # of this process, 0 for the first, with --coordinator


def provenance(cell: Cell, wall_time: dict[str, float], table: bytes) -> dict[str, Any]:
    """How a cell was made."""
    return {
        "hash": cell.hash,
        "table_sha256": hashlib.sha256(table).hexdigest(),
        "config": cell.config,
        "data_returns": data_returns(cell.scenario),
        "wall_time_s": {name: round(seconds, 2) for name, seconds in wall_time.items()},
        **software(None if cell.method in METHODS else data.host_device()),
    }


def software(device=None) -> dict[str, Any]:
    """Commit, versions, hardware and date; of JAX's first device if `device` is None."""
    packages = (*DECIDING_PACKAGES, "numpy", "scipy")
    return {
        "commit": checkpoints.commit(REPOSITORY),
        "versions": {name: version(name) for name in packages} | {"python": sys.version.split()[0]},
        "hardware": hardware(device),
        "date": datetime.now(UTC).date().isoformat(),
    }


@functools.cache
def data_returns(scenario: str) -> list[float]:
    """Smallest and largest return of the `pi` data's episodes: the paper's score 0 and 100."""
    reward = data.generate(scenario, "pi").reward.reshape(-1, data.EPISODE_LENGTH)
    returns = reward.sum(axis=1, dtype=np.float64)
    return [float(returns.min()), float(returns.max())]


def hardware(device=None) -> str:
    """Model of the device, JAX's first if None, and number of CPU cores."""
    device = device or jax.devices()[0]
    model = device.device_kind
    if device.platform == "cpu":
        model = platform.processor() or platform.machine()
        if os.path.exists("/proc/cpuinfo"):
            lines = Path("/proc/cpuinfo").read_text().splitlines()
            model = next((x.split(":")[1].strip() for x in lines if "model name" in x), model)
    count = jax.local_device_count(backend=device.platform)
    return f"{model}, {os.cpu_count()} CPU cores, {count} JAX device(s)"


# --- Files ---


def write_episodes(folder: Path, cell: Cell, results: dict[str, Any]) -> None:
    """Write every metric of every episode, arrays (seeds, starts) named <starts>_<metric>."""
    arrays = {
        f"{kind}_{name}": np.asarray(values)
        for kind, (metrics, doom) in results.items()
        for name, values in (metrics._asdict() | (doom._asdict() if doom else {})).items()
    }
    path = folder / f"{cell.name}.npz"
    write_atomically(path, lambda file: np.savez_compressed(file, **arrays))


def write_curves(folder: Path, cell: Cell, curves: dict[str, np.ndarray]) -> None:
    """Write <cell>.curves.csv: a row a seed and update."""
    num_seeds, num_updates = next(iter(curves.values())).shape
    seed, update = np.indices((num_seeds, num_updates)).reshape(2, -1)
    columns = {"seed": seed, "update": update}
    columns |= {name: np.asarray(curve).reshape(-1) for name, curve in curves.items()}
    table = pd.DataFrame(columns).to_csv(index=False, float_format="%.5g")
    path = folder / f"{cell.name}.curves.csv"
    write_atomically(path, lambda file: file.write(table.encode()))


def write_cell(folder: Path, cell: Cell, rows: list[dict], wall_time: dict[str, float]) -> None:
    """Write the .csv, then the .json that declares it finished."""
    table = pd.DataFrame(rows).to_csv(index=False, float_format="%.6g").encode()
    path = folder / f"{cell.name}.csv"
    write_atomically(path, lambda file: file.write(table))
    text = json.dumps(provenance(cell, wall_time, table), indent=2, sort_keys=True) + "\n"
    write_atomically(path.with_suffix(".json"), lambda file: file.write(text.encode()))


def write_trajectories(folder: Path, cell: Cell, outcome: Outcome) -> None:
    """Write <cell>.trajectories.npz: `quantiles` (levels, channels, T) over the nominal starts of
    the first seeds, and `worst` (K, channels, T), the worst episode of each of the worst seeds."""
    shown = np.moveaxis(outcome.shown, 1, -1)  # (S, E, channels, T)
    arrays = {
        "channels": np.array(CHANNELS),
        "levels": np.array(LEVELS),
        "quantiles": np.quantile(shown, LEVELS, axis=(0, 1)).astype(np.float32),
        "worst": outcome.worst["channels"].astype(np.float32),
        **{f"worst_{name}": outcome.worst[name] for name in ("seed", "start", "score")},
    }
    path = folder / f"{cell.name}.trajectories.npz"
    write_atomically(path, lambda file: np.savez_compressed(file, **arrays))


def write_params(folder: Path, cell: Cell, devices: list) -> None:
    """Write <cell>.params/<first seed>: the policies of each part, which are in `.cache/trained`;
    of several hosts, each its own."""
    algorithm = worker.algorithm_of(cell)
    training = worker.training_sets.load(cell.scenario, cell.dataset)
    num_seeds, width = cell.config["seeds"], cell.config["seed_width"]
    for first in scale.own([*range(0, num_seeds, width)]):
        path = folder / f"{cell.name}.params" / str(first)
        [part] = worker.train_parts(algorithm, training, cell, [first], devices)
        states = jax.tree.map(lambda x, n=num_seeds - first: x[:n], part.states)
        checkpoints.save(
            path,
            algorithm,
            states,
            algorithm=METHODS[cell.method][0],
            scenario=cell.scenario,
            dataset=cell.dataset,
            seed=first,
            num_seeds=min(width, num_seeds - first),
        )


# --- What is there ---


def remove(folder: Path, cell: Cell) -> None:
    """Remove all files of a cell, for it is written anew; first what declares it finished."""
    path = folder / f"{cell.name}.json"
    for suffix in (".json", ".csv", ".curves.csv", ".npz", ".trajectories.npz"):
        path.with_suffix(suffix).unlink(missing_ok=True)
    shutil.rmtree(path.with_suffix(".params"), ignore_errors=True)


def lacks(folder: Path, cell: Cell, args: Args) -> bool:
    """Whether a finished cell has not all the files that are asked for."""
    asked = {".npz": args.episodes, ".trajectories.npz": args.trajectories}
    asked[".params"] = args.save_params and cell.method in METHODS
    path = folder / f"{cell.name}.json"
    width = cell.config.get("seed_width", 1)
    parts = [str(first) for first in scale.own([*range(0, cell.config["seeds"], width)])]
    return any(
        wanted and not is_whole(path.with_suffix(name), parts) for name, wanted in asked.items()
    )


def is_whole(path: Path, parts: list[str]) -> bool:
    """Whether an .npz can be read, or a .params has these parts, begun and finished; whether what
    is in them can be read, says `benchmarks.evaluate`."""
    if path.suffix == ".params":
        return all(checkpoints.is_finished(path / part) for part in parts)
    try:
        with np.load(path) as arrays:
            for name in arrays:
                arrays[name]  # it has a checksum
    except Exception:  # damaged in one of many ways
        return False
    return True


def condition_of(folder: Path, cell: Cell) -> Literal["finished", "damaged", "absent", "other"]:
    """Whether a cell's files are there with the same hash, and whole; other: with another hash."""
    path = folder / f"{cell.name}.csv"
    if not path.with_suffix(".json").exists():
        return "absent"
    try:
        _, info = read_cell(path)
    except (OSError, ValueError):
        return "damaged"
    return "finished" if info["hash"] == cell.hash else "other"


def differences(folder: Path, cell: Cell) -> str:
    """In what a cell that is there is another one than is asked for."""
    info = read_description(folder / f"{cell.name}.json")
    there, asked = (flat(config) for config in (info["config"], json.loads(cell.described)))
    pairs = {
        name: (there.get(name, "not there"), asked.get(name, "there"))
        for name in sorted({*there, *asked})
    }
    said = [f"{name} {old}, not {new}" for name, (old, new) in pairs.items() if old != new]
    said = said or [f"hash {info['hash']}, not {cell.hash}"]
    more = ["..."] if len(said) > NUM_DIFFERENCES else []
    return f"commit {info['commit']}, {info['date']}: {'; '.join(said[:NUM_DIFFERENCES] + more)}"


def flat(tree, name: str = "") -> dict[str, Any]:
    """What is in nested dictionaries, by names with dots."""
    if not isinstance(tree, dict):
        return {name: tree}
    parts = (flat(value, f"{name}.{key}" if name else key) for key, value in tree.items())
    return {key: value for part in parts for key, value in part.items()}


def select(cells: list[Cell], only: tuple[str, ...], scenarios: tuple[str, ...] = ()) -> list[Cell]:
    """The cells of the methods, or METHOD@VARIANT, and scenarios that are named; all if none is.
    `SystemExit` for an unknown name, with those that are like it."""
    named = [(cell.method, cell.name.rpartition("/")[2]) for cell in cells]
    methods, variants = (list(dict.fromkeys(names)) for names in zip(*named, strict=True))
    for name in only:
        if name not in (*methods, *variants):
            method = name.partition("@")[0]
            own = [v for v in variants if v.startswith(f"{method}@")]
            check_known("only", name, own if "@" in name and own else methods)
    for name in scenarios:
        check_known("scenarios", name, list(dict.fromkeys(cell.scenario for cell in cells)))
    return [
        cell
        for cell, names in zip(cells, named, strict=True)
        if (not only or {*names} & {*only}) and (not scenarios or cell.scenario in scenarios)
    ]


@contextlib.contextmanager
def locked(out: Path):
    """Only one run writes into a results folder."""
    with open(out / ".lock", "a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            lock.seek(0)
            by = lock.read().strip()
            raise SystemExit(
                f"out = {out} is in use by another run{f' ({by})' if by else ''}; wait or name "
                "another."
            ) from error
        lock.truncate(0)
        lock.write(f"process {os.getpid()}")
        lock.flush()
        yield


# --- The run ---


def run_cell(cell: Cell, folder: Path, args: Args, devices: list) -> None:
    """Make one cell; the first process writes it."""
    parts = folder / ".parts" / cell.hash
    trained = cell.method in METHODS
    if trained:
        outcome = run_algorithm(cell, devices, parts)
    elif scale.is_first():
        outcome = run_reference(cell)
    if scale.is_first():
        remove(folder, cell)
    scale.wait()
    if trained and args.save_params:
        write_params(folder, cell, devices)
    if scale.is_first():
        if outcome.curves:
            write_curves(folder, cell, outcome.curves)
        if args.episodes:
            write_episodes(folder, cell, outcome.results)
        if args.trajectories:
            write_trajectories(folder, cell, outcome)
        rows = [
            row
            for condition in cell.conditions
            for row in to_rows(cell, condition, outcome.results[condition.name])
        ]
        write_cell(folder, cell, rows, outcome.seconds)
    scale.wait()
    shutil.rmtree(parts, ignore_errors=True)
    with contextlib.suppress(OSError):  # other cells have theirs in it
        parts.parent.rmdir()
    # LLVM aborts once a process has mapped too many programs; elsewhere the next scenario's cell
    # needs no compilation.
    if trained and jax.default_backend() == "cpu":
        jax.clear_caches()


def planned(args: Args) -> list[Cell]:
    """The cells that are asked for; `SystemExit` for a bad argument."""
    preset = SUITES[args.suite].presets[args.preset]
    if args.seeds is not None:
        if args.seeds < 1:
            raise SystemExit(f"seeds = {args.seeds}; allowed: 1 or more.")
        preset = preset._replace(num_seeds=args.seeds)
    return select(plan_cells(preset, args.suite), args.only, args.scenarios)


def main(args: Args) -> None:
    jax.config.update("jax_compilation_cache_dir", str(CACHE / "jax"))
    folder = args.out / args.preset / args.suite
    scale.wait()  # what comes first has to be met by all processes within 30 s
    try:
        with contextlib.ExitStack() as held:
            cells, found, devices = prepare(folder, args, held)
            # Bars, those of the algorithms too, are for people: stdout has what became of cells.
            with contextlib.redirect_stdout(sys.stderr):
                became = run_cells(cells, found, folder, args, devices)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        remedy = " Make room and run it again: what is finished is kept." if full else ""
        raise SystemExit(f"out = {args.out}: {str(error).rstrip('.')}.{remedy}") from error
    if scale.is_first() and args.json:
        found = [{"cell": c.name, "hash": c.hash, "became": became[c.name]} for c in cells]
        print(json.dumps({"results": str(folder), "cells": found}, indent=1))
    elif scale.is_first():
        for name in (name for name, what in became.items() if what in ("to do", "to replace")):
            print(name)
        for cell in (cell for cell in cells if became[cell.name] == "other"):
            print(f"{cell.name}: kept without --replace: {differences(folder, cell)}")
        counts = collections.Counter(became.values())
        said = ", ".join(f"{count} {what}" for what, count in sorted(counts.items()))
        print(f"results: {folder} ({said})")
    if "damaged" in became.values():
        raise SystemExit(1)


def prepare(folder: Path, args: Args, held: contextlib.ExitStack):
    """The cells that are asked for, in which condition the first process found each, and the
    devices; what is written to is checked, and locked until `held` ends. What is in the way is
    raised, and `SystemExit` in all other processes."""
    problem = None
    try:
        cells, devices = planned(args), scale.devices(args.devices)
        found = ["finished"] * len(cells)
        if not args.dry_run:
            try:
                check_writable(CACHE)
            except OSError as error:
                raise SystemExit(f"POLYCSTR_CACHE = {CACHE}: {error}") from error
            check_writable(args.out)
            if scale.is_first():
                held.enter_context(locked(args.out))
        if scale.is_first():
            found = [condition_of(folder, cell) for cell in cells]
        if not args.dry_run:
            check_others(cells, found, folder, args)
            for cell in cells:
                check_writable((folder / cell.name).parent)
    except (Exception, SystemExit) as error:
        problem = error
    everywhere = scale.all_agree(problem is None)
    if problem is not None:
        raise problem
    if not everywhere:
        raise SystemExit("another process has ended; its message says why.")
    return cells, found, devices


def check_others(cells: list[Cell], found: list[str], folder: Path, args: Args) -> None:
    """`SystemExit` if cells would be replaced that are not what is asked for."""
    if args.replace or args.force or args.repair:
        return
    others = [cell for cell, what in zip(cells, found, strict=True) if what == "other"]
    if others:
        lines = [f"{cell.name}: {differences(folder, cell)}" for cell in others[:NUM_NAMED]]
        lines += [f"and {len(others) - NUM_NAMED} more"] * (len(others) > NUM_NAMED)
        raise SystemExit(
            f"{folder} has cells of other code, versions or settings than are asked for:\n  "
            + "\n  ".join(lines)
            + "\nNothing was run. Replace them with --replace, name another folder with --out, or "
            "name with --only and --scenarios what else is to be run."
        )


def run_cells(
    cells: list[Cell], found: list[str], folder: Path, args: Args, devices: list
) -> dict[str, str]:
    """All cells that were not `found` finished, under a progress bar, or a line each in a pipe;
    what became of each, by name: made, there, damaged or other; with `dry_run` to do, to replace,
    too."""
    wanted = {"absent"}
    wanted |= {"damaged"} if args.repair or args.force else set()
    wanted |= {"other"} if args.replace or args.force else set()
    to_do = [False] * len(cells)
    if scale.is_first():
        to_do = [
            args.force
            or condition in wanted
            or (condition == "finished" and lacks(folder, cell, args))
            for cell, condition in zip(cells, found, strict=True)
        ]
    to_do = scale.agreed(to_do)
    for cell, condition, again in zip(cells, found, to_do, strict=True):
        if condition == "damaged" and not again:
            print(
                f"warning: {folder / cell.name}.csv is damaged, and skipped; --repair makes it "
                "again.",
                file=sys.stderr,
            )
    became = {
        cell.name: ("to replace" if condition == "other" else "to do")
        if again
        else ("there" if condition == "finished" else condition)
        for cell, condition, again in zip(cells, found, to_do, strict=True)
    }
    if args.dry_run:
        return became
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    shown = scale.is_first() and rich.get_console().is_terminal
    with Progress(*columns, TimeRemainingColumn(), disable=not shown) as progress:
        task = progress.add_task(args.preset, total=len(cells))
        for i, (cell, again) in enumerate(zip(cells, to_do, strict=True)):
            progress.update(task, description=f"{args.preset} {cell.name}")
            if again:
                started = time.perf_counter()
                run_cell(cell, folder, args, devices)
                became[cell.name] = "made"
                if scale.is_first() and not shown:
                    seconds = time.perf_counter() - started
                    print(f"{i + 1}/{len(cells)} {cell.name}: {seconds:.0f} s", file=sys.stderr)
            progress.advance(task)
    return became


if __name__ == "__main__":
    if jax.process_count() == 1:
        end_with_the_reader()
    main(tyro.cli(Args))
