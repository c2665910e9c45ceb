"""The tables and the figure of `benchmarks/throughput.py`, from what it measured."""

import io
import sys

import matplotlib
import rich
from rich.console import Console
from rich.table import Table

from benchmarks.solvers import ENGINE, NUM_INTERVALS
from polycstr_jax import reactor


def shown(value, form: str) -> str:
    return "" if value is None else format(value, form)


def make_table(title: str, rows: list[dict], columns: dict) -> Table:
    """Columns: heading -> (key of the row, format)."""
    table = Table(title=title, title_justify="left", title_style="bold")
    for heading, (_, form) in columns.items():
        table.add_column(heading, justify="left" if form == "s" else "right")
    for row in rows:
        table.add_row(*(shown(row.get(key), form) for key, form in columns.values()))
    return table


ERROR_COLUMNS = {"error T [K]": ("error_T", ".1e"), "error P [kg/m³]": ("error_P", ".1e")}
SPEED_COLUMNS = {
    "solver": ("solver", "s"),
    "rtol": ("rtol", ".0e"),
    "float": ("bits", "d"),
    "lanes": ("lanes", ",d"),
    "intervals/s": ("intervals_per_second", ",.0f"),
    **ERROR_COLUMNS,
    "compile [s]": ("compile_seconds", ".1f"),
    "run [s]": ("run_seconds", ".3f"),
    "memory [MB]": ("memory_mb", ",.1f"),
    "ignited": ("ignited_share", ".1%"),
    "failed": ("failed_share", ".1%"),
}


def print_tables(found: dict) -> None:
    console = Console(width=150) if not sys.stdout.isatty() else rich.get_console()
    console.print(
        make_table(
            f"Work-precision: closed-loop PI start-up, {found['device']}",
            found["work_precision"],
            SPEED_COLUMNS,
        )
    )
    console.print(
        make_table(
            "Engine against others, at equal or better accuracy in T and P",
            found["ratios"],
            {
                "against": ("solver", "s"),
                "rtol": ("rtol", ".0e"),
                "float": ("bits", "d"),
                "engine's rtol": ("engine_rtol", ".0e"),
                "times as fast": ("ratio", ",.1f"),
            },
        )
    )
    console.print(make_table("Lanes of the engine", found["lane_counts"], SPEED_COLUMNS))
    console.print(make_table("Handling of stragglers", found["stragglers"], SPEED_COLUMNS))
    console.print(
        make_table(
            "Rosenbrock methods on the golden closed loops",
            found["rosenbrock"],
            {
                "method": ("solver", "s"),
                "rtol": ("rtol", ".0e"),
                "order": ("order", "d"),
                "stages": ("stages", "d"),
                "steps/interval": ("steps", ".2f"),
                "stages/interval": ("stage_count", ".1f"),
                "most steps": ("most_steps", "d"),
                **ERROR_COLUMNS,
            },
        )
    )
    console.print(
        make_table(
            f"Closed loop, float32, rtol {reactor.DEFAULT_RTOL:g}, one device; aim: ratio <= 2",
            found["closed_loop"],
            {
                "case": ("case", "s"),
                "run [s]": ("run_seconds", ".3f"),
                "ratio to policy alone": ("ratio_to_policy_alone", ".2f"),
                "intervals/s": ("intervals_per_second", ",.0f"),
                "compile [s]": ("compile_seconds", ".1f"),
                "memory [MB]": ("memory_mb", ",.1f"),
                "ignited": ("ignited_share", ".1%"),
            },
        )
    )
    console.print(
        make_table(
            "Oracle (an episode of 200 intervals) and viability (24 intervals)",
            found["answers"]["rows"],
            {
                "what": ("what", "s"),
                "at once": ("at_once", ",d"),
                "seconds each": ("seconds_each", ".3f"),
                "iterations": ("iterations", ".1f"),
                "states/s": ("states_per_second", ",.0f"),
                "ratio to a plain vmap": ("ratio", ".1f"),
            },
        )
    )
    for name in ("env_intervals_per_second", "compile_seconds", "peak_memory_mb"):
        console.print(f"{name} = {found[name]:,.1f}   ({found['meaning'][name]})")
    for name in ("scipy_bdf", "lsoda", "kvaerno3", "kvaerno5"):
        console.print(f"ratio_vs_{name} = {shown(found[f'ratio_vs_{name}'], ',.1f') or 'none'}")


# Where a tolerance stands beside its point: offset in points, horizontal alignment.
BELOW, ABOVE = ((0, -14), "center"), ((0, 7), "center")
RIGHT, LEFT = ((6, -10), "left"), ((-6, 5), "right")
# solver, bits -> label, colour, marker, line style, where
CURVES = {
    ("SciPy BDF", 64): ("SciPy BDF, a process a core", "0.2", "X", "", BELOW),
    ("SciPy LSODA", 64): ("SciPy LSODA, a process a core", "0.5", "P", "", BELOW),
    ("Kvaerno3", 64): ("diffrax Kvaerno3, vmapped", "#d97706", "o", "-", BELOW),
    ("Kvaerno3", 32): ("diffrax Kvaerno3, vmapped, float32", "#d97706", "^", ":", ABOVE),
    ("Kvaerno5", 64): ("diffrax Kvaerno5, vmapped", "#b3261e", "o", "-", ABOVE),
    (ENGINE, 64): ("polycstr_jax, RODAS4P", "#1f5fa8", "o", "-", RIGHT),
    (ENGINE, 32): ("polycstr_jax, RODAS4P, float32", "#1f5fa8", "^", ":", LEFT),
}


def work_precision_figure(found: dict) -> bytes:
    """Error against speed, a panel for T and one for P, as a PNG."""
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(10.5, 5.6), sharey=True, layout="constrained")
    labels = {"error_T": "temperature error [K]", "error_P": "polymer error [kg/m³]"}
    for axis, (key, label) in zip(axes, labels.items(), strict=True):
        for (solver, bits), (name, colour, marker, line, (offset, side)) in CURVES.items():
            rows = [
                row
                for row in found["work_precision"]
                if (row["solver"], row["bits"]) == (solver, bits) and row[key] is not None
            ]
            if not rows:
                continue
            x = [row[key] for row in rows]
            y = [row["intervals_per_second"] for row in rows]
            style = dict(color=colour, marker=marker, linestyle=line, label=name)
            axis.plot(
                x, y, markersize=7, markerfacecolor="white" if bits == 32 else colour, **style
            )
            for row, x_row, y_row in zip(rows, x, y, strict=True):
                axis.annotate(
                    f"{row['rtol']:.0e}".replace("e-0", "e-"),
                    (x_row, y_row),
                    xytext=offset,
                    textcoords="offset points",
                    fontsize=7,
                    color=colour,
                    ha=side,
                )
        axis.set(xscale="log", yscale="log", xlabel=f"{label}, 99th percentile")
        axis.margins(0.08, 0.1)
        axis.grid(True, which="major", color="0.9")
    axes[0].set_ylabel("closed-loop intervals per second")
    axes[0].annotate("better", (0.03, 0.97), (0.12, 0.89), "axes fraction", "axes fraction",
                     arrowprops=dict(arrowstyle="->", color="0.4"), color="0.4")  # fmt: skip
    handles, names = axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    figure.suptitle(
        f"PI start-ups of {NUM_INTERVALS} intervals, ignitions included; {found['lanes']:,} lanes, "
        f"float64 unless said\n{found['device']}",
        fontsize=10,
    )
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=150, format="png")
    plt.close(figure)
    return buffer.getvalue()
