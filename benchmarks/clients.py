"""Other people's code, as it comes, on our environments: what it learns of the start-up.

    make clients          (or python -m benchmarks.clients, once .venv-clients is there)

`clients_sb3.py` (Stable-Baselines3's SAC through Gymnasium) and `clients_rejax.py` (rejax's PPO and
SAC through JAX) are run by the Python of a virtual environment of their own; this collects what
they print, and writes `clients.json` and `clients.md`. Everything runs on the CPU.
"""

import dataclasses
import json
import os
import subprocess
import time
from pathlib import Path
from typing import Any

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
from polycstr_jax.data import check_writable, write_atomically

MODULES = ("benchmarks.clients_sb3", "benchmarks.clients_rejax")
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

    out: Path = Path("results/clients")  # folder
    client_python: Path = Path(".venv-clients/bin/python")  # made by `make clients`


def check(args: Args) -> None:
    """`SystemExit` naming the argument that makes no sense."""
    if not args.client_python.exists():
        raise SystemExit(
            f"client-python = {args.client_python} does not exist; `make clients` makes it, or "
            "name a Python that has Stable-Baselines3, rejax and what polycstr-jax needs."
        )
    peer_versions(args.client_python, PACKAGES, "clients")
    try:
        check_writable(args.out)
    except OSError as error:
        raise SystemExit(f"out = {args.out}: {error}") from error


def run_client(client_python: Path, module: str, words=()) -> dict[str, Any]:
    """What a script prints with `--json`, and its seconds; `SystemExit` with its errors if it
    fails."""
    command = [client_python.absolute(), "-m", module, "--json", *words]
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
    """The tables of a run."""
    made = found["provenance"]
    versions = {
        name: number for part in found["clients"] for name, number in part["versions"].items()
    }
    seconds = pd.DataFrame(
        [
            {
                "client": part["client"],
                "algorithm": row["algorithm"],
                "seeds at once": row["seeds"],
                "training [s]": row["training"],
                "compilation [s]": row.get("compilation", float("nan")),
            }
            for part in found["clients"]
            for row in part["seconds"]
        ]
    )
    warned = [line for part in found["clients"] for line in part.get("check_env", [])]
    parts = [
        "# Other people's code on the start-up",
        f"`{made['command']}`, commit {made['commit']}, {made['date']}; {made['hardware']}. "
        + ", ".join(f"{name} {number}" for name, number in versions.items())
        + ".",
        "The nominal starts, 200 intervals, raw rewards. Means over seeds; the median is over a "
        "seed's episodes. Cost: intervals above 356 K in an episode. Stable-Baselines3's policies "
        "act without noise, rejax's draw their actions.",
        markdown_table(
            pd.DataFrame([row for part in found["clients"] for row in table_rows(part)]), COLUMNS
        ),
        "Stable-Baselines3's check_env: " + ("; ".join(warned) or "no warning") + ".",
        "## Wall-clock times",
        "rejax's include its own evaluations, 128 episodes of each seed before and after.",
        markdown_table(
            seconds,
            dict.fromkeys(seconds.columns, "{}")
            | {"training [s]": "{:.1f}", "compilation [s]": "{:.1f}"},
        ),
    ]
    return "\n\n".join(parts) + "\n"


def main(args: Args) -> None:
    check(args)
    provenance = software() | {"command": "python -m benchmarks.clients"}
    parts = []
    for module in MODULES:
        rich.print(f"{module}: minutes")
        parts.append(run_client(args.client_python, module))
    found = {"provenance": provenance, "clients": parts}
    text = json.dumps(found, indent=2, sort_keys=True, allow_nan=False) + "\n"
    write_atomically(args.out / "clients.json", lambda file: file.write(text.encode()))
    write_atomically(args.out / "clients.md", lambda file: file.write(markdown(found).encode()))
    rich.print(f"results: {args.out / 'clients.md'}")


if __name__ == "__main__":
    main(tyro.cli(Args))
