"""Sections of measurements: each a function that returns rows, kept with its own provenance; and
how a section evaluates seeds."""

import dataclasses
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pandas as pd
import rich

from benchmarks.plan import EVALUATION_KEY, REPOSITORY
from benchmarks.run import software
from benchmarks.tables import markdown_table
from benchmarks.worker import ENV
from polycstr_jax import evaluate
from polycstr_jax.data import check_writable, write_atomically
from polycstr_jax.env import EnvParams, scenario_params


def check_folders(*folders: Path) -> None:
    """`SystemExit` naming a folder that cannot be written to."""
    for folder in folders:
        try:
            check_writable(folder)
        except OSError as error:
            raise SystemExit(str(error)) from error


def on_starts(algorithm, states, scenario: str, starts, params: EnvParams | None = None):
    """Metrics (S, E) of S trained seeds from E starts; `params`: of another plant than the
    scenario's."""
    return jax.device_get(
        evaluate.evaluate_policies(
            ENV,
            scenario_params(scenario) if params is None else params,
            algorithm.policy,
            states,
            evaluate.start_states(starts),
            evaluate.score_limits(scenario),
            jax.random.key(EVALUATION_KEY),
        )
    )


def gap_of(metrics: evaluate.EpisodeMetrics, reference: evaluate.References) -> np.ndarray:
    """Gap closed (S,), mean over starts."""
    return np.nanmean(evaluate.gap_closed(metrics.episode_return, reference), axis=1)


def measure(path: Path, title: str, sections: dict[str, Callable], only, args) -> dict[str, Any]:
    """Run the sections of `only`, keep the others of the file, and write it, .json and .md.

    A section is `(args) -> rows`; the file is written after each. Returns all that it holds.
    """
    jax.config.update("jax_compilation_cache_dir", str(REPOSITORY / ".cache" / "jax"))
    found = json.loads(path.read_text()) if path.exists() else {}
    for name, section in sections.items():
        if name not in only:
            continue
        started, made = time.perf_counter(), software()
        rows = section(args)
        made["seconds"] = time.perf_counter() - started
        made["args"] = settings(args)
        rows = [{k: None if v != v else v for k, v in row.items()} for row in rows]
        found[name] = {"made": made, "rows": rows}
        rich.print(f"{name}: {made['seconds']:.0f} s")
        text = json.dumps(found, indent=1, allow_nan=False) + "\n"
        write_atomically(path, lambda file, text=text: file.write(text.encode()))
        jax.clear_caches()
    text = markdown(title, found, sections)
    write_atomically(path.with_suffix(".md"), lambda file: file.write(text.encode()))
    rich.print(f"written: {path.parent}")
    return found


def settings(args) -> dict[str, Any]:
    """The arguments that decide what is measured: no folders, nor which sections."""
    fields = {field.name: getattr(args, field.name) for field in dataclasses.fields(args)}
    return {k: v for k, v in fields.items() if k != "only" and not isinstance(v, Path)}


def markdown(title: str, found: dict[str, Any], sections) -> str:
    """All sections as tables, each with how it was made."""
    parts = [f"# {title}"]
    for name in sections:
        if name not in found:
            continue
        made, rows = found[name]["made"], pd.DataFrame(found[name]["rows"])
        columns = {
            c: "{:.4g}" if pd.api.types.is_float_dtype(rows[c]) else "{}" for c in rows.columns
        }
        text = f"{made['hardware']}; jax {made['versions']['jax']}; commit {made['commit']}; "
        text += f"{made['date']}; {made['seconds']:.0f} s."
        parts += [f"## {name}", text, markdown_table(rows, columns)]
    return "\n\n".join(parts) + "\n"
