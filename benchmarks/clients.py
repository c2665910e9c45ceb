"""Other people's code, as it comes, on our environments: what it learns of the start-up.

    make clients          (or python -m benchmarks.clients, once .venv-clients is there)

`clients_sb3.py` (Stable-Baselines3's SAC through Gymnasium) and `clients_rejax.py` (rejax's PPO and
SAC through JAX) are run by the Python of a virtual environment of their own; this collects what
they print, and writes `clients.json` and `clients.md`. `--only` makes one of them anew and keeps
the other. Everything runs on the CPU.
"""

import dataclasses
import json
import os
import subprocess
import time
from pathlib import Path
from typing import Any, Literal

import jax

if __name__ == "__main__":  # before polycstr_jax starts the backend
    jax.config.update("jax_platforms", "cpu")

import numpy as np
import pandas as pd
import rich
import tyro

from benchmarks.peers import peer_versions
from benchmarks.plan import REPOSITORY
from benchmarks.run import software
from benchmarks.tables import markdown_table
from polycstr_jax import evaluate
from polycstr_jax.data import check_writable, write_atomically

MODULES = {"sb3": "benchmarks.clients_sb3", "rejax": "benchmarks.clients_rejax"}
PACKAGES = ("stable-baselines3", "rejax")
SETTINGS = {
    "JAX_PLATFORMS": "cpu",
    "OMP_NUM_THREADS": "1",
}  # small networks: PyTorch's threads wait
COLUMNS = {
    "client": "{}",
    "algorithm": "{}",
    "policy": "{}",
    "seeds": "{}",
    "mean return": "{:,.1f}",
    "worst seed": "{:,.1f}",
    "median return": "{:,.1f}",
    "cost": "{:.2f}",
    "P(violation)": "{:.3f}",
    "P(runaway)": "{:.3f}",
}


@dataclasses.dataclass(frozen=True)
class Args:
    """Train Stable-Baselines3's and rejax's agents on our start-up; minutes on 2 cores."""

    only: Literal["sb3", "rejax"] | None = None  # what there is of the other is kept
    out: Path = Path("results/clients")  # folder
    peer_python: Path = Path(".venv-clients/bin/python")  # made by `make clients`


def check(args: Args) -> None:
    """`SystemExit` naming the argument that makes no sense."""
    if not args.peer_python.exists():
        raise SystemExit(
            f"peer-python = {args.peer_python} does not exist; `make clients` makes it, or "
            "name a Python that has Stable-Baselines3, rejax and what polycstr-jax needs."
        )
    peer_versions(args.peer_python, PACKAGES, "clients")
    try:
        check_writable(args.out)
    except OSError as error:
        raise SystemExit(f"out = {args.out}: {error}") from error


def run_client(peer_python: Path, module: str, words=()) -> dict[str, Any]:
    """What a script prints with `--json`, and its seconds; `SystemExit` with its errors if it
    fails."""
    command = [peer_python.absolute(), "-m", module, "--json", *words]
    started = time.perf_counter()
    done = subprocess.run(
        command,
        cwd=REPOSITORY,
        env=os.environ | SETTINGS,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"{module} failed:\n{done.stderr[-3_000:]}")
    found = json.loads(done.stdout.splitlines()[-1])
    return found | {"wall_clock": time.perf_counter() - started}


def table_rows(part: dict[str, Any]) -> list[dict[str, Any]]:
    """A client's rows, averaged over seeds."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in part["rows"]:
        groups.setdefault((row["algorithm"], row["policy"]), []).append(row)
    rows = []
    for (algorithm, policy), seeds in groups.items():
        mean = {
            name: float(np.mean([row[name] for row in seeds]))
            for name in ("mean_return", "median_return", "cost", "violated", "runaway")
        }
        rows.append(
            {
                "client": part["client"],
                "algorithm": algorithm,
                "policy": policy,
                "seeds": len(seeds),
                "mean return": mean["mean_return"],
                "worst seed": min(row["mean_return"] for row in seeds),
                "median return": mean["median_return"],
                "cost": mean["cost"],
                "P(violation)": mean["violated"],
                "P(runaway)": mean["runaway"],
            }
        )
    return rows


def markdown(found: dict[str, Any]) -> str:
    """The tables of what there is of `MODULES`."""
    parts = [found[name] for name in MODULES if name in found]
    seconds = pd.DataFrame(
        [
            {
                "client": part["client"],
                "algorithm": row["algorithm"],
                "seeds at once": row["seeds"],
                "training [s]": row["training"],
                "compilation [s]": row.get("compilation", float("nan")),
            }
            for part in parts
            for row in part["seconds"]
        ]
    )
    known = evaluate.references("startup", "nominal")
    warned = [line for part in parts for line in part.get("check_env", [])]
    made = [
        f"- {part['client']}: `{part['provenance']['command']}`, commit "
        f"{part['provenance']['commit']}, {part['provenance']['date']}; "
        f"{part['provenance']['hardware']}; {part['wall_clock']:.0f} s in all. "
        + ", ".join(f"{name} {number}" for name, number in part["versions"].items())
        + "."
        for part in parts
    ]
    text = [
        "# Other people's code on the start-up",
        "\n".join(made),
        "Nominal starts, 200 intervals, raw rewards. Means over seeds; the median is over a seed's "
        "episodes. Cost: intervals above 356 K in an episode. Stable-Baselines3's policies act "
        "without noise, rejax's draw their actions. For comparison, means from the same starts: "
        f"the open-loop step to the steady inputs {known.step.mean():,.1f}, the optimum that keeps "
        f"the limit {known.oracle.mean():,.1f}.",
        markdown_table(pd.DataFrame([row for part in parts for row in table_rows(part)]), COLUMNS),
        "Stable-Baselines3's check_env: " + ("; ".join(warned) or "no warning") + ".",
        "## Wall-clock times",
        "rejax's training includes its own evaluations, 128 episodes of each seed before and "
        "after.",
        markdown_table(
            seconds,
            dict.fromkeys(seconds.columns, "{}")
            | {"training [s]": "{:.1f}", "compilation [s]": "{:.1f}"},
        ),
    ]
    return "\n\n".join(text) + "\n"


def main(args: Args) -> None:
    check(args)
    path = args.out / "clients.json"
    found = json.loads(path.read_text()) if args.only and path.exists() else {}
    for name in [args.only] if args.only else MODULES:
        rich.print(f"{name}: minutes")
        made = software() | {"command": f"python -m benchmarks.clients --only {name}"}
        found[name] = run_client(args.peer_python, MODULES[name]) | {"provenance": made}
    text = json.dumps(found, indent=2, sort_keys=True, allow_nan=False) + "\n"
    write_atomically(path, lambda file: file.write(text.encode()))
    write_atomically(args.out / "clients.md", lambda file: file.write(markdown(found).encode()))
    rich.print(f"results: {args.out / 'clients.md'}")


if __name__ == "__main__":
    main(tyro.cli(Args))
