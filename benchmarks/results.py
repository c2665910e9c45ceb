"""Read the results that `benchmarks.run` writes, and refuse those that cannot be what it wrote.

`read_results(folder)` is one table of all whole cells of a suite. A damaged cell is named on
stderr, with the command that makes it again, and left out. Cells of different code, versions or
backends are refused, unless forced: then tables say so.
"""

import difflib
import functools
import hashlib
import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from polycstr_jax import evaluate

REQUIRED = {
    *("seed", "starts", "num_starts", "score", "violated", "runaway"),
    *("gap_closed", "gap_closed_median", "gap_starts"),
    *("excess_over_oracle", "excess_over_unconstrained"),
}
NEVER_EMPTY = ("seed", "num_starts", "score", "violated", "runaway")
PROVENANCE = ("hash", "config", "commit", "versions", "hardware", "date")
IN_CONFIG = ("method", "seeds", "evaluation", "source", "versions", "backend")
PRESETS = ("full", "cpu", "quick", "smoke")  # the largest first
NAMED = 3  # cells that a message about mixed versions names


def read_results(folder: Path, force: bool = False) -> pd.DataFrame:
    """All whole cells of a suite's folder, one row a seed and group of starts.

    `.attrs` say what is wrong with them: `left_out`, a line for each damaged cell, and `mixed`, a
    line for everything in which the cells' versions differ. Raises `ValueError` where no whole
    cell is there and, unless `force`, where versions are mixed.
    """
    frames, cells, left_out = [], {}, []
    for path in cell_paths(folder):
        name = f"{path.parent.name}/{path.stem}"
        try:
            frame, info = read_cell(path)
        except ValueError as error:
            left_out.append(f"{name}: {error}")
            continue
        cells[name] = info
        frames.append(with_provenance(frame, path, info))
    again = run_command(folder)
    if left_out:
        lines = "\n  ".join(left_out)
        message = f"of {folder}, left out:\n  {lines}\nto run exactly these again: {again} --repair"
        if not frames:
            raise ValueError(f"{folder} holds no results that are whole; {message}")
        print(f"warning: {message}", file=sys.stderr)
    if not frames:
        raise ValueError(f"{folder} holds no results; run {again} first.")
    mixed = mixed_versions(cells)
    if mixed and not force:
        lines = "\n  ".join(mixed)
        raise ValueError(
            f"{folder} mixes versions:\n  {lines}\nRun {again} --replace, which makes again what "
            "is not of the code that is there now, or show them as they are with --force."
        )
    found = pd.concat(frames, ignore_index=True)
    found.attrs = {"left_out": left_out, "mixed": mixed}
    return found


def check_known(argument: str, name: str, allowed) -> None:
    """`SystemExit` with what is allowed, and which of it is like the name, if it is none of it."""
    if name not in allowed:
        near = difflib.get_close_matches(name, allowed, 3, 0.5)
        hint = f" Did you mean {' or '.join(near)}?" if near else ""
        raise SystemExit(f"{argument} = {name}; allowed: {', '.join(allowed)}.{hint}")


def presets_there(results: Path, suites: tuple[str, ...]) -> list[str]:
    """Presets of which one of the suites has cells: that with the most first, for the larger one
    may be there in part; of equal ones the larger; a smoke test last, whatever it has."""
    counts = {p: sum(len(cell_paths(results / p / suite)) for suite in suites) for p in PRESETS}
    there = [preset for preset in PRESETS if counts[preset]]
    return sorted(there, key=lambda preset: (preset == "smoke", -counts[preset]))


def cell_paths(folder: Path) -> list[Path]:
    """The .csv of every cell of which a suite's folder holds a .csv or a .json, sorted."""
    found = {path.with_suffix(".csv") for path in folder.glob("*/*.json")}
    found |= {path for path in folder.glob("*/*.csv") if not path.stem.endswith(".curves")}
    return sorted(found)


def read_cell(path: Path) -> tuple[pd.DataFrame, dict[str, Any]]:
    """A cell's rows and its description; `ValueError` says in which way it is not whole."""
    if path.parent.name.count("-") != 1 or path.stem.count("@") != 1:
        raise ValueError("not named <scenario>-<dataset>/<method>@<variant>")
    info = read_description(path.with_suffix(".json"))
    frame, config = read_table(path), info["config"]
    # Results from before its hash was kept have none.
    if info.get("table_sha256", digest := hashlib.sha256(path.read_bytes()).hexdigest()) != digest:
        raise ValueError(f"{path.name} is not the table that {path.stem}.json describes")
    missing = REQUIRED - set(frame.columns)
    if missing:
        raise ValueError(
            f"lacks the columns {', '.join(sorted(missing))}: damaged, or of an older version"
        )
    numbers = frame.drop(columns="starts")
    words = [name for name in numbers if not pd.api.types.is_numeric_dtype(numbers[name])]
    if words:
        raise ValueError(f"{', '.join(words)}: not all of it numbers")
    for name in NEVER_EMPTY:
        bad = int((~np.isfinite(frame[name])).sum())
        if bad:
            raise ValueError(f"{name}: {bad} of {len(frame)} entries not finite")
    due = groups_due(path.parent.name.split("-")[0], config["evaluation"])
    seeds = {group: sorted(rows["seed"]) for group, rows in frame.groupby("starts")}
    if seeds != {group: list(range(config["seeds"])) for group in due}:
        raise ValueError(
            f"{len(frame)} rows; due are seeds 0 to {config['seeds'] - 1}, once for each of "
            f"{', '.join(sorted(due))}"
        )
    check_curves(path.with_suffix(".curves.csv"), config)
    return frame, info


def read_description(path: Path) -> dict[str, Any]:
    """A cell's .json; `ValueError` where it is not there, not JSON or not whole."""
    try:
        info = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise ValueError(f"no {path.name}: it is being written, or was interrupted") from error
    except ValueError as error:
        raise ValueError(f"{path.name} is not JSON: {error}") from error
    if not isinstance(info, dict) or not isinstance(info.get("config", {}), dict):
        raise ValueError(f"{path.name} does not hold what was written")
    missing = [name for name in PROVENANCE if name not in info]
    missing += [f"config.{name}" for name in IN_CONFIG if name not in info.get("config", {})]
    if missing:
        raise ValueError(f"{path.name} lacks {', '.join(missing)}")
    return info


def read_table(path: Path) -> pd.DataFrame:
    """A .csv; `ValueError` where it is not there, is cut off or has rows of different length."""
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise ValueError(f"no {path.name}") from error
    lengths = {line.count(b",") for line in content.splitlines()}
    if not content.endswith(b"\n") or len(lengths) != 1:
        raise ValueError(f"{path.name} is cut off, or its rows differ in length")
    return pd.read_csv(io.BytesIO(content))


def check_curves(path: Path, config: dict[str, Any]) -> None:
    """`ValueError` unless what trains online has its curves, a row a seed and update."""
    settings = config.get("config", {})
    if "gradient_steps" not in settings:  # it does not train online
        return
    due = config["seeds"] * settings["num_updates"]
    if len(read_table(path)) != due:
        raise ValueError(f"{path.name} has not the {due} rows that are due")


def groups_due(scenario: str, evaluation) -> set[str]:
    """Groups of starts that a cell has rows of, by the description of its evaluation."""
    found = set()
    for name, starts, *_ in evaluation[0]:
        some, all_of_them = has_doomed(scenario, starts)
        found |= {f"{name}_doomed"} if some else set()
        found |= set() if all_of_them else {name}
    return found


@functools.cache
def has_doomed(scenario: str, starts: str) -> tuple[bool, bool]:
    """Whether some, and all, of a set of starts are doomed."""
    doomed = evaluate.starts(scenario, starts).doomed
    return bool(doomed.any()), bool(doomed.all())


def with_provenance(frame: pd.DataFrame, path: Path, info: dict[str, Any]) -> pd.DataFrame:
    """Rows of a cell with what it is and how it was made."""
    scenario, dataset = path.parent.name.split("-")
    method, variant = path.stem.split("@")
    low, high = info.get("data_returns", (np.nan, np.nan))
    return frame.assign(
        scenario=scenario,
        dataset=dataset,
        method=method,
        variant=variant,
        hash=info["hash"],
        data_low=low,
        data_high=high,
        hardware=info["hardware"],
        jax=info["versions"]["jax"],
        commit=info["commit"],
        date=info["date"],
    )


def mixed_versions(cells: dict[str, dict[str, Any]]) -> list[str]:
    """A line for everything that decides numbers and is not the same in all cells, by name."""
    found: dict[str, dict[str, list[str]]] = {}
    for name, info in cells.items():
        for what, version in versions_of(info).items():
            found.setdefault(what, {}).setdefault(version, []).append(name)
    lines = []
    for what, versions in sorted(found.items()):
        if len(versions) > 1:
            order = sorted(versions, key=lambda version: (-len(versions[version]), version))
            shown = [f"{version} ({described(versions[version], cells)})" for version in order]
            lines.append(f"{what}: {'; '.join(shown)}")
    return lines


def versions_of(info: dict[str, Any]) -> dict[str, str]:
    """What has to be equal for cells to be compared: of all of them, and of those of a method."""
    config = info["config"]
    found = {"shared code": config["source"], **config["versions"]}
    found |= {name: config[name] for name in ("constants",) if name in config}
    if "precision" in config:
        found["precision"] = config["precision"].partition(" with ")[0]
    if "algorithm_source" in config:
        # What is not trained runs on a CPU everywhere, with products in full precision.
        products = config.get("precision", "float32")
        found |= {"backend": config["backend"], "products of matrices": products}
        # A layer's or fine-tuner's files are its own and those of the policy that it begins with.
        base = config["config"].get("base")
        around = f" around {base}" if base else ""
        found[f"code of {config['method']}{around}"] = config["algorithm_source"]
    return found


def described(names: list[str], cells: dict[str, dict[str, Any]]) -> str:
    """How many cells, some of them by name, and their commits."""
    commits = sorted({cells[name]["commit"] for name in names})
    some = ", ".join(names[:NAMED]) + (", ..." if len(names) > NAMED else "")
    return f"{len(names)} cells: {some}; commit {', '.join(commits)}"


def run_command(folder: Path) -> str:
    """The command that writes into <out>/<preset>/<suite>."""
    folder = Path(folder).absolute() if len(Path(folder).parts) < 3 else Path(folder)
    out, preset = folder.parent.parent, folder.parent.name
    return f"python -m benchmarks.run --preset {preset} --suite {folder.name} --out {out}"
